"""The train, validation and test split, a pure function of the subject; and the overlap of two corpora."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pydantic

from cluster.config import Config
from datasets.schema import Corpus

Side = Literal["train", "val", "test", "spare"]
MADE_UP = "synthetic"  # no real person is in this id space


class Split(Config):
    """Shares of the subjects held out. The same seed puts a person on the same side in every corpus."""

    seed: int = 0
    val: float = pydantic.Field(default=0.1, ge=0, lt=1)
    test: float = pydantic.Field(default=0.2, ge=0, lt=1)
    # of the training subjects; the subjects of a smaller share are in every larger one, the rest are "spare"
    train: float = pydantic.Field(default=1.0, gt=0, le=1)

    @pydantic.model_validator(mode="after")
    def _leaves_some(self) -> "Split":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test:g} leaves no subject to train on")
        return self


def assign(subject: str, split: Split) -> Side:
    """The side of a subject (its 32 hex digits): a hash of (seed, subject), independent of lists and
    corpora."""
    digest = hashlib.sha256(f"{split.seed}/{subject}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < split.val:
        return "val"
    if place < split.val + split.test:
        return "test"
    used = split.val + split.test + split.train * (1 - split.val - split.test)
    return "train" if place < used or split.train == 1 else "spare"


@dataclass(frozen=True)
class Overlap:
    """Whether subjects of a lineage are in a corpus (`none` and `shared` are proven), and the reason."""

    kind: Literal["none", "shared", "unknown"]
    shared: frozenset[str]
    why: str


def corpus_subjects(corpus: Corpus) -> set[str]:
    """Every subject with a row in the corpus (reads one column of every shard)."""
    found: set[str] = set()
    for index, shard in enumerate(corpus.shards):
        for group in range(len(shard["row_groups"])):
            found.update(corpus.read_row_group(index, group, ["subject"])["subject"].to_pylist())
    return found


def overlap(
    lineage_subjects: Iterable[str], key_id: str, id_space: str, published: bool, corpus: Corpus
) -> Overlap:
    """Compare the subjects that something was trained on with those of `corpus`.

    Names are comparable only if made with one key from the ids of one id space, and only if the source
    publishes subject ids. Two different id spaces prove nothing: a person may be in the files of two
    hospitals. The exception is the synthetic space, which contains nobody real.
    """
    mine, theirs = dict(id_space=id_space, key_id=key_id), corpus.manifest
    nobody: frozenset[str] = frozenset()
    if (id_space == MADE_UP) != (theirs["id_space"] == MADE_UP):
        return Overlap("none", nobody, "one of the two is synthetic: nobody in it is real")
    for name, known in (("the lineage", published), (corpus.uri, theirs["subjects_published"])):
        if not known:
            return Overlap("unknown", nobody, f"{name} comes from a source that publishes no subject ids")
    if mine["id_space"] != theirs["id_space"]:
        spaces = f"{mine['id_space']} and {theirs['id_space']}"
        return Overlap("unknown", nobody, f"ids of different spaces ({spaces}) cannot be compared")
    if mine["key_id"] != theirs["key_id"]:
        return Overlap("unknown", nobody, "subjects were named with different keys (PLETHORA_SUBJECT_KEY)")
    shared = frozenset(lineage_subjects) & corpus_subjects(corpus)
    if shared:
        return Overlap("shared", shared, f"{len(shared)} subjects are in both")
    return Overlap("none", nobody, f"same id space ({id_space}), same key, no subject in both")
