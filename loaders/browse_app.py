"""`softshard inspect --serve`: the Browser's pages over HTTP, on this machine only.

    request  ->  Host checked  ->  numbers and keys parsed  ->  one thread draws the page  ->  HTML

Read-only: the only method is GET, no address names a file, and nothing that the client sends is opened or written. The Host
header must be this machine's own name, so that no site can make its name point here and read the pages (DNS rebinding); the
pages' policy lets no script run, whatever a data set contains.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ..shards.errors import SoftshardError, UsageError
from ..shards.html import STYLE, Page
from .browse import Browser, NoSuchPage
from .browse_step import Step
from .inspect_links import BAD, CLASSES, SEARCH, SHARDS, STEP, TREE
from .order import DEFAULT_WINDOW

HOST = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost")
MAX_WAITING = 32  # requests at a time; a browser asks for one
_NUMBER = re.compile(r"[0-9]{1,15}")

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; "
    f"style-src-elem 'sha256-{_STYLE_HASH}'; style-src-attr 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(browser: Browser) -> Starlette:
    """The application.

    Args:
        browser: draws the pages; it is used by one thread of the application's.
    """
    # A Loader and its decoder are not for several threads, and one page at a time bounds the memory.
    drawing = ThreadPoolExecutor(1, thread_name_prefix="inspect-pages")

    def route(path: str, ask: Callable[[Request], Page]) -> Route:
        async def answer(request: Request) -> Response:
            if request.headers.get("sec-fetch-site") == "cross-site" and not _is_navigation(request):
                raise HTTPException(403, "Asked for by another site.")
            page = await asyncio.get_running_loop().run_in_executor(drawing, partial(ask, request))
            return respond(page)

        return Route(path, answer, methods=["GET"])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        drawing.shutdown(wait=False, cancel_futures=True)

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
        else:
            status = 404 if isinstance(error, NoSuchPage) else 400 if isinstance(error, UsageError) else 500
            text = str(error)
        page = browser.page("Not found" if status == 404 else "That cannot be shown")
        page.warning(text)
        return respond(page, status)

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: failed,
        SoftshardError: failed,
    }
    return Starlette(
        routes=[
            route("/", lambda _: browser.overview()),
            route(SHARDS, lambda request: browser.shards(query_number(request, "page"))),
            route(
                "/shard/{number}",
                lambda request: browser.shard(
                    path_number(request), query_number(request, "page"), "pictures" in request.query_params
                ),
            ),
            route(
                CLASSES,
                lambda request: browser.classes(
                    query_number(request, "page"), request.query_params.get("order") == "number"
                ),
            ),
            route(
                "/class/{number}",
                lambda request: browser.label(path_number(request), query_number(request, "page")),
            ),
            route(TREE, lambda _: browser.tree()),
            route(
                "/sample/{number}",
                lambda request: browser.sample(
                    path_number(request),
                    query_number(request, "epoch", browser.options.epoch),
                    query_number(request, "crops", browser.options.num_crops),
                ),
            ),
            route(STEP, lambda request: browser.step(_step(request))),
            route(BAD, lambda request: browser.bad(query_number(request, "page"))),
            route(SEARCH, lambda request: browser.search(request.query_params.get("q", "").strip())),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(OWN_NAMES), www_redirect=False)],
        exception_handlers=handlers,  # type: ignore[arg-type]
        lifespan=lifespan,
    )


def listen(port: int) -> socket.socket:
    """A socket that only this machine reaches.

    Args:
        port: 0 takes a free one.

    Raises:
        UsageError: the port is taken, or may not be used.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UsageError(
            f"inspect: expected a free port of {HOST}, found {port}: {error}. Leave --port out: a free one is taken"
        ) from error
    listening.listen()
    return listening


class _Server(uvicorn.Server):
    """Says when it answers: Ctrl-C ends it properly from then on only."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._say = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say()


def create_server(browser: Browser, started: Callable[[], object] = lambda: None) -> uvicorn.Server:
    """The server; its `run(sockets=[...])` answers until Ctrl-C, or until `should_exit` is set; `started` is told."""
    config = uvicorn.Config(
        create_app(browser),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_WAITING,
        timeout_graceful_shutdown=5,
        ws="none",
        lifespan="on",
    )
    return _Server(config, started)


def serve(browser: Browser, port: int, started: Callable[[str], object] = print) -> None:
    """Answer requests until Ctrl-C.

    Args:
        browser: draws the pages; closed in the end.
        port: of this machine; 0 takes a free one.
        started: is told the address, which may be asked from then on.

    Raises:
        UsageError: the port is taken, or may not be used.
    """
    # Ctrl-C is how one stops it: no error.
    with closing(browser), listen(port) as listening, suppress(KeyboardInterrupt):
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        create_server(browser, lambda: started(address)).run(sockets=[listening])


def respond(page: Page, status: int = 200) -> Response:
    """The page with the headers that all answers have."""
    return HTMLResponse(page.render(), status, headers=HEADERS)


def query_number(request: Request, name: str, default: int = 0) -> int:
    """A number of the address's query.

    Raises:
        UsageError: something else.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"inspect: expected {name} as a number from 0, found {text[:40]!r}")
    return int(text)


def path_number(request: Request) -> int:
    """The number in the address.

    Raises:
        NoSuchPage: something else.
    """
    text = request.path_params["number"]
    if not _NUMBER.fullmatch(text):
        raise NoSuchPage(f"inspect: expected a number in the address, found {text[:40]!r}")
    return int(text)


def _step(request: Request) -> Step | None:
    if not request.query_params:
        return None
    return Step(
        epoch=query_number(request, "epoch"),
        step=query_number(request, "step"),
        batch_size=query_number(request, "batch", Step.batch_size),
        lanes=query_number(request, "lanes", 1),
        window=query_number(request, "window", DEFAULT_WINDOW),
        part=query_number(request, "part"),
    )


def _is_navigation(request: Request) -> bool:
    """Whether somebody follows a link here, which shows its page to nobody else."""
    return request.headers.get("sec-fetch-mode") == "navigate"
