"""The guard without a server: where it sets its nodes, that its handler never raises, and what a setting's rules do."""

import json
import uuid
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def graph(pack):
    return pack("nodes.guard.graph")


@pytest.fixture(scope="module")
def setting(pack):
    """`setting(text)`: a setting out of TOML, without a pair that must not meet unless the text names one."""
    parse = pack("sanitizer.guard.setting").parse
    return lambda text="": parse((text if "never" in text else f"never = []\n{text}").encode(), "the test")


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


OWN = "custom_nodes.embedding-sanitizer"


@pytest.fixture(scope="module")
def kinds(graph):
    kind, stock = graph.Kind, "comfy_extras.nodes_x"
    samples = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}
    return {
        "Load": kind({}, ("MODEL", "CLIP", "VAE"), "nodes"),
        "Lora": kind({"model": "MODEL", "clip": "CLIP"}, ("MODEL", "CLIP"), "nodes"),
        "Encode": kind({"clip": "CLIP", "text": "STRING"}, ("CONDITIONING",), "nodes"),
        "Join": kind({"a": "CONDITIONING", "b": "CONDITIONING"}, ("CONDITIONING",), stock),
        "Sample": kind(samples, ("LATENT",), "nodes"),
        "Switch": kind({"on": "*", "off": "COMFY_MATCHTYPE_V3"}, ("COMFY_MATCHTYPE_V3",), stock),
        "Through": kind({"positive": "CONDITIONING", "negative": "CONDITIONING"}, ("CONDITIONING",) * 2, stock),
        "Show": kind({"source": "*"}, (), stock),
        "Text": kind({"value": "STRING"}, ("STRING",), stock),
        "Foreign": kind(samples | {"clip": "CLIP"}, ("MODEL", "LATENT"), "custom_nodes.SomePack"),
        "Api": kind({"prompt": "STRING", "size": "COMBO", "image": "IMAGE"}, ("IMAGE",), "comfy_api_nodes.x", True),
        "ESLoad": kind({"clip": "CLIP"}, ("SANITIZER",), OWN),
    }


def node(type_, **inputs):
    return {"class_type": type_, "inputs": inputs}


def usual():
    return {
        "1": node("Load"),
        "2": node("Encode", clip=["1", 1], text="a boat"),
        "3": node("Encode", clip=["1", 1], text=""),
        "5": node("Sample", model=["1", 0], positive=["2", 0], negative=["3", 0]),
    }


@pytest.fixture
def guarded(graph, kinds, setting):
    def guard(prompt, text=""):
        return graph.guarded(graph.checked(prompt), kinds.get, setting(text), OWN)

    return guard


def found_by(graph, done, wire):
    """The CLIPs whose sanitizers the guard on a wire is given."""
    guard = done[wire[0]]
    assert guard["class_type"] == graph.GUARD
    clips, link = [], guard["inputs"].get("sanitizers")
    while link is not None:
        finder = done[link[0]]
        assert finder["class_type"] == graph.FINDER
        clips.append(tuple(finder["inputs"]["clip"]))
        link = finder["inputs"].get("sanitizers")
    return sorted(clips)


def heard(graph, done, wire, clip=("1", 1)):
    """The key under which a wire's CLIP is heard."""
    hearer = done[wire[0]]
    assert hearer["class_type"] == graph.HEARER
    assert hearer["inputs"]["clip"] == list(clip)
    assert done[hearer["inputs"]["sanitizers"][0]]["inputs"] == {"clip": list(clip)}
    return hearer["inputs"]["texts"]


def test_a_guard_stands_before_the_sampler_with_the_sanitizer_of_the_clip(graph, guarded):
    prompt = usual()
    before = json.dumps(prompt)
    done = guarded(prompt)
    assert json.dumps(prompt) == before
    wire = done["5"]["inputs"]["model"]
    assert done[wire[0]]["inputs"]["model"] == ["1", 0]
    assert found_by(graph, done, wire) == [("1", 1)]
    assert done["1"] == prompt["1"]
    assert len(done) == 8
    keys = [heard(graph, done, done[name]["inputs"]["clip"]) for name in "23"]
    assert keys[0] != keys[1]
    assert done[wire[0]]["inputs"]["texts"] == keys[0]
    assert done[wire[0]]["inputs"]["others"] == keys[1]


def test_behind_a_lora_it_is_the_clip_with_the_lora_and_no_circle(graph, guarded):
    prompt = usual() | {"4": node("Lora", model=["1", 0], clip=["1", 1])}
    for name in "23":
        prompt[name]["inputs"]["clip"] = ["4", 1]
    prompt["5"]["inputs"]["model"] = ["4", 0]
    done = guarded(prompt)
    assert done["4"] == prompt["4"]
    assert found_by(graph, done, done["5"]["inputs"]["model"]) == [("4", 1)]


def test_each_sampler_is_given_what_its_own_prompts_were_encoded_with(graph, guarded):
    prompt = usual() | {
        "11": node("Load"),
        "12": node("Encode", clip=["11", 1], text="x"),
        "13": node("Join", a=["12", 0], b=["2", 0]),
        "15": node("Sample", model=["11", 0], positive=["13", 0], negative=["3", 0]),
        "16": node("Sample", model=["11", 0], positive=["12", 0], negative=["12", 0]),
    }
    done = guarded(prompt)
    found = {name: found_by(graph, done, done[name]["inputs"]["model"]) for name in ("5", "15", "16")}
    assert found == {"5": [("1", 1)], "15": [("1", 1), ("11", 1)], "16": [("11", 1)]}


def test_the_texts_of_a_mixture_are_those_on_the_way_to_it_whatever_is_called_negative(graph, guarded):
    def texts(changes):
        done = guarded(usual() | changes)
        inputs = done[done["5"]["inputs"]["model"][0]]["inputs"]
        wires = {each: done[each]["inputs"]["clip"] for each in "23"}
        keys = {each: heard(graph, done, wire) for each, wire in wires.items() if wire != ["1", 1]}
        return tuple("".join(each for each in keys if keys[each] in inputs[field]) for field in ("texts", "others"))

    assert texts({}) == ("2", "3")
    through = {"4": node("Through", positive=["2", 0], negative=["3", 0])}
    assert texts(through | {"5": node("Sample", model=["1", 0], positive=["4", 1], negative=["4", 0])}) == ("23", "")
    assert texts({"5": node("Sample", model=["1", 0], positive=["3", 0], negative=["2", 0])}) == ("3", "2")
    assert texts({"5": node("Sample", model=["1", 0], positive=["2", 0], negative=["2", 0])}) == ("2", "")
    foreign = {"6": node("Foreign", model=["1", 0], positive=["2", 0], negative=["3", 0])}
    done = guarded(usual() | foreign, 'allow = ["SomePack"]')
    assert done[done["6"]["inputs"]["model"][0]]["inputs"]["others"] == ""


def test_another_text_has_another_key_and_the_same_one_the_same(graph, guarded):
    def key(text):
        prompt = usual() | {"4": node("Text", value=text)}
        prompt["2"]["inputs"]["text"] = ["4", 0]
        done = guarded(prompt)
        return heard(graph, done, done["2"]["inputs"]["clip"])

    assert key("a boat") == key("a boat") != key("a ship")


def test_a_clip_from_which_nothing_is_drawn_is_left_alone(guarded):
    prompt = {"1": node("Load"), "2": node("ESLoad", clip=["1", 1]), "3": node("Encode", clip=["1", 1], text="x")}
    assert guarded(prompt) == prompt


def test_wires_whose_type_nobody_knows_are_guarded_too(graph, guarded):
    prompt = usual() | {
        "4": node("Switch", on=["1", 0], off=["1", 0]),
        "6": node("Show", source=["4", 0]),
        "7": node("Show", source=["5", 0]),
    }
    prompt["5"]["inputs"]["model"] = ["4", 0]
    done = guarded(prompt)
    assert done["4"] == prompt["4"]
    assert done[done["5"]["inputs"]["model"][0]]["inputs"]["model"] == ["4", 0]
    through = done[done["6"]["inputs"]["source"][0]]["inputs"]["model"]
    heard(graph, done, through, ("4", 0))
    assert done["7"] == prompt["7"]


@pytest.mark.parametrize("place", [0.0, False])
def test_a_link_is_what_comfyui_takes_for_one(guarded, place):
    prompt = usual()
    prompt["5"]["inputs"]["model"] = ["1", place]
    assert guarded(prompt) == guarded(usual())


def test_guards_that_are_there_already_are_taken_out(graph, guarded):
    done = guarded(usual())
    assert guarded(done) == done
    forged = usual() | {"20": node(graph.GUARD, model=["1", 0]), "21": node(graph.REFUSAL, reason="x")}
    forged["5"]["inputs"]["model"] = ["20", 0]
    assert guarded(forged) == done


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"20": node("Unknown")}, "not installed"),
        ({"20": node("Lora")}, "may not be used on this host"),
        ({"20": node("Foreign")}, "Foreign of SomePack may not be used"),
        ({"20": node("Api")}, "sends prompts to another host"),
        ({"embedding_sanitizer_guard:x": node("Sample")}, "only the guard"),
        ({"20": node("Sample", model={"__value__": ["1", 0]})}, "wrapped link"),
        ({"20": node("Sample", model=["1", -1])}, "no output"),
        ({"20": node("Sample", model=["1", float("nan")])}, "no output"),
        ({"20": []}, "no class_type"),
        ({"20": {"class_type": "Sample"}}, "no inputs"),
        ({"20": {"class_type": "Sample", "inputs": []}}, "no inputs"),
        ({20: node("Sample")}, "no class_type"),
    ],
)
def test_what_cannot_be_guarded_is_refused(guarded, error, changes, says):
    with pytest.raises(error, match=says):
        guarded(usual() | changes, 'deny = ["Lora"]')


@pytest.mark.parametrize("name", ["Foreign", "SomePack"])
def test_a_pack_or_a_node_that_the_host_allows_may_run(graph, guarded, name):
    prompt = usual() | {"6": node("Foreign", model=["1", 0], clip=["1", 1])}
    done = guarded(prompt, f'allow = ["{name}"]')
    assert found_by(graph, done, done["6"]["inputs"]["model"]) == [("1", 1)]


def test_texts_for_another_host_are_scored(graph, guarded, error):
    prompt = {
        "1": node("Text", value="x"),
        "2": node("Api", prompt="a boat", size="big", image=["8", 0], seed=5, more="unknown"),
        "3": node("Api", prompt=["1", 0]),
    }
    assert guarded(prompt, 'api_nodes = "allow"') == prompt
    done = guarded(prompt, 'api_nodes = "score"')
    given = {name: done[name]["inputs"] for name in "23"}
    texts = {name: done[given[node_][name][0]]["inputs"]["text"] for node_, name in (("2", "prompt"), ("2", "more"))}
    assert texts == {"prompt": "a boat", "more": "unknown"}
    assert done[given["3"]["prompt"][0]]["inputs"]["text"] == ["1", 0]
    assert {key: given["2"][key] for key in ("size", "image", "seed")} == {"size": "big", "image": ["8", 0], "seed": 5}
    with pytest.raises(error, match="cannot be scored"):
        guarded({"2": node("Api", prompt={"__value__": "a boat"})}, 'api_nodes = "score"')


def test_the_texts_of_a_prompt(graph, kinds):
    prompt = usual() | {"4": node("Text", value="typed elsewhere"), "6": node("Text", value="leads nowhere")}
    prompt["3"]["inputs"]["text"] = ["4", 0]
    assert set(graph.texts(prompt, kinds.get)) == {"a boat", "typed elsewhere"}


# The handler


@pytest.fixture
def door(pack, graph, kinds, setting, models, tmp_path, monkeypatch):
    """The door of a server that knows these kinds, with a setting in force."""
    door, host = pack("nodes.guard.door"), pack("nodes.guard.host")
    watch = pack("sanitizer.guard.watch").Watch(tmp_path / "user", {})
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "sanitizer_guard.toml").write_text("never = []")
    monkeypatch.setattr(host, "_HOST", [host.Host(watch)])
    monkeypatch.setattr(door, "kind_of", kinds.get)
    monkeypatch.setattr(door, "own_module", lambda: OWN)
    return door


class Comfy:
    """ComfyUI's round of the handlers."""

    def __init__(self, door):
        self.on_prompt_handlers = []
        self.add_on_prompt_handler(door.Handler(self))

    def add_on_prompt_handler(self, handler):
        self.on_prompt_handlers.append(handler)

    def round(self, request):
        for handler in self.on_prompt_handlers:
            request = handler(request)
        return request


def test_the_handler_has_the_last_word_whoever_comes_behind(door, guarded):
    server, seen = Comfy(door), []

    def other(request):
        seen.append(request)
        return {"prompt": usual(), "client_id": "c"}

    first = server.round({"prompt": {}, "client_id": "c"})
    assert first["prompt"] == {}
    for _ in range(3):
        server.add_on_prompt_handler(other)
        done = server.round({"prompt": {}})
        assert done["prompt"] == guarded(usual())
        assert uuid.UUID(done["prompt_id"])
    assert len(server.on_prompt_handlers) == 7
    assert len(seen) == 6


@pytest.mark.parametrize("request_", [None, [], 5, "x", {}, {"number": 3}])
def test_a_request_without_a_prompt_is_the_server_s_to_refuse(door, request_):
    assert "prompt" not in Comfy(door).round(request_)


@pytest.mark.parametrize("broken", ["the prompt", "the graph", "the setting", "the log"])
def test_whatever_fails_is_refused_and_never_raised(door, pack, graph, monkeypatch, tmp_path, broken):
    request = {"prompt": usual(), "client_id": "c", "prompt_id": "p", "partial_execution_targets": ["5"]}

    def fail(*_arguments):
        raise RuntimeError("out of order")

    if broken == "the prompt":
        request["prompt"] = {"1": node("NoSuchNode")}
    elif broken == "the graph":
        monkeypatch.setattr(graph, "guarded", fail)
    elif broken == "the setting":
        watch = pack("sanitizer.guard.watch").Watch(tmp_path, {"SANITIZER_GUARD": "["})
        monkeypatch.setattr(pack("nodes.guard.host"), "_HOST", [pack("nodes.guard.host").Host(watch)])
    else:
        request["prompt"] = []
        monkeypatch.setattr(pack("nodes.guard.host").Host, "write", fail)
    done = Comfy(door).round(request)
    [only] = done["prompt"].values()
    assert only["class_type"] == graph.REFUSAL
    assert only["inputs"]["reason"].startswith("Guard: ")
    assert "partial_execution_targets" not in done
    refusal = pack("nodes.guard.nodes").GuardRefusal
    assert refusal.validate_inputs(**only["inputs"]) == only["inputs"]["reason"]
    with pytest.raises(pack("sanitizer.errors").SanitizerError):
        refusal.execute(**only["inputs"])
    if broken in ("the prompt", "the graph"):
        [line] = (tmp_path / "user" / "sanitizer_guard.jsonl").read_text().splitlines()
        assert json.loads(line)["prompt_id"] == "p"


# At the sampler


@pytest.fixture
def sampled(door, pack, setting, monkeypatch, tmp_path):
    """`sampled(sanitizers, text, *conditionings)`: what reaches the model, and the line in the log."""
    nodes, host = pack("nodes.guard.nodes"), pack("nodes.guard.host")

    def sample(sanitizers, text, *conds, negative=(), cfg=7.0, texts="", others=""):
        guider = type("CFGGuider", (), {"__module__": "comfy.samplers", "cfg": cfg})()
        kinds = {"positive": conds, "negative": negative}
        guider.conds = {
            name: [extras | {"cross_attn": cond, "model_conds": {}, "uuid": uuid.uuid4()} for cond, extras in entries]
            for name, entries in kinds.items()
        }
        guider.model_options = {}
        found = tuple(host.Found(each, None) for each in sanitizers)
        guard = nodes.HostGuard(setting(text), found, texts, others)
        call = type("Executor", (), {"class_obj": guider, "__call__": lambda self: self.class_obj.conds["positive"]})()
        with torch.inference_mode():
            try:
                out = guard.sample(call)
            except pack("sanitizer.errors").SanitizerError as error:
                out = str(error)
        lines = (tmp_path / "user" / "sanitizer_guard.jsonl").read_text().splitlines()
        return out, json.loads(lines[-1]), len(lines)

    return sample


def entry(seed=1, width=8, pooled=4):
    torch.manual_seed(seed)
    return [torch.randn(1, 5, width), {"pooled_output": torch.randn(1, pooled)}]


def test_a_flagged_prompt_is_rewritten_as_sanitize_model_would(sampled, loaded):
    sanitizer, given = loaded(), entry()
    [out], line, _ = sampled([sanitizer], "strength = 1.25", given)
    [expected], _ = sanitizer.sanitize_all([given], 1.25, 0.5)
    assert torch.equal(out["cross_attn"], expected[0])
    assert torch.equal(out["pooled_output"], expected[1]["pooled_output"])
    assert line["action"] == "sanitized"
    assert line["concepts"]["nudity"] > 0.9


@pytest.mark.parametrize(("text", "options"), [("", {"logit": -4.0}), ("threshold = 1.0", {}), ("strength = 0", {})])
def test_what_the_setting_does_not_erase_passes_as_it_is(sampled, loaded, text, options):
    given = entry()
    [out], line, _ = sampled([loaded(**options)], text, given)
    assert out["cross_attn"] is given[0]
    assert line["action"] == "passed"


def test_mode_refuse_refuses_also_what_the_workflow_has_sanitized_before(sampled, loaded):
    sanitizer, given = loaded(), entry()
    out, line, count = sampled([sanitizer], 'mode = "refuse"', given)
    assert "does not run prompts with nudity" in out
    assert line["action"] == "refused"
    assert count == 1
    [written], _ = sanitizer.sanitize_all([given], 1.0, 0.5)
    out, line, _ = sampled([sanitizer], 'mode = "refuse"', written)
    assert "does not run prompts with nudity" in out


def test_concepts_that_must_not_meet_are_refused_over_all_prompts_of_a_sampling(
    sampled, loaded, pack, models, make_sanitizer
):
    never = 'never = [["nudity", "violence"]]'
    path = models / "bloody.safetensors"
    pack("sanitizer.model.artifact").save(make_sanitizer(width=6, pooled=3, concepts=("violence", "nudity")), path)
    nude, bloody = loaded("nude"), pack("nodes.adapter.handle").LoadedSanitizer.load(path)
    out, _, _ = sampled([nude, bloody], never, entry())
    assert not isinstance(out, str)
    out, line, _ = sampled([nude, bloody], never, entry(), entry(2, 6, 3))
    assert "nudity and violence" in out
    assert line["action"] == "refused"
    assert line["concepts"].keys() == {"nudity", "violence"}


def test_a_negative_prompt_that_guides_away_is_not_judged(sampled, loaded):
    out, line, _ = sampled([loaded(logit=-4.0)], 'mode = "refuse"', entry(), negative=[entry(2)])
    assert not isinstance(out, str)
    assert line["action"] == "passed"


def test_a_prompt_of_an_encoder_that_nobody_knows_is_refused(sampled, loaded):
    for sanitizers in ([], [loaded(width=6, pooled=3)]):
        out, line, _ = sampled(sanitizers, "", entry())
        assert "no text encoder of this workflow" in out
        assert line["action"] == "refused"


def test_of_two_encoders_with_the_same_widths_both_sanitizers_act(sampled, loaded):
    given, seeing, blind = entry(), loaded("seeing"), loaded("blind", logit=-4.0)
    for both in ([seeing, blind], [blind, seeing]):
        [out], line, _ = sampled(both, "", given)
        assert not torch.equal(out["cross_attn"], given[0])
        assert line["action"] == "sanitized"


# What was heard where it was encoded


@pytest.fixture
def readings(pack, monkeypatch):
    """Empty, as the sampler asks for them."""
    module = pack("nodes.guard.readings")
    own = module.Readings(kept=3)
    for where in (module, pack("nodes.guard.nodes")):
        monkeypatch.setattr(where, "READINGS", own)
    return own


@pytest.fixture
def hear(pack, readings):
    """`hear(key, sanitizer, entry, score)`: that an entry was encoded, and says more than it seems to."""

    def add(key, sanitizer, entry, score=None):
        part = pack("nodes.adapter.conditioning").parts(entry)[0]
        unsaid = None if score is None else torch.full((1, len(sanitizer.names)), score)
        readings.add(key, sanitizer, part, unsaid)

    return add


def mixed(*given):
    """Their average."""
    cond = torch.stack([cond for cond, _ in given]).mean(dim=0)
    return [cond, given[0][1]]


@pytest.mark.parametrize(("score", "action"), [(None, "passed"), (0.1, "passed"), (0.9, "sanitized")])
def test_what_an_embedding_hides_counts_where_it_was_heard(sampled, loaded, hear, score, action):
    blind, given = loaded(logit=-4.0), entry()
    hear("a", blind, given, score)
    [out], line, _ = sampled([blind], "", given, texts="a b")
    assert line["action"] == action
    assert (out["cross_attn"] is given[0]) == (action == "passed")
    [out], line, _ = sampled([blind], "", given, texts="b")
    assert line["action"] == "passed"


def test_a_mixture_counts_as_the_worst_of_what_it_may_be_made_of(sampled, loaded, hear):
    blind, harmless, disguised = loaded(logit=-4.0), entry(1), entry(2)
    hear("a", blind, harmless)
    mixture = mixed(harmless, disguised)
    hear("b", blind, disguised, 0.9)
    assert sampled([blind], "", harmless, texts="a b")[1]["action"] == "passed"
    assert sampled([blind], "", mixture, texts="a b")[1]["action"] == "sanitized"
    assert sampled([blind], "", mixture, texts="a", others="b")[1]["action"] == "passed"
    nothing = [torch.zeros(1, 5, 8), {"pooled_output": torch.zeros(1, 4)}]
    assert sampled([blind], "", nothing, texts="a b")[1]["action"] == "passed"
    given = {"texts": "a", "others": "b", "negative": [mixture], "cfg": 0.5}
    assert sampled([blind], "", harmless, **given)[1]["action"] == "sanitized"


def test_what_was_sanitized_before_is_what_it_was_made_of(sampled, loaded, hear):
    seeing, given = loaded(), entry()
    [written], _ = seeing.sanitize_all([given], 1.0, 0.5)
    [again], _ = seeing.sanitize_all([written], 0.5, 0.5)
    hear("b", seeing, entry(2), 0.9)
    hear("a", seeing, given)
    [out], _, _ = sampled([seeing], "", written, texts="a b")
    assert out["cross_attn"] is written[0]
    hear("a", seeing, given, 0.9)
    for before in (written, again):
        [out], line, _ = sampled([seeing], "", before, texts="a")
        assert out["cross_attn"] is not before[0]
        assert line["action"] == "sanitized"


def test_another_sanitizer_s_scores_do_not_count_and_those_out_of_use_are_forgotten(sampled, loaded, hear):
    blind, other, given = loaded(logit=-4.0), loaded("other", logit=-4.0), entry()
    hear("a", other, given, 0.9)
    assert sampled([blind], "", given, texts="a")[1]["action"] == "passed"
    hear("b", blind, given, 0.9)
    hear("c", blind, given, 0.9)
    assert sampled([blind], "", given, texts="b")[1]["action"] == "sanitized"
    hear("d", blind, given)
    hear("e", blind, given)
    assert sampled([blind], "", given, texts="b")[1]["action"] == "sanitized"
    assert sampled([blind], "", given, texts="c")[1]["action"] == "passed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("an oil painting of a red boat", False),
        ("an oil painting of a (red:0.4) boat", False),
        ("an oil painting of a n4k3d woman", True),
        ("an oil painting of a (naked woman:0.2)", True),
    ],
)
def test_a_clip_is_heard_and_puts_out_the_very_same(door, pack, run, clip, trained, readings, sampled, text, says):
    nodes, host = pack("nodes.guard.nodes"), pack("nodes.guard.host")
    [heard] = run(nodes.GuardCLIP, clip=clip, sanitizers=(host.Found(trained, clip),), texts="a").result
    assert pack("nodes.adapter.clip").ComfyTextEncoder(heard).fingerprint == trained.fingerprint
    with torch.inference_mode():
        tokens = heard.tokenize(text)
        [given] = heard.encode_from_tokens_scheduled(tokens)
        [plain] = clip.encode_from_tokens_scheduled(tokens)
        assert torch.equal(given[0], plain[0])
        assert given[1].keys() == plain[1].keys()
        [empty] = heard.encode_from_tokens_scheduled(heard.tokenize(""))
        average = [0.9 * empty[0] + 0.1 * given[0], given[1]]
    for drawn in (given, average):
        _, line, _ = sampled([trained], "concepts = ['nudity']", drawn, texts="a")
        assert line["action"] == ("sanitized" if says else "passed")
    # Without what was heard, the embedding alone.
    assert sampled([trained], "", average)[1]["action"] == "passed"


def test_the_nodes_pass_on_what_is_no_model_and_everything_where_nothing_is_guarded(door, pack, run, monkeypatch):
    nodes, host = pack("nodes.guard.nodes"), pack("nodes.guard.host")
    picture = object()
    assert run(nodes.GuardModel, model=picture, texts="", others="").result == (picture,)
    assert run(nodes.GuardCLIP, clip=picture, sanitizers=(), texts="").result == (picture,)
    assert run(nodes.GuardText, text=5).result == (5,)
    assert run(nodes.GuardSanitizer, clip=[picture, None]).result == ((),)
    off = SimpleNamespace(state=lambda: pack("sanitizer.guard.watch").OFF)
    monkeypatch.setattr(host, "_HOST", [host.Host(off)])
    model = SimpleNamespace(add_wrapper_with_key=None)
    assert run(nodes.GuardModel, model=model, texts="", others="").result == (model,)
    clip = SimpleNamespace(cond_stage_model=None)
    assert run(nodes.GuardCLIP, clip=clip, sanitizers=(), texts="").result == (clip,)
