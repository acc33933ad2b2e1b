"""Concepts and templates -> training prompts, in an order of which any prefix is a fair sample.

A unit is one frame, with up to two phrases of one group in turn: the target prompts, the same prompt with a safe anchor
in the phrase's place (what the erase net learns to write, and a negative for the score net), and one other harmless
prompt. Twice the targets in the same number of prompts raise the share of unseen phrases that is found; twice the
harmless ones did not. The phrases of all concepts take turns, so that a budget smaller than a full round still spreads
over all of them, and one of a full round or more holds every phrase.

Beside them stand units that are told apart by what they show and not by their format: a poster about a topic, and one
with a phrase on it.
"""

import random
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TypeVar

from .concepts import TOPIC, Concept, Pair, any_word
from .obfuscation import obfuscate
from .templates import DISPLAY, Templates, insert

Item = TypeVar("Item")


@dataclass(frozen=True)
class PromptConfig:
    """What training prompts are made of; a part of :class:`..training.config.TrainingConfig`."""

    canonical: float = 0.25
    """Share of units with the group's canonical anchor in place of the pair's own. Own anchors teach the erase net the
    mean of what a safe counterpart may be, which is nearer to any one of them; canonical ones are what it can
    predict."""
    sharing: int = 2
    """Phrases of a group that share a frame and its anchor prompt."""
    hard_negatives: float = 0.5
    """Share of units whose other harmless prompt is a hard negative, in the frames of its kind, and not benign."""
    obfuscated: float = 0.2
    """Share of targets that are obfuscated."""
    obfuscated_negatives: float = 0.2
    """Share of harmless prompts that are: without them, 20 to 40 % of obfuscated harmless text is touched; with .12, of
    the smaller set of nudity alone, 29 % (`minilm`)."""
    in_context: float = 0.4
    """Share of units, and of other harmless prompts, that stand among harmless words."""
    context_words: tuple[int, int] = (12, 240)
    """Fewest and most of these words; their logarithm is spread evenly, so that half of the contexts are short."""
    several: float = 0.5
    """Share of units that hold further phrases beside the first, as people's prompts do."""
    most_further: int = 4
    """Further phrases of such a unit, at most."""
    mixed: float = 0.1
    """Share of the further phrases that are of any concept, and not of the unit's own."""
    framed: float = 0.4
    """Share of the further phrases that stand in a frame of their own; the others stand bare, as tags do."""
    scrambled: float = 0.1
    """Share of units that are words in no order with fragments between, as optimised prompts are."""
    scrambled_negatives: float = 0.1
    """Share of benign prompts that are."""
    topics: float = 0.15
    """Units, for each of the others, with a prompt that talks about a concept, and in the same formats one that shows
    a phrase."""
    filled: float = 0.3
    """Share of harmless prompts that are filled frames; the others are free-standing, which vary more."""
    fewest_filled: int = 200
    """Filled frames among the prompts that thresholds are set on, however few free-standing ones there are."""
    full_rounds: int = 3
    """Times that each phrase stands in a full training set."""
    fewest: int = 9000
    """Prompts of a full training set at least."""

    def bare(self) -> "PromptConfig":
        """The same with every phrase as it is written, one in a frame, with its own anchor."""
        return replace(self, canonical=0.0, obfuscated=0.0, scrambled=0.0, several=0.0, in_context=0.0)

    def together(self) -> "PromptConfig":
        """The same with further phrases of the same concept beside each."""
        return replace(self, several=1.0, mixed=0.0)

    def among(self, words: int) -> "PromptConfig":
        """The same with each phrase among so many harmless words."""
        return replace(self, in_context=1.0, context_words=(words, words))


@dataclass(frozen=True)
class Prompt:
    text: str
    concepts: tuple[str, ...] = ()
    """Concepts it holds."""
    unknown: tuple[str, ...] = ()
    """Concepts that it may or may not hold: neither a positive nor a negative."""
    anchor: int | None = None
    """Place of its safe anchor prompt in the list, None for a prompt that is harmless."""


class PromptGenerator:
    """Draws prompts of all kinds from one seed.

    `split` is "train", "calibration" (harmless prompts and frames of their own, so that thresholds are set on prompts
    that training did not see) or "held_out" (phrases, frames and harmless prompts kept for the report; each phrase
    bare, see :meth:`PromptConfig.bare`; :meth:`writing` writes them in other ways).
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        templates: Templates,
        seed: int,
        split: str = "train",
        config: PromptConfig | None = None,
    ) -> None:
        held_out, config = split == "held_out", config or PromptConfig()
        self.config = config.bare() if held_out else config
        self.templates = templates
        self.rng = random.Random(f"{seed}-{split}")
        self.frames = templates.held_out_frames if held_out else templates.frames
        self.benign_frames = templates.held_out_benign_frames
        self.benign_prompts = templates.held_out_benign_prompts
        if not held_out:
            self.benign_frames = _share(templates.benign_frames, split == "calibration")
            self.benign_prompts = _share(templates.benign_prompts, split == "calibration")
        self.pairs = [(c, p) for c in concepts for p in c.pairs if p.held_out == held_out]
        self.own = {c.name: [entry for entry in self.pairs if entry[0] is c] for c in concepts}
        self.erased = [entry for entry in self.pairs if not entry[0].context]
        harmless = [p for c in concepts for p in c.hard_negatives if p.held_out == held_out]
        self.hard = [p for p in harmless if p.kind != TOPIC]
        self.topics = [p for p in harmless if p.kind == TOPIC]
        if not held_out:
            self.hard = _share(self.hard, split == "calibration")
            self.topics = _share(self.topics, split == "calibration")
        # Draws of their own: a topic more leaves every other prompt as it is.
        self.topic_rng = random.Random(f"{seed}-{split}-topics")
        self.unknown = {c.name: _overlapping(c, concepts) for c in concepts}
        guard_words = [word for c in concepts for word in c.guard_words]
        self.guard = any_word(guard_words) if guard_words else None
        words = {w.strip(",.").lower() for prompt in self.benign_prompts for w in prompt.split()}
        self.words = sorted(word for word in words if word.isascii() and word.isalpha())

    def writing(self, config: PromptConfig) -> "PromptGenerator":
        """The same generator, which goes on with the same draws, with another configuration."""
        other = copy(self)
        other.config = config
        return other

    def filled_frame(self, kind: str) -> str:
        """A frame of the kind with all slots but {phrase} filled."""
        return self.templates.fill(self.rng.choice(self.frames[kind]), self.rng)

    def benign(self) -> str:
        """A harmless prompt."""
        rng = self.rng
        if rng.random() < self.config.scrambled_negatives:
            return self.scrambled("{phrase}").replace("{phrase}", rng.choice(self.words))
        if rng.random() < self.config.filled:
            text = self.templates.fill(rng.choice(self.benign_frames), rng)
        else:
            text = rng.choice(self.benign_prompts)
            if rng.random() < 0.3:
                text = self.templates.fill(f"{text.rstrip('.')}, {{style}}, {{quality}}", rng)
        if rng.random() < self.config.obfuscated_negatives:
            text = obfuscate(text, rng)
        return self.in_context(text)

    def plain(self, count: int) -> list[str]:
        """Harmless prompts as people write them: each free-standing one once, and filled frames, to about `count`.

        Thresholds are set on these. Drawn with repetition, one prompt that is hard to judge would stand for several in
        a thousand. No more frames than free-standing ones are filled: of what they have in common training has seen
        much, and they would make a threshold look safer than it is.
        """
        free = self.rng.sample(self.benign_prompts, min(count // 2, len(self.benign_prompts)))
        frames = min(count - len(free), max(len(free), self.config.fewest_filled))
        return free + [self.templates.fill(self.rng.choice(self.benign_frames), self.rng) for _ in range(frames)]

    def long(self, words: int, count: int) -> list[str]:
        """Harmless texts of about so many words: captions one behind the other, and every fourth a list of tags."""
        tags = [f"{{{slot}}}" for slot in self.templates.slots]
        texts = []
        for at in range(count):
            if at % 4:
                texts.append(" ".join(self.harmless_words(words)).rstrip(","))
                continue
            text = self.templates.fill(self.rng.choice(tags), self.rng)
            while len(text.split()) < words:
                text += ", " + self.templates.fill(self.rng.choice(tags), self.rng)
            texts.append(text)
        return texts

    def hard_negative(self) -> str:
        """A harmless prompt about something that only looks like the concept, in a frame of its kind."""
        phrase = self.rng.choice(self.hard)
        text = phrase.text
        if self.rng.random() < self.config.obfuscated_negatives:
            text = obfuscate(text, self.rng)
        return insert(self.in_context(self.filled_frame(phrase.kind)), text)

    def topic(self) -> str:
        """A harmless prompt that talks about a concept and shows nothing of it."""
        return insert(self.in_context(self.filled_frame(TOPIC)), self.rng.choice(self.topics).text)

    def in_context(self, frame: str) -> str:
        """Now and then set the frame among harmless words: before, after or around it."""
        rng = self.rng
        if rng.random() >= self.config.in_context:
            return frame
        fewest, most = self.config.context_words
        words = self.harmless_words(round(fewest * (most / fewest) ** rng.random()))
        cut = rng.choice((0, len(words), rng.randint(0, len(words))))
        separator = rng.choice((", ", ". ", " and ", "; "))
        parts = (" ".join(words[:cut]).rstrip(".,"), frame, " ".join(words[cut:]))
        return separator.join(part for part in parts if part)

    def harmless_words(self, count: int) -> list[str]:
        """So many words of harmless prompts, one prompt behind the other."""
        return joined_words(self.benign_prompts, count, self.rng)

    def scrambled(self, phrase: str) -> str:
        """Harmless words in no order around the phrase, with fragments such as optimised prompts have."""
        rng = self.rng
        words = [rng.choice(self.words) for _ in range(rng.randint(3, 14))]
        for index in range(len(words)):
            draw = rng.random()
            if draw < 0.15:
                words[index] = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6)))
            elif draw < 0.3:
                words[index] = self._unless_guarded(words[index][: rng.randint(2, 5)], words[index])
            elif draw < 0.4:
                words[index] += rng.choice(self.words)
            elif draw < 0.45:
                words[index] += rng.choice(("!", "#", ")", "'", "...", "<", "/", "%", " &"))
        words.insert(rng.randrange(len(words) + 1), phrase)
        return " ".join(words)

    def unit(self, concept: Concept, pair: Pair) -> tuple[Prompt, str]:
        """Target prompt (its anchor not yet placed) and anchor prompt."""
        targets, anchor = self.shared_unit(concept, [pair])
        return targets[0], anchor

    def shared_unit(self, concept: Concept, pairs: Sequence[Pair]) -> tuple[list[Prompt], str]:
        """A frame with the target of each pair, all of one group, and with the first pair's anchor or the group's."""
        rng = self.rng
        frame = self.filled_frame(pairs[0].kind)
        targets, anchor = [pair.target for pair in pairs], pairs[0].anchor
        if rng.random() < self.config.canonical:
            anchor = pairs[0].canonical
        targets = [
            self._unless_guarded(obfuscate(target, rng), target) if rng.random() < self.config.obfuscated else target
            for target in targets
        ]
        further: list[tuple[Concept, str, str]] = []
        # The phrases of a context concept are never joined with anything of another concept.
        if not concept.context and rng.random() < self.config.scrambled:
            frame = self.scrambled("{phrase}")
        elif not concept.context:
            further = self._further(concept) if rng.random() < self.config.several else []
            frame = self.in_context(self._joined(frame, len(further)))
        names = tuple(dict.fromkeys((concept.name, *(other.name for other, _, _ in further))))
        unsafe = safe = frame
        for i, (_, target, other_anchor) in enumerate(further):
            unsafe, safe = unsafe.replace(f"{{{i}}}", target), safe.replace(f"{{{i}}}", other_anchor)
        return [self._prompt(insert(unsafe, target), names) for target in targets], insert(safe, anchor)

    def _further(self, concept: Concept) -> list[tuple[Concept, str, str]]:
        """One or more phrases to stand beside one of the concept: the concept of each, target and anchor, both in the
        same frame or bare."""
        rng, found = self.rng, []
        for _ in range(rng.randint(1, self.config.most_further)):
            other, pair = rng.choice(self.own[concept.name])
            if self.erased and rng.random() < self.config.mixed:
                other, pair = rng.choice(self.erased)
            frame = self.filled_frame(pair.kind) if rng.random() < self.config.framed else "{phrase}"
            found.append((other, insert(frame, pair.target), insert(frame, pair.anchor)))
        return found

    def _joined(self, frame: str, count: int) -> str:
        """The frame among places {0}, {1}, … for so many further phrases, in any order."""
        if not count:
            return frame
        parts = [frame.rstrip("."), *(f"{{{i}}}" for i in range(count))]
        self.rng.shuffle(parts)
        return self.rng.choice((", ", ", ", ". ", " and ", "; ")).join(parts)

    def _unless_guarded(self, changed: str, text: str) -> str:
        """The changed text, or the text itself where the change lays a word for young people bare."""
        return text if self.guard and self.guard.search(changed) else changed

    def _prompt(self, text: str, names: tuple[str, ...]) -> Prompt:
        return Prompt(text, names, tuple(dict.fromkeys(u for n in names for u in self.unknown[n] if u not in names)))

    def rounds(self) -> Iterator[list[Prompt]]:
        """Units without end, each a list of prompts in which `anchor` counts from the unit's beginning."""
        rng, apart = self.rng, copy(self)
        apart.rng = self.topic_rng
        nouns = [(concept, pair) for concept, pair in self.erased if pair.kind == "noun"]
        while True:
            for concept, pairs in _take_turns(self.pairs, rng, self.config.sharing):
                targets, anchor = self.shared_unit(concept, pairs)
                hard = bool(self.hard) and rng.random() < self.config.hard_negatives
                yield _together(targets, anchor, self.hard_negative() if hard else self.benign())
                if self.topics and nouns and apart.rng.random() < self.config.topics:
                    concept, pair = apart.rng.choice(nouns)
                    targets, anchor = apart.shared_unit(concept, [replace(pair, kind=DISPLAY)])
                    yield _together(targets, anchor, apart.topic())


def _together(targets: Sequence[Prompt], anchor: str, harmless: str) -> list[Prompt]:
    """A unit of targets that share an anchor prompt, and a harmless prompt."""
    return [*(replace(target, anchor=len(targets)) for target in targets), Prompt(anchor), Prompt(harmless)]


def joined_words(prompts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """The first `count` words of prompts drawn at random, one behind the other."""
    words: list[str] = []
    while len(words) < count:
        words += f"{rng.choice(prompts).rstrip('.')}{rng.choice((',', '.'))}".split()
    return words[:count]


def full_size(concepts: Sequence[Concept], config: PromptConfig | None = None) -> int:
    """Number of prompts of a full training set."""
    config = config or PromptConfig()
    own = ([p for p in concept.pairs if not p.held_out] for concept in concepts)
    units = [unit for pairs in own for unit in _shared(pairs, config.sharing)]
    topics = any(p.kind == TOPIC for concept in concepts for p in concept.hard_negatives)
    beside = 3 * config.topics if topics else 0.0
    return max(config.fewest, round(config.full_rounds * sum(len(unit) + 2 + beside for unit in units)))


def training_prompts(
    concepts: Sequence[Concept], templates: Templates, count: int, seed: int, config: PromptConfig | None = None
) -> list[Prompt]:
    """At most `count` prompts, whole units only; every prefix that ends with a unit is a training set of its own."""
    prompts: list[Prompt] = []
    for unit in PromptGenerator(concepts, templates, seed, config=config).rounds():
        if len(prompts) + len(unit) > count:
            break
        start = len(prompts)
        prompts += [p if p.anchor is None else replace(p, anchor=start + p.anchor) for p in unit]
    return prompts


def _take_turns(
    pairs: list[tuple[Concept, Pair]], rng: random.Random, sharing: int
) -> list[tuple[Concept, list[Pair]]]:
    """One round of all phrases, the concepts spread evenly over it however many phrases each has."""
    by_concept: dict[str, tuple[Concept, list[Pair]]] = {}
    for concept, pair in pairs:
        by_concept.setdefault(concept.name, (concept, []))[1].append(pair)
    placed = []
    for concept, own in by_concept.values():
        rng.shuffle(own)
        units = _shared(own, sharing)
        rng.shuffle(units)
        placed += [((index + rng.random()) / len(units), (concept, unit)) for index, unit in enumerate(units)]
    return [item for _, item in sorted(placed, key=lambda entry: entry[0])]


def _shared(pairs: Sequence[Pair], sharing: int) -> list[list[Pair]]:
    """The pairs by `sharing` of one group, in their order; a group's last ones may be fewer."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.kind, pair.canonical), []).append(pair)
    return [group[at : at + sharing] for group in groups.values() for at in range(0, len(group), sharing)]


def _share(items: Sequence[Item], calibration: bool) -> list[Item]:
    """Every fifth for calibration, the others for training."""
    return [item for index, item in enumerate(items) if (index % 5 == 2) == calibration]


def _overlapping(concept: Concept, concepts: Sequence[Concept]) -> tuple[str, ...]:
    return tuple(c.name for c in concepts if c.name in concept.overlaps or concept.name in c.overlaps)
