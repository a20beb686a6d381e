"""What may hold up a server or a client of the data service, and does not: hung opens, bad servers, drains."""

import signal
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from http.server import ThreadingHTTPServer

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from service_here import IN_TIME, RECIPE, served
from waiting import LONG_S, wait_until

from softshard.loaders import Connection, service_maker, service_opening, service_pool, service_run
from softshard.loaders.service_client import AWAY, Server
from softshard.loaders.service_desk import wait_for
from softshard.loaders.service_maker import Place, RecipeMaker
from softshard.loaders.service_protocol import BUSY, DATA, REFUSED, UNKNOWN_RECIPE, USAGE, Refusal, Ticket
from softshard.shards.errors import DataError, UsageError

NOWHERE = "grpc://127.0.0.1:9"  # nothing listens there


def open_in_vain(server):
    with suppress(Refusal):
        server.open({})


def test_a_server_that_hangs_while_it_is_opened_holds_up_nobody_else(monkeypatch, within):
    server = Server(NOWHERE, Connection(request_s=0.2), "c", {})
    hangs, let_go = threading.Event(), threading.Event()

    def hang(*asked):
        hangs.set()
        assert let_go.wait(LONG_S)
        raise Refusal(AWAY, "hung up")

    monkeypatch.setattr(server, "_action", hang)
    opening = threading.Thread(target=open_in_vain, args=(server,))
    opening.start()
    try:
        assert hangs.wait(LONG_S)
        within(lambda: server.did_badly(Refusal(AWAY, "no answer")))  # as the consumer's thread does
        with pytest.raises(Refusal, match=r"expected it to open the recipe within 0\.2 s") as caught:
            within(lambda: server.open({}))
        assert caught.value.code == AWAY
    finally:
        let_go.set()
        opening.join(LONG_S)
        server.close()


class Answers:
    """A server of a pool without the network: gives rows, or raises what it was told to."""

    def __init__(self, address, connection, client, stack):
        self.address, self.raises, self.rows = address, None, pa.record_batch({"n": [1]})
        self.ask_after, self.latencies, self.last_error, self.num_asked = 0.0, [], None, 0

    def open(self, recipe):
        what = OPENS.get(self.address)
        if isinstance(what, threading.Event):
            assert what.wait(LONG_S)
            what = getattr(what, "facts", None)
        if isinstance(what, Exception):
            raise what
        same = dict.fromkeys(("fingerprint", "num_samples", "labels", "mixture", "recipe"), "same")
        return what if isinstance(what, dict) else same | {"class_names": ["a", "b"]}

    def ask(self, recipe, epoch, taken, rank):
        self.num_asked += 1
        if self.raises is not None:
            raise self.raises
        return self.rows, False

    def action(self, name, content, fields):
        if self.raises is not None:
            raise self.raises
        return {"counts": [1, 2]}

    def did_well(self, latency_s):
        pass

    def did_badly(self, refusal):
        self.last_error, self.ask_after = refusal, time.monotonic() + 0.2

    def retire(self):
        pass


OPENS = {}  # address -> what opening a recipe there comes to: an event to wait for, an error, other facts


@pytest.fixture
def make_pool(monkeypatch):
    monkeypatch.setattr(service_pool, "Server", Answers)
    monkeypatch.setattr(service_opening, "_LEAST_WAIT_S", 0.1)

    def make(**options):
        connection = Connection(deadline_s=200, **options)
        return service_pool.ServerPool(["grpc://a:1", "grpc://b:1"], {}, connection, {}, 1)

    yield make
    OPENS.clear()


@pytest.fixture
def pool(make_pool):
    return make_pool()


PLACES = [Place(0, taken, 0) for taken in range(6)]


@pytest.mark.parametrize("code", [USAGE, REFUSED])
def test_one_server_that_says_no_is_asked_no_more_and_the_others_are(pool, code, within):
    one, other = pool.servers
    one.raises = Refusal(code, "expected something else")
    assert pool.count_classes() == [1, 2]
    one.ask_after = 0.0  # the pause after its no is over
    assert len(within(lambda: list(pool.batches(PLACES, 1)))) == 6
    assert (one.num_asked, other.num_asked) == (1, 6)
    other.raises = Refusal(code, "expected another thing")
    with pytest.raises(UsageError, match=r"grpc://b:1: expected another thing"):
        within(lambda: list(pool.batches(PLACES, 1)))
    with pytest.raises(UsageError, match=r"grpc://b:1: expected another thing"):
        pool.count_classes()


def ask_all(pool, within):
    """How often each server was asked for the batches of PLACES."""
    before = [server.num_asked for server in pool.servers]
    assert len(within(lambda: list(pool.batches(PLACES, 1)))) == 6
    return [server.num_asked - asked for server, asked in zip(pool.servers, before, strict=True)]


def test_a_server_that_hangs_at_the_start_holds_up_nobody_and_comes_in_later(make_pool, within):
    OPENS["grpc://a:1"] = let_go = threading.Event()
    try:
        pool = within(make_pool)  # request_s is longer
        assert ask_all(pool, within) == [0, 6]
        assert pool.count_classes() == [1, 2]
    finally:
        let_go.set()
    wait_until(lambda: ask_all(pool, within) == [3, 3])


def test_a_server_that_takes_longer_to_open_than_to_connect_is_waited_for(make_pool, within):
    OPENS["grpc://a:1"] = slow = threading.Event()
    OPENS["grpc://b:1"] = Refusal(AWAY, "connection refused")
    threading.Timer(0.8, slow.set).start()
    pool = within(lambda: make_pool(connect_s=0.3))
    assert ask_all(pool, within)[0] == 6


def test_a_server_that_turns_out_to_be_another_one_is_asked_no_more(make_pool, within, caplog):
    OPENS["grpc://a:1"] = let_go = threading.Event()
    pool = within(make_pool)
    let_go.facts = {"fingerprint": "other"}
    let_go.set()

    def is_dropped():
        assert ask_all(pool, within) == [0, 6]
        return "grpc://a:1 is asked no more" in caplog.text

    wait_until(is_dropped)
    assert "expected the same data set on all servers" in caplog.text
    assert ask_all(pool, within) == [0, 6]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (UsageError("expected this trainer's pixel stack, found another"), "pixel stack"),
        ({"fingerprint": "other"}, "expected the same data set on all servers, found fingerprint"),
        (Refusal(USAGE, "expected the name of a data set"), r"grpc://b:1: expected the name of a data set"),
        (Refusal(REFUSED, "expected the server's token"), r"grpc://b:1: expected the server's token"),
    ],
)
def test_a_server_that_is_the_wrong_one_is_an_error_although_another_serves(make_pool, within, said, message):
    OPENS["grpc://b:1"] = said
    with pytest.raises(UsageError, match=message):
        within(make_pool)


@pytest.mark.parametrize(
    "said",
    [
        Refusal(DATA, "x/manifest.json: expected a manifest, found none"),
        DataError("grpc://a:1: x/manifest.json: expected a manifest, found an answer that makes no sense"),
    ],
)
def test_a_server_whose_data_is_damaged_is_left_for_another_and_an_error_where_there_is_none(
    make_pool, within, caplog, said
):
    OPENS["grpc://a:1"] = said
    assert ask_all(within(make_pool), within)[1] == 6
    assert "grpc://a:1 does not serve, the others are asked: x/manifest.json" in caplog.text
    OPENS["grpc://b:1"] = Refusal(AWAY, "connection refused")
    with pytest.raises(DataError, match=r"^grpc://a:1: x/manifest.json: expected a manifest"):
        within(lambda: make_pool(connect_s=0.5))
    OPENS["grpc://b:1"] = OPENS["grpc://a:1"]
    with pytest.raises(DataError, match=r"grpc://a:1: x/manifest.json: expected a manifest"):
        within(lambda: make_pool(connect_s=60))


def test_the_connection_to_a_server_that_is_gone_is_let_go_when_its_answers_have_come(monkeypatch):
    server = Server(NOWHERE, Connection(), "c", {})
    closed, in_call, let_go = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(server, "close", closed.set)
    monkeypatch.setattr(server, "_action", lambda *asked: (in_call.set(), let_go.wait(LONG_S)))
    asking = threading.Thread(target=server.action, args=("hello", {}, {}))
    asking.start()
    assert in_call.wait(LONG_S)
    server.retire()
    assert not closed.is_set()
    let_go.set()
    asking.join(LONG_S)
    assert closed.is_set()


def test_what_a_server_says_that_the_list_dropped_meanwhile_counts_for_nothing(within):
    gone, stays = (Server(NOWHERE, Connection(), "c", {}) for _ in range(2))
    dropped, let_go, turns = threading.Event(), threading.Event(), []

    def open_one(server):
        if server is gone:
            assert dropped.wait(LONG_S)
            raise UsageError("expected another data set")
        assert let_go.wait(LONG_S)

    def servers():
        turns.append(1)
        if len(turns) < 3:
            return [gone, stays]
        dropped.set()
        if len(turns) > 10:
            let_go.set()
        return [stays]

    opening = service_opening.Opening(open_one)
    assert within(lambda: opening.run(servers, 100))
    assert list(opening.late([stays])) == []


def test_a_server_that_ends_does_not_make_all_that_was_asked_for(packed, within):
    says = []
    with served(packed, shared_memory=False) as server:
        recipe = server.desk.open(RECIPE.to_json())["recipe"]
        maker = server.desk._makers[recipe][0]
        real = maker.loader._step

        def begin_when_the_end_has_begun(place):
            wait_until(lambda: maker._closed)
            return real(place)

        maker.loader._step = begin_when_the_end_has_begun

        def ask(taken):
            with flight.FlightClient(server.address) as client:
                try:
                    client.do_get(flight.Ticket(Ticket(recipe, 0, taken, 0).to_bytes()), IN_TIME).read_all()
                    says.append("ok")
                except flight.FlightError as error:
                    says.append(Refusal.from_bytes(bytes(error.extra_info)).code)

        with ThreadPoolExecutor(20) as trainers:
            trainers.map(ask, range(0, 80, 4))
            wait_until(lambda: server.admission.num_calls == 20)
            assert within(lambda: server.close(0.2)) is False
        assert not server.hangs
    assert len(says) == 20
    assert set(says) == {"ok", BUSY}
    assert says.count("ok") < 10


class Hanging:
    """A loader that begins two batches, and then waits for its storage."""

    dataset = "small"

    def __init__(self, fails):
        self.fails, self.hangs, self.goes_on, self.closed = fails, *(threading.Event() for _ in range(3))

    def made(self, places):
        begun = [next(places), next(places)]
        self.hangs.set()
        assert self.goes_on.wait(LONG_S)
        if self.fails:
            raise DataError("the storage is gone")
        yield from ((place, []) for place in (*begun, *places))

    def close(self):
        self.closed.set()


@pytest.mark.parametrize("fails", [False, True])
def test_closing_begins_nothing_more_and_waits_only_for_a_while(fails, monkeypatch, within):
    monkeypatch.setattr(service_maker, "_sent", lambda batch, bad: batch)
    loader = Hanging(fails)
    maker = RecipeMaker(loader)
    futures = []
    with maker._wake:  # all at once
        futures += [maker.submit(place) for place in PLACES]
    assert loader.hangs.wait(LONG_S)
    assert within(lambda: maker.close(0.1)) is False
    assert not loader.closed.is_set()  # it is being read from
    with pytest.raises(Refusal) as caught:
        maker.submit(PLACES[0])
    assert caught.value.code == UNKNOWN_RECIPE
    loader.goes_on.set()
    assert loader.closed.wait(LONG_S)
    if fails:
        assert isinstance(futures[0].exception(LONG_S), DataError)
        assert isinstance(futures[1].exception(LONG_S), CancelledError)
    else:
        assert [future.result(LONG_S) for future in futures[:2]] == PLACES[:2]
    assert all(future.cancelled() for future in futures[2:])
    assert maker.close()


class Unsendable(Hanging):
    """A loader whose batches cannot be sent."""

    def made(self, places):
        yield from ((None, []) for _ in places)


def test_a_batch_that_cannot_be_sent_is_an_error_to_whoever_waits_for_it():
    maker = RecipeMaker(Unsendable(fails=False))
    with maker._wake:
        futures = [maker.submit(place) for place in PLACES]
    assert all(isinstance(future.exception(10), AttributeError) for future in futures)
    assert maker.close()


def test_a_batch_that_came_to_a_time_out_is_not_waited_for(within):
    future = Future()
    future.set_exception(TimeoutError("a disk's"))
    with pytest.raises(TimeoutError, match="a disk's"):
        within(lambda: wait_for(future, lambda: False), 10)


def test_a_signal_in_the_middle_of_the_wait_for_it_ends_it(monkeypatch):
    """Its handler runs in the thread that waits, wherever that is: a lock that is held there is never given back."""

    def comes(call, once):
        def interrupted(*arguments):
            if once:
                once.pop()
                signal.raise_signal(signal.SIGTERM)
            return call(*arguments)

        return interrupted

    def give_up(*_):
        raise TimeoutError("the handler waits for who waits for it")

    before, once = signal.signal(signal.SIGALRM, give_up), [True]
    try:
        with service_run.stopped_by_signals() as stop, monkeypatch.context() as patch:
            signal.alarm(50)
            patch.setattr(time, "sleep", comes(time.sleep, once))
            patch.setattr(threading, "_allocate_lock", comes(threading._allocate_lock, once))  # of Event.wait
            stop.wait(LONG_S)
            assert stop.is_set()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_health_is_told_again_once_threads_can_be_started(monkeypatch):
    def fails(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadingHTTPServer, "process_request", fails)
    with service_run._HttpServer(("127.0.0.1", 0), service_run._Pages) as server:
        for _ in range(2 * service_run._HTTP_MOST):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                server.process_request(None, ("127.0.0.1", 1))
