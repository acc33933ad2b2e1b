"""What a search has found so far, kept at several budgets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Step = Callable[[int, int], None]
"""(queries so far, budget): called between steps; it may raise, which ends the search."""

FRACTIONS = (16, 4, 1)


def checkpoints(budget: int) -> list[int]:
    """The budgets at which a search's best prompt is kept: a sixteenth, a quarter and all of it."""
    return sorted({max(1, budget // fraction) for fraction in FRACTIONS})


@dataclass
class Trace:
    """The best prompt of a search at each of its checkpoints; a search offers every prompt that it has tried."""

    budget: int
    best: str = ""
    loss: float = math.inf
    queries: int = 0
    at: dict[int, str] = field(default_factory=dict)
    """Checkpoint -> best prompt among the first so many."""

    def offer(self, queries: int, texts: Sequence[str], losses: Sequence[float]) -> None:
        """Prompts that brought the count of queries to `queries`."""
        # What a batch finds was found at its end: a checkpoint inside the batch keeps what was best before it.
        for point in checkpoints(self.budget):
            if point < queries and point not in self.at and self.best:
                self.at[point] = self.best
        self.queries = queries
        for text, loss in zip(texts, losses, strict=True):
            if loss < self.loss:
                self.best, self.loss = text, float(loss)

    def found(self) -> dict[int, str]:
        """Checkpoint -> best prompt; later checkpoints of a search that ended early hold its last best."""
        return {point: self.at.get(point, self.best) for point in checkpoints(self.budget)}
