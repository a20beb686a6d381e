"""Servers of data sets behind a URL, and of side shards."""

import fsspec
import pytest
from service_here import served
from service_processes import SMALL, assert_same_batches
from test_side_maps import make_side
from waiting import wait_until

from softshard.loaders import Cache, Loader, RemoteLoader
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_server import BatchServer


@pytest.fixture
def serve():
    """A function: a server in this process; gives its address."""
    servers = []

    def start(served, cache=None):
        servers.append(BatchServer(Desk({"set": served}, num_threads=1, cache=cache)))
        return servers[-1].address

    yield start
    for server in servers:
        server.close(5)


def test_a_data_set_behind_a_url_is_fetched_by_the_server(packed, serve, tmp_path):
    fsspec.filesystem("memory").put(str(packed), "/served/train", recursive=True)
    address = serve(ServedSet("memory://served/train"), Cache(folder=tmp_path / "cache"))
    with RemoteLoader(address, **SMALL) as remote, Loader(packed, **SMALL) as local:
        for _ in range(2):
            assert_same_batches(remote, local)


def fetched(server):
    """Shards that the server has fetched for the one recipe that is open."""
    ((maker, _),) = server.desk._makers.values()
    return maker.loader.fetch_stats().shards_fetched


def test_shards_of_coming_steps_are_fetched_before_they_are_asked_for(packed, tmp_path):
    fsspec.filesystem("memory").put(str(packed), "/ahead/train", recursive=True)
    cache = Cache(folder=tmp_path / "cache", ahead=9, num_fetchers=2)
    # In order: a batch of four is in one shard of 13.
    options = SMALL | {"batch_size": 4, "prefetch": 1, "shuffle": False}
    with (
        served("memory://ahead/train", cache=cache) as server,
        RemoteLoader(server.address, **options) as remote,
        Loader(packed, **options) as local,
    ):
        expected, found = list(local), []
        batches = iter(remote)
        found.append(next(batches))
        wait_until(lambda: fetched(server) == 9)  # all, and at most three batches were asked for
        assert server.desk.totals()["images"] <= 12
        found += batches
        assert_same_batches(found, expected)
        assert fetched(server) == 9
        assert_same_batches(remote, local)
        assert server.desk.totals()["bad_samples"] == 0


def test_trainers_at_different_places_of_different_epochs_get_what_they_ask_for(packed, serve, tmp_path):
    fsspec.filesystem("memory").put(str(packed), "/apart/train", recursive=True)
    address = serve(ServedSet("memory://apart/train"), Cache(folder=tmp_path / "cache", ahead=1))
    options = SMALL | {"batch_size": 4, "window": 7}
    with (
        RemoteLoader(address, **options) as one,
        RemoteLoader(address, **options) as other,
        Loader(packed, **options) as local,
    ):
        other.set_epoch(3)
        pairs = list(zip(one, other, strict=True))
        assert_same_batches([mine for mine, _ in pairs], local)
        local.set_epoch(3)
        assert_same_batches([its for _, its in pairs], local)


def test_side_shards_are_joined_where_targets_pool_label_maps(packed, serve, tmp_path):
    side = make_side(tmp_path / "side", packed)
    address = serve(ServedSet(packed, str(side)))
    options = SMALL | {"targets": "relabel"}
    with RemoteLoader(address, **options) as remote, Loader(packed, side=side, **options) as local:
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)
    with RemoteLoader(address, **SMALL) as remote, Loader(packed, **SMALL) as local:
        assert remote.state_dict() == local.state_dict()
