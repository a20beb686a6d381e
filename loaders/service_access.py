"""Who may speak to a server: only this host without further ado; others with a token, over TLS.

A server that listens anywhere but on the loopback address wants both a token file and a certificate. The token is
compared in constant time and stands in no log and no error.
"""

from __future__ import annotations

import hmac
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.flight as flight

from ..shards.errors import UsageError
from .service_address import is_loopback
from .service_limits import Limits
from .service_protocol import BUSY, CLIENT_HEADER, DRAINING, REFUSED, TOKEN_HEADER, Refusal

_MIN_TOKEN_CHARACTERS = 16
_MAX_TOKEN_BYTES = 4096


def check_listen(host: str, token: str | None, has_tls: bool) -> None:
    """Refuse to listen where anybody could ask, or listen in.

    Raises:
        UsageError: saying what is missing.
    """
    missing = [
        name
        for name, there in (("--token-file", token is not None), ("--tls-cert and --tls-key", has_tls))
        if not there
    ]
    if not is_loopback(host) and missing:
        raise UsageError(
            f"serve: expected {' and '.join(missing)} to listen on {host}, which other hosts can reach, found none. Give "
            "them, or listen on 127.0.0.1"
        )


def read_token(path: str | Path) -> str:
    """The token in a file: its first line, at least 16 characters of ASCII.

    Raises:
        UsageError: it cannot be read, others may read it, or it holds no token. What it holds is not shown.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: expected a file with a token, found: {error.strerror}") from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(
            f"{path}: expected a token that its owner alone can read, found mode {stat.S_IMODE(found.st_mode):o}. Run: "
            f"chmod 600 {path}"
        )
    lines = content.split(b"\n")
    token = lines[0].strip()
    printable = token.isascii() and all(33 <= byte < 127 for byte in token)
    if len(content) > _MAX_TOKEN_BYTES or len(token) < _MIN_TOKEN_CHARACTERS or not printable:
        raise UsageError(
            f"{path}: expected a token of at least {_MIN_TOKEN_CHARACTERS} characters without spaces in the first line, "
            "found none. Make one: openssl rand -hex 32"
        )
    return token.decode("ascii")


class TokenCheck(flight.ServerMiddlewareFactory):
    """Refuses every call without the token, whatever it calls.

    Args:
        token: that clients must have; None where none is asked for.
    """

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self.num_refused = 0

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> Caller:
        if self._expected is not None:
            given = _header(headers, TOKEN_HEADER).encode("utf-8", "replace")
            if not hmac.compare_digest(given, self._expected):
                self.num_refused += 1
                message = (
                    "expected the server's token, found another or none. Give the token file of the server"
                )
                raise flight.FlightUnauthenticatedError(message, Refusal(REFUSED, message).to_bytes())
        return Caller(_header(headers, CLIENT_HEADER)[:64])


class Caller(flight.ServerMiddleware):
    """Who makes a call: the number that it gave itself, which tells clients apart and proves nothing."""

    def __init__(self, client: str) -> None:
        super().__init__()
        self.client = client


def _header(headers: dict[str, list[str]], name: str) -> str:
    values = headers.get(name) or [""]
    return values[0] if isinstance(values[0], str) else ""


class Admission:
    """Counts what is being done, for whom, and refuses what is too much. For several threads.

    Args:
        limits: of clients and calls.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._wake = threading.Condition()
        self._calls: dict[str, int] = {}
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._num_calls = self._sending = 0
        self._draining = False

    @property
    def num_calls(self) -> int:
        """Answers that are being made or sent."""
        return self._num_calls

    def num_clients(self) -> int:
        """Clients that asked for something lately."""
        with self._wake:
            self._forget_idle()
            return len(self._seen)

    def enter(self, client: str) -> None:
        """Begin a call; `leave` ends it.

        Raises:
            Refusal: too many clients or calls, or the server is stopping.
        """
        with self._wake:
            if self._draining:
                raise Refusal(DRAINING, "the server is stopping")
            self._forget_idle()
            limits, mine = self._limits, self._calls.get(client, 0)
            if client not in self._seen and len(self._seen) >= limits.clients:
                raise Refusal(
                    BUSY, f"expected at most {limits.clients} clients at a time, found another", 1.0
                )
            if mine >= limits.calls_per_client:
                raise Refusal(
                    BUSY, f"expected at most {limits.calls_per_client} calls of a client at a time", 0.1
                )
            if self._num_calls >= limits.calls:
                raise Refusal(BUSY, f"expected at most {limits.calls} calls at a time", 0.1)
            self._seen[client] = time.monotonic()
            self._seen.move_to_end(client)
            self._calls[client] = mine + 1
            self._num_calls += 1

    def leave(self, client: str, sent_bytes: int = 0) -> None:
        """End a call.

        Args:
            client: that made it.
            sent_bytes: that `send` took.
        """
        with self._wake:
            self._sending -= sent_bytes
            left = self._calls[client] - 1
            if left:
                self._calls[client] = left
            else:
                del self._calls[client]
            if client in self._seen:
                self._seen[client] = time.monotonic()
                self._seen.move_to_end(client)
            self._num_calls -= 1
            self._wake.notify_all()

    def send(self, num_bytes: int) -> None:
        """Take room for an answer that is about to be sent; `leave` gives it back.

        Raises:
            Refusal: the answers being sent are too large together. One alone is not, however large.
        """
        limit = self._limits.sending_bytes
        with self._wake:
            if self._sending and self._sending + num_bytes > limit:
                raise Refusal(
                    BUSY,
                    f"expected at most {limit:,} bytes of batches that are being sent, found {num_bytes:,} more. Start the "
                    "server with a larger --max-sending-bytes",
                    0.1,
                )
            self._sending += num_bytes

    @contextmanager
    def call(self, client: str) -> Iterator[None]:
        """A call that ends with the body."""
        self.enter(client)
        try:
            yield
        finally:
            self.leave(client)

    def _forget_idle(self) -> None:
        """Called with the lock held. A client with a call under way is not idle."""
        before = time.monotonic() - self._limits.client_idle_s
        for client, seen in list(self._seen.items()):
            if seen >= before:
                break
            if client not in self._calls:
                del self._seen[client]

    def drain(self, patience_s: float) -> bool:
        """Let nobody in any more, and wait for those inside; whether they are done."""
        with self._wake:
            self._draining = True
            return self._wake.wait_for(lambda: not self._num_calls, patience_s)

    @property
    def is_draining(self) -> bool:
        return self._draining
