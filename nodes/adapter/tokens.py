"""Which token stands behind which row of a conditioning, and which characters of the prompt behind the token.

ComfyUI's tokenizers give `{key: [[(id or embedding, weight), …] per chunk]}`. The rows follow from it: CLIP-L and
CLIP-G share theirs, T5 appends its own (SD3) or takes CLIP's place (Flux), language models cut a template off the
front, and some the template's end behind the prompt.
"""

import re
import unicodedata
from contextlib import suppress
from itertools import accumulate
from weakref import WeakKeyDictionary

EMBEDDING = "[embedding]"
CLIPS = ("l", "g", "h")
"""Keys of CLIP's tokens."""
DIFFERENT = ("kite", "7")
"""Prompts that have no token in common; what their tokens have in common is the template."""
_TEMPLATES: WeakKeyDictionary = WeakKeyDictionary()
"""Tokenizer -> key -> its template. Training asks for it with each of its prompts."""
WEIGHT = re.compile(r"(?<!\\)[()]|:\s*[-+]?[\d.]+(?=\s*\))")
"""The parts of `(word:1.3)` that reach no tokenizer."""


def row_tokens(clip, tokens: dict, rows: int) -> list[str]:
    """Token string of each of the `rows` rows, "" for BOS, EOS, padding, the template that a language model puts around
    the prompt, and rows whose token is not known."""
    strings = {key: _strings(_tokenizer(clip, key), chunks) for key, chunks in tokens.items()}
    around = {key: _template(clip, key, tokens[key]) for key in strings if strings[key]}
    for key, (front, back) in around.items():
        strings[key][:front] = [""] * front
        strings[key][len(strings[key]) - back :] = [""] * back
    clips = [key for key in CLIPS if strings.get(key)]
    others = [key for key in strings if strings[key] and key not in clips]
    shared = min((strings[key] for key in clips), key=len, default=[])
    for other in others:
        if shared and len(shared) + len(strings[other]) == rows:
            return shared + strings[other]
    for own in [shared, *(strings[key] for key in others)]:
        if own and len(own) == rows:
            return own
    longer = [key for key in others if len(strings[key]) > rows and (len(strings) == 1 or around[key][0])]
    if len(longer) == 1:
        [key] = longer
        front, back = around[key]
        both = back and len(strings[key]) - front - back == rows
        return strings[key][front : front + rows] if both else strings[key][-rows:]
    return [""] * rows


def _template(clip, key: str, chunks: list) -> tuple[int, int]:
    """How many tokens of a language model's one chunk stand before the prompt and how many behind it and its padding;
    (0, 0) for other encoders, and for a template that is not the tokenizer's own."""
    tokenizer = _tokenizer(clip, key)
    if key in CLIPS or getattr(tokenizer, "end_token", None) is not None or not hasattr(clip, "tokenize"):
        return 0, 0
    known = _TEMPLATES.setdefault(clip.tokenizer, {})
    if key not in known:
        known[key] = _own_template(clip, key, getattr(tokenizer, "pad_token", None))
    front, back = known[key]
    own = [entry[0] for entry in chunks[0]] if len(chunks) == 1 else []
    same = _alike(own, front) == len(front) and _alike(own[::-1], back[::-1]) == len(back)
    return (len(front), len(back)) if same and len(front) + len(back) <= len(own) else (0, 0)


def _own_template(clip, key: str, pad) -> tuple[list, list]:
    """The tokens before the prompt and those behind it and its padding; none where prompts take several chunks."""
    # Not the empty prompt, which has a template of its own in some models.
    one, other = (clip.tokenize(text).get(key, []) for text in DIFFERENT)
    if not len(one) == len(other) == 1:
        return [], []
    one, other = ([entry[0] for entry in chunk] for [chunk] in (one, other))
    front = _alike(one, other)
    back = _alike(one[front:][::-1], other[front:][::-1])
    ends = [place for place, token in enumerate(one[::-1][:back]) if isinstance(token, int) and token == pad]
    return one[:front], one[len(one) - min(ends, default=back) :]


def _alike(one: list, other: list) -> int:
    """How many tokens two lists begin with alike."""
    same = (isinstance(a, int) and isinstance(b, int) and a == b for a, b in zip(one, other, strict=False))
    return next((place for place, equal in enumerate(same) if not equal), min(len(one), len(other)))


def has_text(tokens: list[str]) -> bool:
    return any(tokens)


def _tokenizer(clip, key: str):
    """The sub-tokenizer of a key. The outer one's own `untokenize` answers for one key only."""
    outer = clip.tokenizer
    return getattr(outer, f"clip_{key}", None) or getattr(outer, key, None)


def _strings(tokenizer, chunks: list) -> list[str]:
    if tokenizer is None:
        return []
    end, pad = getattr(tokenizer, "end_token", None), getattr(tokenizer, "pad_token", None)
    # An unknown word is text all the same.
    unknown = getattr(tokenizer.tokenizer, "unk_token_id", None)
    special = {*getattr(tokenizer.tokenizer, "all_special_ids", ())} - {unknown}
    special |= {getattr(tokenizer, "start_token", None), end}
    result = []
    for chunk in chunks:
        ids = [entry[0] for entry in chunk]
        if any(isinstance(token, dict) for token in ids):
            return []  # an image takes a number of rows that only the model knows
        ended = False
        first, last = _text_range(ids, pad) if end is None else (0, len(ids))
        for place, token in enumerate(ids):
            if not isinstance(token, int):
                result.append("" if hasattr(token, "item") and token.ndim == 0 else EMBEDDING)
                continue
            # CLIP-G pads with the id of "!", so what follows the end token is padding whatever its id.
            blank = ended or token in special or not first <= place < last
            result.append("" if blank else tokenizer.inv_vocab.get(token, ""))
            ended = ended or (end is not None and token == end and place > 0)
    return result


def _text_range(ids: list, pad) -> tuple[int, int]:
    """The part of the ids that is left when padding is taken off both ends."""
    text = [place for place, token in enumerate(ids) if not isinstance(token, int) or token != pad]
    return (text[0], text[-1] + 1) if text else (0, 0)


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers (CLIP, GPT-2 and after) write for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(moved)}


BYTES = _byte_alphabet()


def surface(token: str) -> tuple[str, bool, bool]:
    """A token as a person reads it, whether it begins a word by its mark, and whether it ends one by its mark."""
    begins, ends = token.startswith(("▁", "Ġ")), token.endswith("</w>")
    text = token.removesuffix("</w>")
    if token.startswith("▁"):
        return text.replace("▁", " ").strip(), begins, ends
    if all(char in BYTES for char in text):
        # Fails for a piece of a character, and where a tokenizer writes characters as they are.
        with suppress(UnicodeDecodeError):
            text = bytes(BYTES[char] for char in text).decode("utf-8")
    return text.removeprefix("##").strip(), begins, ends


def without_weights(prompt: str) -> str:
    """The prompt without the marks of `(word:1.3)`, which are no words of it, and with escaped brackets as brackets."""
    return re.sub(r"\\([()])", r"\1", WEIGHT.sub("", prompt))


def without_weights_of(tokens: dict) -> dict | None:
    """The same tokens, all with weight 1; None where they have it. Values of other kinds than chunks of tokens stay."""
    found = {key: _unweighted(chunks) for key, chunks in tokens.items()}
    return found if any(found[key] is not chunks for key, chunks in tokens.items()) else None


def _unweighted(chunks):
    if not isinstance(chunks, list) or not all(isinstance(chunk, list) for chunk in chunks):
        return chunks
    if all(entry[1] == 1.0 for chunk in chunks for entry in chunk):
        return chunks
    return [[(entry[0], 1.0, *entry[2:]) for entry in chunk] for chunk in chunks]


def spans(prompt: str, tokens: list[str]) -> list[tuple[int, int]]:
    """Character span in the prompt of each token, (0, 0) where there is none or it cannot be found.

    Tokenizers lower case and normalise, so both sides are compared in that form, from left to right.
    """
    plain = WEIGHT.sub(lambda match: " " * len(match[0]), prompt)
    pieces = [unicodedata.normalize("NFKC", char).lower() for char in plain]
    haystack = "".join(pieces)
    # Place in the normalised text -> place in the prompt: one character may have become several or none.
    origin = [place for place, piece in enumerate(pieces) for _ in piece]
    result, at, gap = [], 0, False
    for token in tokens:
        needle = unicodedata.normalize("NFKC", surface(token)[0]).lower() if token and token != EMBEDDING else ""
        found = haystack.find(needle, at) if needle else -1
        if found < 0 and needle and gap:
            # Behind the padding of one tokenizer another may begin the prompt anew.
            found = haystack.find(needle)
        gap = not needle
        if found < 0:
            result.append((0, 0))
            continue
        at = found + len(needle)
        result.append((origin[found], origin[at - 1] + 1))
    return result


def rebuild(tokens: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """A readable prompt put together from its tokens, and the tokens' spans in it; for a prompt that is not at hand."""
    parts, glue = [], ""
    # Word pieces mark what continues a word; the other kinds what begins or ends one.
    pieces = not any(token.startswith(("▁", "Ġ")) or token.endswith("</w>") for token in tokens)
    for token in tokens:
        text, begins, ends = surface(token) if token else ("", False, False)
        begins = begins or (pieces and not token.startswith("##"))
        if token == EMBEDDING:
            text, begins, ends = EMBEDDING, True, True
        parts.append((" " if begins and text else glue) + text if text else "")
        if text:
            glue = " " if ends else ""
        elif begins and token:
            glue = " "  # T5's "▁" alone is the space before a token that begins no word by itself
    stops = list(accumulate(len(part) for part in parts))
    text = "".join(parts)
    offsets = []
    for part, stop in zip(parts, stops, strict=True):
        start = stop - len(part.lstrip())
        offsets.append((start, stop) if part else (0, 0))
    cut = len(text) - len(text.lstrip())
    return text.lstrip(), [(max(0, a - cut), max(0, b - cut)) for a, b in offsets]
