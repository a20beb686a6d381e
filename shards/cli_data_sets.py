"""The commands on finished data sets: verify, reshard, and stats, which loaders/cli_order.py registers with more options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli_values import EXIT_BAD_DATA, EXIT_FINE, byte_size, local_path, print_json, print_result
from .errors import DataError
from .schema import DEFAULT_SHARD_BYTES
from .text_limits import counted


def add_data_sets(subparsers: argparse._SubParsersAction) -> None:
    """Register verify and reshard."""
    _add_verify(subparsers)
    _add_reshard(subparsers)


def _add_verify(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("verify", help="check a data set and list every problem")
    command.add_argument(
        "dataset",
        nargs="+",
        metavar="DATASET",
        help="folder of a data set (or of several), or one shard; a path or any fsspec URL. Of a URL every shard is "
        "read once, by way of the folder for temporary files (TMPDIR), one a worker at a time",
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one a core, fewer for a small data set)"
    )
    command.add_argument("--decode", action="store_true", help="decode every pixel, not only the headers")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_verify)


def add_stats(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Make the command stats; `run_stats` runs it."""
    command = subparsers.add_parser("stats", help="count samples, classes, levels and bytes")
    command.add_argument(
        "dataset",
        nargs="+",
        metavar="DATASET",
        help="folder of a data set, or of several; a path or any fsspec URL (no shard is read)",
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts, too")
    return command


def _add_reshard(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "reshard",
        help="other shard sizes or order; merge, filter, drop or add components; no image is encoded again",
        description="Write a new data set with the samples of existing ones. Components are copied byte by byte. "
        "Behind URLs every source is read twice: once to check its hashes, once to copy it.",
    )
    command.add_argument(
        "dataset",
        nargs="+",
        metavar="DATASET",
        help="folders or fsspec URLs of data sets with the same class list, tree and components",
    )
    command.add_argument(
        "destination",
        metavar="DST",
        help="new folder, or prefix of a bucket (any fsspec URL); the shards go right into it",
    )
    command.add_argument(
        "--shard-bytes",
        type=byte_size,
        default=DEFAULT_SHARD_BYTES,
        metavar="SIZE",
        help="about so large, such as 512MB or 1GiB (default: 256MB)",
    )
    command.add_argument("--shard-samples", type=int, metavar="N", help="samples of a shard instead of bytes")
    command.add_argument(
        "--classes",
        metavar="LIST",
        help="keep the samples of these classes; the class list and all indices stay as they are, so that "
        "label vectors, label maps and models still fit",
    )
    command.add_argument(
        "--subset",
        metavar="FILE",
        help="keep the classes and images that softshard subset chose; its classes and groups become the class list, "
        "and labels are written anew (label maps must be dropped)",
    )
    command.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COMPONENT",
        help="leave out, such as lmap (repeatable)",
    )
    command.add_argument(
        "--tree",
        metavar="FILE",
        help="label tree of the same class list, whose hierarchical label vectors are added, or replace those there",
    )
    command.add_argument(
        "--label-maps",
        type=local_path,
        metavar="DIR",
        help="label maps to add, or in place of those there: DIR/<original path, without its ending>.lmap, as for "
        "pack. All are checked first; nothing is written where one is missing or bad",
    )
    command.add_argument(
        "--tags",
        type=local_path,
        metavar="LIST",
        help="list of JSON lines with path (the image's original one) or key, and tags, to add or in place of those there; "
        "images without a row get none and are named in DST/bad.jsonl",
    )
    command.add_argument("--vocabulary", metavar="FILE", help="of the tags (softshard tags build)")
    command.add_argument(
        "--weights",
        type=local_path,
        metavar="LIST",
        help="list with class weights (softshard tags weigh), as for --tags",
    )
    command.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="a new global order (default: the order stays). From a URL that is a request a sample, where the "
        "old order takes one for 8 MiB: copy a large set here first",
    )
    command.add_argument("--name", help="of the data set and its shards (default: as before, or DST's name)")
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads, each with a shard of the result in memory (default: one a core, 2 at most)",
    )
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.set_defaults(run=_run_reshard)


def _run_verify(args: argparse.Namespace) -> int:
    from .verify import verify

    problems: list[str] = []
    shards = samples = 0
    for dataset in args.dataset:
        try:
            report = verify(dataset, decode=args.decode, workers=args.workers)
        except DataError as error:  # the others are looked at all the same
            problems.append(str(error))
            continue
        shards, samples = shards + report.shards, samples + report.samples
        problems.extend(report.problems)
    outcome = counted(len(problems), "problem") if problems else "no problems"
    print_result(
        args,
        {"ok": not problems, "shards": shards, "samples": samples, "problems": problems},
        "\n".join([*problems, f"{counted(samples, 'sample')} in {counted(shards, 'shard')}: {outcome}"]),
    )
    return EXIT_BAD_DATA if problems else EXIT_FINE


def run_stats(
    args: argparse.Namespace, measure: Callable[[str | Path], tuple[dict[str, Any], str]] | None = None
) -> int:
    """Count the data sets.

    Args:
        args: of the command.
        measure: measures more of a data set, for the JSON and as text.
    """
    from .stats import data_set_stats, format_stats
    from .verify import data_set_folders

    folders = [folder for dataset in args.dataset for folder in data_set_folders(dataset)]
    results = [data_set_stats(folder) for folder in folders]
    texts = [format_stats(stats) for stats in results]
    if measure is not None:
        measured = [measure(folder) for folder in folders]
        results = [{**stats, **more} for stats, (more, _) in zip(results, measured, strict=True)]
        texts = [f"{text}\n{more}" for text, (_, more) in zip(texts, measured, strict=True)]
    if args.html is not None:
        from .stats_page import stats_page

        stats_page(results).write(args.html)
    print_result(args, results, "\n".join(texts))
    return EXIT_FINE


def _run_reshard(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .reshard import reshard
    from .reshard_plan import ReshardOptions
    from .storage import public_name
    from .stored_vocabulary import Vocabulary
    from .subset_file import SubsetFile
    from .tree import LabelTree

    manifest = reshard(
        args.dataset,
        args.destination,
        ReshardOptions(
            shard_bytes=args.shard_bytes,
            shard_samples=args.shard_samples,
            classes=load_class_list(args.classes) if args.classes else None,
            subset=SubsetFile.load(args.subset) if args.subset else None,
            drop=tuple(args.drop),
            tree=LabelTree.load(args.tree) if args.tree else None,
            label_maps=args.label_maps,
            tags=args.tags,
            vocabulary=Vocabulary.load(args.vocabulary) if args.vocabulary else None,
            weights=args.weights,
            shuffle=args.shuffle,
            name=args.name,
        ),
        workers=args.workers,
    )
    read = sum(source["samples"] for source in manifest.recipe["reshard"]["sources"])
    if args.json:
        print_json(
            {
                "read": read,
                "samples": manifest.num_samples,
                "left_out": read - manifest.num_samples,
                "shards": len(manifest.shards),
                "bytes": manifest.num_bytes,
                "components": list(manifest.components),
                "fingerprint": manifest.fingerprint,
            }
        )
        return EXIT_FINE
    print(
        f"{public_name(args.destination)}: {manifest.num_samples:,} of {counted(read, 'sample')} in "
        f"{counted(len(manifest.shards), 'shard')}, {manifest.num_bytes:,} bytes"
    )
    for kind in ("tags", "weights"):
        counts = manifest.recipe["reshard"]["added"].get(kind, {})
        for name, num in counts.items():
            if name != "sha256" and num:
                print(f"  {kind}: {num:,} {name.replace('_', ' ')}")
    return EXIT_FINE
