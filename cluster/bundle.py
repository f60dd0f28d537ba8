"""The bundle contract, version 2, as files: publish, verify, find, open.

A bundle is a folder `<storage>/<run>/<bundle>/` of plain files: weights (safetensors), one ONNX model per
mode, JSON, a card and pictures; `SHA256SUMS` lists them all and `_COMPLETE`, written last, holds its hash. A
complete bundle never changes; its evaluations lie beside it. Nothing here loads a pickle.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from cluster import contract, storage, terms
from cluster.contract import VERSION as VERSION
from cluster.contract import Description, Document
from cluster.errors import PlethoraError

SUMS = "SHA256SUMS"
MARK = "_COMPLETE"
SUFFIXES = (".safetensors", ".json", ".onnx", ".png", ".parquet", ".md")
REQUIRED = (
    "config.json",
    "lineage.json",
    "metrics.json",
    "model.safetensors",
    "preprocessing.json",
    "README.md",
)


# ---------------------------------------------------------------- writing


def publish(folder: Path, uri: str) -> None:
    """Check the finished files of `folder` against the contract and publish them at `uri`.

    Writes SHA256SUMS into `folder`. PlethoraError: a file is missing or not allowed, config.json violates the
    contract, a source's terms forbid publication (see cluster/terms.py), or `uri` is already published.
    """
    names = _checked_names(folder)
    for name in REQUIRED:
        if name not in names:
            raise PlethoraError(f"{folder}: `{name}` is missing: a bundle needs {', '.join(REQUIRED)}")
    described = contract.described(storage.read_json(folder / "config.json"), str(folder / "config.json"))
    for mode, about in described.files().items():
        if about.file not in names:
            raise PlethoraError(f"{folder}: mode `{mode}` names `{about.file}`, which is not there")
    for name in names:
        if name.endswith(".json"):
            storage.read_json(folder / name)
    lineage = Document.of(storage.read_json(folder / "lineage.json"), f"{folder}/lineage.json")
    contract.check_lineage(lineage, lineage.where)
    terms.check([*lineage.get("corpora", []), *lineage.get("inherited", [])], storage.normalise(uri))
    _publish(folder, names, uri)


def write_evaluation(bundle_uri: str, folder: Path) -> str:
    """Publish an evaluation's files as `<run>/evaluations/<hash of its SHA256SUMS>` beside the bundle.

    Returns its URI; publishing the same result twice gives one evaluation.
    """
    names = _checked_names(folder)
    if not names:
        raise PlethoraError(f"{folder}: nothing is there to publish as an evaluation")
    mark = _mark_of(_sums_text(folder, names))
    run = storage.normalise(bundle_uri).rpartition("/")[0]
    uri = storage.join(run, "evaluations", mark[:16])
    if not storage.exists(storage.join(uri, MARK)):
        _publish(folder, names, uri)
    return uri


def _publish(folder: Path, names: list[str], uri: str) -> None:
    text = _sums_text(folder, names)
    storage.write_bytes(folder / SUMS, text)
    storage.publish(folder, uri, MARK, (_mark_of(text) + "\n").encode())


def _checked_names(folder: Path) -> list[str]:
    for left in folder.glob(f".{SUMS}.*.part"):  # of an earlier, killed publish of this folder
        left.unlink()
    names = [name for name in storage.listing(folder) if name != SUMS]
    for name in names:
        _no_link(str(folder), name)
        if not _allowed(name):
            raise PlethoraError(
                f"{folder}: `{name}` has no place in a bundle: only {' '.join(SUFFIXES)} files may be"
            )
    return names


def _sums_text(folder: Path, names: list[str]) -> bytes:
    return "".join(f"{_hash_of(folder / name)}  {name}\n" for name in sorted(names)).encode()


def _no_link(uri: str, name: str) -> None:
    """A link would pull another file of this machine, or of another bundle, into this bundle."""
    at = Path(uri)
    for part in PurePosixPath(name).parts:
        at = at / part
        if at.is_symlink():
            raise PlethoraError(
                f"{uri}: `{at.relative_to(uri)}` is a link, which no bundle may hold: put the file there"
            )


def _mark_of(sums: bytes) -> str:
    return hashlib.sha256(sums).hexdigest()


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _allowed(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in SUFFIXES and not path.is_absolute() and ".." not in path.parts and "\\" not in name


# ---------------------------------------------------------------- reading


def _sums(uri: str) -> dict[str, str]:
    """{name: sha256} of the complete bundle at `uri`, after checking that its mark and SHA256SUMS agree."""
    marked = storage.join(uri, MARK)
    if not storage.exists(marked):
        raise PlethoraError(f"{uri}: no complete bundle is here: {MARK} is missing")
    mark = storage.read_bytes(marked)
    text = storage.read_bytes(storage.join(uri, SUMS))
    if _mark_of(text) != mark.decode("ascii", "replace").strip():
        raise PlethoraError(f"{uri}: {SUMS} is not the one that {MARK} vouches for: it was changed")
    found: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        parts = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if parts is None or not _allowed(parts[2]):
            raise PlethoraError(f"{uri}: {SUMS} holds a line that no bundle may hold: {line[:80]!r}")
        found[parts[2]] = parts[1]
    return found


def verify(uri: str) -> dict[str, Any]:
    """Read every byte of the bundle (or evaluation) at `uri` and compare it with its SHA256SUMS.

    Returns {"uri", "files", "bytes", "kind"}; PlethoraError names the first bad file.
    """
    uri = storage.normalise(uri)
    sums = _sums(uri)
    sizes = storage.sizes(uri)
    for name in sums:
        if name not in sizes:
            raise PlethoraError(f"{uri}: `{name}` is listed in {SUMS} and missing")
    for name in sizes:
        if not storage.is_remote(uri):
            _no_link(uri, name)
        if name not in sums and name not in (SUMS, MARK):
            raise PlethoraError(f"{uri}: `{name}` is not listed in {SUMS}: it was added after publishing")
    for name, expected in sums.items():
        _compare(uri, name, _hash_at(uri, name), expected)
    kind = "evaluation"
    if "config.json" in sums:
        where = storage.join(uri, "config.json")
        described = contract.described(storage.read_json(where), where)
        _modes_are_there(described, sums, uri)
        kind = described.kind
    return {"uri": uri, "files": len(sums), "bytes": sum(sizes[name] for name in sums), "kind": kind}


def _hash_at(uri: str, name: str) -> str:
    where = storage.join(uri, name)
    files, path = storage.filesystem(where)
    digest = hashlib.sha256()
    with storage.clear_errors(where), files.open_input_stream(path, buffer_size=1 << 20) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(uri: str, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise PlethoraError(
            f"{uri}: `{name}` is damaged or was changed (sha256 {found[:12]}…, "
            f"{SUMS} says {expected[:12]}…): fetch or publish it again"
        )


def _modes_are_there(described: Description, sums: dict[str, str], uri: str) -> None:
    for mode, about in described.files().items():
        if about.file not in sums:
            raise PlethoraError(f"{uri}: mode `{mode}` names `{about.file}`, which is not in the bundle")


def find(uri: str) -> list[str]:
    """URIs of the complete bundles anywhere under `uri` (evaluations left out), sorted."""
    root = storage.normalise(uri)
    names = set(storage.listing(root))
    found = []
    for name in sorted(names):
        folder, _, last = f"/{name}".rpartition("/")
        hidden = any(part.startswith(".") for part in PurePosixPath(folder).parts)
        if last == MARK and not hidden and f"{folder}/config.json".lstrip("/") in names:
            found.append(storage.join(root, folder) if folder else root)
    return found


class Bundle:
    """An open bundle: its JSON documents as dicts, its files as verified local paths."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.normalise(uri)
        self._sums = _sums(self.uri)
        self._checked: dict[str, Path] = {}
        self.config = self._json("config.json")
        self.described = contract.described(self.config, storage.join(self.uri, "config.json"))
        _modes_are_there(self.described, self._sums, self.uri)
        self.preprocessing = self._json("preprocessing.json")
        self.metrics = self._json("metrics.json")
        self.lineage = self._json("lineage.json")
        contract.check_preparation(self.preprocessing, self.described.modalities, self.preprocessing.where)
        contract.check_lineage(self.lineage, self.lineage.where)

    @property
    def hash(self) -> str:
        """Identifies the content: the hash that `_COMPLETE` holds."""
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self._sums.items())]
        return _mark_of("".join(lines).encode())

    def _json(self, name: str) -> Document:
        where = storage.join(self.uri, name)
        return Document.of(storage.parse_json(self.path(name).read_bytes(), where), where)

    def path(self, name: str) -> Path:
        """The local path of file `name`, with its bytes verified; a remote file is fetched into a cache
        once."""
        if name not in self._sums:
            raise PlethoraError(
                f"{self.uri}: no file `{name}` in this bundle: {', '.join(sorted(self._sums))}"
            )
        if name not in self._checked:
            self._checked[name] = self._fetched(name) if storage.is_remote(self.uri) else self._local(name)
        return self._checked[name]

    def _local(self, name: str) -> Path:
        path = Path(self.uri, name)
        _no_link(self.uri, name)
        with storage.clear_errors(str(path)):
            _compare(self.uri, name, _hash_of(path), self._sums[name])
        return path

    def _fetched(self, name: str) -> Path:
        # Named by content: a file with the same hash in another bundle is the same file.
        path = _cache() / self._sums[name][:2] / (self._sums[name] + PurePosixPath(name).suffix)
        if path.is_file() and _hash_of(path) == self._sums[name]:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with storage.clear_errors(self.uri):
                files, source = storage.filesystem(storage.join(self.uri, name))
                with (
                    files.open_input_stream(source, buffer_size=1 << 20) as reader,
                    part.open("wb") as writer,
                ):
                    shutil.copyfileobj(reader, writer, 1 << 22)
            _compare(self.uri, name, _hash_of(part), self._sums[name])
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


def open(uri: str) -> Bundle:
    """Open the complete bundle at `uri`; checks its mark, its checksums and its JSON documents."""
    return Bundle(uri)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plethora" / "bundles"
