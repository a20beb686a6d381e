"""A training process and its surroundings: the group it belongs to, signals, random generators."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@contextmanager
def process_group(backend: str, rank: int, world_size: int) -> Iterator[None]:
    """torch.distributed for as long as the block lasts; the caller's own group is used and left alone."""
    if dist.is_initialized():  # the caller's, who also ends it
        yield
        return
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, at a place where nothing is half done.

    What waits ends as at Ctrl-C: a loader is less patient with its thread then (Background.next), and no `except Exception`
    on the way takes this for a fault.
    """


class StopSignal:
    """Whether a signal has asked this process to stop; called, it says which, 0 for none.

    Args:
        alone: whether this is the only process, which may stop by itself. Several agree on a step first: some would wait
            for the others for ever.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._number = 0
        self._raises = False

    def __call__(self) -> int:
        return self._number

    def note(self, number: int) -> None:
        """A signal has come."""
        self._number = number
        if self._raises:
            self._raises = False  # not left to the block's `finally`, which this may come in
            raise Stopped

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends, at once, where the process is alone.

        Raises:
            Stopped: in the block.
        """
        try:
            self._raises = self._alone
            if self._alone and self._number:
                raise Stopped
            yield
        finally:
            self._raises = False

    def until(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches until a signal comes, also while one is waited for: storage that is away brings none.

        Whoever gives an iterator and keeps it decides when it is closed, which may take as long as such storage does.
        """
        iterator = iter(batches)
        while True:
            try:
                with self.interruptible():
                    batch = next(iterator, None)
            except Stopped:
                return
            if batch is None:
                return
            yield batch


@contextmanager
def stop_signal(alone: bool = True) -> Iterator[StopSignal]:
    """While it lasts, SIGTERM, SIGINT and SIGHUP do not kill: what is given says whether one has come.

    A second one kills as ever. SIGHUP that is ignored (nohup) stays so.
    """
    stop = StopSignal(alone)

    def note(number: int, _frame: object) -> None:
        signal.signal(number, previous[number])
        stop.note(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def rng_states(world_size: int, on_gpu: bool) -> list[dict[str, Tensor]]:
    """The random generators of every rank, on every rank."""
    own = {"cpu": torch.get_rng_state()}
    if on_gpu:
        own["cuda"] = torch.cuda.get_rng_state()
    if world_size == 1:
        return [own]
    states: list[Any] = [None] * world_size
    dist.all_gather_object(states, own)
    return states


def state_of_all(state: dict[str, Any], world_size: int) -> dict[str, Any]:
    """A rank's loader state with the bad samples that all ranks have met; called by all of them together."""
    if world_size == 1:
        return state
    met: list[Any] = [None] * world_size
    dist.all_gather_object(met, state["bad"])
    return state | {"bad": sorted(set().union(*met))}


def state_of_one(state: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """The same back: a rank's share of the bad samples, so that their sum over any number of ranks stays what it was."""
    return state | {"bad": state.get("bad", [])[rank::world_size]}


def set_rng_state(states: list[dict[str, Tensor]], rank: int, world_size: int, on_gpu: bool) -> None:
    """Give this rank the generator states of a checkpoint."""
    # Another number of ranks sees the same batches, but there is nothing to continue for its dropout.
    if len(states) != world_size:
        return
    torch.set_rng_state(states[rank]["cpu"])
    if on_gpu and "cuda" in states[rank]:
        torch.cuda.set_rng_state(states[rank]["cuda"])


def sum_of_all(number: int, world_size: int, device: str) -> int:
    """The sum of a number of each rank; called by all of them together."""
    if world_size == 1:
        return number
    total = torch.tensor(number, device=device)
    dist.all_reduce(total)
    return int(total.item())
