"""`softshard serve`: a server process from its start to its end, its log and its HTTP endpoint.

The log is one JSON object a line on standard error. The line on standard output, once the server can be asked, says
where. SIGTERM or SIGINT drains: no new requests, those under way are finished; a second one ends it at once.

    GET /healthz    200 while requests are taken, 503 while it drains
    GET /metrics    for Prometheus
    GET /stats      the same as JSON
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE
from ..shards.errors import UsageError
from .prometheus import CONTENT_TYPE
from .service_access import check_listen
from .service_address import is_loopback
from .service_desk import Desk
from .service_metrics import ServiceStats
from .service_server import BatchServer
from .stop_flag import StopFlag

_HTTP_PATIENCE_S = 5.0
_HTTP_MOST = 16  # requests at a time

logger = logging.getLogger("softshard.service")


def run_server(
    desk: Desk,
    *,
    listen: tuple[str, int],
    http: tuple[str, int] | None,
    token: str | None = None,
    tls: tuple[bytes, bytes] | None = None,
    shared_memory: bool = True,
    drain_s: float = 30.0,
    say: Callable[[str], None] = print,
) -> bool:
    """Serve until a signal says to stop; for a process's main thread.

    Where gRPC still waits for clients that do not read on, in the end, the process ends here.

    Args:
        desk: that makes batches; closed at the end.
        listen: host and port of the service.
        http: host and port of health and metrics, on the loopback address; None for neither.
        token: that clients must have.
        tls: certificate chain and key, PEM.
        shared_memory: see BatchServer.
        drain_s: seconds that requests under way have after the signal.
        say: is told once where the server is, in a line of JSON.

    Returns:
        Whether everything that was under way was finished.

    Raises:
        UsageError: an address that is taken, or that others reach without token and TLS.
    """
    check_listen(listen[0], token, tls is not None)
    if http is not None and not is_loopback(http[0]):
        raise UsageError(
            f"serve: expected the loopback address for health and metrics, found {http[0]}. They have no token: let an "
            "agent on this host collect them"
        )
    _allow_many_files()
    with ExitStack() as stack:
        stack.callback(desk.close)
        stop = stack.enter_context(stopped_by_signals())
        server = BatchServer(desk, *listen, token=token, tls=tls, shared_memory=shared_memory)
        stack.callback(server.close)
        where: dict[str, Any] = {"event": "serving", "listen": server.address, "http": None}
        if http is not None:
            endpoint = stack.enter_context(_http_endpoint(http, server.stats))
            where["http"] = endpoint
        say(json.dumps(where | {"data_sets": desk.fingerprints, "device": str(desk.device)}))
        logger.info("serving", extra={"facts": where})
        stop.wait()
        logger.info("draining", extra={"facts": {"calls": server.admission.num_calls}})
        done = server.close(drain_s)
        stats = server.stats()
        facts = {"finished": done, "images": stats.images, "hit_rate": stats.cache.hit_rate}
        logger.info("stopped", extra={"facts": facts})
        if server.hangs:
            sys.stderr.flush()
            os._exit(EXIT_FINE if done else EXIT_BAD_DATA)  # leaving as usual would wait with gRPC
        return done


@contextmanager
def stopped_by_signals() -> Iterator[StopFlag]:
    """A flag that the first SIGTERM or SIGINT sets; the second one ends the process as if it were not caught."""
    stop = StopFlag()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def caught(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop.set()

    for number in before:
        signal.signal(number, caught)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_many_files() -> None:
    """Every connection is a file: as many as the system grants without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class JsonLines(logging.Formatter):
    """A log record as a JSON object in one line: time, level, event, and the facts of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: str) -> None:
    """Write what softshard logs in this process to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("softshard")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False


@contextmanager
def logged_as_json(level: str) -> Iterator[None]:
    """Write softshard's log as `log_as_json` does, and put back what was there before when the block ends.

    Whoever runs a command from Python has its own log again then.
    """
    root = logging.getLogger("softshard")
    handlers, level_before, propagate = root.handlers, root.level, root.propagate
    log_as_json(level)
    try:
        yield
    finally:
        root.handlers, root.propagate = handlers, propagate
        root.setLevel(level_before)


@contextmanager
def _http_endpoint(address: tuple[str, int], stats: Callable[[], ServiceStats]) -> Iterator[str]:
    """Health and metrics over HTTP; gives their address."""
    try:
        server = _HttpServer(address, _Pages)
    except OSError as error:
        raise UsageError(
            f"serve: expected a free address for health and metrics, found {address[0]}:{address[1]}: {error.strerror}. "
            "Give another, or none: --http"
        ) from error
    server.stats = stats
    thread = threading.Thread(target=server.serve_forever, name="softshard-http", daemon=True)
    thread.start()
    try:
        yield f"http://{address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    stats: Callable[[], ServiceStats]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._room = threading.BoundedSemaphore(_HTTP_MOST)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be started
            self._room.release()
            raise

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class _Pages(BaseHTTPRequestHandler):
    timeout = _HTTP_PATIENCE_S
    server: _HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        stats = self.server.stats()
        if self.path == "/healthz":
            self._answer(
                503 if stats.draining else 200, "draining\n" if stats.draining else "ok\n", "text/plain"
            )
        elif self.path == "/metrics":
            self._answer(200, stats.to_prometheus(), CONTENT_TYPE)
        elif self.path == "/stats":
            self._answer(200, json.dumps(stats.to_json()) + "\n", "application/json")
        else:
            self._answer(404, "expected /healthz, /metrics or /stats\n", "text/plain")

    def _answer(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("http", extra={"facts": {"line": format % args}})
