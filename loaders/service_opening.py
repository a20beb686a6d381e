"""The start of a RemoteLoader: its recipe is opened on all servers at once, and what they say is compared.

What a server answers, and what comes of it:

    it serves             one such is enough; the others are waited for as long again, at least 2 s
    no, for good          raised at once, also where others serve: another data set, pixel stack or version, a wrong token
                          and options that it does not take are mistakes that somebody should know of
    its data is damaged   left to the others, with a warning; raised where no other serves; so is an answer without sense
    TLS fails             left to the others, with a warning; raised at once where it fails with all
    nothing yet           busy, away, its storage is: asked again until one serves; it may come in later, by itself
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..shards.errors import DataError, UsageError
from .service_client import AWAY, Server, Untrusted
from .service_protocol import DATA, REFUSED, USAGE, Refusal

_MUST_AGREE = ("fingerprint", "num_samples", "labels", "mixture", "class_names", "recipe")
_PAUSE_S = 0.25  # a server may only be about to start, or somebody may make room
_LEAST_WAIT_S = 2.0  # for the others, once one serves

logger = logging.getLogger("softshard.loaders")


class Agreement:
    """What the first server said of the recipe, and every other one must say. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: tuple[str, dict[str, Any]] | None = None

    def check(self, address: str, facts: dict[str, Any]) -> None:
        """Compare what a server says with what the first one said.

        Raises:
            UsageError: it serves something else; both are named.
        """
        with self._lock:
            if self._first is None:
                self._first = address, facts
                return
            other, expected = self._first
        for name in _MUST_AGREE:
            if facts.get(name) != expected[name]:
                raise UsageError(
                    f"data service: expected the same data set on all servers, found {name} {expected[name]!r:.80} on "
                    f"{other} and {facts.get(name)!r:.80} on {address}. Start them with the same one"
                )

    @property
    def facts(self) -> dict[str, Any]:
        """What the first one said; there must be one."""
        assert self._first is not None
        return self._first[1]


class Opening:
    """Opens a recipe on several servers, each in a thread of its own.

    Args:
        open_one: opens it on one; raises what `Server.open` and `Agreement.check` raise.
    """

    def __init__(self, open_one: Callable[[Server], None]) -> None:
        self._open_one = open_one
        self._answers: queue.SimpleQueue[tuple[Server, Exception | None]] = queue.SimpleQueue()
        self._asking: set[Server] = set()
        self._said: dict[Server, Refusal | None] = {}
        self._again: dict[Server, float] = {}

    def run(self, servers: Callable[[], Sequence[Server]], patience_s: float) -> bool:
        """Wait until the recipe is open somewhere; whether it is.

        Servers that have not answered by then are asked for nothing until they have: see `late`.

        Args:
            servers: all that there are now.
            patience_s: seconds until one must serve, or be at it: what was asked by then may still be answered.

        Raises:
            UsageError: a server says no, for good; or TLS fails with all of them.
            DataError: the data set is damaged, or the answer makes no sense, wherever it can be asked for.
        """
        begun = time.monotonic()
        enough = math.inf  # by when those that serve are enough
        while True:
            there = servers()
            self._asking.intersection_update(there)  # the list may have dropped some
            self._ask(there, again=enough == math.inf and time.monotonic() < begun + patience_s)
            with suppress(queue.Empty):
                server, error = self._answers.get(timeout=0.05)
                if server in self._asking:
                    self._hear(server, error, several=len(there) > 1)
            now = time.monotonic()
            if None in (self._said.get(server, _UNHEARD) for server in there):
                enough = min(enough, now + max(_LEAST_WAIT_S, now - begun))
                if now >= enough or all(server in self._said for server in there):
                    self._leave(there, now - begun)
                    return True
                continue
            damaged = [server for server in there if _says(self._said.get(server), DATA)]
            is_over = now > begun + patience_s and not self._asking
            untrusted = [server for server in there if isinstance(self._said.get(server), Untrusted)]
            for some, is_enough in ((damaged, is_over), (untrusted, False)):
                if len(some) == len(there) > 0 or (some and is_enough):
                    refusal = self._said[some[0]]
                    assert refusal is not None
                    raise refusal.to_error(some[0].address)
            if is_over:
                for server in there:
                    server.last_error = self._said.get(server)
                return False

    def _ask(self, there: Sequence[Server], *, again: bool) -> None:
        """Ask whoever was not asked; and with `again` who had nothing to say, after a pause."""
        for server in there:
            due = again and time.monotonic() >= self._again.get(server, math.inf)
            if server not in self._asking and (server not in self._said or due):
                self._asking.add(server)
                self._again.pop(server, None)
                threading.Thread(target=self._try, args=(server,), name="softshard-open", daemon=True).start()

    def _try(self, server: Server) -> None:
        error = None
        try:
            self._open_one(server)
        except Exception as caught:
            error = caught
        self._answers.put((server, error))

    def _hear(self, server: Server, error: Exception | None, *, several: bool) -> None:
        self._asking.discard(server)
        if isinstance(error, DataError):  # its answer makes no sense
            error = Refusal(DATA, str(error).removeprefix(f"{server.address}: "))
        if error is not None and not isinstance(error, Refusal):
            raise error
        if error is not None and error.code in (USAGE, REFUSED):
            raise error.to_error(server.address if several or error.code == REFUSED else "")
        self._said[server] = error
        self._again[server] = time.monotonic() + _PAUSE_S

    def _leave(self, there: Sequence[Server], waited_s: float) -> None:
        """Go on with those that serve; say which do not."""
        for server in there:
            if server in self._asking:
                server.ask_after = math.inf  # until `late` has it
                refusal = Refusal(AWAY, f"no answer within {waited_s:.1f} s")
                server.last_error = refusal
            elif (refusal := self._said[server]) is not None:
                server.did_badly(refusal)
            if refusal is not None:
                logger.warning("%s does not serve, the others are asked: %s", server.address, refusal)

    def late(self, there: Sequence[Server]) -> Iterator[tuple[Server, Exception | None]]:
        """Servers, still there, that answered after `run`, and what they said: an error, or None for an open recipe."""
        self._asking.intersection_update(there)
        while self._asking:
            try:
                server, error = self._answers.get_nowait()
            except queue.Empty:
                return
            if server in self._asking:
                self._asking.discard(server)
                yield server, error


_UNHEARD = Refusal("", "")


def _says(said: Refusal | None, code: str) -> bool:
    return said is not None and said.code == code
