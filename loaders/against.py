"""Runs the peers of peers.py, each in a process of its own, so that they can take turns with the loader."""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from ..shards.errors import UsageError
from . import peer_process
from .peers import PEERS, Job

_START_S = 1800.0  # making its own form of a large data set may take long
_STEP_S = 600.0
_LINES_SHOWN = 3


def parse_peers(text: str) -> dict[str, str]:
    """`--against webdataset,ffcv=/opt/ffcv/bin/python` as name to Python, this one where none is given.

    Raises:
        UsageError: an unknown peer, one twice, or one that this Python does not have.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, python = part.strip().partition("=")
        if name not in PEERS or name in found:
            raise UsageError(
                f"--against: expected distinct names of {', '.join(PEERS)}, found {name!r} in {text!r}"
            )
        if not python and not _importable(PEERS[name][1]):
            raise UsageError(
                f"--against {name}: expected the package {PEERS[name][2]!r}, found none. Install it, or name a Python that "
                f"has it: --against {name}=/path/to/python"
            )
        found[name] = python or sys.executable
    return found


def _importable(module: str) -> bool:
    if (
        module.partition(".")[0] not in packages_distributions()
    ):  # a script beside the caller's may have its name
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


class Peer:
    """One peer in its process; as a context manager, which ends it.

    To be built in a thread that outlives it: the process ends with that one (see peer_process.end_with).

    Args:
        name: of PEERS.
        job: what it does.
        python: that runs it.

    Raises:
        UsageError: it does not start; its last words are shown.
    """

    def __init__(self, name: str, job: Job, python: str = sys.executable) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        command = [python, str(Path(peer_process.__file__)), str(os.getpid()), name, job.to_json()]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                bufsize=1,
            )
        except OSError as error:
            self._errors.close()
            raise UsageError(f"--against {name}: expected a Python at {python}, found: {error}") from error
        try:
            self.version = str(self._answer(_START_S)["version"])
        except BaseException:
            self.close()
            raise

    def measure(self, warmup: int, steps: int) -> tuple[float, float]:
        """Images per second, and per CPU-second of the process and its workers, over `steps` batches."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"warmup": warmup, "steps": steps}) + "\n")
        self._process.stdin.flush()
        answer = self._answer(_STEP_S)
        return answer["images_per_s"], answer["images_per_cpu_s"]

    def _answer(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + patience_s
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not ready.select(1.0):
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"{self.name}: expected an answer within {patience_s:.0f} s, found none. {self._last_words()}"
                    )
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise UsageError(
            f"{self.name}: expected a peer that runs, found one that ended with {self._process.wait(10)}. "
            f"{self._last_words()}"
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return "It said: " + " / ".join(lines[-_LINES_SHOWN:]) if lines else "It said nothing"

    def close(self) -> None:
        """End the process and its workers."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # its loop over lines ends
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def described(started: Sequence[Peer]) -> dict[str, str]:
    """Name to version, for result files."""
    return {peer.name: peer.version for peer in started}
