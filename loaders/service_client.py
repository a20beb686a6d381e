"""One server of the data service, as a client sees it: its address, what it said of itself, how it does lately."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as flight

from ..shards.errors import DataError, UsageError
from .service_access import read_token
from .service_address import is_loopback
from .service_answer import HELLO_FIELDS, OPENED_FIELDS, check_fields, read_answer
from .service_memory import Handle, open_segment, read_proof, read_rows
from .service_protocol import (
    CLIENT_HEADER,
    HELLO,
    OPEN,
    PROTOCOL,
    REFUSED,
    TOKEN_HEADER,
    UNKNOWN_RECIPE,
    Refusal,
    Ticket,
    check_protocol,
    check_stack,
)
from .service_wire import read_meta

AWAY = "away"  # no answer: the server is down, or the network
_CHANNEL = [
    # gRPC would wait up to two minutes before it tries a server again; who waits for how long is decided here.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
_TLS_SIGNS = {
    "certificate verify failed": "expected a certificate of this host, in date and signed by --tls-ca (without it, by "
    "one whom this system trusts), found another. Give --tls-ca the file of who signed it",
    "is not in peer certificate": "expected a certificate that names this host, found one of others. Ask the server by a "
    "name that it was made for, or make it anew",
    "wrong version number": "expected a server with TLS, found one without. Give its address as grpc://, or "
    "start it with --tls-cert and --tls-key",
}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_MOST_LATENCIES = 100


class Untrusted(Refusal):
    """TLS fails: at the start a mistake that somebody should know of; later the server is away until it is mended."""

    def to_error(self, where: str = "") -> UsageError:
        """As what the caller can mend."""
        return UsageError(f"{where}: {self.message}" if where else self.message)


@dataclass(frozen=True)
class Connection:
    """How a RemoteLoader speaks to its servers.

    Attributes:
        token_file: file of the servers' token.
        tls_ca: PEM file of the certificate that signed theirs, for `grpc+tls://`; None for the system's.
        shared_memory: take batches in shared memory from servers of the same host and user.
        decoder: `cpu` or `cuda`: what the servers must decode on, since that decides pixels.
        connect_s: seconds until a server must serve, or be at opening what is wanted.
        request_s: seconds for one answer; a server that has none by then is asked no more for a while.
        deadline_s: seconds without a batch, whichever server was asked, that are an error.
        hedge: the share of the answers that came faster than the time after which another server is asked the same; None
            never asks a second one.
    """

    token_file: str | Path | None = None
    tls_ca: str | Path | None = None
    shared_memory: bool = True
    decoder: str = "cpu"
    connect_s: float = 30.0
    request_s: float = 60.0
    deadline_s: float = 300.0
    hedge: float | None = 0.95

    def __post_init__(self) -> None:
        if self.decoder not in ("cpu", "cuda"):
            raise UsageError(f"connection: expected a decoder of cpu, cuda, found {self.decoder!r}")
        if not min(self.connect_s, self.request_s, self.deadline_s) > 0:
            raise UsageError(
                f"connection: expected seconds above 0, found connect_s {self.connect_s}, request_s {self.request_s} and "
                f"deadline_s {self.deadline_s}"
            )
        if self.hedge is not None and not 0 < self.hedge < 1:
            raise UsageError(
                f"connection: expected hedge as a share between 0 and 1, or None, found {self.hedge}"
            )


class Server:
    """A server, and one connection to it. For several threads.

    Args:
        address: `grpc://host:port`.
        connection: how to speak to it.
        client: what this client calls itself.
        stack: the pixel stack that it must have.

    Raises:
        UsageError: the token or the certificate cannot be read.
    """

    def __init__(self, address: str, connection: Connection, client: str, stack: dict[str, str]) -> None:
        self.address, self._connection, self._stack = address, connection, stack
        headers = [(CLIENT_HEADER.encode(), client.encode())]
        if connection.token_file is not None:
            if address.startswith("grpc://") and not is_loopback(urlsplit(address).hostname or ""):
                raise UsageError(
                    f"{address}: expected grpc+tls:// for a server on another host, found a token that would be sent in the "
                    "clear"
                )
            token = read_token(connection.token_file)
            headers.append((TOKEN_HEADER.encode(), f"Bearer {token}".encode()))
        self._options = flight.FlightCallOptions(timeout=connection.request_s, headers=headers)
        roots = None
        if connection.tls_ca is not None:
            try:
                roots = Path(connection.tls_ca).read_bytes()
            except OSError as error:
                raise UsageError(
                    f"{connection.tls_ca}: expected a PEM file, found: {error.strerror}"
                ) from error
        self._client = flight.FlightClient(address, tls_root_certs=roots, generic_options=_CHANNEL)
        self._opening = threading.Lock()
        self._facts: dict[str, Any] | None = None
        self._secret = ""
        self._failures = 0
        self.ask_after = 0.0  # by the monotonic clock
        self._in_use = threading.Lock()
        self._num_asked = 0  # answers that are waited for
        self._is_retired = False
        self.last_error: Refusal | None = None
        self.latencies: deque[float] = deque(maxlen=_MOST_LATENCIES)

    def open(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Make sure that the server fits and has the recipe open; what it says of it.

        Raises:
            UsageError: another protocol or pixel stack; a recipe larger than the server takes.
            DataError: what it says makes no sense.
            Refusal: it says no, or nothing.
        """
        if (facts := self._facts) is not None:
            return facts
        with self._asking():
            return self._open(recipe)

    def _open(self, recipe: dict[str, Any]) -> dict[str, Any]:
        # Who opens it may wait for a server that hangs; who waits for that waits no longer than for an answer.
        if not self._opening.acquire(timeout=self._connection.request_s):
            raise Refusal(
                AWAY,
                f"expected it to open the recipe within {self._connection.request_s:g} s, found no answer",
            )
        try:
            if (facts := self._facts) is None:
                # A server of an earlier version does not say what it takes.
                hello: dict[str, Any] = {"request_bytes": None} | self._action(
                    HELLO, {"protocol": PROTOCOL}, {}
                )
                check_protocol(hello.get("protocol"), self.address)
                check_fields(hello, HELLO_FIELDS, f"{self.address}: {HELLO}")
                check_stack(self._stack, hello["stack"], self.address)
                self._secret = ""
                if self._connection.shared_memory:
                    self._secret = read_proof(Handle.from_json(hello.get("memory")))
                self._facts = facts = self._action(
                    OPEN, {"protocol": PROTOCOL, "recipe": recipe}, OPENED_FIELDS, hello["request_bytes"]
                )
            return facts
        finally:
            self._opening.release()

    def ask(self, recipe: dict[str, Any], epoch: int, taken: int, rank: int) -> tuple[pa.RecordBatch, bool]:
        """The rows of one batch, and whether they came in shared memory; waits for them.

        Raises:
            UsageError: another protocol or pixel stack.
            DataError: what it says, or sends, makes no sense.
            Refusal: it says no, or nothing.
        """
        with self._asking():
            return self._ask(recipe, epoch, taken, rank)

    def _ask(self, recipe: dict[str, Any], epoch: int, taken: int, rank: int) -> tuple[pa.RecordBatch, bool]:
        opened = self.open(recipe)
        for last in (False, True):
            try:
                return self._rows(Ticket(opened["recipe"], epoch, taken, rank, self._secret))
            except DataError as error:
                raise DataError(f"{self.address}: {error}") from error
            except Refusal as refusal:
                if refusal.code != UNKNOWN_RECIPE or last:
                    raise
                self.forget()  # it was started anew, maybe with something else
                opened = self.open(recipe)
        raise AssertionError("unreachable")

    def forget(self) -> None:
        """Ask the server anew who it is and what it has; returns at once, also while it is being asked."""
        self._facts = None

    def _rows(self, ticket: Ticket) -> tuple[pa.RecordBatch, bool]:
        reader = self._reader(ticket)
        with _refusals():
            schema = reader.schema
        if "segment" not in (meta := read_meta(schema)):
            return _one_chunk(reader), False
        handle = Handle.from_json(meta["segment"])
        view = None if handle is None else open_segment(handle)
        if view is not None:
            assert handle is not None
            return read_rows(view, handle.stream), True
        # The server let it go in the meantime.
        return _one_chunk(self._reader(Ticket(ticket.recipe, ticket.epoch, ticket.taken, ticket.rank))), False

    def _reader(self, ticket: Ticket) -> flight.FlightStreamReader:
        with _refusals():
            return self._client.do_get(flight.Ticket(ticket.to_bytes()), self._options)

    def action(self, name: str, content: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """One of the small requests; see service_protocol.py.

        Args:
            name: of the request.
            content: of it.
            fields: of the answer, see service_answer.py.

        Raises:
            DataError: the answer is none.
            Refusal: the server says no, or nothing.
        """
        with self._asking():
            return self._action(name, content, fields)

    def _action(
        self,
        name: str,
        content: dict[str, Any],
        fields: Mapping[str, Any],
        most_bytes: int | None = None,
    ) -> dict[str, Any]:
        message = json.dumps(content).encode()
        if most_bytes is not None and len(message) > most_bytes:  # the server would cut it off without a word
            raise UsageError(
                f"{self.address}: {name}: expected at most {most_bytes:,} bytes, found {len(message):,}; labels and keys "
                "are sent whole. Start the server with a larger --max-request-bytes"
            )
        with _refusals():
            (result,) = self._client.do_action(flight.Action(name, message), self._options)
            answer = result.body.to_pybytes()
        return read_answer(answer, fields, f"{self.address}: {name}")

    def did_well(self, latency_s: float) -> None:
        """An answer came."""
        self._failures, self.ask_after = 0, 0.0
        self.latencies.append(latency_s)

    def did_badly(self, refusal: Refusal) -> None:
        """None came: the server is left alone for a while, twice as long each time."""
        self.last_error = refusal
        if refusal.code == AWAY:
            self.forget()
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        jitter = (
            0.75 + secrets.randbelow(500) / 1000
        )  # so that clients of one server do not come back together
        self.ask_after = time.monotonic() + max(refusal.retry_s, pause) * jitter

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a request: the connection is there until it has ended."""
        with self._in_use:
            self._num_asked += 1
        try:
            yield
        finally:
            with self._in_use:
                self._num_asked -= 1
                is_last = self._is_retired and not self._num_asked
            if is_last:
                self.close()

    def retire(self) -> None:
        """Nothing more will be asked: let the connection go when no answer is under way any more."""
        with self._in_use:
            self._is_retired = True
            is_idle = not self._num_asked
        if is_idle:
            self.close()

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()


def _one_chunk(reader: flight.FlightStreamReader) -> pa.RecordBatch:
    """The rows of an answer; one without any stands for no answer."""
    with _refusals():
        if (rows := reader.read_chunk().data) is None:
            raise ValueError("expected the rows of a batch, found none")
        return rows


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns Flight's errors into Refusals."""
    try:
        yield
    except (flight.FlightError, pa.ArrowException, OSError, StopIteration, ValueError, KeyError) as error:
        raise _refusal_of(error) from error


def _refusal_of(error: BaseException) -> Refusal:
    extra = getattr(error, "extra_info", None)
    if extra and (said := Refusal.from_bytes(bytes(extra))) is not None:
        return said
    if isinstance(error, flight.FlightUnauthenticatedError):
        return Refusal(
            REFUSED, "expected the server's token, found another or none. Give the token file of the server"
        )
    text = str(error).split(". gRPC client debug context")[0].strip() or type(error).__name__
    for sign, said in _TLS_SIGNS.items():
        if sign in text:  # of OpenSSL's text, which gRPC hands on
            return Untrusted(AWAY, f"{said} ({text[text.index(sign) :]:.100})")
    return Refusal(AWAY, f"{text:.300}")
