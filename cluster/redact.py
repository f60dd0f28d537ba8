"""Keeps secrets in: everything shown to people, logged or written to files passes through `redact` first.

A secret is the value of an environment variable whose name says so (AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN,
PLETHORA_SUBJECT_KEY, HF_TOKEN, …), Ray's token, this machine's subject key, a user and password in a URL, a
signature in a query, a bearer token, and anything that looks like an AWS access key.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

MASK = "…"
LEAST = 6  # a shorter value would be masked wherever it occurs as a word
# the keyword must come last: TOKENIZERS_PARALLELISM is not a secret
_NAMES = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_KEY|SUBJECT_KEY|PRIVATE_KEY)$"
)
_FIELDS = re.compile(
    r"(?:^|_)(secret|token|password|passwd|passphrase|credentials?|api_?key|access_key(?:_id)?|"
    r"subject_key|private_key)$",
    re.I,
)
# what a progress display writes: line ends, colours, cursor up
_DISPLAY = re.compile(r"(\x1b\[(?:[0-9;]{0,15}m|[0-9]{0,2}[AK]))")
_SHAPES = [
    (re.compile(r"(?<=://)[^\s/@'\"]+@"), f"{MASK}@"),  # user:password@host
    (
        re.compile(
            r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|sig|signature|token|access_token|"
            r"api_?key|password)=)[^&\s'\"]+"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/-]{8,}=*"), rf"\1{MASK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), MASK),
]


def redact(text: str) -> str:
    """`text` without secrets."""
    for secret in _secrets():
        text = text.replace(secret, MASK)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def printable(text: object, most: int = 4000) -> str:
    """`text` as one line of at most `most` characters, without terminal control and invisible characters.

    Letters, signs and marks of any script stay; control, direction and zero-width characters become U+FFFD.
    """
    line = _visible(" ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def lines(text: str) -> str:
    """`text` of several lines, without terminal control and invisible characters."""
    return _visible(text, "\n\t")


def _visible(text: str, allowed: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in allowed else "\ufffd" for c in text)


def clean(value: Any) -> Any:
    """A JSON-like value without secrets: strings are redacted, values of keys such as `password` masked.
    Tuples become lists.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(inner, str) and inner and _FIELDS.search(str(key)) else clean(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    return value


def _secrets() -> list[str]:
    """All known secrets, longest first, because one may contain another."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name)}
    found |= {_content(path) for path in _files()}
    user = os.environ.get("AWS_ACCESS_KEY_ID", "")
    if not user.isalpha():  # not a secret by itself; a test store's user may be a word that paths contain
        found.add(user)
    return sorted((s for s in found if len(s) >= LEAST), key=len, reverse=True)


def _files() -> list[tuple[str, int]]:
    """(path, modification time) of the files that hold our secrets."""
    home = os.path.expanduser("~")
    named = [os.environ.get("RAY_AUTH_TOKEN_PATH") or f"{home}/.ray/auth_token"]
    found = []
    for path in (*named, f"{home}/.config/plethora/subject.key"):
        try:
            found.append((path, os.stat(path).st_mtime_ns))
        except OSError:
            continue
    return found


@functools.lru_cache(maxsize=8)
def _content(file: tuple[str, int]) -> str:
    try:
        return Path(file[0]).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# ---------------------------------------------------------------- streams and logs


class _Stream(io.TextIOBase):
    """A text stream that redacts what is written to it, and otherwise behaves like the stream it wraps.

    Of terminal control sequences, only a progress display's codes pass.
    """

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        parts = _DISPLAY.split(redact(text))
        parts[::2] = [_visible(part, "\n\r\t") for part in parts[::2]]
        self.inner.write("".join(parts))
        return len(text)

    def flush(self) -> None:
        self.inner.flush()

    def fileno(self) -> int:
        return self.inner.fileno()

    def isatty(self) -> bool:
        return self.inner.isatty()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.inner.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.inner.errors


class _Record(logging.LogRecord):
    """A log record whose message and traceback are redacted, whichever handler writes them."""

    def getMessage(self) -> str:
        message = redact(super().getMessage())
        return message if self.name.split(".")[0] == "ray" else lines(message)  # Ray colours its own messages


def _record(*given: Any, **named: Any) -> logging.LogRecord:
    made = _Record(*given, **named)
    if made.exc_info and made.exc_info[0] is not None:
        made.exc_text = lines(redact("".join(traceback.format_exception(*made.exc_info))).rstrip("\n"))
    return made


def install() -> None:
    """Redact what this process prints and logs from now on; calling it again is harmless.

    Existing handlers keep their streams: their records are redacted all the same.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(stream))
    logging.setLogRecordFactory(_record)
