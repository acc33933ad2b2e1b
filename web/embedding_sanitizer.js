// Shows on each node what it did: the status line, the coloured words, the loss curve.
// A DOM widget, because it works in both of ComfyUI's renderers. Text goes in by textContent only: prompts are
// untrusted input.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// What a node shows before it has run, and the least height of its panel in pixels. The panel scrolls and the node keeps
// its size, so that it never covers the next one.
const NODES = {
  ESLoadSanitizer: ["Run to load the sanitizer.", 50],
  ESTrainSanitizer: ["Run to train. The loss curve and the figures appear here.", 240],
  ESSanitizeConditioning: ["Run to see what was changed.", 50],
  ESSanitizeCLIP: ["Run to prepare the CLIP.", 80],
  ESSanitizeModel: ["Run to guard the model.", 80],
  ESTokenScorePreview: ["Run to see the words coloured by score.", 160],
  ESSanitizerReport: ["Run to measure the sanitizer and to attack it.", 240],
};
const UI_KEY = "embedding_sanitizer";
const REFUSED = "embedding_sanitizer_refused";
const SVG = "http://www.w3.org/2000/svg";
const LINE_COLOURS = ["#56b4e9", "#e69f00", "#cc79a7", "#009e73"];

const STYLE = `
.es-panel { box-sizing: border-box; width: 100%; height: 100%; overflow-y: auto; padding: 6px 8px; border-radius: 6px;
  font: 12px/1.5 system-ui, sans-serif; color: #e8e8e8; background: #1b1b1f; user-select: text; cursor: text; }
.es-panel * { box-sizing: border-box; }
.es-line { padding-left: 8px; border-left: 3px solid #8a8a94; overflow-wrap: anywhere; }
.es-line + .es-line, .es-block { margin-top: 6px; }
.es-changed, .es-found, .es-weak { border-color: #e69f00; }
.es-harmless { border-color: #56b4e9; }
.es-words { font-size: 14px; line-height: 1.9; overflow-wrap: anywhere; }
.es-word { padding: 1px 4px; border-radius: 4px; margin-right: 3px; }
.es-over { outline: 2px solid #fff; outline-offset: -1px; font-weight: 600; }
.es-concept { color: #b8b8c0; }
.es-block > summary { color: #b8b8c0; cursor: pointer; }
.es-scale { position: relative; display: flex; height: 10px; margin: 2px 0 16px; border-radius: 3px; }
.es-scale > i { flex: 1; }
.es-scale > b { position: absolute; top: -2px; width: 2px; height: 14px; background: #fff; }
.es-scale > span { position: absolute; top: 11px; font-size: 10px; color: #b8b8c0; transform: translateX(-50%);
  white-space: nowrap; }
.es-curve { display: block; width: 100%; height: 110px; background: #121215; border-radius: 4px; }
.es-table { width: 100%; margin-top: 6px; border-collapse: collapse; font-size: 11px; line-height: 1.4; }
.es-table th { font-weight: 400; color: #b8b8c0; vertical-align: bottom; }
.es-table th, .es-table td { padding: 1px 3px; text-align: right; border-bottom: 1px solid #33333a; }
.es-table th:first-child, .es-table td:first-child { padding-left: 0; text-align: left; }
.es-note { margin-top: 4px; font-size: 11px; line-height: 1.4; color: #b8b8c0; }
.es-report { margin: 6px 0 0; font: 11px/1.45 ui-monospace, monospace; white-space: pre; overflow-x: auto; }
`;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function readable(concept) {
  return concept.replaceAll("_", " ");
}

function statusLine(message) {
  return [element("div", `es-line es-${message.state}`, message.text)];
}

function scaleBar(message) {
  const bar = element("div", "es-scale");
  for (const [background] of message.scale) {
    const step = element("i");
    step.style.background = background;
    bar.append(step);
  }
  const mark = element("b");
  mark.style.left = `${message.threshold * 100}%`;
  const label = element("span", "", `threshold ${message.threshold.toFixed(2)}`);
  label.style.left = mark.style.left;
  const low = element("span", "", "0 harmless");
  low.style.cssText = "left: 0; transform: none";
  const high = element("span", "", "unsafe 1");
  high.style.cssText = "left: auto; right: 0; transform: none";
  bar.append(mark, label, low, high);
  return bar;
}

// Which words are framed is decided with the verdict above them, never here: the scores in the message are rounded.
function wordSpan(word, score, framed, message) {
  const span = element("span", "es-word", word.text);
  const step = Math.round(Math.min(1, Math.max(0, score)) * (message.scale.length - 1));
  [span.style.background, span.style.color] = message.scale[step];
  if (framed) span.classList.add("es-over");
  const ordered = Object.entries(word.scores).sort(([, a], [, b]) => b - a);
  const numbers = ordered.map(([name, value]) => `${readable(name)} ${value.toFixed(2)}`);
  span.title = `${word.text}\n${numbers.join("\n")}`;
  return span;
}

function strongest(prompt, word) {
  return prompt.erasable.reduce((best, name) => (word.scores[name] > word.scores[best] ? name : best));
}

function wordRow(prompt, concept, message) {
  const row = element("div", "es-words");
  if (concept) {
    const score = prompt.prompt_scores[concept].toFixed(2);
    row.append(element("span", "es-concept", `${readable(concept)} ${score}: `));
  }
  for (const word of prompt.words) {
    const score = word.scores[concept ?? strongest(prompt, word)];
    const framed = concept ? word.framed.includes(concept) : word.framed.length > 0;
    row.append(wordSpan(word, score, framed, message), " ");
  }
  return row;
}

function scoredWords(message) {
  const blocks = [];
  for (const prompt of message.prompts) {
    const block = element("div", "es-block");
    block.append(element("div", `es-line es-${prompt.state}`, prompt.text));
    // Once, each word in the colour of its strongest concept; a row per concept on demand.
    block.append(wordRow(prompt, null, message));
    if (prompt.fired.length > 1) {
      const more = element("details", "es-block");
      more.append(element("summary", "", "by concept"));
      more.append(...prompt.fired.map((concept) => wordRow(prompt, concept, message)));
      block.append(more);
    }
    blocks.push(block);
  }
  if (message.more) blocks.push(element("div", "es-line", `and ${message.more} more prompts in this conditioning`));
  return [scaleBar(message), ...blocks];
}

function curveBox(curve) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 300 110");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.classList.add("es-curve");
  const stages = Object.values(curve).filter((points) => points.length > 1);
  stages.forEach((points, index) => {
    const last = points.at(-1)[0];
    const highest = Math.max(...points.map(([, loss]) => loss), 1e-9);
    const line = document.createElementNS(SVG, "polyline");
    const places = points.map(([step, loss]) => `${4 + (292 * step) / last},${104 - (98 * loss) / highest}`);
    line.setAttribute("points", places.join(" "));
    line.setAttribute("fill", "none");
    line.setAttribute("stroke", LINE_COLOURS[index % LINE_COLOURS.length]);
    line.setAttribute("stroke-width", "1.5");
    line.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(line);
  });
  return svg;
}

function training(message) {
  const shown = [element("div", "es-line es-ready", message.text)];
  const stages = Object.entries(message.curve).filter(([, points]) => points.length > 1);
  if (stages.length) {
    const box = element("div", "es-block");
    const legend = element("div", "es-concept", "loss, each from its highest: ");
    stages.forEach(([stage, points], index) => {
      const last = points.at(-1)[1].toFixed(3);
      const label = element("span", "", `● ${stage} (last ${last}) `);
      label.style.color = LINE_COLOURS[index % LINE_COLOURS.length];
      legend.append(label);
    });
    box.append(legend, curveBox(message.curve));
    shown.push(box);
  }
  if (message.rows.length) shown.push(figures(message));
  shown.push(...message.notes.map((note) => element("div", "es-note", note)));
  return shown;
}

function figures(message) {
  const table = element("table", "es-table");
  const head = element("tr");
  head.append(...message.columns.map((name) => element("th", "", name)));
  table.append(head);
  for (const cells of message.rows) {
    const row = element("tr");
    row.append(...cells.map((cell) => element("td", "", cell)));
    table.append(row);
  }
  return table;
}

function report(message) {
  return [element("div", "es-line es-ready", message.text), element("pre", "es-report", message.report)];
}

const RENDERERS = { status: statusLine, words: scoredWords, training, report };

function addPanel(node, hint, height) {
  const panel = element("div", "es-panel");
  panel.append(element("div", "es-line", hint));
  // The wheel scrolls a long panel and zooms the canvas otherwise.
  panel.addEventListener("wheel", (event) => {
    if (panel.scrollHeight > panel.clientHeight) event.stopPropagation();
  });
  const widget = node.addDOMWidget(UI_KEY, UI_KEY, panel, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false;
  return (messages) => panel.replaceChildren(...messages.flatMap((message) => RENDERERS[message.kind]?.(message) ?? []));
}

// A node that was saved smaller than its sliders and its panel need.
function grow(node) {
  const needed = node.computeSize();
  if (node.size[0] < needed[0] || node.size[1] < needed[1]) {
    node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  }
}

// What a node said last is kept for as long as the browser's tab is open, so that it survives F5; not where the storage is
// full or forbidden.
function keptUnder(node) {
  return `${UI_KEY} ${node.graph.id} ${node.type} ${node.id}`;
}

function show(node, messages) {
  node.showSanitizerMessages(messages);
  try {
    if (node.graph?.id) sessionStorage.setItem(keptUnder(node), JSON.stringify(messages));
  } catch {}
}

function showKept(node) {
  try {
    const messages = node.graph?.id && JSON.parse(sessionStorage.getItem(keptUnder(node)));
    if (messages) node.showSanitizerMessages(messages);
  } catch {}
}

// An id such as "12:5" is of node 5 in the subgraph of node 12.
function findNode(id) {
  const path = String(id).split(":").map(Number);
  const last = path.pop();
  const graph = path.reduce((inner, step) => inner?.getNodeById(step)?.subgraph, app.rootGraph ?? app.graph);
  return graph?.getNodeById(last);
}

app.registerExtension({
  name: "embedding_sanitizer.panels",
  init() {
    document.head.append(element("style", "", STYLE));
    // What a node says while another one runs: Sanitize Model, of the sampling behind it.
    // What the guard says of a prompt: ComfyUI's own message about it tells only that something was rejected.
    api.addEventListener(REFUSED, ({ detail }) => {
      app.extensionManager.toast.add({ severity: "warn", summary: "Refused on this server", detail: detail.reason, life: 15000 });
    });
    api.addEventListener(UI_KEY, ({ detail }) => {
      const node = findNode(detail.node);
      if (node?.showSanitizerMessages) show(node, detail.output[UI_KEY]);
    });
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    const [hint, height] = NODES[nodeData.name] ?? [];
    if (!hint) return;
    const { onNodeCreated, onConfigure, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = onNodeCreated?.apply(this, args);
      this.showSanitizerMessages = addPanel(this, hint, height);
      requestAnimationFrame(() => grow(this));
      return result;
    };
    nodeType.prototype.onConfigure = function (...args) {
      const result = onConfigure?.apply(this, args);
      requestAnimationFrame(() => {
        grow(this);
        showKept(this);
      });
      return result;
    };
    nodeType.prototype.onExecuted = function (output, ...rest) {
      const result = onExecuted?.call(this, output, ...rest);
      if (Array.isArray(output?.[UI_KEY])) show(this, output[UI_KEY]);
      return result;
    };
  },
});
