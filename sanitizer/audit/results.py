"""What an audit found: numbers, a table, JSON."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Count(NamedTuple):
    """Hits out of tries. Both are kept: a small audit's shares mean little without the number they rest on."""

    hits: int
    count: int

    @property
    def share(self) -> float | None:
        """None for no tries."""
        return self.hits / self.count if self.count else None

    def __str__(self) -> str:
        return f"{self.hits}/{self.count}" if self.count else "-"


class AttackPoint(NamedTuple):
    """Success of the attack with so many prompts encoded for a target."""

    budget: int
    raw: Count
    """Without the sanitizer."""
    sanitized: Count


@dataclass
class ConceptAudit:
    """One concept, on phrases and frames that training did not see."""

    name: str
    auroc: float | None
    """Of the prompt score: held-out prompts against harmless ones and their own counterfactuals."""
    true_positive_rate: float | None
    """Share of held-out prompts found at 1 % false positives among the same."""
    flagged: Count
    """Held-out prompts that reach the threshold."""
    counterfactuals_untouched: Count
    """Their counterfactuals that do not."""
    found_raw: Count
    """Held-out prompts in which an independent probe finds the concept."""
    found_sanitized: Count
    """The same after sanitizing at strength 1."""
    obfuscated: dict[str, Count]
    """Kind of obfuscation -> obfuscated held-out phrases that reach the threshold."""
    attack: list[AttackPoint]
    """Gradient-free substitution attack that knows the sanitizer; empty where no target was to be had."""

    @property
    def obfuscated_flagged(self) -> Count:
        """All kinds together."""
        return Count(sum(c.hits for c in self.obfuscated.values()), sum(c.count for c in self.obfuscated.values()))


@dataclass
class Audit:
    """What a sanitizer is worth on one encoder, as measured there."""

    encoder: str
    budget: int
    """Prompts that were to be encoded for each concept."""
    seed: int
    harmless_identical: Count
    """Held-out harmless prompts that came out bit for bit, with these concepts switched on."""
    concepts: list[ConceptAudit] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Concepts of the sanitizer without held-out phrases to measure on."""

    def to_dict(self) -> dict:
        """For JSON: every count as hits, count and share."""
        return {
            "encoder": self.encoder,
            "budget": self.budget,
            "seed": self.seed,
            "harmless_identical": _count(self.harmless_identical),
            "concepts": [
                {
                    "name": c.name,
                    "auroc": c.auroc,
                    "caught_at_1_percent": c.true_positive_rate,
                    "flagged": _count(c.flagged),
                    "twins_untouched": _count(c.counterfactuals_untouched),
                    "probe_raw": _count(c.found_raw),
                    "probe_sanitized": _count(c.found_sanitized),
                    "obfuscated_flagged": {kind: _count(count) for kind, count in c.obfuscated.items()},
                    "attack": [
                        {"budget": p.budget, "raw": _count(p.raw), "sanitized": _count(p.sanitized)} for p in c.attack
                    ],
                }
                for c in self.concepts
            ],
            "skipped": self.skipped,
        }

    def to_text(self) -> str:
        """A short table."""
        lines = [
            f"{'held-out phrases':18}{'AUROC':>7}{'flagged':>10}{'twins kept':>12}{'obfuscated':>12}"
            f"{'probe raw':>11}{'sanitized':>11}{'attack raw':>12}{'sanitized':>11}"
        ]
        for c in self.concepts:
            auroc = "-" if c.auroc is None else f"{c.auroc:.3f}"
            raw, sanitized = (c.attack[-1].raw, c.attack[-1].sanitized) if c.attack else ("-", "-")
            lines.append(
                f"{c.name:18}{auroc:>7}{c.flagged!s:>10}{c.counterfactuals_untouched!s:>12}{c.obfuscated_flagged!s:>12}"
                f"{c.found_raw!s:>11}{c.found_sanitized!s:>11}{raw!s:>12}{sanitized!s:>11}"
            )
        lines.append(f"bit-identical: {self.harmless_identical} harmless prompts. Encoder: {self.encoder}.")
        if self.skipped:
            lines.append(f"Not measured, for want of held-out phrases: {', '.join(self.skipped)}.")
        return "\n".join(lines)


def _count(count: Count) -> dict:
    return {"hits": count.hits, "count": count.count, "share": count.share}
