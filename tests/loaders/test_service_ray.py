"""Pools of servers on Ray: the batches of a local loader, whatever is killed; replacements are found by trainers.

All tests but one share one Ray.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from service_processes import SERVE, SMALL, assert_same_batches
from waiting import LONG_S, wait_until

from softshard.loaders import Connection, Loader, RemoteLoader, service_ray
from softshard.loaders.cli_serve import named_sets
from softshard.loaders.service_list import ServerList
from softshard.loaders.service_ray import Pool, PoolOptions, run_pool
from softshard.shards.cli import main
from softshard.shards.errors import SoftshardError, UsageError

pytestmark = [
    pytest.mark.usefixtures("one_ray_at_a_time"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install '.[ray]'"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see processes"),
]

PATIENT = Connection(connect_s=120, request_s=30, deadline_s=240)
OPTIONS = SMALL | {"dtype": "uint8", "batch_size": 4}


@contextmanager
def pool_of(dataset, replicas, file, **options):
    """A pool on this process's Ray that keeps `file` up to date, as the command does; gives a function: its health."""
    import ray

    pool = Pool(ray, PoolOptions(named_sets([f"train={dataset}"], []), host="127.0.0.1", **options), replicas)
    listed, stop, heard = ServerList(file), threading.Event(), {"up": []}

    def look_after():
        while not stop.is_set():
            up = pool.poll(0.2)
            listed.write([health["address"] for health in up])
            heard["up"] = up  # said when the file says it, too

    thread = threading.Thread(target=look_after, daemon=True)
    thread.start()
    try:
        wait_until(lambda: len(heard["up"]) == replicas)
        yield pool, lambda: heard["up"]
    finally:
        stop.set()
        thread.join(LONG_S)
        pool.close(5)


@pytest.fixture
def expected(packed):
    with Loader(packed, **OPTIONS) as local:
        return list(local)


@pytest.mark.parametrize(("how", "replicas"), [("kill -9", 1), ("ray.kill", 2)])
def test_a_server_that_is_killed_is_replaced_and_no_batch_is_lost(
    packed, expected, cluster, tmp_path, how, replicas
):
    import ray

    file = tmp_path / "servers.json"
    with pool_of(packed, replicas, file) as (pool, up):
        before = {health["address"]: health["pid"] for health in up()}
        with RemoteLoader(f"{file.as_uri()}#train", connection=PATIENT, **OPTIONS) as remote:
            assert {server.address for server in remote._pool.servers} == set(before)
            found, batches = [], iter(remote)
            found.append(next(batches))
            # All of them, so that every further batch comes from a replacement.
            for replica in list(pool._replicas):
                if how == "kill -9":
                    os.kill(replica.health["pid"], signal.SIGKILL)
                else:
                    ray.kill(replica.actor)
            found.extend(batches)
            assert_same_batches(found, expected)
            wait_until(lambda: len(up()) == replicas)
            assert not {health["pid"] for health in up()} & set(before.values())
        assert (pool.replaced > 0) == (how == "ray.kill")  # else Ray itself started them anew


def test_a_node_that_is_lost_costs_no_batch_and_its_server_comes_back_elsewhere(
    packed, expected, cluster, tmp_path
):
    file = tmp_path / "servers.json"
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with pool_of(packed, 2, file) as (_, up):
        assert len({health["node"] for health in up()}) == 2
        with RemoteLoader(file.as_uri(), connection=PATIENT, **OPTIONS) as remote:
            found, batches = [], iter(remote)
            found.append(next(batches))
            cluster.remove_node(node, allow_graceful=False)
            found.extend(batches)
            assert_same_batches(found, expected)
        wait_until(lambda: len(up()) == 2 and len({health["node"] for health in up()}) == 1)


def test_a_server_that_hangs_is_replaced(packed, expected, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(service_ray, "_HEALTH_S", 5.0)
    file = tmp_path / "servers.json"
    with pool_of(packed, 1, file) as (pool, up):
        stopped = up()[0]["pid"]
        connection = Connection(connect_s=120, request_s=5, deadline_s=240)
        with RemoteLoader(file.as_uri(), connection=connection, **OPTIONS) as remote:
            found, batches = [], iter(remote)
            found.append(next(batches))
            os.kill(stopped, signal.SIGSTOP)
            try:
                found.extend(batches)
            finally:
                if os.path.exists(f"/proc/{stopped}"):
                    os.kill(stopped, signal.SIGKILL)
            assert_same_batches(found, expected)
        assert pool.replaced == 1


def test_servers_with_token_and_tls_read_their_files_on_the_node(packed, expected, cluster, tmp_path):
    secrets_of, file = tmp_path / "secrets", tmp_path / "servers.json"
    secrets_of.mkdir()
    make = Path(__file__).parents[2] / "docker" / "certificates.sh"
    subprocess.run(["sh", str(make), str(secrets_of), "127.0.0.1"], check=True, timeout=LONG_S)
    token, tls = secrets_of / "token", (secrets_of / "cert.pem", secrets_of / "key.pem")
    with pool_of(packed, 1, file, token_file=token, tls=tls) as (_, up):
        assert up()[0]["address"].startswith("grpc+tls://127.0.0.1:")
        with pytest.raises(UsageError, match="expected the server's token"):
            RemoteLoader(file.as_uri(), connection=Connection(tls_ca=secrets_of / "ca.pem"), **OPTIONS)
        connection = Connection(token_file=token, tls_ca=secrets_of / "ca.pem", connect_s=120)
        with RemoteLoader(file.as_uri(), connection=connection, **OPTIONS) as remote:
            assert_same_batches(remote, expected)


def test_the_command_serves_on_a_ray_of_its_own_and_drains_on_sigterm(
    packed, expected, ray_folder, tmp_path, within
):
    file = tmp_path / "servers.json"
    arguments = [f"train={packed}", "--engine", "ray", "--replicas", "2", "--addresses", str(file)]
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            while len((said := json.loads(within(run.stdout.readline, LONG_S)))["servers"]) < 2:
                assert said["event"] == "serving"
            assert ServerList(file).read() == said["servers"]
            assert all(server.startswith("grpc://127.0.0.1:") for server in said["servers"])
            with RemoteLoader(file.as_uri(), connection=PATIENT, **OPTIONS) as remote:
                assert_same_batches(remote, expected)
                assert remote._pool.num_in_memory  # actors are on this host
            run.send_signal(signal.SIGTERM)
            assert run.wait(LONG_S) == 0
            assert ServerList(file).read() == []
        finally:
            run.kill()


def test_what_keeps_a_server_from_starting_is_said(cluster, tmp_path):
    options = PoolOptions(named_sets([str(tmp_path / "nothing")], []), host="127.0.0.1")
    with pytest.raises(SoftshardError, match=r"nothing.*manifest|manifest.*nothing"):
        run_pool(options, replicas=1)


def test_a_pool_that_the_cluster_has_no_room_for_is_refused(packed, cluster):
    options = PoolOptions(named_sets([str(packed)], []), host="127.0.0.1", num_threads=2)
    with pytest.raises(UsageError, match="expected 10 CPUs for replicas times threads, found 2"):
        run_pool(options, replicas=5)


@pytest.mark.parametrize("host", ["0.0.0.0", None])
def test_beyond_the_loopback_address_a_pool_wants_token_and_tls(packed, cluster, host):
    if host is None and cluster.head_node.node_ip_address.startswith("127."):
        pytest.skip("needs a host with an address of its own")
    options = PoolOptions(named_sets([str(packed)], []), host=host)
    with pytest.raises(UsageError, match="expected --token-file and --tls-cert and --tls-key"):
        run_pool(options, replicas=1)


@pytest.mark.parametrize(
    "arguments",
    [["--replicas", "2"], ["--addresses", "x.json"], ["--address", "auto"]],
)
def test_options_of_a_pool_want_the_engine(packed, capsys, arguments):
    assert main(["serve", str(packed), *arguments]) == 2
    assert "with --engine ray" in capsys.readouterr().err


def test_a_pool_takes_any_free_port(packed, capsys):
    assert main(["serve", str(packed), "--engine", "ray", "--listen", "127.0.0.1:7070"]) == 2
    assert "expected port 0" in capsys.readouterr().err
