"""What may hold up a server or a client of the data service, and does not: hung opens, many recipes, bad servers, drains."""

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from softshard.loaders import Augment, Connection, LabelPooling
from softshard.loaders.service_client import AWAY, Server
from softshard.loaders.service_desk import Desk, Limits, ServedSet
from softshard.loaders.service_protocol import BUSY, Refusal
from softshard.loaders.service_recipe import BatchRecipe
from softshard.shards.errors import UsageError

RECIPE = BatchRecipe("small", 4, augment=Augment(size=16))
NOWHERE = "grpc://127.0.0.1:9"  # nothing listens there


def open_in_vain(server):
    with suppress(Refusal):
        server.open({})


def test_a_server_that_hangs_while_it_is_opened_holds_up_nobody_else(monkeypatch, within):
    server = Server(NOWHERE, Connection(request_s=0.2), "c", {})
    hangs, let_go = threading.Event(), threading.Event()

    def hang(name, content):
        hangs.set()
        assert let_go.wait(60)
        raise Refusal(AWAY, "hung up")

    monkeypatch.setattr(server, "_action", hang)
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


@contextmanager
def desk_of(packed, limits=None):
    desk = Desk({"small": ServedSet(packed)}, num_threads=1, limits=limits)
    try:
        yield desk
    finally:
        desk.close()


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
