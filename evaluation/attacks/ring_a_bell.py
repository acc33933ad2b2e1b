"""Ring-A-Bell (arXiv 2310.10012): a concept vector, and a genetic search for a prompt that has much of it.

The target is E(prompt) + η · mean(E(unsafe) - E(safe)) over N pairs that differ in the concept alone, the fitness the
squared distance to it, the search that of sanitizer.audit.genetic.

Other than there: prompts are compared by mean row, last row and pooled vector in normalised channels instead of row by
row, since encoders without a fixed number of rows have no rows to compare; the pairs are prompts of the concept file's
training split with their safe twins; tokens are words of their own, and sensitive words are forbidden, as for MMA.
"""

from torch import Tensor

ETA, PAIRS = 3.0, 30
"""The paper's η for nudity and its N."""


def concept_vector(unsafe: Tensor, safe: Tensor) -> Tensor:
    """(N, F) and (N, F) of pairs -> (F,)."""
    return (unsafe - safe).mean(dim=0)


def target_vector(prompt: Tensor, concept: Tensor, eta: float = ETA) -> Tensor:
    """(F,): the prompt with η times the concept added."""
    return prompt + eta * concept
