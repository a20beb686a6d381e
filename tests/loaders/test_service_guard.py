"""What connections may cost a server before they ask for anything: plain sockets, looked at one time after another."""

import errno
import logging
import os
import resource
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress

import pyarrow.flight as flight
import pytest
from service_here import IN_TIME, client_of, served

from softshard.loaders import service_guard
from softshard.loaders.service_guard import ConnectionGuard, _read_peer
from softshard.loaders.service_limits import Limits
from softshard.loaders.service_protocol import Refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO and /proc")
ASIDE = 2**20  # what a connection may send beside its requests


class Line:
    """Both ends of a connection to a port of this process."""

    def __init__(self, listener, stack):
        self.client = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        self.server = stack.enter_context(listener.accept()[0])
        self.client.setblocking(False)
        self.peer = "ipv4:{}:{}".format(*self.client.getsockname()[:2])

    def send(self, num_bytes):
        """From the client; the server's process takes it, as gRPC does."""
        self.client.setblocking(True)
        while num_bytes:
            sent = self.client.send(b"x" * min(num_bytes, 2**16))
            taken = 0
            while taken < sent:
                received = self.server.recv(sent - taken)
                assert received
                taken += len(received)
            num_bytes -= sent
        self.client.setblocking(False)

    def is_open(self):
        try:
            return bool(self.client.recv(1))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False


@contextmanager
def guarded(host="127.0.0.1", family=socket.AF_INET, **limits):
    """A listening socket, its guard, whose thread rests, and a function that connects."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), family=family, backlog=128))
        guard = ConnectionGuard(**{"max_connections": 64, "max_request_bytes": 1000} | limits)
        guard.close()
        guard.start(*listener.getsockname()[:2])
        yield guard, lambda: Line(listener, stack)


def test_a_connection_that_sends_more_than_a_request_may_have_is_shut_and_the_others_are_not(caplog):
    with guarded() as (guard, connect), caplog.at_level(logging.WARNING, "softshard.service"):
        lines = [connect() for _ in range(3)]
        lines[1].send(1000 + ASIDE + 1)
        lines[2].send(1000 + ASIDE - 1)
        guard.look()
        assert [line.is_open() for line in lines] == [True, False, True]
        assert guard.shut_counts() == {"too-large": 1, "too-many": 0}
        assert guard.num_connections == 2
        guard.look()  # the one that is shut is still there, and counts no more
        assert guard.shut_counts()["too-large"] == 1
    assert caplog.records[0].facts["bytes"] == 1000 + ASIDE + 1


def test_requests_that_came_whole_count_no_more_and_new_bytes_do():
    with guarded() as (guard, connect):
        line = connect()
        for _ in range(3):
            line.send(ASIDE)
            guard.came(line.peer, ASIDE)
            guard.look()
        assert line.is_open()
        line.send(1000 + ASIDE + 3 * 2**14 + 1)  # also with what headers may have had
        guard.look()
        assert not line.is_open()


def test_all_connections_together_hold_no_more_than_four_requests():
    with guarded(max_request_bytes=2**20) as (guard, connect):
        lines = [connect() for _ in range(6)]
        for number, line in enumerate(lines):
            line.send(2**21 - number)  # each may
        guard.look()
        assert [line.is_open() for line in lines] == [False, False, True, True, True, True]


def test_of_trainers_that_send_large_recipes_together_those_nearest_to_the_end_go_on():
    with guarded(max_request_bytes=2**20) as (guard, connect):
        lines, stranger, waits = [connect() for _ in range(6)], connect(), connect()
        for line in (*lines, waits):
            guard.came(line.peer, 0)
        stranger.send(2**10)
        for number, line in enumerate(lines):
            line.send(2**21 + 2**14 - number)
        guard.look()
        assert [line.is_open() for line in lines] == [True, True, True, True, False, False]
        assert (stranger.is_open(), waits.is_open()) == (False, True)


def test_of_too_many_connections_those_that_never_asked_are_shut_the_oldest_first():
    with guarded(max_connections=3) as (guard, connect):
        trainers = [connect() for _ in range(2)]
        for trainer in trainers:
            guard.came(trainer.peer, 10)
        idle = []
        for _ in range(3):
            idle.append(connect())
            guard.look()
        assert [line.is_open() for line in trainers] == [True, True]
        assert [line.is_open() for line in idle] == [False, False, True]
        for line in idle[2:]:
            guard.came(line.peer, 10)
        newest = connect()
        guard.came(newest.peer, 10)
        guard.look()  # now all have asked: the first of them longest ago
        assert [line.is_open() for line in (*trainers, idle[2], newest)] == [False, True, True, True]


def test_at_the_end_idle_connections_are_shut_first():
    with guarded() as (guard, connect):
        trainer, idle = connect(), connect()
        guard.came(trainer.peer, 10)
        guard.shut_all(idle_only=True)
        assert (trainer.is_open(), idle.is_open()) == (True, False)
        guard.shut_all()
        assert not trainer.is_open()


def test_what_else_the_process_has_open_is_left_alone(tmp_path):
    with guarded(max_connections=1) as (guard, connect), ExitStack() as stack:
        stack.enter_context(open(tmp_path / "file", "w"))
        others = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pair = [stack.enter_context(each) for each in socket.socketpair()]
        line, mine = Line(others, stack), connect()
        port = int(mine.server.getsockname()[1])
        same_port = stack.enter_context(socket.create_server(("127.0.0.2", port)))
        beside = Line(same_port, stack)
        guard.look()
        assert guard.num_connections == 1
        assert line.is_open()
        assert beside.is_open()
        assert mine.is_open()
        pair[0].sendall(b"x")
        assert pair[1].recv(1) == b"x"


def test_a_process_without_descriptors_left_still_shuts_connections():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with guarded(max_connections=2) as (guard, connect), ExitStack() as stack:
        lines = [connect() for _ in range(5)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (lines[-1].server.fileno() + 1, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with suppress(OSError):  # too many open files
            while True:
                stack.callback(os.close, os.dup(0))
        guard.look()
        assert guard.shut_counts()["too-many"] == 3
        assert [line.is_open() for line in lines].count(True) == 2


def test_a_guard_goes_on_after_an_error_and_ends_where_nothing_can_be_listed(monkeypatch, caplog, within):
    says = [ValueError("a bug"), PermissionError(errno.EACCES, "no /proc")]

    def fail(path):
        raise says.pop(0) if len(says) > 1 else says[0]

    monkeypatch.setattr(service_guard.os, "listdir", fail)
    guard = ConnectionGuard(8, 1000)
    guard.start("127.0.0.1", 9)
    within(guard._thread.join)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "connections were not looked at this time",
        "connections are not bounded any more",
    ]
    guard.shut_all()
    guard.close()


def test_a_process_that_may_have_any_number_of_files_may_have_connections(monkeypatch):
    monkeypatch.setattr(service_guard.resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert ConnectionGuard(64, 1000).max_connections == 64


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_client_is_the_same_whatever_the_socket_calls_it():
    with ExitStack() as stack:
        listener = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        guard = ConnectionGuard(8, 1000)
        guard.close()
        guard.start("::", listener.getsockname()[1])
        client = stack.enter_context(socket.create_connection(("127.0.0.1", listener.getsockname()[1])))
        stack.enter_context(listener.accept()[0])
        guard.came(f"ipv4:127.0.0.1:{client.getsockname()[1]}", 10)
        guard.shut_all(idle_only=True)  # it asked
        assert guard.shut_counts()["too-many"] == 0
    assert _read_peer("ipv6:%5B::1%5D:43210") == ("::1", 43210) == _read_peer("ipv6:[::1]:43210")
    assert (
        _read_peer("ipv6:%5Bfe80::1%252%5D:43210")
        == ("fe80::1", 43210)
        == _read_peer("ipv6:[fe80::1%2]:43210")
    )
    assert _read_peer("unix:/run/x") is None
    assert _read_peer("") is None


def test_a_request_far_beyond_the_limit_is_shut_or_refused_and_the_server_goes_on(packed):
    with served(packed, Limits(request_bytes=2**20)) as server:
        with client_of(server) as client:
            with pytest.raises(flight.FlightError) as caught:
                list(client.do_action(flight.Action("open", bytes(2**28)), IN_TIME))
            refusal = Refusal.from_bytes(bytes(caught.value.extra_info or b""))
            if refusal is None:  # else it was there before anybody looked
                assert server.stats().connections_shut["too-large"] == 1
            else:
                assert refusal.message == "open: expected at most 1,048,576 bytes, found 268,435,456"
            (answer,) = client.do_action(flight.Action("hello", b'{"protocol": 1}'), IN_TIME)
            assert b"small" in answer.body.to_pybytes()
        assert "softshard_service_connections_shut_total" in server.stats().to_prometheus()
