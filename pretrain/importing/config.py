"""What the shapes of a checkpoint tell and what a user sets -> one checked config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from cluster.config import validate
from cluster.errors import PlethoraError

M = TypeVar("M", bound=pydantic.BaseModel)


def settle(model: type[M], told: Mapping[str, Any], given: Mapping[str, Any]) -> M:
    """The config of both. Errors: PlethoraError when ``given`` says another thing than the checkpoint, or
    what no config takes."""
    config = validate(model, {**told, **given}, "--set")
    for key in told:
        if key in given and getattr(config, key) != getattr(validate(model, dict(told), "checkpoint"), key):
            raise PlethoraError(f"--set {key}={given[key]}: the checkpoint has {told[key]}")
    return config
