"""Runs a function over many items in order: in processes of this machine, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeVar

from .errors import check_choice
from .parallel import ENGINES, few_at_a_time, in_processes, num_workers

_IN_FLIGHT_PER_CPU = 2
_LOST = "expected tasks to live, found one whose worker or machine was lost again and again: {found}. Run it again"

S = TypeVar("S")
T = TypeVar("T")


def run_in_order(
    function: Callable[[Any, S], T], shared: Any, items: Iterable[S], *, workers: int | None, engine: str
) -> Generator[T, None, None]:
    """`function(shared, item)` for every item, in their order, so that what is made of the results is the same anyhow.

    Args:
        function: of a module, so that another process can import it.
        shared: sent to each process, or into Ray's store, once.
        items: looked at a few at a time.
        workers: processes, or tasks that run at once; by default one a core, of the machine or of the cluster.
        engine: `local` or `ray` (see `engine_ray`).

    Raises:
        UsageError: another engine; fewer than one worker; no cluster at RAY_ADDRESS.
        MissingExtraError: ray is not installed.
        SoftshardError: a process died.
    """
    check_choice("engine", engine, ENGINES)
    processes = num_workers(workers)
    if engine == "local":
        yield from in_processes(function, shared, items, processes)
        return
    from .engine_ray import connected, import_ray, result_of

    ray = import_ray()
    with connected(ray, workers):
        task = ray.remote(num_cpus=1, max_retries=3)(function)
        reference = ray.put(shared)
        limit = workers or _IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        begin, end = partial(task.remote, reference), partial(result_of, ray, lost=_LOST)
        yield from few_at_a_time(begin, end, items, limit)
