"""Whom the sources of data let have a model that learned from them, and the check before one is published.

A corpus says it itself (`models` in its descriptor: "anyone", "approved" or "nobody"); one that does not is
for those whom its source approved, unless access to it is open. What a bundle was made from (a tokenizer, a
teacher, a base) hands its sources' terms down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from cluster.errors import PlethoraError

Audience = Literal["anyone", "approved", "nobody"]
APPROVED = (
    "PLETHORA_APPROVED"  # names of sources, separated by commas, for which all are approved who reach it
)
TOLD = ("name", "source", "licence", "terms", "citation", "hash", "models")


def audience(about: Mapping[str, Any]) -> Audience:
    """Whom a corpus (its manifest, or its entry in a lineage) lets have models of it."""
    for said in get_args(Audience):
        if about.get("models") == said:
            return cast(Audience, said)
    return "anyone" if str(about.get("access", "")).startswith("open") else "approved"


def check(corpora: Iterable[Mapping[str, Any]], where: str) -> None:
    """PlethoraError when one of the corpora (entries of a lineage) forbids that its model is published at
    `where`. Entries without `models` are of before it was told, or of a source that has no terms of ours.
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
                f"{where}: {name} lets only those have what is learned from it whom its source approved "
                f"({terms}): where all who reach that place are, set {APPROVED}={name}; else train without it"
            )


def inherited(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a bundle with this lineage hands down: the terms of its corpora and of those that it inherited."""
    entries = [*lineage.get("corpora", []), *lineage.get("inherited", [])]
    return [{key: entry[key] for key in TOLD if key in entry} for entry in entries]
