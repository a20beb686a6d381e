"""Processes that train together were given the same call.

Each machine of several starts its processes with a command of its own. Where two commands differ nothing fails: each
process steps at its own learning rate, or over another order of the samples, and the run is worth nothing.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from torch import distributed as dist

from ..loaders.loader import Loader
from ..shards.errors import UsageError
from ..shards.files import sha256_hex
from ..shards.text_limits import some
from .recipes import Recipe

STEP = "step of the checkpoint"
_LONGEST_SHOWN = 60  # characters; the keys of a subset are many


def facts_of_call(
    recipe: Recipe, loader: Loader, val_loader: Loader | None, **others: object
) -> dict[str, str]:
    """All that must be the same for every process, by name: the recipe, the data and where they stand, and more."""
    data = {f"{name} of the data": value for name, value in loader.state_dict().items() if name != "bad"}
    val = None if val_loader is None else val_loader.state_dict()["fingerprint"]
    facts = (
        dataclasses.asdict(recipe) | data | {"validation set": val} | others
    )  # bad samples are a process's own
    return {name: _shown(value) for name, value in facts.items()}


def check_same_call(facts: Mapping[str, str], world_size: int) -> None:
    """Refuse a run of processes with different calls; called by all of them together, and raised by all.

    Args:
        facts: of this process, as `facts_of_call` gives them.
        world_size: number of processes.

    Raises:
        UsageError: naming the first process that has another call, its machine, and all that differs; or one ended.
    """
    if world_size == 1:
        return
    gathered: list[Any] = [None] * world_size
    try:
        dist.all_gather_object(gathered, (platform.node(), dict(facts)))
    except RuntimeError as error:  # of gloo and of NCCL; its text is about sockets
        raise UsageError(
            f"expected all {world_size} processes to begin, found one gone or silent ({type(error).__name__}). Look at "
            "what it said itself, on its own machine"
        ) from error
    if problem := first_difference(gathered):
        raise UsageError(problem)


def first_difference(gathered: Sequence[tuple[str, Mapping[str, str]]]) -> str | None:
    """What is wrong with (machine, facts) of all processes, in their order; None where the facts are equal."""
    first = gathered[0][1]
    others = [rank for rank, (_, facts) in enumerate(gathered) if facts != first]
    if not others:
        return None
    machine, facts = gathered[others[0]]
    names = [name for name in {**first, **facts} if first.get(name) != facts.get(name)]
    told = some([f"{name} ({facts.get(name)}, not {first.get(name)})" for name in names], show=str)
    advice = "Start all with the same options"
    if STEP in names:
        advice = "Give --resume an --out that all machines see, such as a shared folder or a copy of it"
    more = f" and {len(others) - 1} more processes" if len(others) > 1 else ""
    return f"process {others[0]} on {machine}{more}: expected the call of process 0, found another {told}. {advice}"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else sha256_hex(text.encode())[:12]
