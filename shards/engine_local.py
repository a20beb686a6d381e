"""Runs shard tasks in processes of this machine."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import cv2

from .parallel import in_processes
from .shard_task import Job, PlannedShard, make_shard


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
    threads = cv2.getNumThreads()
    _one_thread()
    try:
        tasks = (shard.task() for shard in shards)
        yield from in_processes(make_shard, job, tasks, workers, in_order=False, prepare=_one_thread)
    finally:
        cv2.setNumThreads(threads)


def _one_thread() -> None:
    cv2.setNumThreads(0)  # one process a core; OpenCV's own threads would only get in each other's way
