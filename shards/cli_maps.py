"""The commands `softshard maps import` and `softshard maps join`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli_values import EXIT_FINE, actions_of, add_max_bad, print_data_set, print_json


def add_maps(subparsers: argparse._SubParsersAction) -> None:
    """Register `maps import` and `maps join`."""
    actions = actions_of(subparsers, "maps")
    command = actions.add_parser(
        "import",
        help="published ReLabel or TokenLabeling files as label maps for `pack --label-maps`",
        description="Convert a folder of label maps that torch.save wrote (tensors [2, K, P, Q]: scores, class ids; "
        "CLASS/STEM.pt) into .lmap files of the same layout. Nothing is unpickled but tensors. Files that are there "
        "already are kept, so a run that was killed continues.",
    )
    command.add_argument("source", type=Path, metavar="SRC", help="folder with .pt files at any depth")
    command.add_argument(
        "destination", type=Path, metavar="DST", help="new folder for .lmap files, or that of an earlier run"
    )
    command.add_argument(
        "--num-classes", type=int, default=1000, metavar="C", help="of the teacher (default: 1000)"
    )
    command.add_argument(
        "--transpose",
        action="store_true",
        help="swap rows and columns, for maps that `softshard maps check` finds swapped",
    )
    command.add_argument(
        "--scores", default="float16", choices=("float16", "uint8"), help="(default: float16)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    add_max_bad(command, "bad files")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.set_defaults(run=_run_import)

    command = actions.add_parser(
        "join", help="a data set of another one and the side shards that `maps make --side` wrote"
    )
    command.add_argument("dataset", metavar="DATASET", help="folder of the data set")
    command.add_argument("side", metavar="SIDE", help="folder of the side shards")
    command.add_argument("destination", metavar="DST", help="new folder or fsspec URL")
    command.add_argument("--json", action="store_true", help="print what was written as JSON")
    command.set_defaults(run=_run_join)


def _run_import(args: argparse.Namespace) -> int:
    from .labelmap_import import ImportOptions, import_label_maps

    options = ImportOptions(args.num_classes, args.transpose, args.scores, args.max_bad)
    summary = import_label_maps(args.source, args.destination, options, workers=args.workers)
    if args.json:
        print_json(summary.to_json())
        return EXIT_FINE
    top, rows, columns = summary.shape
    print(
        f"read {summary.read:,} = written {summary.written:,} + there already {summary.kept:,} + bad {summary.bad:,}; "
        f"top {top} on {rows} x {columns} cells, {summary.mean_bytes:,.0f} bytes a map: {args.destination}"
    )
    if summary.bad:
        print(f"  bad files, with reasons: {args.destination}/bad.jsonl")
    print(f"Run: softshard pack SRC DST --label-maps {args.destination}")
    return EXIT_FINE


def _run_join(args: argparse.Namespace) -> int:
    from .labelmap_side import join_label_maps
    from .storage import public_name
    from .text_limits import counted

    made = join_label_maps(args.dataset, args.side, args.destination)
    if args.json:
        print_data_set(made, args.destination)
        return EXIT_FINE
    print(
        f"{public_name(args.destination)}: {counted(made.num_samples, 'sample')} with label maps in "
        f"{counted(len(made.shards), 'shard')}, {made.num_bytes / made.num_samples:,.0f} bytes a sample"
    )
    return EXIT_FINE
