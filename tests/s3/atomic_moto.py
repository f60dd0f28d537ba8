"""A moto server whose conditional writes are atomic: `python -m tests.s3.atomic_moto PORT`.

moto serves requests in threads and looks whether an object exists before it puts one, so that two writers of
one key can both win `If-None-Match: *`. S3 and Ceph let one win, and marks rely on it: here such writes take
turns.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class OneConditionalWriteAtATime:
    """moto's application behind a lock for requests with `If-None-Match`."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
            with self.lock:
                return self.moto(environ, start_response)
        return self.moto(environ, start_response)


if __name__ == "__main__":
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        OneConditionalWriteAtATime(),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
