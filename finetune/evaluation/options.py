"""What a user may choose of an evaluation."""

from dataclasses import dataclass


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
    cache: str | None = None  # a URI for indexes and vectors
