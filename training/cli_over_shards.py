"""What the commands share that run a model over all images of a data set: `maps make`, `teacher make`, `pseudo make`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..shards.cli_values import EXIT_FINE, print_data_set
from ..shards.cores import usable_cores
from .cli_process import add_device, process_of_torchrun, torch_device
from .precision import AMP
from .ray_ranks import add_engine

if TYPE_CHECKING:
    from ..shards.manifest import Manifest


def add_source_and_destination(command: argparse.ArgumentParser, source: str, adds: str) -> None:
    """Register DATASET and DST; `source` and `adds` say in the help what is read, and what is added to it."""
    command.add_argument("dataset", metavar="DATASET", help=f"folder or fsspec URL of {source}")
    command.add_argument(
        "destination",
        metavar="DST",
        help=f"new folder, or fsspec URL that can be written: the same data set with {adds}",
    )


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
    command.add_argument("--amp", choices=AMP, help=f"{amp} (default: float32)")
    add_device(command, threads="decoding threads of each process (default: the machine's cores among them)")
    add_engine(command)
    command.add_argument("--json", action="store_true", help="print what was written as JSON")


def where_it_runs(args: argparse.Namespace) -> dict[str, Any]:
    """`device`, `num_threads`, `rank` and `world_size` of this process, by its options and torchrun's variables."""
    rank, world_size, local_rank = process_of_torchrun()
    return {
        "device": torch_device(args.device, local_rank),
        "num_threads": args.threads or max(1, usable_cores() // world_size),
        "rank": rank,
        "world_size": world_size,
    }


def print_made(made: Manifest, args: argparse.Namespace, lines: Iterable[str]) -> int:
    """Say what was written, on the first process alone: as JSON, or in lines; returns the exit code."""
    rank, _, _ = process_of_torchrun()
    if rank == 0 and args.json:
        print_data_set(made, args.destination)
    elif rank == 0:
        print("\n".join(lines))
    return EXIT_FINE
