"""Held-out prompts stay held out, and counterfactuals differ from their prompts in the phrase alone."""

import re

from evaluation.data import benign_set, bundled_sets
from evaluation.split import make_development
from evaluation.types import PROBE_ROLE, EncodingMemory
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.obfuscation import OBFUSCATIONS


def sets_of(concept="nudity", limit=60):
    return {s.name: s for s in bundled_sets(concept, 80, limit, seed=0)}


def test_every_set_is_there_and_of_its_size():
    sets = sets_of()
    roles = {"obfuscated": "obfuscated", "scrambled": "adversarial"}
    for name in ("held_out", "obfuscated", "scrambled", "several", "diluted", "languages"):
        assert sets[name].role == roles.get(name, "explicit")
        assert len(sets[name].prompts) == len(sets[name].safe) == 60
    assert sets["held_out_hard_negatives"].role == "borderline"
    assert sets["probe_pairs"].role == sets["probe_benign"].role == PROBE_ROLE
    assert sets["held_out"] == sets_of()["held_out"]


def test_no_held_out_phrase_is_in_what_methods_and_probes_are_tuned_on():
    (concept,) = (c for c in load_concepts(["nudity"]) if c.name == "nudity")
    trained = {pair.target.lower() for pair in concept.pairs if not pair.held_out}
    held_out = [pair.target.lower() for pair in concept.pairs if pair.held_out]
    development = make_development(None, "nudity", seed=0, limit=80)
    assert {phrase.lower() for phrase in development.phrases} == trained
    tuned = "\n".join([*development.unsafe, *sets_of()["probe_pairs"].prompts]).lower()
    # A held-out phrase that is part of a trained one, or of plain words, or that is a trained one with a frame's words,
    # may occur; a whole one of its own may not.
    own = [p for p in held_out if not any(p in other or other in p for other in trained) and " " in p]
    assert len(own) > 100
    assert not [phrase for phrase in own if re.search(rf"\b{re.escape(phrase)}\b", tuned)]


def test_a_counterfactual_is_the_same_sentence():
    sets = sets_of()
    for unsafe, safe in zip(sets["scrambled"].prompts, sets["scrambled"].safe, strict=True):
        assert unsafe != safe
        assert len(set(unsafe.split()) & set(safe.split())) >= 2


def test_sets_as_people_write():
    sets = sets_of()
    mean = {name: sum(len(text.split()) for text in sets[name].prompts) / 60 for name in ("held_out", "several")}
    assert mean["several"] > mean["held_out"] + 3
    # Ten languages take turns, and the counterfactual is in the same one.
    assert {sets["languages"].labels.count(name) for name in sets["languages"].labels} == {6}
    for unsafe, safe in zip(sets["diluted"].prompts, sets["diluted"].safe, strict=True):
        words, others = unsafe.split(), safe.split()
        assert unsafe != safe and len(words) > 50 and len(set(words) & set(others)) >= 25


def test_every_obfuscation_of_the_phrase_and_of_the_prompt():
    labels = set(sets_of(limit=60)["obfuscated"].labels)
    assert labels == {f"{name}, {scope}" for name in OBFUSCATIONS for scope in ("phrase", "prompt")}


def test_the_development_split_and_the_thresholds_share_no_prompt():
    development = make_development(None, "violence", seed=0, limit=200)
    assert len(development.unsafe) == len(development.safe) == len(development.benign) == 200
    assert len(set(development.phrases)) == len(development.phrases)
    assert not set(development.calibration) & set(development.benign)
    assert not set(development.calibration) & set(benign_set(200, 0).prompts)
    assert development == make_development(None, "violence", seed=0, limit=200)
    assert development.unsafe != make_development(None, "violence", seed=1, limit=200).unsafe


def test_the_memory_says_the_same_and_encodes_once(tiny, tiny_causal):
    for encoder in (tiny, tiny_causal):
        memory = EncodingMemory(encoder)
        texts = ["a crimson dress", "an old door in the garden", "light"]
        memory.encode(texts[:2])
        encoder.prompts = 0
        said = memory.encode([texts[1], texts[2], texts[1]])
        assert encoder.prompts == 1
        direct = encoder.encode([texts[1], texts[2], texts[1]])
        assert (said.embeddings == direct.embeddings).all() and (said.mask == direct.mask).all()
        assert said.tokens == direct.tokens and said.offsets == direct.offsets
        assert (said.pooled is None) == (direct.pooled is None)
        assert said.pooled is None or (said.pooled == direct.pooled).all()
        assert memory.fingerprint == encoder.fingerprint


def test_the_memory_keeps_to_its_size(tiny):
    memory = EncodingMemory(tiny, memory=10)
    for _ in range(2):
        assert (memory.encode(["a door"]).embeddings == tiny.encode(["a door"]).embeddings).all()
    assert not memory.kept
