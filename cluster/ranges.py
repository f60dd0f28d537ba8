"""Ranges of S3 objects: each is one ranged GET, whose answer also states the size of the whole object.

The client is botocore itself, which blocks: one connection per thread. Measured on 14 MB ranges from Ceph on
the same machine, eight at a time, CPU time of this process per range: botocore 7.9 ms; pyarrow 9.9 ms through
a file that stays open and 11.7 ms through one that is opened each time (a HEAD before each GET, since it
cannot be given the size); s3fs, whose single event loop serves all threads, 16.4 ms.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster import s3
from cluster.errors import PlethoraError

CONNECTIONS = 32  # kept open: 8 to 16 row groups in flight, some of them in several ranges
GAP = 1 << 20  # bytes: reading across a smaller gap costs less than a request


class Missing(Exception):
    """The object ends before the range; `size` is its size if the store reports it, else None."""

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self.size = size


@functools.lru_cache(maxsize=4)
def _client(_settings: tuple[str | None, ...]) -> Any:
    import botocore.session
    from botocore.config import Config

    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=s3.endpoint(),
        region_name=s3.region(),
        config=Config(
            connect_timeout=s3.CONNECT_TIMEOUT_S,
            read_timeout=s3.READ_TIMEOUT_S,
            retries={"total_max_attempts": s3.ATTEMPTS, "mode": "standard"},
            max_pool_connections=CONNECTIONS,
            response_checksum_validation="when_required",  # a range has none; Parquet's pages have
        ),
    )


@functools.lru_cache(maxsize=1)
def _more() -> ThreadPoolExecutor:
    """Threads for the second and later ranges of a call; their work never waits for another of them."""
    return ThreadPoolExecutor(CONNECTIONS // 2, "ranges")


def get(uri: str, ranges: Sequence[tuple[int, int]]) -> tuple[list[bytes], int]:
    """The bytes of each range (first byte, length; not empty) of an object, fetched concurrently, and the
    size of the whole object in bytes.

    An interrupted body is fetched again. Raises PlethoraError, one line, if the store does not deliver it,
    and `Missing` if the object ends before a range does.
    """
    one = functools.partial(_patient, uri)
    with s3.clear_errors(uri):
        others = [_more().submit(one, f"bytes={low}-{low + size - 1}") for low, size in ranges[1:]]
        low, size = ranges[0]
        found = [one(f"bytes={low}-{low + size - 1}"), *(other.result() for other in others)]
    total = found[0][2]
    for (low, size), (data, first, whole) in zip(ranges, found, strict=True):
        if whole != total or low + size > whole:
            raise Missing(whole)
        if first != low or len(data) != size:
            raise PlethoraError(f"{uri}: the store answered another range than requested")
    return [data for data, _, _ in found], total


def tail(uri: str, size: int) -> tuple[bytes, int]:
    """The last `size` bytes of an object (all of a shorter one), and its size in bytes. Errors: `get`."""
    try:
        with s3.clear_errors(uri):
            data, first, total = _patient(uri, f"bytes=-{size}")
    except Missing:  # an empty object has no ranges
        return b"", 0
    if first + len(data) != total:
        raise PlethoraError(f"{uri}: the store answered another range than requested")
    return data, total


def _patient(uri: str, wanted: str) -> tuple[bytes, int, int]:
    return s3._patiently(lambda: _whole(uri, wanted))


def _whole(uri: str, wanted: str) -> tuple[bytes, int, int]:
    """(bytes, position of the first, size of the object) of a range in HTTP syntax."""
    from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    bucket, key = s3.split(uri)
    for left in reversed(range(s3.ATTEMPTS)):
        try:
            answer = _client(s3.settings()).get_object(Bucket=bucket, Key=key, Range=wanted)
            with contextlib.closing(answer["Body"]) as body:  # its own `with` would raise urllib3's errors
                data = body.read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):  # not retried by botocore
            if not left:
                raise
            continue
        except ClientError as error:
            if s3._code(error) not in ("InvalidRange", "416"):
                raise
            sent = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-range", "")
            size = re.fullmatch(r"bytes \*/(\d+)", sent)
            raise Missing(int(size[1]) if size else None) from None
        place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange", ""))
        if place is None:
            raise PlethoraError(f"{uri}: the store does not answer ranged requests: use another one")
        return data, int(place[1]), int(place[3])
    raise AssertionError("the last attempt returns or raises")
