"""Combines settings inferred from a checkpoint's shapes with those set by the user into one checked
config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from cluster.config import validate
from cluster.errors import PlethoraError

M = TypeVar("M", bound=pydantic.BaseModel)


def settle(model: type[M], inferred: Mapping[str, Any], given: Mapping[str, Any]) -> M:
    """The config from both. Errors: PlethoraError when ``given`` contradicts the checkpoint or is invalid."""
    config = validate(model, {**inferred, **given}, "--set")
    for key in inferred:
        if key in given and getattr(config, key) != getattr(
            validate(model, dict(inferred), "checkpoint"), key
        ):
            raise PlethoraError(f"--set {key}={given[key]}: the checkpoint has {inferred[key]}")
    return config
