"""What a server of the data service keeps within bounds, and every trainer still gets its batches."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from service_here import RECIPE, desk_of, served
from service_processes import SMALL, assert_same_batches
from waiting import wait_until

from softshard.loaders import Connection, LabelPooling, Loader, RemoteLoader, Subset
from softshard.loaders.service_access import Admission
from softshard.loaders.service_limits import Limits
from softshard.loaders.service_protocol import BUSY, Refusal, Ticket
from softshard.shards.errors import UsageError


def test_a_request_beyond_the_limit_is_refused_and_the_others_are_served(packed):
    with served(packed, Limits(request_bytes=20_000)) as server:
        options = SMALL | {"subset": Subset(keys=tuple(f"key-{i}" for i in range(5000)))}
        with pytest.raises(
            UsageError, match=r"open: expected at most 20,000 bytes, found \d.*--max-request-bytes"
        ):
            RemoteLoader(server.address, **options)
        assert "open" not in server.stats().requests  # nothing was sent
        with RemoteLoader(server.address, **SMALL) as remote:
            assert len(list(remote)) == 9


def test_more_clients_and_calls_than_are_allowed_are_refused_for_a_while(packed, within):
    limits = Limits(clients=1, client_idle_s=0.5, calls_per_client=1)
    connection = Connection(connect_s=100)
    with served(packed, limits) as server, RemoteLoader(server.address, prefetch=4, **SMALL) as first:
        list(first)  # four at a time, of which one is let in
        assert first.fetch_stats().retries > 0
        # Another one has to wait until the first has been away for half a second.
        with within(lambda: RemoteLoader(server.address, connection=connection, **SMALL)) as second:
            assert len(list(second)) == 9


def test_the_recipe_used_least_recently_makes_room_and_is_opened_again(packed):
    with (
        served(packed, Limits(recipes=1, recipe_idle_s=0.01)) as server,
        RemoteLoader(server.address, **SMALL) as one,
        RemoteLoader(server.address, **SMALL | {"seed": 5}) as two,
    ):
        with Loader(packed, **SMALL) as local:
            list(two)
            assert_same_batches(one, local)
        assert server.desk.totals()["recipes"] == 1


def test_recipes_that_are_opened_at_a_time_are_no_more_than_are_allowed(packed):
    with desk_of(packed, Limits(recipes=2, recipe_idle_s=60)) as desk:
        real, codes = desk._open_loader, []

        def open_when_the_others_were_refused(recipe):
            wait_until(lambda: len(codes) == 6)
            return real(recipe)

        def open_one(seed):
            try:
                desk.open(replace(RECIPE, seed=seed).to_json())
            except Refusal as refusal:
                codes.append(refusal.code)

        desk._open_loader = open_when_the_others_were_refused
        with ThreadPoolExecutor(8) as askers:
            list(askers.map(open_one, range(8)))
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


def test_a_small_cache_costs_decodes_and_no_batch(packed):
    with served(packed, Limits(cache_bytes=1, memory_bytes=1)) as server:
        with RemoteLoader(server.address, **SMALL) as remote, Loader(packed, **SMALL) as local:
            assert_same_batches(remote, local)
            assert_same_batches(remote, local)
            assert remote._pool.num_in_memory == 0
        assert server.stats().cache.num_bytes == 0 == server.stats().memory_bytes


def test_all_who_ask_for_one_batch_wait_for_the_same_one(packed):
    with desk_of(packed) as desk, ThreadPoolExecutor(8) as askers:
        recipe = desk.open(RECIPE.to_json())["recipe"]
        found = list(askers.map(desk.batch, [Ticket(recipe, 0, 8, 0)] * 8))
        assert all(made is found[0] for made in found)
        assert desk.counts().made == 1


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
    with served(packed, Limits(sending_bytes=1), shared_memory=False) as server:
        with RemoteLoader(server.address, prefetch=4, **SMALL) as remote, Loader(packed, **SMALL) as local:
            assert_same_batches(remote, local)
        wait_until(lambda: server.admission._sending == 0)
