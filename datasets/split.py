"""Splits by subject: a pure function of the keyed name, so one person lands on one side in every corpus."""

import hashlib
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Config


class Split(Config):
    """Expected shares of subjects; the rest trains."""

    seed: int = 0
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test:g} leaves no subject to train on")
        return self


def assign(subject: str, split: Split) -> Literal["train", "val", "test"]:
    """The side of one subject (its keyed name, see `schema.hash_subject`)."""
    digest = hashlib.sha256(f"{split.seed}/{subject}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if u < split.val else "test" if u < split.val + split.test else "train"
