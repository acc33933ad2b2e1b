"""What a sanitizer is built from: its concepts and the sizes of its parts."""

from dataclasses import asdict, dataclass, field

from .networks import HEADS

MAX_CONCEPTS = 64
MAX_SIZE = 32_768


@dataclass(frozen=True)
class ConceptSpec:
    """What the model must know of a concept."""

    name: str
    context: bool = False
    """A context concept is scored, never erased."""
    lowers: dict[str, float] = field(default_factory=dict)
    """Concept -> logits by which this one's presence lowers that one's threshold."""


@dataclass(frozen=True)
class SanitizerConfig:
    """Sizes of a sanitizer; with the tensors it is all that a file needs to rebuild one."""

    concepts: tuple[ConceptSpec, ...]
    width: int
    """Channels D of a row."""
    pooled_width: int = 0
    """Channels P of the pooled vector, 0 for none."""
    window: int = 512
    """Longest run of rows that the networks see at once; longer inputs are split. For an encoder with a fixed number
    of rows (CLIP: 77) it is that number, so that joined chunks are seen one by one, as in training."""
    constant_rows: int = 0
    """Rows, such as BOS in a causal encoder, that are the same for every prompt: carried along, never written."""
    score_width: int = 96
    erase_width: int = 128
    erase_blocks: int = 1
    rank: int = 128
    """Dimensions of the subspace that the erase net writes."""
    pooled_rank: int = 0
    concept_rank: int = 0
    """Dimensions of the concepts' own directions, which the erase net writes in full; 0 in files from before them."""
    pooled_concept_rank: int = 0

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "SanitizerConfig":
        values = dict(values)
        concepts = tuple(ConceptSpec(**spec) for spec in values.pop("concepts"))
        return cls(concepts=concepts, **values)

    def check(self) -> None:
        """Raises ValueError for sizes that no training gives: they come from a forged or damaged header."""
        names = [spec.name for spec in self.concepts]
        if not names or len(set(names)) != len(names) or len(names) > MAX_CONCEPTS:
            raise ValueError(f"expected 1 to {MAX_CONCEPTS} different concepts, found {names}")
        limits = {
            "width": (1, MAX_SIZE),
            "pooled_width": (0, MAX_SIZE),
            "window": (1, MAX_SIZE),
            "constant_rows": (0, MAX_SIZE),
            "score_width": (HEADS, MAX_SIZE),
            "erase_width": (HEADS, MAX_SIZE),
            "erase_blocks": (0, 16),
            "rank": (1, self.width),
            "pooled_rank": (0, self.pooled_width),
            "concept_rank": (0, self.width),
            "pooled_concept_rank": (0, self.pooled_width),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")
        if self.score_width % HEADS or self.erase_width % HEADS:
            raise ValueError(f"expected widths divisible by {HEADS}")
