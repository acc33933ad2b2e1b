"""What is known of the training prompts: which concepts they hold, which rows are at fault, which rows align."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .alignment import align
from .concepts import Concept
from .encodings import Encodings
from .pairs import Prompt


class Labels:
    """What is known of each training prompt. K concepts, N prompts, R kept rows."""

    def __init__(self, prompts: Sequence[Prompt], encodings: Encodings, concepts: Sequence[Concept]) -> None:
        names = [concept.name for concept in concepts]
        count = len(prompts)
        self.prompt = torch.zeros(count, len(names))
        self.known = torch.ones(count, len(names))
        self.token = torch.zeros(len(encodings.rows), dtype=torch.bool)
        """(R,): the row belongs to the phrase at fault."""
        self.token_known = torch.ones(count)
        self.aligned: dict[int, tuple[Tensor, Tensor]] = {}
        """Target prompt -> its kept rows (places within the prompt) and the anchor's kept rows that they align with."""
        erasable = {concept.name for concept in concepts if not concept.context}
        for i, prompt in enumerate(prompts):
            for name in prompt.concepts:
                self.prompt[i, names.index(name)] = 1
            for name in prompt.unknown:
                self.known[i, names.index(name)] = 0
            if prompt.anchor is None:
                continue
            # Which of two phrases a token belongs to is not known.
            self.token_known[i] = float(len(prompt.concepts) == 1)
            places, differs = align(encodings.tokens[i], encodings.tokens[prompt.anchor])
            kept = encodings.kept[i]
            first = int(encodings.start[i])
            self.token[first : first + len(kept)] = torch.tensor([differs[place] for place in kept])
            if erasable.issuperset(prompt.concepts):
                rows = _nearest(kept, places, encodings.kept[prompt.anchor])
                if rows:
                    self.aligned[i] = tuple(torch.tensor(side) for side in zip(*rows, strict=True))


def _nearest(kept: list[int], places: list[int], anchor_kept: list[int]) -> list[tuple[int, int]]:
    """(row of the target, row of the anchor) in kept rows, leaving out rows whose counterpart was not kept."""
    where = {place: row for row, place in enumerate(anchor_kept)}
    return [(row, where[places[place]]) for row, place in enumerate(kept) if places[place] in where]


def token_labels(encodings: Encodings, labels: Labels, index: Tensor, length: int) -> Tensor:
    """(B, L): 1 where a row belongs to the phrase at fault."""
    out = torch.zeros(len(index), length)
    for b, i in enumerate(index.tolist()):
        rows = labels.token[int(encodings.start[i]) : int(encodings.start[i + 1])]
        out[b, : len(rows)] = rows.float()
    return out
