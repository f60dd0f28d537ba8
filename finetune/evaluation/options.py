"""What a user may choose of an evaluation."""

from dataclasses import dataclass

from cluster.errors import PlethoraError

VECTOR_HEADS = ("forest", "mlp")  # learn from vectors
NETWORK_HEADS = ("lora", "full", "scratch")  # train the network that gives them
HEADS = ("linear", *VECTOR_HEADS, *NETWORK_HEADS)
RANKS = (4, 16)
STEPS = 200


@dataclass(frozen=True)
class Options:
    allow_overlap: bool = False  # keep subjects that pretraining saw
    folds: int = 5
    seed: int = 0
    window_s: float | None = None
    split: str | None = None  # a file or LABEL=VALUE: `given.sides_of`
    predictions: tuple[str, ...] = ()  # files: `given.read_predictions`
    published_protocol: bool = False
    few_shot: bool = True
    heads: tuple[str, ...] = ("linear",)  # of HEADS; the linear one is in every table
    ranks: tuple[int, ...] = RANKS  # of the LoRA head
    head_steps: int = STEPS  # of heads that train the network, at most, a fit
    cache: str | None = None  # a URI for indexes and vectors

    def __post_init__(self) -> None:
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown:
            raise PlethoraError(f"--heads: there is no head {unknown[0]!r}: choose of {', '.join(HEADS)}")

    @property
    def vector_heads(self) -> tuple[str, ...]:
        return tuple(head for head in VECTOR_HEADS if head in self.heads)

    @property
    def network_heads(self) -> tuple[str, ...]:
        return tuple(head for head in NETWORK_HEADS if head in self.heads)
