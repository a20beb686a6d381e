"""The commands about the order of samples: stats, which can measure the shuffle, and replay."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from ..shards.cli_data_sets import add_stats, run_stats
from .order import DEFAULT_WINDOW


def add_order(subparsers: argparse._SubParsersAction) -> None:
    """Register stats and replay."""
    stats = add_stats(subparsers)
    shuffle = stats.add_argument_group("the loader's shuffle")
    shuffle.add_argument(
        "--shuffle",
        action="store_true",
        help="measure it, too: how far samples move, the class entropy of batches, beside a full shuffle and none",
    )
    shuffle.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="global batch (default: 256)"
    )
    shuffle.add_argument(
        "--window", type=int, default=DEFAULT_WINDOW, metavar="W", help=f"(default: {DEFAULT_WINDOW})"
    )
    shuffle.add_argument("--lanes", type=int, default=1, metavar="K", help="(default: 1)")
    shuffle.add_argument("--seed", type=int, default=0, help="(default: 0)")
    shuffle.add_argument("--epoch", type=int, default=0, help="(default: 0)")
    stats.set_defaults(run=_run_stats)


def _run_stats(args: argparse.Namespace) -> int:
    return run_stats(args, partial(_measure, args) if args.shuffle else None)


def _measure(args: argparse.Namespace, folder: str | Path) -> tuple[dict[str, Any], str]:
    from .shuffle_quality import format_quality, shuffle_quality

    result = shuffle_quality(
        folder,
        global_batch=args.batch_size,
        window=args.window,
        num_lanes=args.lanes,
        seed=args.seed,
        epoch=args.epoch,
    )
    return {"shuffle": result}, format_quality(result)
