"""Runs shard tasks in processes of this machine."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from .errors import SoftshardError
from .parallel import end_with_parent
from .shard_task import Job, PlannedShard, ShardTask, make_shard


def run_locally(
    job: Job, shards: Iterable[PlannedShard], workers: int
) -> Generator[dict[str, Any], None, None]:
    """Make shards; yields their receipts as they are finished, in no fixed order.

    Args:
        job: what the tasks share.
        shards: looked up a few at a time, so that the plan is never copied whole.
        workers: processes; one makes the shards in this process.

    Raises:
        SoftshardError: a process died; the shards that are finished stay.
    """
    if workers <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(0)
        try:
            for shard in shards:
                yield make_shard(job, shard.task())
        finally:
            cv2.setNumThreads(threads)
        return
    # Spawned, not forked: a fork of a process with threads (OpenCV's, a notebook's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        queue = iter(shards)
        running: set[Future[dict[str, Any]]] = set()
        while True:
            # Two tasks a worker: enough that none waits.
            while len(running) < 2 * workers and (shard := next(queue, None)) is not None:
                running.add(pool.submit(_make_shard_in_worker, shard.task()))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise SoftshardError(
            "pack: expected its processes to live, found one that died (killed, out of memory, or started "
            "by a script that calls pack outside of `if __name__ == '__main__':`); finished shards are "
            "kept. Run it again to continue, with fewer workers if memory was short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _worker_job
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # one process a core; OpenCV's own threads would only get in each other's way
    _worker_job = job


def _make_shard_in_worker(task: ShardTask) -> dict[str, Any]:
    assert _worker_job is not None
    return make_shard(_worker_job, task)
