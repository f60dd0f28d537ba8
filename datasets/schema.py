"""The corpus contract, version 1: file names, column types, subject hashing, and a reader of both.

A corpus is a folder (local or s3) that holds

    corpus.json        description, counts, shards with checksums, content hash; written last
    shards/*.parquet   rows of waveform (`row_schema`)
    labels.parquet     long-form labels (`LABELS`); ingest computed those whose name ends in `_derived`
    rejects.parquet    every refused stretch and why (`REJECTS`)
"""

import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import ranges, storage
from cluster.config import validate
from cluster.contract import Document
from cluster.errors import PlethoraError
from datasets import footers, trust
from datasets.trust import MODALITIES as MODALITIES

VERSION = 1
MANIFEST, LABELS_FILE, REJECTS_FILE, SHARDS_DIR = "corpus.json", "labels.parquet", "rejects.parquet", "shards"
DERIVED = "_derived"  # suffix of labels that ingest computed from waveforms or from given events
KEY_VARIABLE = "PLETHORA_SUBJECT_KEY"

LABELS = pa.schema(
    [
        ("subject", pa.string()),
        ("record", pa.string()),
        ("start_s", pa.float64()),  # null, like end_s: the label applies to the whole record
        ("end_s", pa.float64()),
        ("name", pa.string()),
        ("value", pa.float64()),  # exactly one of value and text is null
        ("text", pa.string()),
        ("unit", pa.string()),
    ]
)
REJECTS = pa.schema(
    [
        ("record", pa.string()),
        ("modality", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("reason", pa.string()),
    ]
)


def row_schema(modalities: Iterable[str]) -> pa.Schema:
    """Columns of a shard. A modality that a row lacks is null in all its six columns.

    `m` holds little-endian int16, shape (samples, channels) in C order; physical = raw * m_scale + m_offset.
    Rows end wherever any modality becomes valid or invalid. Rows of one record follow each other in time and
    lie in one row group if they fit; a modality has one rate, scale, offset and unit for the whole record: if
    it continues from one row into the next (start_s + duration_s = next start_s), the two may be joined.
    """
    fields = [("subject", pa.string()), ("record", pa.string())]
    fields += [("start_s", pa.float64()), ("duration_s", pa.float64())]
    for m in modalities:
        fields += [
            (m, pa.binary()),
            (f"{m}_rate", pa.float64()),
            (f"{m}_scale", pa.float64()),
            (f"{m}_offset", pa.float64()),
            (f"{m}_unit", pa.string()),
            (f"{m}_channels", pa.int32()),
        ]
    return pa.schema(fields)


def waveform(raw: Any, scale: float, offset: float, channels: int, dtype: Any = np.float32) -> np.ndarray:
    """Physical samples (channels, samples) of one row's binary value (bytes, buffer or pa.BinaryScalar)."""
    buffer = raw.as_buffer() if isinstance(raw, pa.BinaryScalar) else raw
    x_tc = np.frombuffer(buffer, dtype="<i2").reshape(-1, channels)
    return np.ascontiguousarray(x_tc.T).astype(dtype) * dtype(scale) + dtype(offset)


def subject_key(remote: bool = False) -> tuple[bytes, str]:
    """The secret that turns source ids into subject names, and its public fingerprint `key_id`.

    From PLETHORA_SUBJECT_KEY, else (local output only) from a 0600 file that is created once and announced on
    stderr. Raises PlethoraError if `remote` and no key is given: with a key that exists on one machine only,
    overlap between the corpora of a bucket could not be proven.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if given:
        return given.encode(), key_id(given.encode())
    if remote:
        raise PlethoraError(
            f"writing subjects to a shared bucket needs a shared key: set {KEY_VARIABLE} to a secret "
            f"that everyone who ingests into the bucket uses"
        )
    path = Path.home() / ".config" / "plethora" / "subject.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process created it between the two calls
            pass
        else:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            print(f"made a subject key for this machine: {path} (keep it private)", file=sys.stderr)
    key = path.read_text().strip().encode()
    if not key:
        raise PlethoraError(f"{path} is empty: delete it (a new key is created) or set {KEY_VARIABLE}")
    return key, key_id(key)


def key_id(key: bytes) -> str:
    """Fingerprint of a key: equal for equal keys, reveals nothing else about them."""
    return hmac.new(key, b"plethora key id", hashlib.sha256).hexdigest()[:16]


def hash_subject(key: bytes, id_space: str, source_id: str) -> str:
    """The subject's name in a corpus: first 128 bits of HMAC-SHA256(key, id_space NUL id), 32 hex digits."""
    return hmac.new(key, f"{id_space}\0{source_id}".encode(), hashlib.sha256).hexdigest()[:32]


def content_hash(manifest: dict) -> str:
    """SHA-256 of the manifest without its own `hash`: covers shard checksums, but not times and paths."""
    body = {k: v for k, v in manifest.items() if k != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Corpus:
    """An opened corpus. `manifest` is corpus.json; `hash` its content hash; `shards` its shard entries.

    A shard entry: {"path", "rows", "bytes", "sha256", "row_groups": [rows, …], "rates": {modality: [Hz, …]},
    "hours": {modality: h}}. `ranged`: a row group in a bucket is one ranged request instead of three in
    sequence; each machine then collects the footers of all shards (`datasets.footers`), in its own file or in
    the one given by `footers`.
    """

    ranged = False

    _found: "footers.Footers | None" = None  # `footers`, once verified to be this corpus's

    def __init__(self, uri: str, manifest: dict[str, Any], footers: "footers.Footers | None" = None) -> None:
        self.uri, self.manifest, self.footers = uri, manifest, footers

    def __repr__(self) -> str:
        return f"Corpus({self.uri!r}, hash={self.hash[:12]})"

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def shards(self) -> list[dict]:
        return self.manifest["shards"]

    @property
    def modalities(self) -> list[str]:
        return self.manifest["modalities"]

    @property
    def column_names(self) -> list[str]:
        """Columns of a shard, in order."""
        return list(row_schema(self.modalities).names)

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        return storage.filesystem(self.uri)

    def __getstate__(self) -> dict:
        # an open filesystem is not pickled, nor is machine-specific state
        kept = ("uri", "manifest", "footers", "ranged")
        return {name: getattr(self, name) for name in kept}

    @property
    def remote(self) -> bool:
        """Whether the corpus is in a bucket."""
        return storage.is_remote(self.uri)

    def _usable_footers(self) -> "footers.Footers | None":
        """The footers if they help: for a local disk they save no measurable CPU time (24 ms per row group of
        14 MB with and without).
        """
        if self._found is None and self.remote and (self.ranged or self.footers is not None):
            self._found = footers.there(self, self.footers.path if self.footers is not None else None)
        return self._found

    def _read(
        self,
        name: str,
        read: Callable[[Any], pa.Table],
        known: pa.Schema,
        wanted: Iterable[str],
        rows: int | None,
        opened: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> pa.Table:
        """The content of file `name`: `rows` rows with the columns `known`, only the `wanted` ones. `opened`
        opens another source than the whole file.
        """
        fs, root = self._filesystem
        where = storage.join(self.uri, name)
        if not storage.is_remote(self.uri):
            storage.inside(self.uri, name)
        try:
            opening = opened or (lambda: fs.open_input_file(f"{root}/{name}"))
            with storage.clear_errors(where), opening() as source:
                try:
                    table = read(source)
                    _check(table, known, wanted, rows)
                    return table
                except OSError as broken:
                    if broken.errno is None and "AWS Error" not in str(broken):  # Parquet's, not the store's
                        raise pa.ArrowInvalid(str(broken)) from broken
                    raise
        except (pa.ArrowException, UnicodeDecodeError) as broken:
            raise trust.corrupt(where, broken) from broken

    def labels(self, names: Sequence[str] | None = None) -> pa.Table:
        """Labels (`LABELS`), all or those called `names`; sorted by name, so that few row groups are read."""
        filters = None if names is None else [("name", "in", list(names))]
        return self._read(
            LABELS_FILE,
            lambda source: _side_table(source, filters),
            LABELS,
            LABELS.names,
            self._label_rows(names),
        )

    def _label_rows(self, names: Sequence[str] | None) -> int | None:
        """The number of labels that the manifest states; None if it does not."""
        counts = self.manifest.get("labels", {}).get("rows")
        if counts is None:
            return None
        return sum(counts.values() if names is None else (counts.get(name, 0) for name in set(names)))

    def rejects(self) -> pa.Table:
        """Refused stretches (`REJECTS`)."""
        return self._read(
            REJECTS_FILE,
            lambda source: _side_table(source, None),
            REJECTS,
            REJECTS.names,
            self.manifest.get("rejects_file", {}).get("rows"),
        )

    def read_row_group(self, shard: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group of one shard, only the wanted columns (see `row_schema`).

        From a bucket, with `footers`: one ranged request (several in parallel if the columns lie far apart).
        PlethoraError, one line, if the shard is damaged, was replaced, or cannot be reached.
        """
        wanted = None if columns is None else list(columns)
        entry, known = self.shards[shard], self._usable_footers()
        where, size = storage.join(self.uri, entry["path"]), entry.get("bytes", 0)
        if known is not None:
            size = size or known.size(shard)

        @contextmanager
        def ranged(known: footers.Footers) -> Iterator[pa.NativeFile]:
            places = known.ranges(shard, group, wanted)
            try:
                data, total = ranges.get(where, places) if places else ([], size)
            except ranges.Missing as short:
                raise trust.replaced(where, short.size, size) from short
            parts = [(first, part) for (first, _), part in zip(places, data, strict=True)]
            with pa.PythonFile(footers.Parts(parts, total), "r") as source:
                yield source

        def read(source: Any) -> pa.Table:
            if size and source.size() != size:  # known since it was opened: costs no request
                raise trust.replaced(where, source.size(), size)
            file = pq.ParquetFile(
                source,
                metadata=None if known is None else known.of(shard),
                pre_buffer=True,
                page_checksum_verification=True,
            )
            trust.check_group(file.metadata, group, wanted)
            table = file.read_row_group(group, columns=wanted)
            trust.check_rows(table)
            return table

        return self._read(
            entry["path"],
            read,
            row_schema(MODALITIES),
            row_schema(self.modalities).names if wanted is None else wanted,
            entry["row_groups"][group],
            None if known is None else partial(ranged, known),
        )

    def check_shard(self, shard: int) -> None:
        """Read every byte of a shard; PlethoraError if its checksum differs from the manifest's."""
        entry = self.shards[shard]
        if entry.get("sha256") is None:
            return
        fs, root = self._filesystem
        where, digest = storage.join(self.uri, entry["path"]), hashlib.sha256()
        with storage.clear_errors(where), fs.open_input_stream(f"{root}/{entry['path']}") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise PlethoraError(
                f"{where} is corrupt (its sha256 is not the manifest's): ingest it again, with --force"
            )


def _side_table(source: Any, filters: Any) -> pa.Table:
    """Labels or rejects; ArrowInvalid if they would fill the memory."""
    file = pq.ParquetFile(source, page_checksum_verification=True)
    trust.check_table(file)
    return pq.read_table(source, filters=filters, page_checksum_verification=True)


def _check(table: pa.Table, known: pa.Schema, wanted: Iterable[str], rows: int | None) -> None:
    """ArrowInvalid if a table is not as written: pages have checksums, the footer has none."""
    strange = [f.name for f in table.schema if f.name not in known.names or f != known.field(f.name)]
    strange += sorted(set(wanted) - set(table.column_names))
    if strange or rows not in (None, table.num_rows):
        raise pa.ArrowInvalid(f"column {strange[0]!r}" if strange else f"{table.num_rows} rows for {rows}")


def open_corpus(uri: str) -> Corpus:
    """Open the corpus at `uri`. PlethoraError: missing, unfinished, modified, or of another version."""
    uri = storage.normalise(uri)
    mark = storage.join(uri, MANIFEST)
    if not storage.exists(mark):
        raise PlethoraError(
            f"no corpus at {uri} ({MANIFEST} is missing): make one with python -m datasets ingest"
        )
    manifest = storage.read_json(mark)
    if not isinstance(manifest, dict) or "version" not in manifest:
        raise PlethoraError(f"{mark} is not a corpus manifest: it has no version")
    if manifest["version"] != VERSION:
        raise PlethoraError(
            f"{uri} is a corpus of version {manifest['version']}, this Plethora reads version {VERSION}: "
            f"update Plethora, or ingest it again"
        )
    if content_hash(manifest) != manifest.get("hash"):
        raise PlethoraError(f"{mark} was changed after it was written (its hash differs): ingest it again")
    validate(trust.Manifest, manifest, mark)
    return Corpus(uri, Document.of(manifest, mark))
