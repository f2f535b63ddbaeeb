"""A connection between rank 0 and every other rank, for lines of JSON. The system closes it when a process ends.

It does so however the process ends, `kill -9` included, and at once, without the help of anything that the process
still does. Where a whole machine is lost the system notices after half a minute that nobody answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

CONNECT_SECONDS = 30.0
SEND_SECONDS = 5.0  # after it a rank that reads nothing misses a message
WELCOME = b"\n"
Message = dict[str, Any]


class Store(Protocol):
    """What is needed of torch's key-value store, to find rank 0."""

    def add(self, key: str, amount: int) -> int: ...
    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


class Event(NamedTuple):
    """What came from a rank: a message, or None where its connection was closed."""

    rank: int
    message: Message | None


class Connections:
    """Rank 0's connections with all others, or another's with rank 0. One thread reads, any thread may send."""

    def __init__(self, store: Store, rank: int, environment: Mapping[str, str]) -> None:
        """Raises OSError if rank 0 cannot be reached."""
        self._rank = rank
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[int, socket.socket] = {}  # by rank
        self._unread: dict[int, bytes] = {}  # by file descriptor: the beginning of a line
        self._rank_of: dict[int, int] = {}  # by file descriptor, once it has said so
        self._lock = threading.Lock()
        self._listening: socket.socket | None = None
        number = store.add(f"llmtrain/connections/{rank}", 1)  # of this process: a stage may have had others
        address = f"llmtrain/address/{number}"
        if rank == 0:
            self._listening = _server()
            self._selector.register(self._listening, selectors.EVENT_READ)
            self._key = secrets.token_hex(8)
            port = self._listening.getsockname()[1]
            store.set(address, json.dumps([environment.get("MASTER_ADDR", "localhost"), port, self._key]))
        else:
            host, port, self._key = json.loads(store.get(address))
            connection = _connected(host, port)
            connection.sendall(json.dumps({"rank": rank, "key": self._key}).encode() + b"\n")
            if not connection.recv(len(WELCOME)):  # from here on rank 0 knows this rank
                raise ConnectionError(f"{host} port {port} closed the connection")
            self._add(connection, 0)
        os.register_at_fork(after_in_child=self._forget)

    def send(self, rank: int, message: Mapping[str, Any]) -> None:
        """Send a message, if the other side is still there: whether it is, is known by its connection's end."""
        with self._lock, contextlib.suppress(OSError):
            if rank in self._sockets:
                self._sockets[rank].sendall(json.dumps(message).encode() + b"\n")

    def send_all(self, message: Mapping[str, Any]) -> None:
        """Send a message to every rank that is connected."""
        for rank in self.ranks:
            self.send(rank, message)

    @property
    def ranks(self) -> list[int]:
        """The ranks on the other side."""
        with self._lock:
            return list(self._sockets)

    def receive(self, seconds: float) -> list[Event]:
        """What has come, after waiting for it for a time at most."""
        return [
            event
            for key, _ in self._selector.select(seconds)
            for event in (self._accept() if key.fileobj is self._listening else self._read(key.fileobj))
        ]

    def close(self) -> None:
        """Close all connections; only once nobody receives any more."""
        for each in self._open():
            each.close()
        self._selector.close()
        self._sockets.clear()

    def _accept(self) -> list[Event]:
        assert self._listening is not None
        with contextlib.suppress(OSError):
            self._add(self._listening.accept()[0], None)
        return []

    def _add(self, connection: socket.socket, rank: int | None) -> None:
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
            for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._selector.register(connection, selectors.EVENT_READ)
        self._unread[connection.fileno()] = b""
        if rank is not None:
            self._know(connection, rank)

    def _know(self, connection: socket.socket, rank: int) -> None:
        self._sockets[rank], self._rank_of[connection.fileno()] = connection, rank

    def _read(self, connection: Any) -> list[Event]:
        number, messages = connection.fileno(), list[Message]()
        try:
            data = connection.recv(1 << 16)
        except OSError:  # reset, or nobody answers
            data = b""
        *lines, self._unread[number] = (self._unread[number] + data).split(b"\n")
        with contextlib.suppress(ValueError):
            messages = [json.loads(line) for line in lines]
        if number not in self._rank_of and messages:
            first = messages.pop(0)
            if isinstance(first, dict) and first.get("key") == self._key:
                with self._lock, contextlib.suppress(OSError):
                    self._know(connection, int(first["rank"]))
                    connection.sendall(WELCOME)
            else:
                data = b""  # a stranger
        rank = self._rank_of.get(number)
        events = [] if rank is None else [Event(rank, message) for message in messages]
        if not data:
            self._drop(connection, rank)
            events += [] if rank is None else [Event(rank, None)]
        return events

    def _drop(self, connection: socket.socket, rank: int | None) -> None:
        self._selector.unregister(connection)
        self._rank_of.pop(connection.fileno(), None)
        with self._lock:
            connection.close()
            if rank is not None:
                del self._sockets[rank]

    def _forget(self) -> None:
        """In a forked child: close what it inherited, or the end of its parent would go unnoticed."""
        for each in self._open():
            with contextlib.suppress(OSError):
                os.close(each.detach())

    def _open(self) -> list[Any]:
        """Every socket, those of strangers too."""
        return [key.fileobj for key in (self._selector.get_map() or {}).values()]


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _connected(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return connection
