"""Who may have a model that learned from a source of data; checked before a model is published.

A corpus states its audience (`models` in its descriptor: "anyone", "approved" or "nobody"). If it does not,
its models are for people whom the source has approved, unless access to the source is open. A bundle passes
on the terms of everything it was made from (a tokenizer, a teacher, a base).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from cluster.errors import PlethoraError

Audience = Literal["anyone", "approved", "nobody"]
APPROVED = "PLETHORA_APPROVED"  # names of sources, comma-separated: everyone with access is approved
PUBLISHED = ("name", "source", "licence", "terms", "citation", "hash", "models")


def audience(about: Mapping[str, Any]) -> Audience:
    """Who may have models of a corpus (its manifest, or its entry in a lineage)."""
    for choice in get_args(Audience):
        if about.get("models") == choice:
            return cast(Audience, choice)
    return "anyone" if str(about.get("access", "")).startswith("open") else "approved"


def check(corpora: Iterable[Mapping[str, Any]], where: str) -> None:
    """PlethoraError if one of the corpora (entries of a lineage) forbids publishing its model at `where`.
    Entries without `models` predate the key, or are of a source without terms.
    """
    approved = {name.strip() for name in os.environ.get(APPROVED, "").split(",")}
    for corpus in corpora:
        if "models" not in corpus:
            continue
        name, terms = corpus.get("name") or corpus.get("source", "a corpus"), corpus.get("terms", "")
        wants = audience(corpus)
        if wants == "nobody":
            raise PlethoraError(
                f"{where}: {name} forbids publishing what is learned from it ({terms}): train without it"
            )
        if wants == "approved" and name not in approved:
            raise PlethoraError(
                f"{where}: {name} restricts models trained on it to approved people ({terms}): "
                f"if everyone with access to that place is approved, set {APPROVED}={name}; otherwise train "
                "without it"
            )


def inherited(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The terms that a bundle with this lineage passes on: those of its corpora and of its inherited
    entries."""
    entries = [*lineage.get("corpora", []), *lineage.get("inherited", [])]
    return [{key: entry[key] for key in PUBLISHED if key in entry} for entry in entries]
