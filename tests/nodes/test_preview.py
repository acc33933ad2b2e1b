"""Token Score Preview: words, positions, the conditioning untouched."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def node(pack):
    return pack("nodes.token_score_preview").TokenScorePreview


@pytest.fixture
def sanitizer(pack, loaded, clip):
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    return loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)


def encode(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def test_words_scores_and_flag(run, node, sanitizer, clip):
    text = "a photorealistic boat"
    given = encode(clip, text)
    out = run(node, sanitizer=sanitizer, conditioning=given, clip=clip, text=text)
    scored, heatmap, scores, prompt_score, flagged = out.args
    assert scored is given
    assert heatmap.ndim == 4
    assert heatmap.shape[-1] == 3
    assert heatmap.dtype == torch.float32
    assert 0 <= heatmap.min() <= heatmap.max() <= 1
    [prompt] = json.loads(scores)
    assert [word["text"] for word in prompt["words"]] == ["a", "photorealistic", "boat"]
    assert len(prompt["tokens"]) > 3, "photorealistic is several tokens"
    assert set(prompt["words"][0]["scores"]) == {"nudity", "violence"}
    assert prompt_score == pytest.approx(prompt["prompt_scores"]["nudity"], abs=1e-3)
    assert flagged is True
    [message] = out.ui["embedding_sanitizer"]
    assert message["kind"] == "words"
    assert message["threshold"] == 0.5
    assert message["prompts"][0]["fired"] == ["nudity"]
    json.dumps(out.ui)


def test_harmless(run, node, pack, loaded, clip):
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    calm = loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint, logit=-4.0)
    out = run(node, sanitizer=calm, conditioning=encode(clip, "a boat"), clip=clip, text="a boat")
    assert out.args[4] is False
    assert "Harmless" in out.ui["embedding_sanitizer"][0]["prompts"][0]["text"]


def test_without_clip_and_text_rows_are_numbered(run, node, sanitizer, clip):
    [prompt] = json.loads(run(node, sanitizer=sanitizer, conditioning=encode(clip, "a boat")).args[2])
    assert [word["text"] for word in prompt["words"][:2]] == ["row0", "row1"]


def test_only_one_of_clip_and_text_is_an_error(run, pack, node, sanitizer, clip):
    with pytest.raises(pack("sanitizer.errors").SanitizerError, match="text is not connected"):
        run(node, sanitizer=sanitizer, conditioning=encode(clip, "a boat"), clip=clip)


def test_words_come_along_from_sanitize_clip(run, node, pack, sanitizer, clip):
    inputs = {"sanitizer": sanitizer, "strength": 1.0, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]
    given = encode(sanitized, "a wooden boat")
    [prompt] = json.loads(run(node, sanitizer=sanitizer, conditioning=given).args[2])
    assert prompt["prompt"] == "a wooden boat"
    assert [word["text"] for word in prompt["words"]] == ["a", "wooden", "boat"]


def test_an_entry_without_a_prompt_is_an_error(run, pack, node, sanitizer):
    with pytest.raises(pack("sanitizer.errors").SanitizerError, match="expected 'cond'"):
        run(node, sanitizer=sanitizer, conditioning=[[None, {"pooled_output": None}]])


def test_several_entries(run, node, sanitizer, clip):
    given = encode(clip, "a boat") + encode(clip, "a boat")
    out = run(node, sanitizer=sanitizer, conditioning=given, clip=clip, text="a boat")
    assert len(json.loads(out.args[2])) == 2


def test_text_of_another_length_is_not_put_to_the_wrong_rows(run, node, sanitizer, clip):
    out = run(node, sanitizer=sanitizer, conditioning=encode(clip, "a boat"), clip=clip, text="tea and cake " * 60)
    [prompt] = json.loads(out.args[2])
    assert prompt["words"][0]["text"] == "row0"


def shown(output):
    return output.ui["embedding_sanitizer"][0]["prompts"]


def test_what_fires_and_what_is_framed_are_one_decision(run, node, trained, encoded, clip):
    texts = ["a nude woman on a bed", "a red boat on a lake", "nude-coloured lipstick", "a bowl of soup, a naked flame"]
    for text in texts:
        [prompt] = shown(run(node, sanitizer=trained, conditioning=encoded(text), clip=clip, text=text))
        framed = [word["text"] for word in prompt["words"] if word["framed"]]
        if prompt["state"] == "harmless":
            assert prompt["text"].startswith("Harmless") and not framed and not prompt["fired"]
        else:
            assert "Harmless" not in prompt["text"]
        if prompt["fired"]:
            assert prompt["text"].startswith("Found")
            assert all(set(word["framed"]) <= set(prompt["fired"]) for word in prompt["words"])


def test_a_word_over_the_threshold_in_a_prompt_under_it_is_never_called_harmless(loaded, clip, pack, encoded):
    own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=own.width, pooled=0, fingerprint=own, logit=-4.0)
    result = sanitizer.sanitize(pack("nodes.adapter.conditioning").parts(encoded("a boat")[0])[0], 0.0, 0.5)
    scores = torch.zeros_like(result.scores.tokens)
    scores[0, 2, 0] = 0.5  # "boat", at the threshold exactly
    result = result._replace(scores=result.scores._replace(tokens=scores))
    words = ("a boat", ["", "a", "boat"] + [""] * 74, [(0, 0), (0, 1), (2, 6)] + [(0, 0)] * 74)
    message = pack("nodes.token_score_preview")._Prompt(sanitizer, result, 0, *words).message()
    assert [word["framed"] for word in message["words"]] == [[], ["nudity"]]
    assert message["state"] == "found" and message["text"].startswith("Below the threshold as a whole")


def test_a_score_that_is_rounded_up_to_the_threshold_frames_nothing(pack, loaded, clip, encoded):
    own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=own.width, pooled=0, fingerprint=own, logit=-4.0)
    result = sanitizer.sanitize(pack("nodes.adapter.conditioning").parts(encoded("a boat")[0])[0], 0.0, 0.5)
    scores = torch.full_like(result.scores.tokens, 0.49999)
    result = result._replace(scores=result.scores._replace(tokens=scores))
    words = ("boat", ["", "boat"] + [""] * 75, [(0, 0), (0, 4)] + [(0, 0)] * 75)
    message = pack("nodes.token_score_preview")._Prompt(sanitizer, result, 0, *words).message()
    assert message["words"] == [{"text": "boat", "scores": {"nudity": 0.5, "violence": 0.5}, "framed": []}]
    assert message["state"] == "harmless"


def test_only_chosen_concepts_are_framed(run, node, loaded, clip, pack, encoded):
    own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=own.width, pooled=0, fingerprint=own, concepts=["violence"])
    [prompt] = shown(run(node, sanitizer=sanitizer, conditioning=encoded("a boat"), clip=clip, text="a boat"))
    assert prompt["words"][0]["scores"]["nudity"] > 0.9
    assert prompt["text"].startswith("Not among the chosen concepts: nudity")
    assert not prompt["fired"] and not any(word["framed"] for word in prompt["words"])


def test_text_for_a_controlnet_is_scored_too(run, node, trained, encoded):
    [[cond, extras]] = encoded("a red boat")
    given = [[cond, {**extras, "cross_attn_controlnet": encoded("a nude woman on a bed")[0][0]}]]
    out = run(node, sanitizer=trained, conditioning=given)
    assert out.args[4] is True
    assert [prompt["flagged"] for prompt in json.loads(out.args[2])] == [False, True]
    assert [prompt["state"] for prompt in shown(out)] == ["harmless", "found"]


def test_the_front_end_frames_what_the_message_says():
    source = (Path(__file__).resolve().parents[2] / "web" / "embedding_sanitizer.js").read_text(encoding="utf-8")
    [framing] = [line for line in source.splitlines() if '"es-over"' in line]
    assert framing.strip().startswith("if (framed)")
    assert ">= message.threshold" not in source


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_has_no_words(run, node, trained, encoded, clip, text):
    out = run(node, sanitizer=trained, conditioning=encoded(text), clip=clip, text=text)
    [prompt] = shown(out)
    assert prompt["words"] == [] and prompt["text"].startswith("Harmless")
    assert out.args[1].shape[0] == 1 and out.args[1].shape[3] == 3
