"""What the commands of softshard.training know of the process they run in: torchrun's variables, the device, the extras.

Nothing else in softshard reads torchrun's environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..shards.errors import MissingExtraError, UsageError

EXIT_SIGNAL = 128  # a run that a signal stopped exits with this plus its number, as shells expect


def process_of_torchrun() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) from torchrun's variables; (0, 1, 0) without it.

    Raises:
        UsageError: one of them is no number.
    """
    return _variable("RANK", 0), _variable("WORLD_SIZE", 1), _variable("LOCAL_RANK", 0)


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"environment: {name}: expected a number as torchrun sets it, found {text!r}")
    return int(text)


def torch_device(name: str | None, local_rank: int = 0) -> str:
    """The device that `--device` names: `cpu`, or this process's GPU such as `cuda:1`.

    Args:
        name: `cpu`, `cuda`, or None for cuda where there is one.
        local_rank: this process among those of its machine.

    Raises:
        UsageError: cuda was asked for, and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            "--device cuda: expected an NVIDIA GPU, found none that torch can use. Run with --device cpu"
        )
    return f"cuda:{local_rank}" if available and name != "cpu" else "cpu"


@contextmanager
def needs_extra(command: str, extra: str = "training") -> Iterator[None]:
    """Around an import: a missing package becomes the error that names the pip command."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "softshard":  # a bug here, not a missing package
            raise
        raise MissingExtraError(command, extra, error) from error
