"""One overlap rule for all commands: `--allow-overlap` keeps subjects seen in pretraining, else they are left
out. With it, every table warns that its figures may flatter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets import split
from datasets.schema import Corpus
from finetune.evaluation.results import LeftOut, Overlap


@dataclass(frozen=True)
class SeenSubjects:
    """Subjects of an evaluation corpus that pretraining saw: kind "none", "shared" or "unknown", and why.
    `kept`: the user keeps them in the evaluation.
    """

    kind: str = "none"
    subjects: frozenset[str] = frozenset()
    why: tuple[str, ...] = ()
    kept: bool = False

    def split(self, subject_n: np.ndarray) -> tuple[np.ndarray, LeftOut]:
        """(n,) bool: which windows are evaluated; and the number of windows and subjects left out."""
        if self.kept or not self.subjects:
            return np.ones(len(subject_n), bool), LeftOut()
        known = np.isin(subject_n, list(self.subjects))
        return ~known, LeftOut(len(set(subject_n[known])), int(known.sum()))

    def overlap(self, left_out: LeftOut | None = None) -> Overlap:
        policy = "all" if self.kept else "unseen"
        return Overlap(self.kind, self.why, policy, len(self.subjects), left_out)

    def warnings(self) -> list[str]:
        """A line if the figures include subjects that pretraining saw or may have seen."""
        if not self.kept or (self.kind == "none" and not self.subjects):
            return []
        known = len(self.subjects)
        return [f"subjects that pretraining saw are NOT left out ({known} known): figures may flatter"]


NOBODY = SeenSubjects()


class Pretrained(Protocol):
    """A bundle or an encoder: its address, and what lineage.json says of its training."""

    @property
    def uri(self) -> str: ...

    @property
    def lineage(self) -> Mapping[str, Any]: ...


def seen_by(found: Iterable[Pretrained], corpus: Corpus, allow_overlap: bool = False) -> SeenSubjects:
    """Overlap of bundles, their parents included, with a corpus; `allow_overlap`: the user's choice."""
    return replace(seen_by_any([seen_by_pretraining(b, corpus) for b in found]), kept=allow_overlap)


def seen_by_pretraining(bundle: Pretrained, corpus: Corpus) -> SeenSubjects:
    """Overlap of the bundle's lineage, parents included, with a corpus."""
    subjects: set[str] = set()
    kinds: list[str] = []
    why: list[tuple[str, str]] = []
    for entry, problem in _lineage(bundle, set()):
        if entry is None:
            kinds.append("unknown")
            why.append(("unknown", problem))
            continue
        found = split.overlap(
            entry["subjects"], entry["key_id"], entry["id_space"], entry["subjects_published"], corpus
        )
        kinds.append(found.kind)
        subjects |= found.shared
        why.append((found.kind, f"{entry['uri']}: {found.why}"))
        if found.kind == "unknown" and entry["hash"] == corpus.hash:
            subjects |= set(entry["subjects"])  # the same files: their names match, whatever they stand for
    kind = _worst(kinds)
    reasons = dict.fromkeys(reason for of, reason in why if of == kind)
    return SeenSubjects(kind, frozenset(subjects), tuple(reasons))


def seen_by_any(found: Iterable[SeenSubjects]) -> SeenSubjects:
    """Overlap of several bundles together: everyone whom one of them saw."""
    known = list(found)
    kind = _worst([s.kind for s in known])
    why = dict.fromkeys(reason for s in known if s.kind == kind for reason in s.why)
    return SeenSubjects(kind, frozenset().union(*(s.subjects for s in known)), tuple(why))


def _worst(kinds: list[str]) -> str:
    return next((k for k in ("unknown", "shared") if k in kinds), "none")


def _lineage(bundle: Pretrained, done: set[str]) -> list[tuple[dict | None, str]]:
    """Corpus entries of a bundle and its parents; (None, why) for a parent that cannot be read."""
    entries: list[tuple[dict | None, str]] = [(entry, "") for entry in bundle.lineage.get("corpora", [])]
    if not entries:  # weights that were imported, or a foreign bundle
        entries.append((None, f"{bundle.uri}: its lineage names no corpus"))
    for parent in bundle.lineage.get("parents", []):
        uri = parent["uri"]
        if uri in done:
            continue
        done.add(uri)
        try:
            entries += _lineage(bundles.open(uri), done)
        except PlethoraError as error:
            problem = f"parent bundle {uri} cannot be read ({error})"
            if Path(uri).is_file():  # of imported weights
                problem = f"the weights file {uri} names no corpus"
            entries.append((None, problem))
    return entries
