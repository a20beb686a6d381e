"""Servers of the data service in processes of their own, on free ports of 127.0.0.1, and batches to compare."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import torch

from softshard.loaders import Augment

SERVE = "import sys; from softshard.shards.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
SMALL = {
    "batch_size": 12,
    "augment": Augment(size=16),
    "seed": 4,
    "window": 30,
    "last_batch": "pad",
}


class ServerProcess:
    """`softshard serve`, ready to be asked."""

    def __init__(self, *arguments, listen="127.0.0.1:0", threads=1):
        command = [
            sys.executable,
            "-c",
            SERVE,
            *map(str, arguments),
            "--listen",
            listen,
            "--http",
            "127.0.0.1:0",
        ]
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads), "--max-recipes", "64"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self):
        """Wait until it can be asked."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read())
        said = json.loads(line)
        self.url, self.http = said["listen"], said["http"]
        self.address = self.url.rpartition("/")[2]
        return self

    def get(self, path):
        with urllib.request.urlopen(self.http + path, timeout=10) as answer:
            return answer.read().decode()

    def stats(self):
        return json.loads(self.get("/stats"))

    def send(self, number):
        os.kill(self.process.pid, number)

    def stop(self, number=signal.SIGTERM):
        """End it; returns (exit code, log lines)."""
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(number)
        try:
            _, log = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            _, log = self.process.communicate(timeout=30)
        return self.process.returncode, [
            json.loads(line) for line in log.splitlines() if line.startswith("{")
        ]


@contextmanager
def serving(*arguments, **options):
    """A server that ends with the body."""
    server = ServerProcess(*arguments, **options)
    try:
        yield server.ready()
    finally:
        server.stop()


@contextmanager
def serving_two(*arguments, **options):
    """Two servers of the same data sets, which start side by side."""
    servers = [ServerProcess(*arguments, **options) for _ in range(2)]
    try:
        yield [server.ready() for server in servers]
    finally:
        for server in servers:
            server.stop()


def assert_same_batches(found, expected):
    """Every field of every batch, bit by bit."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        assert_same_batch(mine, other)


def assert_same_batch(mine, other):
    assert mine.keys == other.keys
    for name, value in other.to_dict().items():
        assert_same_values(getattr(mine, name), value, name)


def assert_same_values(got, value, name):
    """Tensors bit by bit, alone, in named tuples and in dicts; all else by its equality."""
    assert type(got) is type(value), name
    if isinstance(value, torch.Tensor):
        assert (got.dtype, got.shape, got.stride()) == (value.dtype, value.shape, value.stride()), name
        assert torch.equal(got, value), name
    elif isinstance(value, tuple):
        for mine, other in zip(got, value, strict=True):
            assert_same_values(mine, other, name)
    elif isinstance(value, dict):
        assert list(got) == list(value), name
        for part, other in value.items():
            assert_same_values(got[part], other, f"{name} {part}")
    else:
        assert got == value, name
