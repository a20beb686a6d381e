"""Several servers as one source of batches: asks ahead, spreads, hedges, fails over, and gives each batch once, in turn.

Step t goes first to server t modulo their number, so that all trainers of a sweep ask the same server for the same step
and it is decoded once. A thread for each request waits for its answer; this class's own caller decides everything.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from ..shards.errors import SoftshardError, UsageError
from ..shards.stored_vocabulary import Vocabulary
from .fetch_stats import FetchCounters
from .service_answer import COUNTS_FIELDS, VOCABULARY_FIELDS, AnswerCheck, same_length
from .service_client import AWAY, Connection, Server
from .service_list import ServerList
from .service_maker import Place
from .service_opening import Agreement, Opening
from .service_protocol import (
    BUSY,
    COUNT_CLASSES,
    DATA,
    DRAINING,
    INTERNAL,
    REFUSED,
    UNKNOWN_RECIPE,
    USAGE,
    VOCABULARY,
    Refusal,
    ServiceError,
)

_HEDGES_PER_ANSWER = 0.1  # more would only add to what makes answers slow
_MIN_ANSWERS = 20  # before a quantile means something
_MIN_HEDGE_S = 0.05
_LOOK_S = 1.0
_MOST_FAILURES = 3  # of one batch on one server, which the server says are its own

logger = logging.getLogger("softshard.loaders")


@dataclass(eq=False)
class _Wanted:
    """A batch that is asked for."""

    number: int
    place: Place
    since: float
    asking: list[Server] = field(default_factory=list)
    asked_last: float = 0.0
    hedged: bool = False
    rows: pa.RecordBatch | None = None
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)  # by server, about this batch
    error: Exception | None = None


@dataclass(frozen=True)
class _Answer:
    """What one request came to."""

    wanted: _Wanted
    server: Server
    latency_s: float
    rows: pa.RecordBatch | None
    in_memory: bool
    error: Exception | None


class ServerPool:
    """The servers of one loader.

    Args:
        addresses: of the servers.
        recipe: what batches are of, as JSON.
        connection: how to speak to them.
        stack: the pixel stack that they must have.
        draws_per_lane: of a step.
        listed: the file that says where the servers are, where that changes.

    Raises:
        UsageError: a server is of another version, pixel stack or data set (both are named), refuses the recipe or token.
        DataError: the data set cannot be read there.
        ServiceError: none can be reached.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        recipe: dict[str, Any],
        connection: Connection,
        stack: dict[str, str],
        draws_per_lane: int,
        listed: ServerList | None = None,
    ) -> None:
        self._listed = listed
        self._make_server = partial(Server, connection=connection, client=secrets.token_hex(8), stack=stack)
        self._recipe, self._connection, self._draws_per_lane = recipe, connection, draws_per_lane
        # In one order for all clients, whatever order they were named in.
        self.servers = [self._make_server(address) for address in sorted(addresses)]
        self.counters = FetchCounters()
        self.num_hedged = self.num_in_memory = 0
        self._answers: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._interrupted = False
        self._excluded: dict[Server, SoftshardError] = {}
        self.check: AnswerCheck | None = None  # of batches; known once a server has said what it has
        self._agreement, self._opening = Agreement(), Opening(self._open)
        try:
            if not self._opening.run(self._follow_list, connection.connect_s):
                raise self._nobody("a server that answers", connection.connect_s)
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> dict[str, Any]:
        """What the servers say of the recipe; see Desk.open."""
        return self._agreement.facts

    def _follow_list(self) -> list[Server]:
        """The servers that there are now, where a list says it: those of a pool come and go."""
        if self._listed is None or not (found := self._listed.changed()):
            # An empty one stands for a pool that is starting or ending: what is known is as good.
            return self.servers
        known = {server.address: server for server in self.servers}
        try:
            servers = [known.pop(address, None) or self._make_server(address) for address in sorted(found)]
        except UsageError as error:  # such as one that the token would be sent to in the clear
            logger.warning("%s: expected servers that can be asked: %s", self._listed.path, error)
            return self.servers
        self.servers = servers
        for server in known.values():
            self._excluded.pop(server, None)
            server.retire()
        return servers

    def _open(self, server: Server) -> None:
        """Open the recipe on a server, and see that it serves what the others do."""
        self._agreement.check(server.address, server.open(self._recipe))

    def _hear_late(self) -> None:
        """Take in the servers that had not opened the recipe when the others did."""
        for server, error in self._opening.late(self.servers):
            if error is None:
                server.ask_after = 0.0
            elif isinstance(error, SoftshardError):
                self._exclude(server, error)
            elif not isinstance(error, Refusal):
                raise error  # a bug
            elif error.code in (USAGE, REFUSED):
                self._exclude(server, error.to_error(server.address))
            else:
                server.did_badly(error)

    def count_classes(self) -> list[int]:
        """Draws of each class in an epoch; see Loader.count_classes.

        Raises:
            DataError: the file of classes is missing or damaged.
            ServiceError: no server answers.
        """
        counts = self._say(COUNT_CLASSES, "a server that counts the classes", COUNTS_FIELDS)["counts"]
        return same_length(counts, self.facts["class_names"], "counts for every class")

    def vocabulary(self) -> Vocabulary:
        """What tags mean; see Loader.vocabulary.

        Raises:
            DataError: the file of tags is damaged.
            ServiceError: no server answers.
        """
        said = self._say(VOCABULARY, "a server that says what tags mean", VOCABULARY_FIELDS)
        return Vocabulary(
            tuple(said["tags"]), tuple(same_length(said["images"], said["tags"], "images of tags"))
        )

    def _say(self, action: str, what: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What the first server that answers says of the recipe."""
        wrong = None  # what one said that another need not say
        for server in sorted(self.servers, key=lambda server: server.ask_after):  # those that answer first
            if server in self._excluded:
                continue
            for last in (False, True):
                try:
                    self._open(server)
                    return server.action(action, {"recipe": self.facts["recipe"]}, fields)
                except Refusal as refusal:
                    if refusal.code == UNKNOWN_RECIPE and not last:
                        server.forget()  # it was closed to make room, or the server was started anew
                        continue
                    server.did_badly(refusal)
                    if refusal.code in (USAGE, DATA, REFUSED):
                        wrong = refusal.to_error(server.address if refusal.code == REFUSED else "")
                    break
                except SoftshardError as error:  # it came back with another stack or data set
                    self._exclude(server, error)
                    break
        raise wrong or self._excluded_by_all() or self._nobody(what)

    def batches(self, places: Iterable[Place], ahead: int) -> Iterator[pa.RecordBatch]:
        """The rows of every place's batch, in turn, each once; ends early after `interrupt`.

        Args:
            places: of the batches.
            ahead: batches that are asked for at a time.

        Raises:
            UsageError, DataError: all servers say so of a batch, or are asked no more, after the batches before it.
            ServiceError: no server gave a batch in time.
        """
        self._interrupted = False
        self._answers = queue.SimpleQueue()  # without those that came for an iteration that was ended
        left, wanted = iter(places), deque[_Wanted]()
        while True:
            while len(wanted) < ahead and (item := next(left, None)) is not None:
                wanted.append(_Wanted(self._first_server(item), item, time.monotonic()))
                self._ask(wanted[-1], time.monotonic())
            if not wanted:
                return
            if (rows := wanted[0].rows) is not None:
                wanted.popleft()
                begun = time.monotonic()
                yield rows
                del rows
                for each in wanted:  # while nobody looked at the answers no deadline ran
                    each.since += time.monotonic() - begun
                continue
            if wanted[0].error is not None:
                raise wanted[0].error
            self._follow_list()
            self._hear_late()
            self._wait(wanted)
            if self._interrupted:
                return

    def _first_server(self, place: Place) -> int:
        """Where a place is asked for first: the same for all trainers that are at it."""
        return place.taken // self._draws_per_lane + place.rank

    def _wait(self, wanted: Iterable[_Wanted]) -> None:
        """Take one answer, or wait until something else is due; then do what is due."""
        now = time.monotonic()
        due = min(
            (self._due(each) for each in wanted if each.rows is None and each.error is None), default=now
        )
        try:
            answer = self._answers.get(timeout=min(_LOOK_S, max(0.001, due - now)))
        except queue.Empty:
            answer = None
        if answer is not None:
            self._take(answer)
        begun, now = now, time.monotonic()
        for each in wanted:  # while this process was stopped no deadline ran
            each.since += (stopped_s := max(0.0, now - begun - 2 * _LOOK_S))
            each.asked_last += stopped_s
        for each in wanted:
            if each.rows is None and each.error is None and self._due(each) <= now:
                self._ask(each, now)

    def _due(self, wanted: _Wanted) -> float:
        """When another request for a batch is due, by the monotonic clock; a time far away where none is."""
        if not wanted.asking:
            soonest = min((server.ask_after for server in self._usable(wanted)), default=0.0)
            return min(max(soonest, 0.0), wanted.since + self._connection.deadline_s)
        hedge_s = self._hedge_s()
        if wanted.hedged or hedge_s is None or not self._others(wanted):
            return wanted.asked_last + 3600
        return wanted.asked_last + hedge_s

    def _usable(self, wanted: _Wanted) -> list[Server]:
        """Servers to ask for a batch, its first one first."""
        num = len(self.servers)
        turned = [self.servers[(wanted.number + i) % num] for i in range(num)]
        return [server for server in turned if server not in self._excluded]

    def _others(self, wanted: _Wanted) -> list[Server]:
        """Servers that are well and are not being asked for this batch."""
        now = time.monotonic()
        return [one for one in self._usable(wanted) if one not in wanted.asking and one.ask_after <= now]

    def _hedge_s(self) -> float | None:
        """Seconds after which a second server is asked; None where none is."""
        if self._connection.hedge is None or len(self.servers) < 2:
            return None
        seen = sorted(latency for server in self.servers for latency in server.latencies)
        if len(seen) < _MIN_ANSWERS or self.num_hedged > _HEDGES_PER_ANSWER * self.counters.stats().requests:
            return None
        return max(_MIN_HEDGE_S, seen[int(self._connection.hedge * (len(seen) - 1))])

    def _ask(self, wanted: _Wanted, now: float) -> None:
        """Send one more request for a batch, or give it up."""
        if wanted.asking:
            wanted.hedged = True
            self.num_hedged += 1
        elif now > wanted.since + self._connection.deadline_s or not self._usable(wanted):
            wanted.error = self._excluded_by_all() or self._nobody("a batch")
            return
        if not (servers := self._others(wanted)):
            return
        server = servers[0]
        wanted.asking.append(server)
        wanted.asked_last = now
        self.counters.add(requests=1)
        threading.Thread(
            target=self._request, args=(wanted, server, self._answers), name="softshard-ask", daemon=True
        ).start()

    def _request(self, wanted: _Wanted, server: Server, answers: queue.SimpleQueue[_Answer | None]) -> None:
        """In a thread of its own: ask, and report to the iteration that wants it."""
        begun, rows, in_memory, error = time.monotonic(), None, False, None
        try:
            self._open(server)
            place = wanted.place
            rows, in_memory = server.ask(self._recipe, place.epoch, place.taken, place.rank)
            if self.check is not None:
                self.check(rows, server.address)
        except Exception as caught:
            rows, error = None, caught
        answers.put(_Answer(wanted, server, time.monotonic() - begun, rows, in_memory, error))

    def _take(self, answer: _Answer) -> None:
        """Note what a request came to."""
        wanted, server, error = answer.wanted, answer.server, answer.error
        if server in wanted.asking:
            wanted.asking.remove(server)
        if error is None:
            server.did_well(answer.latency_s)
            assert answer.rows is not None
            self.counters.add(bytes_fetched=answer.rows.get_total_buffer_size())
            self.num_in_memory += answer.in_memory
            if wanted.rows is None:  # else the other of two was faster, and this one is dropped
                wanted.rows = answer.rows
            return
        if wanted.rows is not None:
            return
        if not isinstance(error, Refusal):
            if isinstance(error, SoftshardError):  # it came back with another stack or data set
                self._exclude(server, error)
            else:
                wanted.error = error  # a bug
            return
        self.counters.add(retries=1)
        server.did_badly(error)
        if error.code in (AWAY, BUSY, DRAINING, UNKNOWN_RECIPE):
            return
        if error.code in (USAGE, REFUSED):  # the others may know this recipe, or token
            self._exclude(server, error.to_error(server.address))
            return
        wanted.refusals.setdefault(server.address, []).append(error)
        if all(self._has_failed(wanted.refusals.get(each.address, ())) for each in self._usable(wanted)):
            wanted.error = self._nobody("a batch") if error.code == INTERNAL else error.to_error()

    def _exclude(self, server: Server, error: SoftshardError) -> None:
        """Ask a server no more: what it says now it would say again."""
        self._excluded[server] = error
        server.last_error = Refusal(USAGE, str(error))
        logger.warning("%s is asked no more: %s", server.address, error)

    def _excluded_by_all(self) -> SoftshardError | None:
        """What the last server said that was asked no more, where none is left; None where one is."""
        if not all(server in self._excluded for server in self.servers):
            return None
        last_first = reversed(self._excluded.items())
        return next((error for server, error in last_first if server in self.servers), None)

    @staticmethod
    def _has_failed(refusals: Sequence[Refusal]) -> bool:
        """Whether a server has said for good that it cannot make a batch."""
        return any(refusal.code == DATA for refusal in refusals) or len(refusals) >= _MOST_FAILURES

    def _nobody(self, what: str, within_s: float | None = None) -> ServiceError:
        errors = [(server.address, server.last_error) for server in self.servers]
        shown = "; ".join(f"{at}: {error.message if error else 'no answer yet'}" for at, error in errors)
        return ServiceError(
            f"data service: expected {what} within {within_s or self._connection.deadline_s:g} s, found none. Last errors: "
            f"{shown or 'the list of servers is empty'}. "
            "Are they running (softshard serve), and reached from here? With --tls-cert they are grpc+tls://"
        )

    def interrupt(self) -> None:
        """End `batches`, from another thread."""
        self._interrupted = True
        self._answers.put(None)

    def close(self) -> None:
        """Let the connections go; answers that are still under way are dropped."""
        for server in self.servers:
            server.retire()
