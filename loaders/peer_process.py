"""The process that runs a peer, or another helper of softshard's, and ends with whoever wants it.

As a script, under the Python of the peer, it takes a job as JSON, says on standard output when it is ready, and measures for
each line that it reads. It imports nothing of softshard but peers.py, which does neither.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and of all its living descendants."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone in the meantime
            children.setdefault(int(fields[1]), []).append(int(entry))
            ticks[int(entry)] = int(fields[11]) + int(fields[12])
    total, waiting = 0, [pid]
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


def end_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it is gone: what hangs in C hears of nothing else.

    More exactly: when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG). Where a wrapper stands in between
    (a shell script, `conda run`), it is the wrapper that is followed. Does nothing but on Linux.

    Args:
        parent: the number of the process that wants this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Orphans fall to process 1, or to a "subreaper", which cannot be told from a wrapper.
        if os.getppid() == 1 != parent:
            sys.exit(f"expected process {parent}, which wants this one, found that it went before")


def main(arguments: list[str]) -> None:
    """`peer_process.py PARENT NAME JOB`: a line of JSON when it is ready, and one for each `{"warmup": n, "steps": n}`."""
    # What a peer prints goes to standard error: standard output is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    end_with(int(arguments[0]))
    # Where a script finds what is beside it, but for `python -P`.
    sys.path.insert(0, str(Path(__file__).parent))
    from peers import PEERS, Job

    name, job = arguments[1], Job(**json.loads(arguments[2]))
    start, _, distribution = PEERS[name]
    batches = start(job)
    next(batches)  # whatever form of the data set it needs is made, and its workers run
    print(json.dumps({"ready": name, "version": version(distribution)}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        for _ in range(asked["warmup"]):
            next(batches)
        wall, cpu = time.perf_counter(), _cpu_s(os.getpid())
        images = sum(next(batches) for _ in range(asked["steps"]))
        wall, cpu = time.perf_counter() - wall, _cpu_s(os.getpid()) - cpu
        answer = {"images_per_s": images / wall, "images_per_cpu_s": images / max(cpu, 1e-9)}
        print(json.dumps(answer), file=answers, flush=True)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main(sys.argv[1:])
