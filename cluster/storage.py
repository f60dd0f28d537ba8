"""Storage by URI: a local path, ``file://…`` or ``s3://bucket/prefix``, with the same calls.

S3 endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …), never from
a URI. Readers of Parquet use `filesystem` and wrap their pyarrow calls in `clear_errors`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow.fs

from cluster import s3
from cluster.cli import plain
from cluster.errors import PlethoraError
from cluster.s3 import clear_errors

THREADS = 8
_STALE_S = 3600.0

T = TypeVar("T")


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is in an object store."""
    return str(uri).startswith("s3://")


def normalise(uri: str | Path) -> str:
    """An absolute local path, or ``s3://bucket/prefix`` without a trailing slash."""
    text = str(uri)
    if text.startswith("s3://"):
        bucket, key = s3.split(text)
        if not bucket or "@" in bucket:
            raise PlethoraError(
                f"{s3._without_user(text)}: not an S3 URI: write s3://bucket/prefix, keys go in AWS_*"
            )
        parts = [part for part in key.split("/") if part]
        if ".." in parts:
            raise PlethoraError(f"{text}: an S3 URI cannot hold `..`")
        return "/".join([f"s3://{bucket}", *parts])
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif "://" in text:
        scheme = text.split("://")[0]
        raise PlethoraError(
            f"{text}: storage of kind `{scheme}` is not supported: use a path, file:// or s3://"
        )
    if not text:
        raise PlethoraError("an empty path was given where a folder or URI is needed")
    return os.path.abspath(os.path.expanduser(text))


def join(uri: str | Path, *parts: str) -> str:
    """`parts` under `uri`."""
    return normalise("/".join([str(uri).rstrip("/") or "/", *(part.strip("/") for part in parts)]))


def filesystem(uri: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of `uri` and the path within it, for Parquet (wrap calls in
    `clear_errors(uri)`)."""
    text = normalise(uri)
    if not is_remote(text):
        return pyarrow.fs.LocalFileSystem(), text
    bucket, key = s3.split(text)
    with clear_errors(text):
        found = _s3_filesystem(s3.settings(), None if s3.region() else bucket)
    return found, f"{bucket}/{key}" if key else bucket


@functools.lru_cache(maxsize=8)
def _s3_filesystem(_settings: tuple[str | None, ...], bucket: str | None) -> pyarrow.fs.FileSystem:
    address = urlsplit(s3.endpoint() or "")
    region = s3.region() or (pyarrow.fs.resolve_s3_region(bucket) if bucket else None)
    found = _Bucket(
        # pyarrow itself does not read AWS_ENDPOINT_URL
        endpoint_override=address.netloc or None,
        scheme=address.scheme or "https",
        region=region,
        connect_timeout=s3.CONNECT_TIMEOUT_S,
        request_timeout=s3.READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=s3.PYARROW_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one PUT, not a multipart upload
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )
    found.bucket = bucket
    return found


class _Bucket(pyarrow.fs.S3FileSystem):
    """Is pickled as the arguments that make it: pyarrow's own pickles lose the retry strategy, so Ray's
    writes would give up after three attempts.
    """

    bucket: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _bucket_here, (self.bucket,)


def _bucket_here(bucket: str | None) -> pyarrow.fs.FileSystem:
    return _s3_filesystem(s3.settings(), bucket)


# ---------------------------------------------------------------- files


def exists(uri: str | Path) -> bool:
    """Whether a file or a folder (on S3: a non-empty prefix) exists."""
    text = normalise(uri)
    return s3.exists(text) if is_remote(text) else os.path.exists(text)


def read_bytes(uri: str | Path) -> bytes:
    """The content of a file; a missing file is a PlethoraError that names it."""
    text = normalise(uri)
    if is_remote(text):
        return s3.get(text)
    with clear_errors(text):
        return Path(text).read_bytes()


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file atomically: no reader sees half of it."""
    text = normalise(uri)
    if is_remote(text):
        s3.put(text, data)
        return
    with clear_errors(text):
        part = _part_of(text, data)
        os.replace(part, text)


def write_exclusive(uri: str | Path, data: bytes) -> bool:
    """Write one small file atomically unless it exists; False if another writer was first."""
    text = normalise(uri)
    if is_remote(text):
        return s3.put_if_absent(text, data)
    with clear_errors(text):
        part = _part_of(text, data)
        try:
            os.link(part, text)
        except FileExistsError:
            return False
        finally:
            os.unlink(part)
        return True


def _part_of(path: str, data: bytes) -> str:
    """A complete temporary file with `data` beside `path`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _clear_stale(os.path.dirname(path), os.path.basename(path))
    part = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return part


def _clear_stale(parent: str, name: str) -> None:
    """Remove the leftovers of writers of `parent`/`name` that were killed more than an hour ago."""
    for left in Path(parent).glob(f".{glob.escape(name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another writer is cleaning up too
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def read_json(uri: str | Path) -> Any:
    """The JSON document at `uri`."""
    return parse_json(read_bytes(uri), str(uri))


def parse_json(data: bytes, where: str) -> Any:
    """The JSON document that `data`, read from `where`, holds."""
    try:
        return json.loads(data)
    except RecursionError:
        raise PlethoraError(
            f"{where}: not a JSON file that Plethora would write: it is nested too deep"
        ) from None
    except ValueError as error:  # also of text that is not UTF-8
        raise PlethoraError(f"{where}: not a JSON file: {error}") from None


def inside(folder: str | Path, name: str) -> Path:
    """The path of `name` below a local `folder`; PlethoraError if the name leads out of it."""
    path = Path(folder, name)
    if not path.resolve().is_relative_to(Path(folder).resolve()) or Path(name).is_absolute():
        raise PlethoraError(f"`{name}` leads out of its folder: it looks like an attack; delete it")
    return path


def json_bytes(obj: Any) -> bytes:
    """`obj` as stable JSON: sorted keys, two spaces, UTF-8, NaN as null."""
    return (json.dumps(plain(obj), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(uri: str | Path, obj: Any) -> None:
    """Write `obj` as stable JSON."""
    write_bytes(uri, json_bytes(obj))


def is_full_or_away(error: BaseException) -> bool:
    """Whether a full or broken disk, or a bucket, caused this error of third-party code (Ray's)."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return isinstance(error, OSError) and (error.errno in numbers or "AWS Error" in str(error))


# ---------------------------------------------------------------- folders


def listing(uri: str | Path) -> list[str]:
    """Paths of all files under `uri`, relative to it, sorted; empty if there are none."""
    return list(sizes(uri))


def sizes(uri: str | Path) -> dict[str, int]:
    """{relative path: bytes} of all files under `uri`, sorted."""
    text = normalise(uri)
    if is_remote(text):
        return s3.objects(text)
    found = {}
    for folder, _, names in os.walk(text):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # a writer's temporary file has just disappeared
                found[os.path.relpath(path, text).replace(os.sep, "/")] = os.lstat(path).st_size
    return dict(sorted(found.items()))


def delete(uri: str | Path) -> None:
    """Delete a file, or a folder with its content; no error if it does not exist, or if another process
    deletes or writes there at the same time.
    """
    text = normalise(uri)
    if text in ("/", os.path.expanduser("~")) or (is_remote(text) and not s3.split(text)[1]):
        raise PlethoraError(f"{text}: refusing to delete all of it: name a folder inside it")
    if is_remote(text):
        _each(lambda name: s3.remove(join(text, name)), s3.objects(text))
        s3.remove(text)
        s3.abort_uploads(text)
        return
    with clear_errors(text):
        if not os.path.isdir(text) or os.path.islink(text):
            Path(text).unlink(missing_ok=True)
            return
        while os.path.isdir(text):
            try:
                shutil.rmtree(text)
            except OSError as error:  # its content changed meanwhile
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise


def download(uri: str | Path, local_dir: str | Path) -> None:
    """Copy all files under `uri` to `local_dir`."""
    text, folder = normalise(uri), Path(local_dir)
    names = listing(text)
    if not names:
        raise PlethoraError(f"{text}: nothing is there to download")

    def one(name: str) -> None:
        target = inside(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(text):
            s3.get_file(join(text, name), target)
        else:
            shutil.copyfile(os.path.join(text, name), target)

    with clear_errors(text):
        _each(one, names)


def upload(local_dir: str | Path, uri: str | Path) -> None:
    """Copy all files of `local_dir` to under `uri`."""
    text, folder = normalise(uri), Path(local_dir)

    def one(name: str) -> None:
        if is_remote(text):
            s3.put_file(folder / name, join(text, name))
        else:
            _copy(folder / name, Path(text) / name)

    with clear_errors(text):
        _each(one, listing(folder))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _each(work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, names))


def publish(local_dir: str | Path, uri: str | Path, mark: str, mark_data: bytes) -> None:
    """Publish the files of `local_dir` under `uri`: a reader that looks for `mark` sees all of them or
    nothing.

    Refuses if `mark` exists; removes what a killed publish left; writes `mark` last and exclusively. On S3
    one publisher at a time is assumed: of two, one gets the mark, and a mixture of files fails to verify.
    """
    text, folder = normalise(uri), Path(local_dir)
    taken = PlethoraError(f"{text}: already published ({mark} exists): choose another name or folder")
    if mark in listing(folder):
        raise PlethoraError(f"{folder / mark}: the mark is written by publish: remove it")
    if exists(join(text, mark)):
        raise taken
    if not is_remote(text):
        _publish_local(folder, text, mark, mark_data, taken)
        return
    _each(lambda name: s3.remove(join(text, name)), [name for name in sizes(text) if name != mark])
    s3.abort_uploads(text)
    upload(folder, text)
    if sizes(text) != sizes(folder):
        raise PlethoraError(f"{text}: other files appeared while publishing: is a second publisher running?")
    if not write_exclusive(join(text, mark), mark_data):
        raise taken


def _publish_local(folder: Path, text: str, mark: str, mark_data: bytes, taken: PlethoraError) -> None:
    parent, name = os.path.split(text)
    with clear_errors(text):
        os.makedirs(parent, exist_ok=True)
        _clear_stale(parent, name)
        stage = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.part")
        aside = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.part")
        try:
            upload(folder, stage)
            write_bytes(os.path.join(stage, mark), mark_data)
            try:
                os.rename(stage, text)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                os.rename(text, aside)
                if os.path.exists(os.path.join(aside, mark)):  # another publisher finished meanwhile
                    os.rename(aside, text)
                    raise taken from error
                os.rename(stage, text)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
