"""Bounds what connections cost a server before anything that they send is a request: their number, and their bytes.

gRPC takes a message whole before it asks anybody, and any number of connections; pyarrow has no way to tell it otherwise.
So a thread looks at the process's own sockets, ten times a second, and shuts those that

- have sent more than a request may have beside the requests that came whole;
- have sent, all together, more than four such requests: first those that never asked for anything, the largest first, and
  then those that did, except those that are nearest to a whole request: so that one after the other gets there;
- are too many: those first that never asked for anything, and of them the oldest.

The kernel counts the bytes (TCP_INFO), so that nothing stands between gRPC and its clients. What gRPC held for a
connection goes with it; a trainer's client makes another one. Linux only: elsewhere nothing is bounded here.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from urllib.parse import unquote

_LOOK_S = 0.1
_LOOKING_SHARE = 0.03  # of a processor, at most, however many connections there are
_ASIDE_BYTES = 2**20  # of a connection beside its requests: the handshake of TLS, settings, pings
_HEADER_BYTES = 2**14  # of a request beside its message; gRPC takes no more than that of headers
_ECHO_SHARE = 0.02  # of what a client is sent: what HTTP/2 sends back for it, in records of TLS
_REQUESTS_AT_ONCE = 4  # of the largest size, for all connections together
_FILES_SHARE = 0.5  # of the process's, for connections
_TCP_INFO = struct.Struct("=B119xQQ")  # of struct tcp_info: tcpi_state, tcpi_bytes_acked, tcpi_bytes_received
_ESTABLISHED = 1
_MOST_FILES = 2**20  # where the process may have any number
_CLOSE_PATIENCE_S = 5.0

TOO_LARGE, TOO_MANY = "too-large", "too-many"

Peer = tuple[str, int]  # a client's address

logger = logging.getLogger("softshard.service")


@dataclass
class _Asked:
    """Requests of one connection that came whole."""

    last: float
    num_bytes: int = 0


@dataclass(frozen=True)
class _Connection:
    """One of the server's, as it is now.

    Attributes:
        peer: who is at its other end.
        file: its descriptor; maybe another's by the time that it is used.
        waiting_bytes: that came, and belong to no request that came whole.
    """

    peer: Peer
    file: int
    waiting_bytes: int


class ConnectionGuard:
    """Looks after the connections to one address of this process, in a thread of its own, from `start` until it is closed.

    Args:
        max_connections: at a time; fewer where the process may not have twice as many files.
        max_request_bytes: of one request.
    """

    def __init__(self, max_connections: int, max_request_bytes: int) -> None:
        self._port, self._hosts = 0, frozenset[str]()
        self.max_connections = max(1, min(max_connections, int(_most_files() * _FILES_SHARE)))
        self._max_bytes = max_request_bytes + _ASIDE_BYTES
        self._lock = threading.Lock()
        self._asked: dict[Peer, _Asked] = {}
        self._seen: dict[Peer, float] = {}  # when it was seen for the first time
        self._shut: Counter[str] = Counter({TOO_LARGE: 0, TOO_MANY: 0})
        self.num_connections = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int) -> None:
        """Begin to look.

        Args:
            host: that the server listens on; its connections alone are looked at, unless that is all addresses.
            port: of it.
        """
        self._port, self._hosts = port, _addresses_of(host)
        if sys.platform == "linux":
            self._thread = threading.Thread(target=self._work, name="softshard-guard", daemon=True)
            self._thread.start()

    def came(self, peer: str, num_bytes: int) -> None:
        """A request came whole; its bytes are counted against its connection no more.

        Args:
            peer: gRPC's name of the client, such as `ipv4:127.0.0.1:43210`.
            num_bytes: of its message.
        """
        if (client := _read_peer(peer)) is not None:
            with self._lock:
                asked = self._asked.setdefault(client, _Asked(0.0))
                asked.last = time.monotonic()
                asked.num_bytes += num_bytes + _HEADER_BYTES

    def shut_counts(self) -> Mapping[str, int]:
        """Connections that were shut: `too-large`, `too-many`."""
        with self._lock:
            return dict(self._shut)

    def _work(self) -> None:
        pause = _LOOK_S
        while not self._closed.wait(pause):
            begun = time.thread_time()
            try:
                files = takewhile(lambda _: not self._closed.is_set(), _open_files())
                connections = list(self._connections(files))
                if not self._closed.is_set():  # else these may not be all
                    self._shut_too_much(connections)
            except OSError:
                logger.exception("connections are not bounded any more: /proc/self/fd cannot be read")
                return
            except Exception:
                logger.exception("connections were not looked at this time")
            pause = max(_LOOK_S, (time.thread_time() - begun) / _LOOKING_SHARE)

    def look(self) -> None:
        """Look once, and shut what is too much.

        Raises:
            OSError: what the process has open cannot be listed.
        """
        self._shut_too_much(list(self._connections(_open_files())))

    def _shut_too_much(self, connections: list[_Connection]) -> None:
        too_large = self._too_large(connections)
        chosen = set(too_large)
        kept = [each for each in connections if each not in chosen]
        num_over = max(0, len(kept) - self.max_connections)
        too_many = sorted(kept, key=self._importance)[:num_over]
        for each in too_large:
            self._shut_one(each, TOO_LARGE)
        for each in too_many:
            self._shut_one(each, TOO_MANY)
        self.num_connections = len(kept) - num_over
        with self._lock:
            there = {connection.peer for connection in connections}
            now = time.monotonic()
            self._seen = {peer: self._seen.get(peer, now) for peer in there}
            # Whoever asked just now may have come after the look.
            self._asked = {
                peer: asked
                for peer, asked in self._asked.items()
                if peer in there or asked.last > now - 10 * _LOOK_S
            }

    def _too_large(self, connections: list[_Connection]) -> list[_Connection]:
        """Those that sent too much by themselves; then those that there is no room for, all together."""
        largest_first = sorted(connections, key=lambda each: each.waiting_bytes, reverse=True)
        chosen = [each for each in largest_first if each.waiting_bytes > self._max_bytes]
        fitting = largest_first[len(chosen) :]
        # Of those that asked, who is nearest to the end of a request has room first: trainers that begin together would
        # else be shut again and again before the first of them had said all. Of strangers who holds the least.
        asked = [each for each in fitting if each.peer in self._asked]
        strangers = [each for each in reversed(fitting) if each.peer not in self._asked]
        room = _REQUESTS_AT_ONCE * self._max_bytes
        for each in (*asked, *strangers):
            if each.waiting_bytes > room:
                chosen.append(each)
            else:
                room -= each.waiting_bytes
        return chosen

    def _importance(self, connection: _Connection) -> tuple[float, float]:
        """When it asked last, 0 for never; when it came."""
        asked = self._asked.get(connection.peer)
        return 0.0 if asked is None else asked.last, self._seen.get(connection.peer, time.monotonic())

    def _connections(self, files: Iterable[int]) -> Iterator[_Connection]:
        for file in files:
            with suppress(OSError), _borrowed(file) as found:
                if (peer := self._peer_of(found)) is None:
                    continue
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                if len(info) < _TCP_INFO.size:  # a kernel before 4.1
                    continue
                state, sent_bytes, received_bytes = _TCP_INFO.unpack(info)
                if state != _ESTABLISHED:  # one end has let it go
                    continue
                asked = self._asked.get(peer)
                whole = 0 if asked is None else asked.num_bytes
                waiting = received_bytes - whole - int(sent_bytes * _ECHO_SHARE)
                yield _Connection(peer, file, max(0, waiting))

    def _peer_of(self, found: socket.socket) -> Peer | None:
        """Who is at the other end of one of the server's connections; None where it is something else.

        Raises:
            OSError: it is no socket, or not connected.
        """
        here = found.getsockname()
        if not isinstance(here, tuple) or len(here) < 2 or here[1] != self._port:
            return None
        if self._hosts and _plain_host(here[0]) not in self._hosts:  # another server's, on another address
            return None
        host, port, *_ = found.getpeername()
        return _plain_host(host), port

    def _shut_one(self, connection: _Connection, why: str) -> None:
        with suppress(OSError), _held(connection.file) as file:  # else it ended by itself
            with _borrowed(file) as found:
                if self._peer_of(found) != connection.peer:  # the number is another file's by now
                    return
                found.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._shut[why] += 1
            facts = {"client": connection.peer[0], "why": why, "bytes": connection.waiting_bytes}
            logger.log(logging.WARNING if why == TOO_LARGE else logging.DEBUG, "shut", extra={"facts": facts})

    def shut_all(self, *, idle_only: bool = False) -> None:
        """End the connections that are left when the server ends; with `idle_only` those that never asked."""
        if self._thread is None:
            return
        with suppress(OSError):  # they cannot be listed
            for connection in list(self._connections(_open_files())):
                if not idle_only or connection.peer not in self._asked:
                    self._shut_one(connection, TOO_MANY)

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_PATIENCE_S)


def _open_files() -> Iterable[int]:
    """The process's descriptors; where it has none left to look them up with, all that there can be.

    Raises:
        OSError: they cannot be listed for another reason.
    """
    try:
        return map(int, os.listdir("/proc/self/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return range(_most_files())


def _most_files() -> int:
    """That the process may have open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_FILES if limit == resource.RLIM_INFINITY else limit


def _addresses_of(host: str) -> frozenset[str]:
    """The addresses that a server listens on; none for all of the host's, and where it cannot be said."""
    with suppress(OSError):
        found = frozenset(_plain_host(str(info[4][0])) for info in socket.getaddrinfo(host, None))
        return frozenset() if found & {"0.0.0.0", "::"} else found
    return frozenset()


@contextmanager
def _held(file: int) -> Iterator[int]:
    """A descriptor of the same file that nobody closes meanwhile; itself where the process has none left."""
    try:
        copy = os.dup(file)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        yield file
        return
    try:
        yield copy
    finally:
        os.close(copy)


@contextmanager
def _borrowed(file: int) -> Iterator[socket.socket]:
    """A descriptor that somebody else owns as a socket, whatever it is."""
    found = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=file)  # has room for all addresses
    try:
        yield found
    finally:
        found.detach()


def _read_peer(text: str) -> Peer | None:
    """`ipv4:127.0.0.1:43210` or `ipv6:%5B::1%5D:43210` taken apart; None for anything else."""
    host, _, port = unquote(text).partition(":")[2].rpartition(":")
    if not host or not port.isdigit():
        return None
    return _plain_host(host.removeprefix("[").removesuffix("]")), int(port)


def _plain_host(host: str) -> str:
    """An IPv4 address that an IPv6 socket sees, as itself; a link's own address without the link."""
    return host.partition("%")[0].removeprefix("::ffff:")
