"""What the commands of softshard.training know of the process they run in: torchrun's variables, the device.

Nothing else in softshard reads torchrun's environment.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..shards.errors import UsageError

EXIT_SIGNAL = 128  # a run that a signal stopped exits with this plus its number, as shells expect


def add_device(
    command: argparse._ActionsContainer, *, threads: str = "decoding threads (default: one a core)"
) -> None:
    """Register `--device`, which `torch_device` reads, and `--threads`."""
    command.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    command.add_argument("--threads", type=int, metavar="N", help=threads)


def add_pass(command: argparse.ArgumentParser) -> None:
    """Register what a command takes that shows a model a whole data set, beside `--labels`; `pass_of` reads it."""
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="with timm:NAME: these weights of that architecture instead of timm's own",
    )
    command.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="of each process (default: 256)"
    )
    add_device(command)


def pass_of(args: argparse.Namespace) -> dict[str, Any]:
    """The PassOptions of a command, and whether it shows its `progress`, which the first process does."""
    rank, world_size, local_rank = process_of_torchrun()
    return {
        "labels": args.labels,
        "batch_size": args.batch_size,
        "device": torch_device(args.device, local_rank),
        "rank": rank,
        "world_size": world_size,
        "num_threads": args.threads,
        "progress": rank == 0,
    }


def at_least_one(option: str, value: int) -> None:
    """Refuse a number below 1.

    Raises:
        UsageError: naming the option.
    """
    if value < 1:
        raise UsageError(f"{option}: expected at least 1, found {value}")


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
