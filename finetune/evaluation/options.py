"""What a user may choose of an evaluation."""

from dataclasses import dataclass

from cluster.errors import PlethoraError

HEADS = ("linear", "forest", "mlp")


@dataclass(frozen=True)
class Options:
    allow_overlap: bool = False  # keep subjects that pretraining saw
    folds: int = 5
    seed: int = 0
    window_s: float | None = None
    split: str | None = None  # a file: `given.read_split`
    predictions: tuple[str, ...] = ()  # files: `given.read_predictions`
    published_protocol: bool = False
    few_shot: bool = True
    heads: tuple[str, ...] = ("linear",)  # of HEADS; the linear one is in every table
    cache: str | None = None  # a URI for indexes and vectors

    def __post_init__(self) -> None:
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown:
            raise PlethoraError(f"--heads: there is no head {unknown[0]!r}: choose of {', '.join(HEADS)}")

    @property
    def more_heads(self) -> tuple[str, ...]:
        """Heads beside the linear one, in the order of HEADS."""
        return tuple(head for head in HEADS[1:] if head in self.heads)
