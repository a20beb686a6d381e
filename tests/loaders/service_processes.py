"""Servers of the data service in processes of their own, on free ports of 127.0.0.1, and batches to compare.

Each runs the command `softshard serve`, in a process forked from one that has imported everything: importing torch, DALI
and pyarrow is most of what a start costs.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import urllib.request
from contextlib import contextmanager

import torch
from waiting import LONG_S

from softshard.loaders import Augment

SERVE = "import sys; from softshard.shards.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
SMALL = {
    "batch_size": 12,
    "augment": Augment(size=16),
    "seed": 4,
    "window": 30,
    "last_batch": "pad",
}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["softshard.loaders.service_run", "softshard.shards.cli"])


def run_serve(arguments, environment, said, log):
    """The command; in the server's process."""
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout = os.fdopen(said.fileno(), "w", closefd=False)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 2)
    from softshard.shards.cli import main

    sys.exit(main(["serve", *arguments]))


class ServerProcess:
    """`softshard serve`; begins at once, and can be asked when it is `ready`."""

    def __init__(self, *arguments, listen="127.0.0.1:0", threads=1):
        self._log = tempfile.NamedTemporaryFile("r", suffix=".log")  # noqa: SIM115 (it goes with this)
        heard, said = FORKS.Pipe(duplex=False)
        command = [*map(str, arguments), "--listen", listen, "--http", "127.0.0.1:0"]
        command += ["--threads", str(threads), "--max-recipes", "64"]
        self._process = FORKS.Process(
            target=run_serve, args=(command, dict(os.environ), said, self._log.name)
        )
        self._process.start()
        said.close()
        self._heard = heard

    def ready(self):
        """Wait until it can be asked."""
        assert self._heard.poll(LONG_S), "neither a word nor an end"
        with self._heard, open(self._heard.fileno(), closefd=False) as lines:
            line = lines.readline()
        if not line:
            raise RuntimeError(self._log.read())
        said = json.loads(line)
        self.url, self.http = said["listen"], said["http"]
        self.address = self.url.rpartition("/")[2]
        return self

    def get(self, path):
        with urllib.request.urlopen(self.http + path, timeout=LONG_S) as answer:
            return answer.read().decode()

    def stats(self):
        return json.loads(self.get("/stats"))

    def send(self, number):
        os.kill(self._process.pid, number)

    def stop(self, number=signal.SIGTERM):
        """End it; returns (exit code, log lines)."""
        if self._process.is_alive():
            self.send(signal.SIGCONT)
            self.send(number)
        self._process.join(LONG_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(LONG_S)
        self._log.seek(0)
        log = self._log.read().splitlines()
        return self._process.exitcode, [json.loads(line) for line in log if line.startswith("{")]


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
