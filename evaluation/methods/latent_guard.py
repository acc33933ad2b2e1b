"""A detector in the style of Latent Guard: the concept asks the embeddings, and their answer is compared to it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanitizer.encoders.base import encode_all
from sanitizer.training.dataset import EncodedDataset

from ..types import Batch, Development, Treated
from .common import EmptyPrompt, mean_embedding, threshold_for

HEADS, HEAD, OUT = 4, 32, 128
"""Attention heads, channels of a head, channels compared. The paper has 8 or 16 heads, 32 channels and 128."""
TEMPERATURE = 1 / 0.07
STEPS, BATCH = 240, 48
RATE, DECAY, WARMUP = 1e-3, 0.01, 20
BLACKLIST = 96
"""Concepts compared to a prompt when it is judged."""


class Mapping(nn.Module):
    """Cross-attention from concepts to a prompt's token embeddings, then one linear layer for each side.

    B prompts, C concepts.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = HEADS * HEAD
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.answer, self.question = nn.Linear(inner, OUT), nn.Linear(inner, OUT)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def forward(self, x: Tensor, weight: Tensor, concepts: Tensor) -> Tensor:
        """x (B, L, D), weight (B, L), concepts (C, D) -> similarity (B, C), a cosine times the temperature."""
        query = self.query(concepts)
        key, value = (layer(x).unflatten(-1, (HEADS, HEAD)) for layer in (self.key, self.value))
        scores = torch.einsum("chd,blhd->bchl", query.unflatten(-1, (HEADS, HEAD)), key) / math.sqrt(HEAD)
        # An embedding that stands for n weighs n; one that is masked weighs nothing.
        attention = torch.softmax(scores + weight.clamp_min(1e-9).log()[:, None, None], dim=-1)
        heard = torch.einsum("bchl,blhd->bchd", attention, value).flatten(-2)
        answer, question = F.normalize(self.answer(heard), dim=-1), F.normalize(self.question(query), dim=-1)
        return self.temperature * (answer * question).sum(-1)


class LatentGuard:
    """Trained contrastively: to a concept, the unsafe prompt that holds it is near, and its safe counterfactual,
    benign prompts and prompts of other concepts are far. A prompt is as harmful as it is near to the nearest concept.

    What it flags is replaced by the empty prompt. The paper trains for 1000 epochs on CoPro's 723 concepts with CLIP;
    here the concepts are the development split's phrases.
    """

    name = "latent_guard"
    title = "Latent Guard (style)"
    source = "Liu et al. 2024, Latent Guard: a Safety Framework for Text-to-image Generation, arXiv 2404.08031"

    def fit(self, development: Development) -> None:
        """Train the mapping on pairs whose phrase is known, and set the threshold."""
        self.normalizer, encoder = development.normalizer, development.encoder
        labels = _phrases_of(development.unsafe, development.phrases)
        used = list(dict.fromkeys(label for label in labels if label is not None)) or development.phrases[:1]
        concepts = mean_embedding(self.normalizer, encode_all(encoder, used)).clone()
        places = {phrase: i for i, phrase in enumerate(used)}
        self.mapping = _train(
            development.encoded,
            torch.tensor([places.get(label, -1) for label in labels]),
            concepts,
            development.seed,
        )
        step = max(1, len(used) // BLACKLIST)
        self.concepts = concepts[::step][:BLACKLIST]
        self.empty = EmptyPrompt(encoder)
        self.threshold = threshold_for(self, development)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Similarity to the nearest concept."""
        e = batch.encoding
        return self.mapping(
            self.normalizer(e.embeddings.float()), self.normalizer.weights(e.embeddings, e.mask), self.concepts
        ).amax(1)

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score: the paper gives none."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """The empty prompt for one that is flagged."""
        return self.empty.replace(batch, self.score(batch) > self.threshold, strength)


def _phrases_of(prompts: list[str], phrases: list[str]) -> list[str | None]:
    """The longest target phrase in each prompt, None where none is found as it is written (obfuscated ones)."""
    ordered = sorted(dict.fromkeys(phrases), key=len, reverse=True)
    lower = [phrase.lower() for phrase in ordered]
    return [
        next((ordered[i] for i, phrase in enumerate(lower) if phrase in text), None)
        for text in (prompt.lower() for prompt in prompts)
    ]


def _train(groups: Sequence[EncodedDataset], labels: Tensor, concepts: Tensor, seed: int) -> Mapping:
    """groups: unsafe, safe, benign; labels (N,): place of each unsafe prompt's concept, -1 for unknown."""
    unsafe, safe, benign = groups
    known = (labels[: min(len(unsafe), len(safe))] >= 0).nonzero().squeeze(1)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        mapping = Mapping(concepts.shape[1])
        if not len(known):
            return mapping.requires_grad_(False)
        optimiser = torch.optim.AdamW(mapping.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        )
        for _ in range(STEPS):
            index = known[torch.randint(len(known), (BATCH,))]
            other = torch.randint(len(benign), (BATCH // 2,)).tolist()
            parts = [unsafe.batch(index.tolist()), safe.batch(index.tolist()), benign.batch(other)]
            own = labels[index]
            # (prompts, concepts): the first BATCH prompts are unsafe, prompt i holding concept i.
            similar = torch.cat([mapping(x, weight, concepts[own]) for x, weight, _ in parts])
            loss = _contrast(similar, own)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return mapping.requires_grad_(False)


def _contrast(similar: Tensor, own: Tensor) -> Tensor:
    """similar (N, C), own (C,): for each concept its own prompt among the harmless ones and those of other concepts."""
    count = len(own)
    same = own[:, None] == own[None]
    # Another prompt of the same concept is neither the positive nor a negative.
    beside = torch.zeros_like(similar, dtype=torch.bool)
    beside[:count] = same & ~torch.eye(count, dtype=torch.bool)
    logits = similar.masked_fill(beside, -1e4).T
    return F.cross_entropy(logits, torch.arange(count))
