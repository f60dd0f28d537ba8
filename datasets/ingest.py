"""Source recordings → a corpus: a Ray Data job, one task a shard, planned from headers before reading.

Which record goes into which shard depends on headers, descriptor and subject key alone, so the shards are the
same bytes however many workers write them.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster import config, storage
from cluster.errors import PlethoraError
from datasets import agreement, assemble, jobs, labels, schema
from datasets.descriptor import Descriptor
from datasets.readers import READERS, given
from datasets.readers.base import RecordFile, Refused, Root, checked
from datasets.write import SHARD_BYTES, Entry, ShardReport, write_shard

HEADER_BYTES = 16 * 2**20  # larger files are not read to tell whether an ingest is of the same input


@dataclass(frozen=True)
class Task:
    """One shard to write: its sources, each with the subject's name in the corpus."""

    index: int
    sources: tuple[tuple[RecordFile, str], ...]


def read_descriptor(path: str | Path) -> Descriptor:
    """The checked descriptor at `path`; every mistake in it is one PlethoraError line."""
    descriptor = config.load(path, Descriptor)
    if descriptor.reader not in READERS:
        raise PlethoraError(
            f"{path}: no reader {descriptor.reader!r}; there are {', '.join(sorted(READERS))}"
        )
    return descriptor


def ingest(descriptor_path: str | Path, root: str, out: str, force: bool = False) -> dict[str, Any]:
    """Read what `descriptor_path` describes below `root` into a corpus at `out`; returns a summary.

    The summary is the manifest (`corpus.json`) without shards, plus `uri`, `problems` (what was refused whole
    or could not be read, by record, in words), `notes` (what was mended, likewise), `agreement` (derived
    labels against given ones: see `agreement.compare`) and `already_there`. A finished corpus at `out` stays
    as it is when it was made of the same input, and is an error otherwise, unless `force`.
    """
    descriptor = read_descriptor(descriptor_path)
    out = storage.normalise(out)
    key, key_id = schema.subject_key(remote=storage.is_remote(out))
    files = Root(root)
    sources = given.complete(READERS[descriptor.reader].scan(files, descriptor), files, descriptor)
    about = _about(descriptor, key_id, sources, files)
    there = assemble.prepare(out, force)
    if there is not None:
        return _already(there, about, out)
    tasks = plan(sources, key, descriptor.id_space)
    work = functools.partial(_work, files.uri, out, descriptor)
    reports = jobs.run(work, tasks, f"ingest {descriptor.name}", len(sources))
    manifest, words = assemble.finish(out, reports, about)
    made = summary(manifest, out, words)
    return made | {"agreement": agreement.of_corpus(schema.open_corpus(out))}


def summary(
    manifest: dict,
    uri: str,
    words: Mapping[str, Sequence[dict[str, str]]] | None = None,
    already: bool = False,
) -> dict:
    """What a person wants to know of a corpus just made."""
    short = {k: v for k, v in manifest.items() if k not in ("shards", "rejects_file", "labels")}
    short["shards"] = len(manifest["shards"])
    short["bytes"] = sum(s["bytes"] for s in manifest["shards"])
    short["labels"] = manifest["labels"]["rows"]
    messages = {kind: list((words or {}).get(kind, [])) for kind in ("problems", "notes")}
    return {**short, "uri": uri, **messages, "already_there": already}


def plan(
    sources: Sequence[RecordFile], key: bytes, id_space: str, shard_bytes: int = SHARD_BYTES
) -> list[Task]:
    """Which record goes into which shard.

    Subjects in order of their keyed hash, records of one together; a shard closes before the subject that
    would take it over `shard_bytes`. A subject that is larger than a shard alone is cut between records.
    """
    named = [(schema.hash_subject(key, id_space, s.subject or f"?{s.record}"), s) for s in sources]
    named.sort(key=lambda pair: (pair[0], pair[1].record))
    weights: dict[str, int] = {}
    for subject, source in named:
        weights[subject] = weights.get(subject, 0) + 2 * source.samples
    shards: list[list[tuple[RecordFile, str]]] = [[]]
    load, last = 0, ""
    for subject, source in named:
        coming = weights[subject] if subject != last else 2 * source.samples
        if shards[-1] and load + coming > shard_bytes and (subject != last or load >= shard_bytes):
            shards.append([])
            load = 0
        shards[-1].append((source, subject))
        load += 2 * source.samples
        last = subject
    return [Task(i, tuple(shard)) for i, shard in enumerate(shards)]


def _about(descriptor: Descriptor, key_id: str, sources: Sequence[RecordFile], root: Root) -> dict[str, Any]:
    """The manifest's descriptive part. `input` is the fingerprint of all that decides the corpus' content."""
    fields = descriptor.model_dump(mode="json")
    _drop_later(fields)
    seen = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    seen.update(key_id.encode())
    for source in sources:
        seen.update(json.dumps([source.record, source.subject, source.files, source.digest]).encode())
    # headers and label sheets by content, large files (they hold the samples) by name and size
    small = [*(s.files[0] for s in sources if not s.digest)]
    small += ((n, root.sizes.get(n, -1)) for n in given.shared(descriptor))
    for name, size in dict.fromkeys(small):
        if 0 <= size <= HEADER_BYTES:
            seen.update(root.read(name))
    return {
        "name": descriptor.name,
        "source": descriptor.source,
        "licence": descriptor.licence,
        "terms": descriptor.terms,
        "citation": descriptor.citation,
        "access": descriptor.access,
        **({"models": descriptor.models} if descriptor.models else {}),
        "key_id": key_id,
        "id_space": descriptor.id_space,
        "subjects_published": descriptor.subjects_published,
        "modalities": [m for m in schema.MODALITIES if m in descriptor.signals],
        "segment_s": descriptor.segment_s,
        "limits": dataclasses.asdict(descriptor.limits),
        "input": seen.hexdigest(),
        **({"readings": readings} if (readings := given.readings(sources, descriptor)) else {}),
    }


# Keys of a descriptor that came later, by table, with their defaults. A default is left
# out of the fingerprint then, so that older corpora keep their fingerprint.
LATER: dict[str, dict[str, Any]] = {
    "": {"models": None, "elements_axis": None},
    "signals": {"rate_tolerance": None, "missing": []},
    "numerics": {"offset_s": 0.0},
    "traces": {"offset_s": 0.0},
    "table": {"start_line": None, "rate_line": None},
    "tables": {"clock": None, "offset_s": 0.0, "start_line": None, "rate_line": None, "skip": 0},
    "events": {"clock": None, "offset_s": 0.0, "start_line": None, "header": 1, "skip": 0},
    "fields": {"split": None},
    "tables.columns": {"split": None},
}


def _drop_later(fields: dict[str, Any]) -> None:
    for table, keys in LATER.items():
        first, _, second = table.partition(".")
        part = fields[first] if first else fields
        each = part.values() if first == "signals" else part if isinstance(part, list) else [part]
        if second:
            each = [one for outer in each for one in outer[second].values()]
        for one in each:
            for key, default in keys.items():
                if one is not None and key in one and one[key] == default:
                    del one[key]


def _already(manifest: dict, about: dict[str, Any], out: str) -> dict[str, Any]:
    if manifest.get("input") != about["input"]:
        raise PlethoraError(
            f"{out} holds a corpus of other input ({manifest.get('name')}): choose another --out, or "
            f"replace it with --force"
        )
    sizes = storage.sizes(out)
    lost = [s["path"] for s in manifest["shards"] if sizes.get(s["path"]) != s["bytes"]]
    if lost:
        raise PlethoraError(f"{out} has lost {lost[0]}: ingest it again with --force")
    made = summary(manifest, out, already=True)
    return made | {"agreement": agreement.of_corpus(schema.open_corpus(out))}


def _work(root: str, out: str, descriptor: Descriptor, task: Task, tick: jobs.Tick) -> ShardReport:
    modalities = [m for m in schema.MODALITIES if m in descriptor.signals]
    entries = _entries(root, descriptor, task)
    return write_shard(out, task.index, entries, modalities, descriptor.limits, descriptor.segment_s, tick)


def _entries(root: str, descriptor: Descriptor, task: Task) -> Iterator[Entry]:
    reader = READERS[descriptor.reader]
    files = Root.reopen(root, {name for source, _ in task.sources for name, _ in source.files})
    with tempfile.TemporaryDirectory() as place:
        common = files.fetch(given.shared(descriptor), Path(place))
        for _, group in itertools.groupby(task.sources, key=lambda pair: pair[0].files[0]):
            with tempfile.TemporaryDirectory() as scratch:  # one copy of a far file, however many records
                for source, subject in group:
                    yield _entry(reader, source, subject, files, Path(scratch), common, descriptor)


def _entry(
    reader: ModuleType,
    source: RecordFile,
    subject: str,
    files: Root,
    scratch: Path,
    common: Path,
    descriptor: Descriptor,
) -> Entry:
    broken = source.broken
    recording = None
    if broken is None:
        shared = given.shared(descriptor)
        folder = files.fetch([name for name, _ in source.files if name not in shared], scratch)
        while recording is None and broken is None:
            try:
                recording = checked(reader.load(source, folder, descriptor), source)
            except Refused as why:
                if smaller := _without(source, why, descriptor):
                    source = smaller
                else:
                    broken = (why.reason, why.detail)
        if recording is not None:
            given.add(recording, source, folder, common, descriptor)
            recording.labels += labels.derived(recording, descriptor.derive, descriptor.limits)
    refused = {m: (source.seconds[m], reason) for m, reason in source.refused.items()}
    if broken is not None:
        refused = {m: (seconds, broken[0]) for m, seconds in source.seconds.items()}
    detail = f"{broken[0]}: {broken[1]}" if broken else _refused_detail(source)
    return Entry(source.record, subject, recording, refused, detail)


def _without(source: RecordFile, why: Refused, descriptor: Descriptor) -> RecordFile | None:
    """The record without the signal that its samples showed to be broken; None where it must not go in so."""
    m = why.modality
    if m is None or m in source.refused or descriptor.signals[m].required:
        return None
    if not source.seconds.keys() - source.refused - {m}:
        return None
    refused, words = source.refused | {m: why.reason}, source.words | {m: why.detail}
    return dataclasses.replace(source, refused=refused, words=words)


def _refused_detail(source: RecordFile) -> str | None:
    """Each refused modality with its reason, and in words what the file has instead."""
    reasons = {
        m: f"{reason} ({w})" if (w := source.words.get(m)) else reason for m, reason in source.refused.items()
    }
    return ", ".join(f"{m}: {words}" for m, words in sorted(reasons.items())) or None
