"""What the commands share that run a model over all images of a data set: `maps make`, `teacher make`, `pseudo make`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .cli_process import add_device, process_of_torchrun, torch_device
from .ray_ranks import add_engine


def add_over_shards(command: argparse.ArgumentParser, *, batch_size: int, amp: str) -> None:
    """Register the options that say how it runs.

    Args:
        command: of the three.
        batch_size: images a step by default.
        amp: what runs in mixed precision, for the help.
    """
    command.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help=f"images a step (default: {batch_size})",
    )
    command.add_argument("--amp", choices=("bfloat16", "float16"), help=f"{amp} (default: float32)")
    add_device(command, threads="decoding threads of each process (default: the machine's cores among them)")
    add_engine(command)
    command.add_argument("--json", action="store_true", help="print what was written as JSON")


def where_it_runs(args: argparse.Namespace) -> dict[str, Any]:
    """`device`, `num_threads`, `rank` and `world_size` of this process, by its options and torchrun's variables."""
    rank, world_size, local_rank = process_of_torchrun()
    return {
        "device": torch_device(args.device, local_rank),
        "num_threads": args.threads or max(1, len(os.sched_getaffinity(0)) // world_size),
        "rank": rank,
        "world_size": world_size,
    }
