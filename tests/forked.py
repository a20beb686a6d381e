"""Commands in processes of their own, without what torch, timm and DALI cost to import in each of them.

    test  ->  one process that has imported them, and waits  ->  a fork of it for each rank, under torchrun's variables

A fork has what a new interpreter has after these imports: one thread, nothing computed, no file of the test's. torchrun
itself is in test_torchrun.py and test_maps_command.py.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from waiting import LONG_S

COMMAND = "import sys; from softshard.shards.cli import main; sys.exit(main())"
PRELOADED = (
    "training.train",
    "training.maps",
    "training.confusion",
    "training.teacher_store",
    "loaders.bench",
)
FAILED = 1  # torchrun's exit code, whatever that of a rank is
GRACE_S = 60  # for the other ranks to notice that one has failed


class Forks:
    """The waiting process. Close it.

    Args:
        preloaded: modules of softshard that it imports.
        inside: the beginning of a command that runs another, `unshare` for one.
    """

    def __init__(self, preloaded=PRELOADED, inside=()):
        self._process = subprocess.Popen(
            [*inside, sys.executable, __file__, *preloaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, *arguments, code=COMMAND, processes=1, seconds=LONG_S, **environment):
        """Run code as a main program; with several processes as torchrun does: one that fails ends all.

        Returns:
            subprocess.CompletedProcess, with what all ranks printed.

        Raises:
            subprocess.TimeoutExpired: it took longer; its processes are gone.
        """
        with tempfile.TemporaryDirectory() as folder:
            call = {
                "arguments": [*map(str, arguments)],
                "code": code,
                "processes": processes,
                "seconds": seconds,
                "environment": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
                "folder": folder,
            }
            print(json.dumps(call), file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], seconds + LONG_S)
            assert ready, "the process that forks commands does not answer"
            returncode = json.loads(self._process.stdout.readline())
            printed = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        if returncode is None:
            raise subprocess.TimeoutExpired(arguments, seconds, *printed)
        return subprocess.CompletedProcess(arguments, returncode, *printed)

    def close(self):
        """End it; it has nothing to clean up."""
        self._process.kill()
        self._process.wait()


def _serve(preloaded):
    for name in preloaded:
        __import__(f"softshard.{name}")
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(_run_ranks(json.loads(line))), file=answers, flush=True)


def _run_ranks(call):
    """The exit code of all; None where they took too long."""
    environment = call["environment"]
    if call["processes"] > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    running, codes = set(), []
    for rank in range(call["processes"]):
        if call["processes"] > 1:
            size = str(call["processes"])
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
        if (process := os.fork()) == 0:
            _be_the_command(call)
        running.add(process)
    deadline, late = time.monotonic() + call["seconds"], False
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            running.remove(process)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:
                deadline = min(deadline, time.monotonic() + GRACE_S)
        elif time.monotonic() > deadline:
            late = late or not any(codes)  # not for want of those that were killed here
            for each in running:
                os.kill(each, signal.SIGKILL)
        else:
            time.sleep(0.005)
    if late:
        return None
    return codes[0] if len(codes) == 1 else FAILED * any(codes)


def _be_the_command(call):
    """Never returns."""
    code = 1
    try:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            path = Path(call["folder"], name)
            os.dup2(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(call["environment"])
        sys.argv = ["softshard", *call["arguments"]]
        exec(compile(call["code"], "<command>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
        if isinstance(code, str):  # as an interpreter does
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
