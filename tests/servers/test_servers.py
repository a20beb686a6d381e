"""The servers that tests run against do what the tests take for granted."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from servers.proxy import FaultyProxy

ANSWER = bytes(range(256)) * 400


@pytest.fixture
def one_answer_each():
    """A server that sends 102,400 bytes for each connection's first bytes, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if connection.recv(100):
                    connection.sendall(ANSWER)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def ask(proxy):
    """(bytes received, whether the connection was reset)."""
    received = b""
    try:
        with connect(proxy) as client:
            client.sendall(b"please")
            while data := client.recv(4096):
                received += data
    except ConnectionResetError:
        return received, True
    return received, False


def connect(proxy):
    return socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint).port), timeout=60)


def test_without_faults_the_proxy_is_transparent_and_counts(one_answer_each):
    with FaultyProxy(one_answer_each) as proxy:
        assert [ask(proxy) for _ in range(3)] == [(ANSWER, False)] * 3
        assert (proxy.connections, proxy.faults, proxy.bytes_out) == (3, 0, 3 * len(ANSWER))


def test_a_connection_is_reset_after_so_many_bytes(one_answer_each):
    with FaultyProxy(one_answer_each) as proxy:
        proxy.reset_after = 20_000
        received, reset = ask(proxy)
        assert reset
        assert ANSWER.startswith(received)
        assert (proxy.faults, proxy.bytes_out) == (1, 20_000)
        proxy.reset_after = None
        assert ask(proxy) == (ANSWER, False)


def test_connections_are_refused_until_they_are_not(one_answer_each):
    with FaultyProxy(one_answer_each) as proxy:
        proxy.refuse = True
        assert ask(proxy) == (b"", True)
        proxy.refuse = False
        assert ask(proxy) == (ANSWER, False)


def test_a_share_of_the_connections_is_hit_and_the_seed_says_which(one_answer_each):
    runs = []
    for seed in (1, 1, 2):
        with FaultyProxy(one_answer_each, seed=seed) as proxy:
            proxy.refuse, proxy.share = True, 0.5
            runs.append([ask(proxy)[1] for _ in range(20)])
            assert proxy.faults == sum(runs[-1])
    assert runs[0] == runs[1] != runs[2]
    assert 4 < sum(runs[0]) < 16


def test_a_share_of_the_answers_breaks_in_the_middle(one_answer_each):
    with FaultyProxy(one_answer_each, seed=1) as proxy:
        proxy.break_share, proxy.break_within = 0.5, len(ANSWER)
        received = [ask(proxy) for _ in range(20)]
        broken = [answer for answer, reset in received if reset]
        assert 4 < len(broken) == proxy.faults < 16
        assert all(ANSWER.startswith(answer) for answer, _ in received)
        assert len(set(map(len, broken))) > 4


def test_delay_and_rate_hold_an_answer_back(one_answer_each):
    with FaultyProxy(one_answer_each) as proxy:
        proxy.delay_s = 3600
        with connect(proxy) as client:
            client.sendall(b"please")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
        proxy.delay_s, proxy.bytes_per_s = 0, 1
        with connect(proxy) as client:
            client.sendall(b"please")
            assert client.recv(1) == ANSWER[:1]
        proxy.bytes_per_s = None
        assert ask(proxy) == (ANSWER, False)


def test_a_server_that_is_not_there_is_a_reset_connection():
    with FaultyProxy("http://127.0.0.1:9") as proxy:  # nothing listens at the discard port
        assert ask(proxy) == (b"", True)


def test_objects_outlive_the_servers_that_keep_them(s3_server, s3_bucket, s3_client):
    bucket = s3_bucket.removeprefix("s3://")
    s3_client.put_object(Bucket=bucket, Key="a", Body=b"1234")
    s3_server.kill("object")
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        s3_client.get_object(Bucket=bucket, Key="a")
    s3_server.start("object")
    assert s3_client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1234"
    s3_server.kill()
    s3_server.start()
    assert s3_client.get_object(Bucket=bucket, Key="a", Range="bytes=1-2")["Body"].read() == b"23"


def test_the_servers_die_with_the_process_that_started_them(tmp_path, s3_server):
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from servers.swift import Swift
with Swift(Path({str(tmp_path / "state")!r})) as server:
    print(*(process.pid for process in server._processes.values()), flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 4
    assert all(has_ended(pid) for pid in pids)


def has_ended(pid):
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(process, "rb"):
        return bool(select.select([process], [], [], 240)[0])
