"""A recogniser with token removal, in the style of SafeGuider."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanitizer.encoders import Encoding
from sanitizer.encoders.base import encode_all
from sanitizer.model.normalizer import Normalizer

from ..types import Batch, Development, Treated, untouched
from .common import substitute, threshold_for

HIDDEN, DROPOUT = (1024, 512), 0.5
EPOCHS, BATCH, RATE = 6, 64, 3e-4
SAFE, SIMILAR = 0.8, 0.1
"""What a candidate must reach: probability of being safe, and cosine of its end embedding to the original's."""
WIDTH, TELLING, DEPTH = 3, 6, 4
"""Candidates kept, words tried for each, words removed at most. The paper: 6, all, 25."""


class SafeGuider:
    """Three layers on the end token's embedding say whether a prompt is safe. From one that is not, a beam search
    removes words until what is left is safe (0.8) and still like the original (cosine 0.1), and that is encoded in its
    place.

    The threshold of the recogniser is set on the calibration prompts, where the paper takes 0.5. The beam is narrower
    and less deep than the paper's, and tries the words whose single removal helps most.
    """

    name = "safeguider"
    title = "SafeGuider (style)"
    source = "Qi et al. 2025, SafeGuider: Robust and Practical Content Safety Control, arXiv 2510.05173, section 4"

    def fit(self, development: Development) -> None:
        """Train the recogniser, unsafe against safe counterfactuals and benign prompts; set the threshold."""
        d = development
        self.normalizer, self.encoder = d.normalizer, d.encoder
        groups = [
            torch.cat([end_embeddings(self.normalizer, b.encoding) for b in d.batches(texts)]).clone()
            for texts in (d.unsafe, d.safe, d.benign)
        ]
        labels = torch.cat([torch.full((len(x),), float(i == 0)) for i, x in enumerate(groups)])
        self.recogniser = _train(torch.cat(groups), labels, d.seed)
        self.threshold = threshold_for(self, d)
        self.last: tuple[list[str], list[str]] | None = None

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Logit of being unsafe."""
        return self._logits(end_embeddings(self.normalizer, batch.encoding))

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score: words are weighed by removing them, and only in flagged prompts."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Remove words from flagged prompts and encode again."""
        flagged = (self.score(batch) > self.threshold).nonzero().squeeze(1).tolist()
        if not flagged or strength == 0:
            return untouched(batch)
        wanted = [batch.prompts[b] for b in flagged]
        if self.last is None or self.last[0] != wanted:  # Remembered, for other strengths.
            self.last = wanted, self.guide(wanted)
        changed = [(b, text) for b, text in zip(flagged, self.last[1], strict=True) if text != batch.prompts[b]]
        if not changed:
            return untouched(batch)
        other = encode_all(self.encoder, [text for _, text in changed])
        return substitute(batch, [b for b, _ in changed], other, strength)

    def guide(self, prompts: list[str]) -> list[str]:
        """The safest of what is left of each prompt, at the fewest words removed at which one is safe enough."""
        searches = [_Search(prompt.split()) for prompt in prompts]
        original = end_embeddings(self.normalizer, encode_all(self.encoder, prompts))
        for depth in range(DEPTH):
            wanted = [(s, removed) for s in searches if not s.done for removed in s.next_ones(depth)]
            if not wanted:
                break
            texts = [" ".join(s.left(removed)) for s, removed in wanted]
            unique = list(dict.fromkeys(texts))
            ends = end_embeddings(self.normalizer, encode_all(self.encoder, unique))
            safe = torch.sigmoid(-self._logits(ends)).tolist()
            place = {text: i for i, text in enumerate(unique)}
            own = {id(s): i for i, s in enumerate(searches)}
            before = original[[own[id(s)] for s, _ in wanted]]
            similar = F.cosine_similarity(ends[[place[text] for text in texts]], before, dim=-1).tolist()
            for (s, removed), text, near in zip(wanted, texts, similar, strict=True):
                s.tried[removed] = (safe[place[text]], near)
            for s in searches:
                s.settle(depth)
        return [s.best(prompt) for s, prompt in zip(searches, prompts, strict=True)]

    def _logits(self, ends: Tensor) -> Tensor:
        return self.recogniser(ends).squeeze(-1)


@dataclass
class _Search:
    """The beam of one prompt. A candidate is the places of the words that it lacks."""

    words: list[str]

    def __post_init__(self) -> None:
        self.tried: dict[frozenset, tuple[float, float]] = {}
        """Candidate -> (probability of being safe, cosine to the original)."""
        self.beam: list[frozenset] = [frozenset()]
        self.telling: list[int] = list(range(len(self.words)))
        self.done = len(self.words) < 2

    def left(self, removed: frozenset) -> list[str]:
        return [word for i, word in enumerate(self.words) if i not in removed]

    def next_ones(self, depth: int) -> list[frozenset]:
        found = {own | {i} for own in self.beam for i in self.telling if i not in own}
        return [f for f in found if f not in self.tried and len(f) == depth + 1 < len(self.words)]

    def settle(self, depth: int) -> None:
        """Choose the next beam, or stop."""
        now = {f: v for f, v in self.tried.items() if len(f) == depth + 1}
        if self.done or not now:
            self.done = True
            return
        ranked = sorted(now, key=lambda f: -now[f][0])
        if not depth:
            self.telling = [next(iter(f)) for f in ranked[:TELLING]]
        self.beam = ranked[:WIDTH]
        self.done = any(safe >= SAFE and near >= SIMILAR for safe, near in now.values())

    def best(self, prompt: str) -> str:
        allowed = {f: v for f, v in self.tried.items() if v[1] >= SIMILAR}
        if not allowed:
            return prompt
        return " ".join(self.left(max(allowed, key=lambda f: (allowed[f][0], -len(f)))))


def end_embeddings(normalizer: Normalizer, e: Encoding) -> Tensor:
    """(B, D) normalized: the embedding of the end token, the first one behind the text, else the last visible."""
    places = []
    for tokens, mask in zip(e.tokens, e.mask.tolist(), strict=True):
        seen = [i for i, visible in enumerate(mask) if visible] or [0]
        last = max((i for i in seen if tokens[i]), default=seen[0])
        places.append(last + 1 if last + 1 in seen else seen[-1])
    return normalizer(e.embeddings.float())[torch.arange(len(places)), places]


def _train(x: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        first, second = HIDDEN
        net = nn.Sequential(
            nn.Linear(x.shape[1], first), nn.ReLU(), nn.Dropout(DROPOUT),
            nn.Linear(first, second), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(second, 1),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(net.parameters(), lr=RATE)
        balance = ((1 - labels).sum() / labels.sum().clamp_min(1)).clone()
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x)).split(BATCH):
                loss = F.binary_cross_entropy_with_logits(net(x[index]).squeeze(-1), labels[index], pos_weight=balance)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return net.eval().requires_grad_(False)
