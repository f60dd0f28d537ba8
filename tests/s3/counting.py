"""An HTTP proxy between a client and an S3 endpoint that counts requests, delays them and cuts answers.

    python -m tests.s3.counting http://127.0.0.1:7480 --delay-ms 30

prints its URL, and at the end of its input what it saw as JSON: as a process of its own it leaves the client
its interpreter. Threads with blocking sockets, not asyncio: what is measured through it has 14 MB an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CHUNK = 1 << 20


@dataclass(frozen=True)
class Request:
    """What was asked for: `range` as in the header, "" where there is none."""

    method: str
    path: str
    range: str


class Counting:
    """Listens at `url` for as long as the `with` block lasts and passes requests on to `endpoint`.

    `requests`: all that came, in order. `most`: how many were under way at the same time. `delay_s`: each
    request waits as long before it is passed on. `cut`: so many answers with a body end in its middle.
    """

    def __init__(self, endpoint: str, delay_s: float = 0.0) -> None:
        place = urlsplit(endpoint)
        self._upstream = (place.hostname, place.port or 80)
        self.delay_s, self.cut = delay_s, 0
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        with self._lock:
            self.requests: list[Request] = []
            self.most = self._now = 0

    def __enter__(self) -> Counting:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._upstream) as server:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._one(client, server):
                pass

    def _one(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass on a request and its answer; False when either side has closed or was cut off."""
        head, body = _head(client)
        if not head:
            return False
        method, path = head.split(b" ", 2)[:2]
        wanted = re.search(rb"(?i)\r\nrange: *([^\r]*)", head)
        with self._lock:
            said = wanted[1].decode() if wanted else ""
            self.requests.append(Request(method.decode(), path.decode().split("?")[0], said))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.delay_s)
            server.sendall(head + body)
            _pump(client, server, _length(head) - len(body))
            answer, begun = _head(server)
            if not answer:
                return False
            size = 0 if method == b"HEAD" else _length(answer)
            with self._lock:
                cut = self.cut > 0 and method == b"GET" and size > 1
                self.cut -= cut
            if cut:
                client.sendall(answer + begun[: size // 2])
                _pump(server, client, size // 2 - len(begun))
                return False
            client.sendall(answer + begun)
            _pump(server, client, size - len(begun))
            return b"\r\nconnection: close" not in answer.lower()
        finally:
            with self._lock:
                self._now -= 1


def _head(source: socket.socket) -> tuple[bytes, bytes]:
    """The head of a message with the empty line that ends it, and what came of its body."""
    found = b""
    while b"\r\n\r\n" not in found:
        data = source.recv(1 << 16)
        if not data:
            return b"", b""
        found += data
    head, rest = found.split(b"\r\n\r\n", 1)
    return head + b"\r\n\r\n", rest


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _pump(source: socket.socket, target: socket.socket, size: int) -> None:
    room = memoryview(bytearray(min(max(size, 0), CHUNK)))
    while size > 0:
        count = source.recv_into(room[: min(size, CHUNK)])
        if not count:
            raise ConnectionError("closed in the middle of a body")
        target.sendall(room[:count])
        size -= count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    given = parser.parse_args()
    with Counting(given.endpoint, given.delay_ms / 1000) as proxy:
        print(proxy.url, flush=True)
        sys.stdin.read()
        by = {m: sum(r.method == m for r in proxy.requests) for m in {r.method for r in proxy.requests}}
        print(json.dumps({"requests": len(proxy.requests), "most": proxy.most, **by}), flush=True)


if __name__ == "__main__":
    main()
