"""Runs a function over many items in order: in processes of this machine, or on Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from .errors import SoftshardError, UsageError
from .parallel import in_processes, num_workers

ENGINES = ("local", "ray")
_IN_FLIGHT_PER_CPU = 2

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
    if engine not in ENGINES:
        raise UsageError(f"engine: expected one of {', '.join(ENGINES)}, found {engine!r}")
    if engine == "local":
        yield from in_processes(function, shared, items, num_workers(workers))
        return
    if workers is not None:
        num_workers(workers)
    from .engine_ray import connected, import_ray

    ray = import_ray()
    with connected(ray, workers):
        task = ray.remote(num_cpus=1, max_retries=3)(function)
        reference = ray.put(shared)
        limit = workers or _IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(task.remote(reference, item))
            if len(waiting) >= limit:
                yield _result(ray, waiting.popleft())
        while waiting:
            yield _result(ray, waiting.popleft())


def _result(ray: Any, reference: Any) -> Any:
    """What a task returned; its own error where it failed, as if it had run here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SoftshardError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise SoftshardError(
            f"expected tasks to live, found one whose worker or machine was lost again and again: {error}. Run it again"
        ) from error
