"""Structured logs of workers: each line is a JSON object with the run, the rank and the step.

They go to stderr and so into Ray's worker logs (``ray logs``, the dashboard, a log shipper on the node);
PLETHORA_WORKER_LOGS=1 copies them to the driver's terminal.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from datetime import UTC, datetime
from typing import Any

from cluster.cli import plain
from cluster.redact import clean, lines

EVERY_S = 60.0
PACKAGES = ("cluster", "datasets", "pretrain", "finetune", "tuning")

_context: dict[str, Any] = {}
_said_at = -EVERY_S
_standard = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """A log record as one line of JSON: time, level, logger, message, its origin, and its `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context,
            **{k: v for k, v in record.__dict__.items() if k not in _standard and not k.startswith("_")},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return lines(json.dumps(clean(plain(line)), ensure_ascii=False))


def configure(**who: Any) -> None:
    """Make this process log JSON lines on stderr, each with the fields `who` (run, rank, world, step)."""
    global _said_at
    _context.clear()
    _context.update(who, host=socket.gethostname(), pid=os.getpid(), job=_job())
    _said_at = -EVERY_S
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in PACKAGES:
        logger = logging.getLogger(name)
        for known in [h for h in logger.handlers if isinstance(h.formatter, Lines)]:
            logger.removeHandler(known)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def at(step: int) -> None:
    """Give all further log lines this `step`."""
    _context["step"] = step


def minute() -> bool:
    """Whether a progress line is due: True at most once a minute in this process."""
    global _said_at
    now = time.monotonic()
    if now - _said_at < EVERY_S:
        return False
    _said_at = now
    return True


def _job() -> str | None:
    """The id of Ray's job that this process belongs to."""
    import ray

    return ray.get_runtime_context().get_job_id() if ray.is_initialized() else None
