"""A TCP proxy between a client and an S3 endpoint that cuts connections, slows them, or answers 503."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from typing import Any
from urllib.parse import urlsplit

_ERROR = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
)


class Proxy:
    """Listens at `url` for as long as the `with` block lasts and passes bytes on to `endpoint`.

    Counts: `connections`, `cuts`, `refused` (requests answered with 503).
    """

    def __init__(self, endpoint: str, port: int = 0) -> None:
        place = urlsplit(endpoint)
        self._upstream = (place.hostname, place.port or 80)
        self._port = port  # 0: any
        self.url = ""
        self.connections = self.cuts = self.refused = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._until, self._rate = 0.0, 0.0
        self._after, self._left, self._down = 0, 0, False

    def __enter__(self) -> Proxy:
        self._server = socket.create_server(("127.0.0.1", self._port))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which holds the port
        self._server.close()
        self._drop_all()

    def cut(self, after: int, times: int = 1, down: bool = False) -> None:
        """Reset the next `times` connections that carry `after` bytes up (or down) at that byte."""
        self._after, self._left, self._down = after, times, down
        self._drop_all()  # else bytes of requests before this would count

    def slow(self, bytes_a_second: float) -> None:
        """Let each direction of each connection carry this much (0: all that comes)."""
        self._rate = bytes_a_second

    def outage(self, seconds: float) -> None:
        """Answer every request with 503 for `seconds` (0: no longer)."""
        self._until = time.monotonic() + seconds
        self._drop_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        if time.monotonic() < self._until:
            with contextlib.suppress(OSError):
                self._refuse(client)
            self._close(client)
            return
        try:
            server = socket.create_connection(self._upstream)
        except OSError:
            self._close(client)
            return
        with self._lock:
            self._open.add(server)
        back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
        back.start()
        self._pump(client, server, False)
        back.join()
        self._close(client)
        self._close(server)

    def _refuse(self, client: socket.socket) -> None:
        client.settimeout(5)
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(1 << 16)
            if not data:
                return
            head += data
        head, body = head.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        rest = (int(length[1]) if length else 0) - len(body)
        while rest > 0 and b"100-continue" not in head.lower():
            rest -= len(client.recv(1 << 16)) or rest  # unread bytes would turn the answer into a reset
        error = b"" if head.startswith(b"HEAD") else _ERROR
        client.sendall(
            b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(_ERROR), error)
        )
        self.refused += 1

    def _pump(self, source: socket.socket, target: socket.socket, down: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if self._is_due(carried + len(data), down):
                    target.sendall(data[: max(0, self._after - carried)])
                    time.sleep(0.02)  # what was sent must arrive before the reset
                    self._reset(source)
                    self._reset(target)
                    return
                carried += len(data)
                if self._rate:
                    time.sleep(len(data) / self._rate)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _is_due(self, carried: int, down: bool) -> bool:
        with self._lock:
            due = self._left > 0 and down == self._down and carried > self._after
            if due:
                self._left -= 1
                self.cuts += 1
            return due

    def _reset(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.close()

    def _drop_all(self) -> None:
        with self._lock:
            known = list(self._open)
        for connection in known:
            self._reset(connection)
