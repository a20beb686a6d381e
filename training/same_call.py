"""Processes that train together were given the same call.

Each machine of several starts its processes with a command of its own. Where two commands differ nothing fails: each
process steps at its own learning rate, or over another order of the samples, and the run is worth nothing.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch import nn

from ..loaders.loader import Loader
from ..shards.errors import UsageError
from ..shards.files import sha256_hex
from ..shards.text_limits import counted, some
from .checkpoint import checkpoint_sha256, state_sha256
from .recipes import Recipe

STEP = "step of the checkpoint"
_LONGEST_SHOWN = 60  # characters; the keys of a subset are many


def facts_of_call(
    recipe: Recipe, loader: Loader, val_loader: Loader | None, **others: object
) -> dict[str, str]:
    """All that must be the same for every process, by name: the recipe, the data and where they stand, and more."""
    # Bad samples are a process's own.
    data = {f"{name} of the data": value for name, value in loader.state_dict().items() if name != "bad"}
    val = None if val_loader is None else val_loader.state_dict()["fingerprint"]
    facts = dataclasses.asdict(recipe) | data | {"validation set": val} | others
    return {name: _shown(value) for name, value in facts.items()}


def sha256_of_start(model: nn.Module, checkpoint: Path | None, from_weights: bool) -> str | None:
    """Of what a run begins with, since a path may rightly differ by machine.

    DDP gives all processes the first one's model as it is wrapped: not their averages, nor what a checkpoint brings later.

    Args:
        model: as it begins.
        checkpoint: that the run continues from, or None.
        from_weights: whether the model has weights that somebody gave, not its seed's.
    """
    if checkpoint is not None:
        return checkpoint_sha256(checkpoint)
    return state_sha256(model) if from_weights else None


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
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
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
    advice = "Start all with the same options and files"
    if STEP in names:
        advice += (
            ", and give --resume an --out that all machines see, such as a shared folder or a copy of it"
        )
    more = f" and {counted(len(others) - 1, 'more process')}" if len(others) > 1 else ""
    return f"process {others[0]} on {machine}{more}: expected the call of process 0, found another {told}. {advice}"


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Whether another process is gone or silent. Gloo has no type for it, but its text names its own source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"hash {sha256_hex(text.encode())[:12]}"
