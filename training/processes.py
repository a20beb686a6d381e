"""A training process and its surroundings: the group it belongs to, signals, random generators."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


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


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """While it lasts, SIGTERM, SIGINT and SIGHUP do not kill; the function given says which has come, 0 for none.

    A second one kills as ever. SIGHUP that is ignored (nohup) stays so.
    """
    received = 0

    def note(number: int, _frame: object) -> None:
        nonlocal received
        received = number
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield lambda: received
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
