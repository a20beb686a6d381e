"""Servers that die, hang, come back as something else or are not there: every batch arrives, once, the same."""

import itertools
import json
import os
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.flight as flight
import pytest
from reading_processes import read_from_servers, read_on_when_woken, reading
from service_here import IN_TIME
from service_processes import SMALL, ServerProcess, assert_same_batches, serving, serving_two
from waiting import LONG_S, wait_until

from softshard.loaders import Augment, Connection, Loader, RemoteLoader, ServiceError
from softshard.loaders.service_protocol import Ticket
from softshard.loaders.service_recipe import BatchRecipe
from softshard.shards.errors import UsageError

QUICK = Connection(connect_s=20, request_s=30, deadline_s=240)
OPTIONS = SMALL | {"dtype": "uint8", "batch_size": 4}
AWAY = "grpc://127.0.0.1:9"  # nothing listens there
OTHER_SET = "expected the same data set on all servers"


@pytest.fixture
def many_files():
    """As many descriptors as the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"needs 4,096 descriptors, found a limit of {hard:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def make(servers, connection):
    return RemoteLoader(servers, connection=connection, **OPTIONS)


@pytest.fixture(scope="module")
def expected(packed):
    with Loader(packed, **OPTIONS) as local:
        return list(local)


@pytest.fixture(scope="module")
def pair(packed):
    """Two servers, for tests that leave both as they were: a start costs more than most of them."""
    with serving_two(packed) as servers:
        yield servers


@contextmanager
def stopped(server):
    """A server that hangs while the body runs, and goes on whatever becomes of it."""
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)


def batches_with_a_pause(remote, act):
    """An epoch, in which something happens after three batches."""
    batches = iter(remote)
    found = [next(batches) for _ in range(3)]
    act()
    return found + list(batches)


def test_a_server_that_is_killed_in_an_epoch_costs_no_batch(packed, expected):
    with (
        serving_two(packed) as (one, other),
        RemoteLoader([one.url, other.url], connection=QUICK, **OPTIONS) as remote,
    ):
        found = batches_with_a_pause(remote, lambda: one.send(signal.SIGKILL))
        assert_same_batches(found, expected)
        assert remote.fetch_stats().retries > 0
        assert_same_batches(itertools.islice(remote, 5), list_of_epoch(packed, 1)[:5])


def list_of_epoch(packed, epoch):
    with Loader(packed, **OPTIONS) as local:
        local.set_epoch(epoch)
        return list(local)


def test_a_server_that_is_killed_and_started_anew_is_asked_again(packed, expected, within):
    with serving(packed) as one, RemoteLoader(one.url, connection=QUICK, **OPTIONS) as remote:
        found, batches = [], iter(remote)
        found.append(next(batches))
        one.stop(signal.SIGKILL)
        with serving(packed, listen=one.address):
            found.extend(within(lambda: list(batches), LONG_S))
            assert_same_batches(found, expected)


def test_a_server_that_hangs_is_left_for_another(pair, expected, within):
    one, other = pair
    connection = Connection(connect_s=20, request_s=1, deadline_s=240, hedge=None)
    with make([one.url, other.url], connection) as remote:
        found, batches = [], iter(remote)
        found.append(next(batches))
        with stopped(one):
            found.extend(within(lambda: list(batches), LONG_S))
        assert_same_batches(found, expected)


def test_a_second_server_is_asked_where_the_first_is_slower_than_usual(pair, packed, within):
    one, other = pair
    connection = Connection(connect_s=20, request_s=600, deadline_s=600, hedge=0.9)
    with make([one.url, other.url], connection) as remote:
        for batch in remote:  # so that it is known what is usual
            assert len(batch)
        before = remote._pool.num_hedged
        with stopped(one):
            found = within(lambda: list(itertools.islice(remote, 4)))
        assert remote._pool.num_hedged > before
        assert_same_batches(found, list_of_epoch(packed, 1)[:4])


def test_an_interrupted_loop_does_not_wait_for_a_server_that_hangs(pair, within):
    server, _ = pair
    remote = make(server.url, Connection(connect_s=20, request_s=600, deadline_s=600))
    batches = iter(remote)
    next(batches)
    with stopped(server):
        within(remote.close)


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"


def test_time_in_which_a_trainer_was_stopped_is_no_silence_of_the_servers(pair):
    server, _ = pair
    with reading(read_on_when_woken, server.url) as (trainer, _):
        wait_until(lambda: is_stopped(trainer.pid))
        with stopped(server):
            os.kill(trainer.pid, signal.SIGCONT)
            time.sleep(0.5)  # it waits for batches, and no deadline has passed
            os.kill(trainer.pid, signal.SIGSTOP)
        time.sleep(7)
        os.kill(trainer.pid, signal.SIGCONT)
        trainer.join(LONG_S)
        assert trainer.exitcode == 0


def test_where_all_servers_are_gone_the_error_names_them(packed, within):
    with serving_two(packed) as (one, other), make([one.url, other.url], QUICK) as remote:
        batches = iter(remote)
        next(batches)  # which may take longer than a second
        for server in (one, other):
            server.send(signal.SIGKILL)
        remote._pool._connection = replace(QUICK, deadline_s=1)
        with pytest.raises(ServiceError) as caught:
            within(lambda: list(batches))
    for server in (one, other):
        assert server.url in str(caught.value)
    assert "expected a batch within 1 s, found none" in str(caught.value)


def test_no_server_at_all_is_an_error_that_says_what_to_run():
    with pytest.raises(ServiceError, match=r"grpc://127\.0\.0\.1:9: .*softshard serve"):
        RemoteLoader(AWAY, connection=Connection(connect_s=0.5), **OPTIONS)


def test_one_server_that_is_away_at_the_start_is_done_without(pair, expected):
    with make([pair[0].url, AWAY], QUICK) as remote:
        assert_same_batches(remote, expected)


def test_servers_of_different_data_sets_are_refused_and_both_are_named(packed, packed_plain):
    with (
        serving(f"x={packed}") as one,
        serving(f"x={packed_plain}") as other,
        pytest.raises(UsageError, match=f"{OTHER_SET}, found fingerprint") as caught,
    ):
        RemoteLoader([one.url, other.url], **OPTIONS)
    assert one.url in str(caught.value)
    assert other.url in str(caught.value)


def test_a_server_that_comes_back_with_another_data_set_is_asked_no_more(packed, packed_plain, within):
    with serving(f"x={packed}") as one:
        connection = Connection(connect_s=20, request_s=5, deadline_s=240)
        with RemoteLoader(one.url, connection=connection, **OPTIONS) as remote:
            batches = iter(remote)
            next(batches)
            one.stop(signal.SIGKILL)
            with (
                serving(f"x={packed_plain}", listen=one.address),
                pytest.raises(UsageError, match=OTHER_SET),
            ):
                within(lambda: list(batches), LONG_S)


def test_drain_finishes_what_is_under_way_and_sends_clients_elsewhere(packed, expected):
    with (
        serving_two(packed) as (one, other),
        RemoteLoader([one.url, other.url], connection=QUICK, **OPTIONS) as remote,
    ):
        ends = []
        found = batches_with_a_pause(remote, lambda: ends.append(one.stop(signal.SIGTERM)))
        assert_same_batches(found, expected)
    ((code, log),) = ends
    assert code == 0
    assert [line["event"] for line in log][-2:] == ["draining", "stopped"]
    assert log[-1]["finished"] is True


def test_a_client_that_stops_reading_holds_up_neither_the_others_nor_the_end(packed, expected):
    with serving(packed, "--drain-s", "1", "--no-shared-memory") as server:
        recipe = BatchRecipe(None, 105, augment=Augment(size=512))  # 80 MB, more than any buffer on the way
        with flight.FlightClient(server.url) as client:
            content = json.dumps({"protocol": 1, "recipe": recipe.to_json()}).encode()
            (opened,) = client.do_action(flight.Action("open", content), IN_TIME)
            ticket = Ticket(json.loads(opened.body.to_pybytes())["recipe"], 0, 0, 0)
            reader = client.do_get(flight.Ticket(ticket.to_bytes()), IN_TIME)
            with make(server.url, QUICK) as remote:
                assert_same_batches(remote, expected)
            wait_until(lambda: server.stats()["calls"] == 1)
            code, log = server.stop()
            assert code == 1
            assert log[-1]["finished"] is False
            reader.cancel()


def is_open(connection):
    """Whether the other end has not shut it; gRPC sends its settings to whoever connects."""
    connection.setblocking(False)
    try:
        while received := connection.recv(4096):
            assert received
    except BlockingIOError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_idle_connections_beyond_the_limit_are_shut_and_hold_up_neither_trainers_nor_the_end(
    packed, expected, many_files
):
    with (
        serving(packed, "--max-connections", "300") as server,
        make(server.url, QUICK) as remote,
        ExitStack() as stack,
    ):
        batches = iter(remote)
        found = [next(batches)]
        host, port = server.address.split(":")
        idle = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(1100)]
        found.extend(batches)
        assert_same_batches(found, expected)
        wait_until(lambda: sum(map(is_open, idle)) <= 300)
        wait_until(lambda: server.stats()["connections"] <= 300)
        assert server.stats()["connections_shut"] == {"too-large": 0, "too-many": 1100 + 1 - 300}
        with make(server.url, QUICK) as another:
            assert_same_batches(another, list_of_epoch(packed, 0))
        assert remote.fetch_stats().retries == 0  # the connection of who asks was not among them
        code, log = server.stop()
        assert code == 0
        assert log[-1]["finished"] is True


def test_a_client_that_is_killed_leaves_the_server_as_it_was(packed, expected):
    with serving(packed) as server:
        with reading(read_from_servers, server.url) as (client, _):
            client.kill()
        with RemoteLoader(server.url, connection=QUICK, **OPTIONS) as remote:
            assert_same_batches(remote, expected)
        wait_until(lambda: server.stats()["calls"] == 0)


def test_four_trainers_at_one_step_pay_for_one_decode(packed, expected):
    with serving_two(packed) as (one, other):
        connection = Connection(hedge=None)
        loaders = [RemoteLoader([one.url, other.url], connection=connection, **OPTIONS) for _ in range(4)]
        found = [[] for _ in loaders]
        threads = [
            threading.Thread(target=lambda loader=loader, into=into: into.extend(loader))
            for loader, into in zip(loaders, found, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        for batches in found:
            assert_same_batches(batches, expected)
        stats = [server.stats() for server in (one, other)]
        assert sum(each["cache"]["made"] for each in stats) == len(expected)
        assert sum(each["images"] for each in stats) == 105
        assert min(each["hit_rate"] for each in stats) == 0.75
        for loader in loaders:
            loader.close()


def test_nothing_is_left_in_shared_memory_by_a_server_that_is_killed(packed):
    before = set(os.listdir("/dev/shm"))
    server = ServerProcess(packed)
    try:
        server.ready()
        with RemoteLoader(server.url, connection=QUICK, **OPTIONS) as remote:
            batch = next(iter(remote))
            assert remote._pool.num_in_memory > 0
            server.stop(signal.SIGKILL)
            assert batch.images.sum() > 0  # what was mapped stays
    finally:
        server.stop(signal.SIGKILL)
    assert {name for name in set(os.listdir("/dev/shm")) - before if "softshard" in name} == set()
