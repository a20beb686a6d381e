"""Runs shard tasks on Ray: a cluster, or the processes that Ray starts on this machine.

    driver: plan -> a few tasks a worker in flight -> receipts -> manifest
    nodes:  task -> shard and receipt, written by the node itself

Images and shards never pass through Ray's object store: it holds the job, the samples' names of the tasks in flight,
and receipts. A task whose worker or node is lost runs again elsewhere; what the lost one may still write is the same
shard under the same name.

A run that ends early (an interrupt, too many bad inputs, a kill) takes its tasks with it: they hold on to a lifeline,
an actor that ends with the run, and stop between two samples when it has gone. `ray.cancel` would do if it did not
now and then abort the driver's process (Ray 2.60, "Tried to complete task that was not pending", in 2 of 300 runs that
were cancelled).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import cv2

from .cores import usable_cores
from .errors import MissingExtraError, RefusedError, SoftshardError, UsageError
from .plan import PlannedSample
from .schema import MIB
from .shard_task import Job, PlannedShard, ShardTask, make_shard

ADDRESS_VARIABLE = "RAY_ADDRESS"
_RETRIES = 5  # of a task, when its worker or node is lost
_LOST = (
    "pack: expected its tasks to live, found one that lost its worker {times} times (killed, out of memory, or the "
    "machine went away): {found} Finished shards are kept. Run it again to continue, with fewer workers if memory was "
    "short"
)
_NO_CLUSTER = "Start one (ray start --head), give its address, or use --engine local"
# Ray turns tokens on by itself for a cluster that it finds, not for an address that it is given.
_NO_TOKEN = (
    "It wants a token: set RAY_AUTH_MODE=token, with the token of its first machine in ~/.ray/auth_token"
)
ENVIRONMENT = "what runs on a Ray cluster has the environment that its machine's `ray start` had, not yours"
_CONNECT_S = 10.0
_STOP_S = 30.0  # for tasks to stop: a sample's time, or that of a read from a slow server
# Ray would take a third of the memory; names and receipts of a few hundred tasks in flight need this.
_OBJECT_STORE_BYTES = 256 * MIB


def run_on_ray(
    job: Job, shards: Iterable[PlannedShard], workers: int | None
) -> Generator[dict[str, Any], None, None]:
    """Make shards; yields their receipts as they are finished, in no fixed order.

    Runs on the Ray that the caller has initialised, which is left running; else on the cluster that RAY_ADDRESS
    names; else on one that is started on this machine and stopped at the end. Close the generator to stop what runs:
    it returns when no task writes any more, or after half a minute (a task may hang in a read; it stops then).

    Args:
        job: what the tasks share.
        shards: looked up a few at a time, so that the plan is never copied whole.
        workers: tasks that run at once; by default as many as the cluster has CPUs, and more when nodes join.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: no cluster at RAY_ADDRESS, or a node that does not see the source or destination or has another
            pixel stack.
        SoftshardError: a task lost its worker or node again and again; the shards that are finished stay.
    """
    ray = import_ray()
    with connected(ray, workers):
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_make_shard_on_node)
        run = _Run(os.getcwd(), secrets.token_hex(8), _start_lifeline(ray))
        shared = ray.put((job, run))
        queue = iter(shards)
        running: list[Any] = []
        try:
            while True:
                limit = workers or _num_in_flight(ray)
                while len(running) < limit and (shard := next(queue, None)) is not None:
                    running.append(task.remote(shared, shard.task()))
                if not running:
                    return
                done, running = ray.wait(running)
                for reference in done:
                    yield result_of(ray, reference, _LOST, times=_RETRIES + 1)
        finally:
            ray.kill(run.lifeline)
            if running:
                ray.wait(running, num_returns=len(running), timeout=_STOP_S, fetch_local=False)


@dataclass(frozen=True)
class _Run:
    """What the tasks know of the run besides its job."""

    folder: str  # the driver's working folder, which relative paths start from
    id: str
    lifeline: Any


def import_ray() -> ModuleType:
    # Read when ray is imported. Who wants Ray's makers to get statistics sets it to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray", error) from error
    return ray


@contextlib.contextmanager
def connected(ray: ModuleType, workers: int | None, address: str | None = None) -> Iterator[None]:
    """Be connected to a Ray, by default that of RAY_ADDRESS or else one of this machine; what is started here is stopped."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    if "://" in address:
        # Ray Client's tasks would outlive a killed run by half a minute, and write beside the one that continues.
        raise UsageError(
            f"{ADDRESS_VARIABLE}: expected HOST:PORT or auto, found {address!r}, an address of Ray Client. Run it on a "
            "machine of the cluster (ray job submit does), or give the address that ray start printed"
        )
    settings: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        settings["num_cpus"] = workers or usable_cores()
        settings["object_store_memory"] = _OBJECT_STORE_BYTES
        settings["include_dashboard"] = False
    try:
        if ":" in address:  # Ray itself would try for a minute and end the process
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ray.init(**settings)
    except Exception as error:  # a Ray of this machine that takes too long to start is just that to Ray
        found = (str(error).strip() or repr(error)).splitlines()[0]
        where = "this machine" if address == "local" else f"{ADDRESS_VARIABLE}={address}"
        advice = _NO_TOKEN if _wants_a_token(error) else _NO_CLUSTER
        raise UsageError(
            f"{where}: expected a Ray of version {ray.__version__}, found: {found}. {advice}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray leaves its own behind
                signal.signal(number, handler)


def _wants_a_token(error: BaseException | None) -> bool:
    """Whether a cluster did not let in; Ray says so in the text of what an error comes from."""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__} {error}":
            return True
        error = error.__cause__ or error.__context__
    return False


def _num_in_flight(ray: ModuleType) -> int:
    """Enough that no CPU waits, and that an autoscaler sees there is more to do; far from the whole plan."""
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    return num_cpus + max(2, num_cpus // 4)


def result_of(ray: ModuleType, reference: Any, lost: str, **more: object) -> Any:
    """What a task returned; its own error where it failed, as if it had run here.

    Args:
        ray: the module.
        reference: to the task's result.
        lost: the message for a task whose process was lost, with `{found}` for what Ray says.
        more: what else it has places for.

    Raises:
        SoftshardError: with that message.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RefusedError):
            raise RefusedError(f"{error.cause}; {ENVIRONMENT}") from None
        if isinstance(error.cause, SoftshardError):
            raise error.cause from None
        raise error.cause from error  # a full disk, or a bug: Ray's text has the trace on the node
    except ray.exceptions.RayError as error:
        found = (str(error).strip() or repr(error)).splitlines()[0]
        raise SoftshardError(lost.format(found=f"{type(error).__name__}: {found}", **more)) from error


class _Lifeline:
    """Lives as long as the run."""

    async def wait(self) -> None:
        await asyncio.Event().wait()


def _start_lifeline(ray: ModuleType) -> Any:
    """Where the driver is, so that it is not lost with another node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Lifeline).remote()


# ---- On the nodes


class _StoppedError(SoftshardError):
    """The run that a task belongs to is over."""


def _make_shard_on_node(shared: tuple[Job, _Run], task: ShardTask) -> dict[str, Any]:
    """A task: `make_shard` on a node of the cluster, with paths as they are in the driver's folder."""
    job, run = shared
    local = [
        *([] if job.storage.remote else [job.storage.root]),
        *([] if task.folder.remote else [task.folder.name]),
        *([] if job.label_maps is None else [str(job.label_maps)]),
    ]
    for path in local:
        if not os.path.exists(os.path.join(run.folder, path)):
            raise UsageError(
                f"{path}: expected a folder that all machines of the cluster share, found none on "
                f"{socket.gethostname()}. Mount it there under the same path, or use a bucket"
            )
    # Paths in errors, and so in the ledger, are those that the local engine would show.
    relative = not all(map(os.path.isabs, local))
    samples = _UntilStopped(task.samples, _stopped(run))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # one task a CPU; OpenCV's own threads would only get in each other's way
    try:
        with contextlib.chdir(run.folder) if relative else contextlib.nullcontext():
            return make_shard(job, replace(task, samples=samples))
    finally:
        cv2.setNumThreads(threads)  # the process may be the caller's, for other tasks


class _UntilStopped(Sequence[PlannedSample]):
    """The samples of a shard, the next only while the run goes on."""

    def __init__(self, samples: Sequence[PlannedSample], stopped: threading.Event) -> None:
        self._samples, self._stopped = samples, stopped

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        if self._stopped.is_set():
            raise _StoppedError(
                "pack: the run was stopped. Finished shards are kept; run it again to continue"
            )
        return self._samples[index]


_watched: dict[str, threading.Event] = {}


def _stopped(run: _Run) -> threading.Event:
    """Set when the run is over; a process watches a run once, however many of its tasks it makes."""
    if run.id not in _watched:
        _watched[run.id] = stopped = threading.Event()
        threading.Thread(target=_watch, args=(run, stopped), daemon=True).start()
    return _watched[run.id]


def _watch(run: _Run, stopped: threading.Event) -> None:
    import ray
    import ray.exceptions

    # Not in the task's own thread: Ray takes a thread that waits there for an idle CPU.
    while not stopped.is_set():
        try:
            ray.get(run.lifeline.wait.remote())
        except ray.exceptions.ActorUnavailableError:
            time.sleep(1)  # the network
        except Exception:  # the lifeline has gone, or Ray has
            stopped.set()
