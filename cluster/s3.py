"""S3 calls for listings, marks and whole objects; every failure is one line without secrets.

Parquet goes through `storage.filesystem` (pyarrow); the rest goes through s3fs's client, which has
conditional PUT for commit marks and whose deletes, unlike pyarrow's, leave no empty folder objects behind.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import PlethoraError

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20  # a store with a dead disk accepts requests and never answers
ATTEMPTS = 3
PATIENCE_S = 60.0  # how long to wait for a store that is busy, or that fails after it has answered
PYARROW_ATTEMPTS = 10  # its backoff doubles up to 20 s: 80 s on average, and rarely under 35 s
SLOWEST_BYTES_S = 1 << 20  # a slower upload is aborted

# Without it, pyarrow's and botocore's new checksum trailers get 411 from Ceph. Read when a client is made.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

T = TypeVar("T")

_SETTINGS = (
    "PLETHORA_S3_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
)


def settings() -> tuple[str | None, ...]:
    """The environment variables that select the store and the credentials: the key of the client caches."""
    return tuple(os.environ.get(name) for name in _SETTINGS)


def endpoint() -> str | None:
    """The S3 endpoint of the environment, None for AWS."""
    named = ("PLETHORA_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((url for name in named if (url := os.environ.get(name))), None)


def region() -> str | None:
    """The region of the environment; a store with its own endpoint needs some region name, any will do."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if endpoint() else None)


def split(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` → ("bucket", "a/b")."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


@functools.lru_cache(maxsize=4)
def _client(_settings: tuple[str | None, ...]) -> Any:
    import s3fs
    from botocore.handlers import add_expect_header

    client = s3fs.S3FileSystem(
        endpoint_url=endpoint(),
        client_kwargs={"region_name": region()} if region() else {},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        },
        use_listings_cache=False,  # others write to the same prefixes
        skip_instance_cache=True,
    )
    client.retries = 2  # botocore retries each request; this covers an interrupted body
    client.connect()
    # aiohttp's read timeout does not run while it waits for "100 Continue": a silent store would block us
    client.s3.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _patience(size: int) -> float:
    """Time limit in s for a request of `size` bytes and its retries: nothing else limits sending a body."""
    return 2 * ATTEMPTS * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S) + size / SLOWEST_BYTES_S


_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504")
_AWAY = ("ConnectionError", "ConnectTimeoutError", "ConnectorError", "ConnectionClosedError")
_answered: set[str | None] = set()  # endpoints that have answered; one that never has is probably mistyped


def _patiently(work: Callable[[], T]) -> T:
    """`work()`, retried for PATIENCE_S seconds while the store is busy or, after earlier answers,
    unavailable."""
    until, wait = time.monotonic() + PATIENCE_S, 0.5
    while True:
        try:
            done = work()
            _answered.add(endpoint())
            return done
        except Exception as error:
            code = _code(error)
            passing = code in _BUSY or (code.endswith(_AWAY) and endpoint() in _answered)
            if not passing or time.monotonic() + wait > until:
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, 5.0)


def call(method: str, uri: str, **arguments: Any) -> Any:
    """One S3 request on the bucket of `uri` (`method` and `arguments` use botocore's names)."""
    with clear_errors(uri):
        return _call(method, uri, **arguments)


def _call(method: str, uri: str, **arguments: Any) -> Any:
    timeout = _patience(len(arguments.get("Body", b"")))
    return _patiently(
        lambda: _client(settings()).call_s3(method, Bucket=split(uri)[0], timeout=timeout, **arguments)
    )


def get(uri: str) -> bytes:
    bucket, key = split(uri)
    with clear_errors(uri):
        return _patiently(lambda: _client(settings()).cat_file(f"{bucket}/{key}"))


def put(uri: str, data: bytes) -> None:
    call("put_object", uri, Key=split(uri)[1], Body=data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write one small object unless it exists; False if another writer was first.

    An object that already holds exactly `data` counts as ours, because a PUT whose answer was lost is
    retried.
    """
    try:
        _call("put_object", uri, Key=split(uri)[1], Body=data, IfNoneMatch="*")
        return True
    except Exception as error:
        if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
            raise _explained(uri, error) from error
    return get(uri) == data


def get_file(uri: str, target: Path) -> None:
    bucket, key = split(uri)
    with clear_errors(uri):
        _patiently(lambda: _client(settings()).get_file(f"{bucket}/{key}", str(target)))


def put_file(source: Path, uri: str) -> None:
    bucket, key = split(uri)
    with clear_errors(uri):
        patience = _patience(source.stat().st_size)
        _patiently(lambda: _client(settings()).put_file(str(source), f"{bucket}/{key}", timeout=patience))


def abort_uploads(uri: str) -> int:
    """Abort the unfinished multipart uploads under a prefix and return how many there were.

    A killed writer leaves them: no listing shows them and no reader sees them, but they are billed.
    """
    key = split(uri)[1]
    try:
        found = _call("list_multipart_uploads", uri, Prefix=key).get("Uploads") or []
    except Exception as error:
        if _code(error) in ("AccessDenied", "403", "NotImplemented"):  # tidying up needs no more rights
            return 0
        raise _explained(uri, error) from error
    mine = [u for u in found if u["Key"] == key or u["Key"].startswith(f"{key}/")]
    for upload in mine:
        with contextlib.suppress(PlethoraError):  # finished or aborted by now
            call("abort_multipart_upload", uri, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(mine)


def objects(uri: str) -> dict[str, int]:
    """{key relative to `uri`: bytes} of every object under the prefix, sorted; empty if there is none."""
    prefix = split(uri)[1]
    prefix = f"{prefix}/" if prefix else ""
    found: dict[str, int] = {}
    token: dict[str, str] = {}
    while True:
        page = call("list_objects_v2", uri, Prefix=prefix, **token)
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):  # an empty object that represents a folder
                found[item["Key"][len(prefix) :]] = item["Size"]
        if not page.get("IsTruncated"):
            return dict(sorted(found.items()))
        token = {"ContinuationToken": page["NextContinuationToken"]}


def exists(uri: str) -> bool:
    """Whether `uri` is an object or a prefix that contains one."""
    key = split(uri)[1]
    if not key:
        call("list_objects_v2", uri, MaxKeys=1)
        return True
    first = call("list_objects_v2", uri, Prefix=key, MaxKeys=1).get("Contents", [])
    if not first:
        return False
    if first[0]["Key"] == key or first[0]["Key"].startswith(f"{key}/"):
        return True
    return bool(call("list_objects_v2", uri, Prefix=f"{key}/", MaxKeys=1).get("Contents"))


def remove(uri: str) -> None:
    """Delete one object; no error if it does not exist."""
    call("delete_object", uri, Key=split(uri)[1])


# ---------------------------------------------------------------- errors


@contextlib.contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Turn errors of pyarrow, s3fs and the file system about `uri` into one clear line."""
    try:
        yield
    except PlethoraError:
        raise
    except OSError as error:
        raise _explained(uri, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise _explained(uri, error) from error
        raise


_PYARROW_CODES = {
    "NO_SUCH_BUCKET": "NoSuchBucket",
    "NO_SUCH_KEY": "NoSuchKey",
    "RESOURCE_NOT_FOUND": "NoSuchKey",
    "ACCESS_DENIED": "AccessDenied",
    "INVALID_ACCESS_KEY_ID": "InvalidAccessKeyId",
    "SIGNATURE_DOES_NOT_MATCH": "SignatureDoesNotMatch",
    "NETWORK_CONNECTION": "EndpointConnectionError",
    "SLOW_DOWN": "SlowDown",
    "SERVICE_UNAVAILABLE": "ServiceUnavailable",
    "INTERNAL_FAILURE": "InternalError",
}


def _code(error: BaseException) -> str:
    """The S3 error code, or the kind of failure before any answer; "" if it is neither."""
    current: BaseException | None = error
    while current is not None:
        response = getattr(current, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        if type(current).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            return type(current).__name__
        current = current.__cause__
    named = re.search(r"AWS Error ([A-Z_]+)(?:.*\(HTTP status (5\d\d)\))?", str(error))
    if named and named[1] == "UNKNOWN" and named[2]:
        return named[2]
    return _PYARROW_CODES.get(named[1], named[1]) if named else ""


def _explained(uri: str, error: BaseException) -> PlethoraError:
    if not uri.startswith("s3://"):
        return _explained_local(uri, error)
    code = _code(error)
    place = _without_user(endpoint() or "AWS")
    bucket = split(uri)[0]
    if code == "NoSuchBucket":
        return PlethoraError(f"{uri}: there is no bucket `{bucket}` at {place}: create it or correct the URI")
    if code in ("NoSuchKey", "404") or isinstance(error, FileNotFoundError):
        return PlethoraError(f"{uri}: no such file at {place}")
    if code == "InvalidAccessKeyId":
        return PlethoraError(f"{uri}: {place} does not know this access key: check AWS_ACCESS_KEY_ID")
    if code == "SignatureDoesNotMatch":
        return PlethoraError(f"{uri}: {place} refuses the signature: check AWS_SECRET_ACCESS_KEY")
    if code in ("AccessDenied", "403", "AllAccessDisabled") or isinstance(error, PermissionError):
        return PlethoraError(
            f"{uri}: {place} denies access: check the credentials and their rights on `{bucket}`"
        )
    if code in ("NoCredentialsError", "PartialCredentialsError"):
        return PlethoraError(f"{uri}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
        return PlethoraError(f"{uri}: the S3 credentials have expired: renew them")
    if code in _BUSY:
        return PlethoraError(
            f"{uri}: {place} is unavailable ({code}) since {PATIENCE_S:g} s: run this again when it is up"
        )
    if code.endswith(_AWAY):
        return PlethoraError(f"{uri}: cannot reach {place}: check AWS_ENDPOINT_URL and that the store is up")
    if "Timeout" in code or isinstance(error, TimeoutError):
        return PlethoraError(
            f"{uri}: {place} did not answer within {READ_TIMEOUT_S} s: is the store healthy?"
        )
    return PlethoraError(f"{uri}: {place} failed: {code} {error}")


def _explained_local(path: str, error: BaseException) -> PlethoraError:
    if isinstance(error, FileNotFoundError):
        return PlethoraError(f"{path}: no such file or folder")
    if isinstance(error, PermissionError):
        return PlethoraError(f"{path}: no permission: check its owner and mode")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return PlethoraError(f"{path}: {reason}")


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
