// Shows on each node what it did: the status line, the coloured words, the loss curve.
// A DOM widget, because it works in both of ComfyUI's renderers. Text goes in by textContent only: prompts are
// untrusted input.
import { app } from "../../scripts/app.js";

const NODES = {
  ESLoadSanitizer: "Run to load the sanitizer.",
  ESTrainSanitizer: "Run to train. The loss curve and the figures appear here.",
  ESSanitizeConditioning: "Run to see what was changed.",
  ESSanitizeCLIP: "Run to prepare the CLIP.",
  ESTokenScorePreview: "Run to see the words coloured by score.",
  ESSanitizerReport: "Run to measure the sanitizer and to attack it.",
};
const UI_KEY = "embedding_sanitizer";
const MAX_HEIGHT = 420;
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
  const numbers = Object.entries(word.scores).map(([name, value]) => `${readable(name)} ${value.toFixed(2)}`);
  span.title = `${word.text}\n${numbers.join("\n")}`;
  return span;
}

function wordRow(prompt, concept, message) {
  const row = element("div", "es-words");
  if (concept) {
    const score = prompt.prompt_scores[concept].toFixed(2);
    row.append(element("span", "es-concept", `${readable(concept)} ${score}: `));
  }
  for (const word of prompt.words) {
    const score = concept ? word.scores[concept] : Math.max(0, ...prompt.erasable.map((name) => word.scores[name]));
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
    // One row per concept that fires; a harmless prompt, and one of a single concept, needs no more than one row.
    for (const concept of prompt.fired.length ? prompt.fired : [null]) block.append(wordRow(prompt, concept, message));
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

function addPanel(node, hint) {
  const panel = element("div", "es-panel");
  panel.append(element("div", "es-line", hint));
  // The wheel scrolls a long panel and zooms the canvas otherwise.
  panel.addEventListener("wheel", (event) => {
    if (panel.scrollHeight > panel.clientHeight) event.stopPropagation();
  });
  let wanted = 40;
  const widget = node.addDOMWidget(UI_KEY, UI_KEY, panel, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => wanted,
  });
  widget.serialize = false;
  return (messages) => {
    panel.replaceChildren(...messages.flatMap((message) => RENDERERS[message.kind]?.(message) ?? []));
    // Measured after layout, which the Vue renderer does in its own time.
    requestAnimationFrame(() => {
      const height = [...panel.children].reduce((sum, child) => sum + child.offsetHeight + 8, 12);
      wanted = Math.min(MAX_HEIGHT, Math.max(40, height));
      const needed = node.computeSize();
      node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
      app.canvas?.setDirty(true, true);
    });
  };
}

app.registerExtension({
  name: "embedding_sanitizer.panels",
  init() {
    document.head.append(element("style", "", STYLE));
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    const hint = NODES[nodeData.name];
    if (!hint) return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = created?.apply(this, args);
      this.showSanitizerMessages = addPanel(this, hint);
      return result;
    };
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output, ...rest) {
      const result = executed?.call(this, output, ...rest);
      if (Array.isArray(output?.[UI_KEY])) this.showSanitizerMessages(output[UI_KEY]);
      return result;
    };
  },
});
