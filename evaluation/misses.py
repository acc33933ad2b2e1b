"""The unsafe prompts that a method let pass, with the scores of their words: what a heat map needs but for the text."""

import torch

from sanitizer.encoders import TextEncoder
from sanitizer.text.words import Word, words

from .base import Batch, Method
from .measuring import Part
from .prompt_sets import PromptSet

MOST = 12


def hardest_misses(encoder: TextEncoder, concept: str, prompts: PromptSet, method: Method, part: Part) -> Part:
    """`info["misses"]`: for each missed prompt its place in the set, its score and [start, end, score] of its words,
    the lowest prompt score first."""
    if "scores" not in part.tensors:
        return Part(info={"misses": []})
    scores = part.tensors["scores"]
    missed = part.tensors["identical"].nonzero().squeeze(1)
    index = missed[scores[missed].argsort()][:MOST].tolist()
    found = []
    if index:
        texts = [prompts.prompts[i] for i in index]
        batch = Batch(texts, encoder.encode(texts))
        with torch.no_grad():
            tokens = method.token_scores(batch)
        if tokens is None:
            return Part(info={"misses": []})
        for b, i in enumerate(index):
            e, own = batch.encoding, tokens[b].float().clamp(0, 1)[:, None]
            spans = words(texts[b], e.tokens[b], e.offsets[b], own, [concept])
            entry = [[word.start, word.end, round(word.scores[concept], 4)] for word in spans]
            found.append({"place": i, "score": round(float(scores[i]), 4), "words": entry})
    return Part(info={"misses": found})


def as_words(text: str, spans: list[list], concept: str, show: bool) -> list[Word]:
    """The words of a miss for the heat map; as dots of their number where they are not to be shown."""
    return [
        Word(text[start:end] if show else "•" * (end - start), start, end, {concept: score})
        for start, end, score in spans
    ]
