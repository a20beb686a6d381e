"""What may hold up a server or a client of the data service, and does not: hung opens, many recipes, bad servers, drains."""

import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from service_processes import SMALL, assert_same_batches

from softshard.loaders import (
    Augment,
    Connection,
    LabelPooling,
    Loader,
    RemoteLoader,
    service_maker,
    service_pool,
)
from softshard.loaders.service_access import Admission
from softshard.loaders.service_client import AWAY, Server
from softshard.loaders.service_desk import Desk, Limits, ServedSet
from softshard.loaders.service_maker import Place, RecipeMaker
from softshard.loaders.service_protocol import BUSY, REFUSED, UNKNOWN_RECIPE, USAGE, Refusal, Ticket
from softshard.loaders.service_recipe import BatchRecipe
from softshard.loaders.service_server import BatchServer
from softshard.shards.errors import DataError, UsageError

RECIPE = BatchRecipe("small", 4, augment=Augment(size=16))
NOWHERE = "grpc://127.0.0.1:9"  # nothing listens there


def open_in_vain(server):
    with suppress(Refusal):
        server.open({})


def test_a_server_that_hangs_while_it_is_opened_holds_up_nobody_else(monkeypatch, within):
    server = Server(NOWHERE, Connection(request_s=0.2), "c", {})
    hangs, let_go = threading.Event(), threading.Event()

    def hang(name, content, fields):
        hangs.set()
        assert let_go.wait(60)
        raise Refusal(AWAY, "hung up")

    monkeypatch.setattr(server, "action", hang)
    opening = threading.Thread(target=open_in_vain, args=(server,))
    opening.start()
    try:
        assert hangs.wait(60)
        within(lambda: server.did_badly(Refusal(AWAY, "no answer")), 10)  # as the consumer's thread does
        with pytest.raises(Refusal, match=r"expected it to open the recipe within 0\.2 s") as caught:
            within(lambda: server.open({}), 10)
        assert caught.value.code == AWAY
    finally:
        let_go.set()
        opening.join(60)
        server.close()


class Answers:
    """A server of a pool without the network: gives rows, or raises what it was told to."""

    def __init__(self, address, connection, client, stack):
        self.address, self.raises, self.rows = address, None, pa.record_batch({"n": [1]})
        self.ask_after, self.latencies, self.last_error, self.num_asked = 0.0, [], None, 0

    def open(self, recipe):
        same = dict.fromkeys(("fingerprint", "num_samples", "labels", "mixture", "recipe"), "same")
        return same | {"class_names": ["a", "b"]}

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
        self.last_error = refusal

    def close(self):
        pass


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(service_pool, "Server", Answers)
    return service_pool.ServerPool(["grpc://a:1", "grpc://b:1"], {}, Connection(deadline_s=20), {}, 1)


PLACES = [Place(0, taken, 0) for taken in range(6)]


@pytest.mark.parametrize("code", [USAGE, REFUSED])
def test_one_server_that_says_no_is_asked_no_more_and_the_others_are(pool, code, within):
    one, other = pool.servers
    one.raises = Refusal(code, "expected something else")
    assert pool.count_classes() == [1, 2]
    assert len(within(lambda: list(pool.batches(PLACES, 1)))) == 6
    assert (one.num_asked, other.num_asked) == (1, 6)
    other.raises = Refusal(code, "expected another thing")
    with pytest.raises(UsageError, match=r"grpc://b:1: expected another thing"):
        within(lambda: list(pool.batches(PLACES, 1)))
    with pytest.raises(UsageError, match=r"grpc://b:1: expected another thing"):
        pool.count_classes()


@contextmanager
def desk_of(packed, limits=None):
    desk = Desk({"small": ServedSet(packed)}, num_threads=1, limits=limits)
    try:
        yield desk
    finally:
        desk.close()


def test_a_server_that_ends_does_not_make_all_that_was_asked_for(packed, within):
    server = BatchServer(Desk({"small": ServedSet(packed)}, num_threads=1), shared_memory=False)
    recipe = server.desk.open(RECIPE.to_json())["recipe"]
    maker = server.desk._makers[recipe][0]
    real, says = maker.loader._step, []
    maker.loader._step = lambda place: (time.sleep(0.5), real(place))[1]

    def ask(taken):
        with flight.FlightClient(server.address) as client:
            try:
                client.do_get(flight.Ticket(Ticket(recipe, 0, taken, 0).to_bytes())).read_all()
                says.append("ok")
            except flight.FlightError as error:
                says.append(Refusal.from_bytes(bytes(error.extra_info)).code)

    threads = [threading.Thread(target=ask, args=(4 * number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    while server.admission.num_calls < 20:
        time.sleep(0.01)
    assert within(lambda: server.close(0.2), 20) is False
    for thread in threads:
        thread.join(60)
    assert not server.hangs
    assert len(says) == 20
    assert set(says) == {"ok", BUSY}
    assert says.count("ok") < 10


def test_recipes_that_are_opened_at_a_time_are_no_more_than_are_allowed(packed, within):
    with desk_of(packed, Limits(recipes=2, recipe_idle_s=60)) as desk:
        real, all_here = desk._open_loader, threading.Barrier(8)
        codes = []

        def slow(recipe):
            time.sleep(0.3)
            return real(recipe)

        def open_one(seed):
            all_here.wait(60)
            try:
                desk.open(replace(RECIPE, seed=seed).to_json())
            except Refusal as refusal:
                codes.append(refusal.code)

        desk._open_loader = slow
        threads = [threading.Thread(target=open_one, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert codes == [BUSY] * 6
        assert desk.totals()["recipes"] == 2


def test_a_recipe_that_cannot_be_opened_leaves_its_room(packed):
    with desk_of(packed, Limits(recipes=1, recipe_idle_s=60)) as desk:
        for _ in range(2):
            with pytest.raises(UsageError):
                desk.open(replace(RECIPE, teacher=True).to_json())
        desk.open(RECIPE.to_json())


def test_a_grid_beyond_all_numbers_is_refused_before_anything_is_opened(packed):
    with desk_of(packed) as desk:
        desk._open_loader = None
        with pytest.raises(UsageError, match=r"expected targets of at most 536,870,912 bytes, found 295,"):
            desk.open(replace(RECIPE, targets=LabelPooling(grid=(2**32, 2**32))).to_json())


class Hanging:
    """A loader that begins two batches, and then waits for its storage."""

    dataset = "small"

    def __init__(self, fails):
        self.fails, self.hangs, self.goes_on, self.closed = fails, *(threading.Event() for _ in range(3))

    def made(self, places):
        begun = [next(places), next(places)]
        self.hangs.set()
        assert self.goes_on.wait(60)
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
    assert loader.hangs.wait(60)
    assert within(lambda: maker.close(0.1)) is False
    assert not loader.closed.is_set()  # it is being read from
    with pytest.raises(Refusal) as caught:
        maker.submit(PLACES[0])
    assert caught.value.code == UNKNOWN_RECIPE
    loader.goes_on.set()
    assert loader.closed.wait(60)
    if fails:
        assert isinstance(futures[0].exception(10), DataError)
        assert isinstance(futures[1].exception(10), CancelledError)
    else:
        assert [future.result(10) for future in futures[:2]] == PLACES[:2]
    assert all(future.cancelled() for future in futures[2:])
    assert maker.close()


def test_batches_that_are_being_sent_are_bounded_and_one_always_goes():
    admission = Admission(Limits(sending_bytes=100))
    for client in "abc":
        admission.enter(client)
    admission.send(150)  # nothing else is on its way
    with pytest.raises(
        Refusal, match="expected at most 100 bytes of batches that are being sent, found 10"
    ) as caught:
        admission.send(10)
    assert caught.value.code == BUSY
    admission.leave("a", 150)
    admission.send(60)
    admission.send(40)
    with pytest.raises(Refusal):
        admission.send(1)


def test_trainers_share_what_may_be_sent_at_a_time_and_get_every_batch(packed):
    server = BatchServer(
        Desk({"small": ServedSet(packed)}, num_threads=1, limits=Limits(sending_bytes=1)), shared_memory=False
    )
    try:
        with (
            RemoteLoader(server.address, prefetch=4, **SMALL) as remote,
            Loader(packed, **SMALL) as local,
        ):
            assert_same_batches(remote, local)
        assert server.admission._sending == 0
    finally:
        server.close(5)
