"""The commands of this package: bench, stats and replay."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .cli_order import add_order
from .target_modes import TARGETS


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register bench, stats and replay."""
    add_order(subparsers)
    bench = subparsers.add_parser("bench", help="measure the loader on a data set, beside decoding alone")
    bench.add_argument("dataset", metavar="DATASET", help="folder of a data set")
    bench.add_argument("--batch-size", type=int, default=128, metavar="N", help="(default: 128)")
    bench.add_argument("--targets", default="none", choices=TARGETS, help="(default: none)")
    bench.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    bench.add_argument(
        "--dtype", default="uint8", choices=("uint8", "float16", "float32"), help="(default: uint8)"
    )
    bench.add_argument(
        "--size", type=int, default=224, metavar="PX", help="side of the batch's images (default: 224)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="decoder threads (default: one a core)")
    bench.add_argument(
        "--steps", type=int, default=30, metavar="N", help="batches in one measurement (default: 30)"
    )
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements (default: 5)")
    bench.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON")
    bench.set_defaults(run=_run_bench)


def _run_bench(args: argparse.Namespace) -> int:
    try:
        from .bench import bench, format_bench
    except ModuleNotFoundError as error:
        from ..shards.errors import MissingExtraError

        raise MissingExtraError("softshard bench", "loaders", error) from error
    result = bench(
        args.dataset,
        batch_size=args.batch_size,
        targets=args.targets,
        device=args.device,
        dtype=args.dtype,
        size=args.size,
        num_threads=args.threads,
        steps=args.steps,
        repeats=args.repeats,
    )
    print(format_bench(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0
