"""The data service's server: a Desk behind Arrow Flight.

    call -> TokenCheck (who) -> Admission (how much) -> Desk (what) -> Arrow rows, or a handle of shared memory

A handler runs in a thread of gRPC's and waits there; batches are made in the threads of the Desk. Whatever goes wrong
is answered with a Refusal, and what is a bug with nothing but the word: the traceback stays in the server's log.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from ..shards.errors import DataError, SoftshardError, UsageError
from .service_access import Admission, Caller, TokenCheck
from .service_desk import Desk
from .service_guard import ConnectionGuard
from .service_memory import HostProof
from .service_metrics import LineBudget, ServiceCounts, ServiceStats
from .service_protocol import (
    BUSY,
    COUNT_CLASSES,
    DRAINING,
    HELLO,
    INTERNAL,
    OPEN,
    PROTOCOL,
    VOCABULARY,
    Refusal,
    Ticket,
    check_protocol,
    decode_stack,
    read_object,
)
from .service_wire import meta_schema

_TOKEN_CHECK = "token"
_SHUTDOWN_PATIENCE_S = 5.0
_CUT_PATIENCE_S = 2.0  # once the connections that are left were shut
_SMALL_BYTES = 4096  # of requests that hold next to nothing

logger = logging.getLogger("softshard.service")


class BatchServer(flight.FlightServerBase):
    """Serves until it is closed.

    Args:
        desk: that makes batches; closed with this.
        host: to listen on.
        port: 0 for any that is free; `port` says which.
        token: that clients must have, or None.
        tls: certificate chain and key, PEM, or None.
        shared_memory: hand batches to clients of this host and user in shared memory.

    Raises:
        UsageError: the address is taken or not this host's.
    """

    def __init__(
        self,
        desk: Desk,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        tls: tuple[bytes, bytes] | None = None,
        shared_memory: bool = True,
    ) -> None:
        self.desk = desk
        self.admission = Admission(desk.limits)
        self.scheme = "grpc" if tls is None else "grpc+tls"
        self._token_check = TokenCheck(token)
        self._proof = HostProof() if shared_memory else None
        if not shared_memory:
            desk.segments.max_bytes = 0
        self._counts, self._refused_lines = ServiceCounts(), LineBudget()
        self._started = time.monotonic()
        self._closed = threading.Event()
        self.hangs = False  # closed, and threads still wait: gRPC's for clients, or a recipe's for its shards
        self._guard = ConnectionGuard(desk.limits.connections, desk.limits.request_bytes)
        shown = f"[{host}]" if ":" in host else host
        try:
            super().__init__(
                f"{self.scheme}://{shown}:{port}",
                tls_certificates=None if tls is None else [flight.CertKeyPair(*tls)],
                middleware={_TOKEN_CHECK: self._token_check},
            )
        except (OSError, pa.ArrowException, flight.FlightError) as error:
            raise UsageError(
                f"serve: expected an address of this host that is free, found {shown}:{port}: {error}"
            ) from error
        self.address = f"{self.scheme}://{shown}:{self.port}"
        self._guard.start(host, self.port)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[flight.Result]:
        """See service_protocol.py."""
        answers: dict[str, Callable[[bytes], dict[str, Any]]] = {
            HELLO: self._hello,
            OPEN: self._open,
            COUNT_CLASSES: self._count_classes,
            VOCABULARY: self._vocabulary,
        }
        content = action.body.to_pybytes() if action.body is not None else b""
        self._guard.came(context.peer(), len(content))
        with self._answering(action.type):
            if action.type not in answers:
                raise UsageError(f"expected an action of {', '.join(answers)}, found {action.type!r:.40}")
            with self.admission.call(_client(context)):
                return [flight.Result(json.dumps(answers[action.type](content)).encode())]
        raise AssertionError("unreachable: answering raises")

    def _hello(self, content: bytes) -> dict[str, Any]:
        check_protocol(read_object(content, _SMALL_BYTES, HELLO).get("protocol"), "client")
        return {
            "protocol": PROTOCOL,
            "softshard": version("softshard"),
            "stack": decode_stack(self.desk.device.type),
            "data_sets": self.desk.fingerprints,
            "request_bytes": self.desk.limits.request_bytes,
            "memory": None if self._proof is None else self._proof.handle.to_json(),
        }

    def _open(self, content: bytes) -> dict[str, Any]:
        asked = read_object(content, self.desk.limits.request_bytes, OPEN)
        check_protocol(asked.get("protocol"), "client")
        begun = time.monotonic()
        facts = self.desk.open(asked.get("recipe"))
        logger.info(
            "open",
            extra={
                "facts": {
                    "recipe": facts["recipe"],
                    "dataset": facts["dataset"],
                    "s": time.monotonic() - begun,
                }
            },
        )
        return facts

    def _count_classes(self, content: bytes) -> dict[str, Any]:
        recipe = read_object(content, _SMALL_BYTES, COUNT_CLASSES).get("recipe")
        return {"counts": self.desk.count_classes(str(recipe))}

    def _vocabulary(self, content: bytes) -> dict[str, Any]:
        recipe = read_object(content, _SMALL_BYTES, VOCABULARY).get("recipe")
        return self.desk.vocabulary(str(recipe))

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        """One batch, or a handle of it."""
        self._guard.came(context.peer(), len(ticket.ticket))
        with self._answering("batch"):
            asked, client = Ticket.from_bytes(ticket.ticket), _client(context)
            self.admission.enter(client)
            taken_bytes = 0
            try:
                made = self.desk.batch(asked, context.is_cancelled)
                handle = None
                if asked.memory and self._proof is not None and self._proof.is_known(asked.memory):
                    handle = made.handle(self.desk.segments)
                if handle is None:
                    schema, rows = made.rows.schema, made.rows
                    self.admission.send(made.num_bytes)
                    taken_bytes = made.num_bytes
                else:
                    schema, rows = meta_schema({"segment": handle.to_json()}), None
                self._counts.sent(made.num_bytes, in_memory=handle is not None)
                sending = _Sending(rows, lambda: self.admission.leave(client, taken_bytes))
            except BaseException:
                self.admission.leave(client, taken_bytes)
                raise
            return flight.GeneratorStream(schema, sending)
        raise AssertionError("unreachable: answering raises")

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Turn errors into Refusals, and count them."""
        try:
            yield
            self._counts.answered(what, "ok")
            return
        except Refusal as error:
            refusal = error
        except CancelledError:  # the recipe was closed to make room
            refusal = Refusal(BUSY, "the recipe was closed; open it again")
        except SoftshardError as error:
            refusal = (
                Refusal.of(error) if isinstance(error, UsageError | DataError) else Refusal(BUSY, str(error))
            )
        except Exception:
            logger.exception("a request failed", extra={"facts": {"request": what}})
            refusal = Refusal(INTERNAL, "the server failed; its log says why")
        self._counts.answered(what, refusal.code)
        is_usual = refusal.code in (BUSY, DRAINING)
        logger.log(
            logging.DEBUG if is_usual or not self._refused_lines.take(time.monotonic()) else logging.WARNING,
            "refused",
            extra={"facts": {"request": what, "code": refusal.code, "message": refusal.message}},
        )
        kind = flight.FlightUnavailableError if is_usual else flight.FlightServerError
        # Half of a surrogate pair, which JSON may hold, cannot be sent as it is.
        shown = refusal.message.encode("utf-8", "backslashreplace").decode()
        raise kind(shown, refusal.to_bytes())

    def stats(self) -> ServiceStats:
        """What the server has done, and does."""
        return ServiceStats(
            address=self.address,
            uptime_s=time.monotonic() - self._started,
            draining=self.admission.is_draining,
            clients=self.admission.num_clients(),
            calls=self.admission.num_calls,
            connections=self._guard.num_connections,
            connections_shut=self._guard.shut_counts(),
            unauthenticated=self._token_check.num_refused,
            cache=self.desk.counts(),
            cache_limit=self.desk.limits.cache_bytes,
            memory_bytes=self.desk.segments.num_bytes,
            memory_limit=self.desk.limits.memory_bytes,
            requests=self._counts.requests(),
            sent_bytes=self._counts.sent_bytes(),
            **self.desk.totals(),
        )

    def close(self, patience_s: float = 0.0) -> bool:
        """Let nobody in any more, finish what is under way for at most so long, and stop; whether all was finished."""
        if self._closed.is_set():
            return True
        self._closed.set()
        done = self.admission.drain(patience_s)
        self.desk.stop()  # so that those who still wait get an answer, and gRPC can end
        # gRPC waits for every client that does not read on, or never spoke; whoever ends the process does not.
        self._guard.close()
        self._guard.shut_all(idle_only=True)
        stopping = threading.Thread(target=self.shutdown, name="softshard-shutdown", daemon=True)
        stopping.start()
        stopping.join(_SHUTDOWN_PATIENCE_S)
        if stopping.is_alive():
            self._guard.shut_all()
            stopping.join(_CUT_PATIENCE_S)
        # Also where a batch that is under way waits for a storage that hangs.
        self.hangs = not self.desk.close() or stopping.is_alive()
        if self._proof is not None:
            self._proof.close()
        return done


class _Sending:
    """One answer on its way; says so when it has been sent, or its client is gone."""

    def __init__(self, rows: pa.RecordBatch | None, done: Callable[[], None]) -> None:
        self._rows, self._done = rows, done

    def __iter__(self) -> _Sending:
        return self

    def __next__(self) -> pa.RecordBatch:
        if self._rows is None:
            self._finish()
            raise StopIteration
        rows, self._rows = self._rows, None
        return rows

    def _finish(self) -> None:
        done, self._done = self._done, _nothing
        done()

    def __del__(self) -> None:
        self._finish()


def _nothing() -> None:
    pass


def _client(context: flight.ServerCallContext) -> str:
    caller = context.get_middleware(_TOKEN_CHECK)
    return caller.client if isinstance(caller, Caller) else ""
