"""Servers of data sets behind a URL, and of side shards."""

import fsspec
import pytest
from service_processes import SMALL, assert_same_batches
from test_side_maps import make_side

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


def test_side_shards_are_joined_where_targets_pool_label_maps(packed, serve, tmp_path):
    side = make_side(tmp_path / "side", packed)
    address = serve(ServedSet(packed, str(side)))
    options = SMALL | {"targets": "relabel"}
    with RemoteLoader(address, **options) as remote, Loader(packed, side=side, **options) as local:
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)
    with RemoteLoader(address, **SMALL) as remote, Loader(packed, **SMALL) as local:
        assert remote.state_dict() == local.state_dict()
