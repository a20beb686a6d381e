"""Servers of the data service in processes of their own, for benchmarks: started, asked, killed, started anew.

Each runs the command `softshard serve`, in a process forked from one that has imported everything: what Python takes to
import torch, five seconds of CPU time, would otherwise be most of what a benchmark of restarts does.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_READY_S = 120.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["softshard.loaders.service_run", "softshard.shards.cli"])


def run_serve(arguments: list[str], cores: Collection[int] | None, said: Connection, log: str) -> None:
    """The command; in the server's process."""
    if cores is not None:
        os.sched_setaffinity(0, cores)  # first of all: its threads begin where it is
    sys.stdout = os.fdopen(said.fileno(), "w", closefd=False)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 2)
    from softshard.shards.cli import main

    sys.exit(main(["serve", *arguments]))


class ServerProcess:
    """`softshard serve`, at the same address whenever it is started.

    Args:
        arguments: of the command: data sets and options.
        log: file for what it logs; None for nowhere.
        cores: that it may use; None for those of this process.
    """

    def __init__(
        self, *arguments: str | Path, log: Path | None = None, cores: Collection[int] | None = None
    ) -> None:
        self._arguments, self._cores = [*map(str, arguments)], cores
        self._log = os.devnull if log is None else str(log)
        self._listen = "127.0.0.1:0"
        self.url = self.http = ""
        self.start()

    def start(self) -> None:
        """Begin; `ready` is set when it can be asked."""
        self.ready = ready = threading.Event()
        heard, said = _FORKS.Pipe(duplex=False)
        arguments = [*self._arguments, "--listen", self._listen, "--http", "127.0.0.1:0"]
        self.process = _FORKS.Process(target=run_serve, args=(arguments, self._cores, said, self._log))
        self.process.start()
        said.close()
        threading.Thread(target=self._read, args=(heard, ready), daemon=True).start()

    def _read(self, heard: Connection, ready: threading.Event) -> None:
        with heard, open(heard.fileno(), closefd=False) as lines:
            if line := lines.readline():
                where = json.loads(line)
                self.url, self.http = where["listen"], where["http"]
                self._listen = self.url.rpartition("/")[2]
                ready.set()
                lines.read()  # until it ends

    def wait(self) -> ServerProcess:
        """Until it can be asked."""
        if not self.ready.wait(_READY_S):
            raise SystemExit(f"serve: expected it to start within {_READY_S:g} s. Its log: {self._log}")
        return self

    def kill(self) -> None:
        """At once, whatever it is doing."""
        self.process.kill()
        self.process.join()

    def stats(self) -> dict[str, Any]:
        """What it says at /stats."""
        with urllib.request.urlopen(f"{self.http}/stats", timeout=30) as answer:
            return json.load(answer)

    def cpu_s(self) -> float:
        """Seconds of CPU time that it has used, in user and kernel mode, over all its threads."""
        assert self.process.pid is not None
        return time.clock_gettime(~self.process.pid << 3 | 2)  # its clock, as clock_getcpuclockid(3) names it


@contextlib.contextmanager
def serving(
    num: int,
    *arguments: str | Path,
    log: Path | None = None,
    cores: Sequence[Collection[int] | None] | None = None,
) -> Iterator[list[ServerProcess]]:
    """Some servers of the same data sets, each on its cores, which are gone at the end."""
    servers = [ServerProcess(*arguments, log=log, cores=each) for each in cores or [None] * num]
    try:
        yield [server.wait() for server in servers]
    finally:
        for server in servers:
            server.kill()
