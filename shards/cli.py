"""The `softshard` command, and the commands of this package: tree, pack, verify, stats,
reshard.

Every package registers its commands through the entry-point group `softshard.commands`; the functions that a
command runs import what they need when they run, so that `softshard pack` never imports torch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path

from .cli_maps import add_maps
from .cli_tree import add_tree
from .errors import DataError, SoftshardError
from .schema import DEFAULT_SHARD_BYTES, MIB

EXIT_FINE, EXIT_BAD_DATA, EXIT_WRONG_CALL, EXIT_INTERRUPTED = 0, 1, 2, 130

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}


_DEFAULTS = {"size": 224, "resize": "squish", "min_images": 1, "val_per_class": 0}
# ImageNet-21K-P as published (Ridnik et al. 2021); its script keeps count > 500: --min-images 501.
PRESETS = {"imagenet-21k-p": {"size": 224, "resize": "squish", "min_images": 500, "val_per_class": 50}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 fine, 1 bad data, 2 wrong call, 130 interrupted)."""
    parser = argparse.ArgumentParser(
        prog="softshard",
        description="Pack images with soft labels into WebDataset shards, stream them, and train on them.",
    )
    parser.add_argument("--version", action="version", version=f"softshard {version('softshard')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in sorted(entry_points(group="softshard.commands"), key=lambda entry: entry.value):
        group.load()(subparsers)
    args = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except DataError as error:
        print(f"softshard: {error}", file=sys.stderr)
        return EXIT_BAD_DATA
    except SoftshardError as error:
        print(f"softshard: {error}", file=sys.stderr)
        return EXIT_WRONG_CALL
    except KeyboardInterrupt:
        print("softshard: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; the interpreter's own flush at the end must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FINE
    except OSError as error:  # no permission, no space, a file where a folder is expected
        print(f"softshard: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_WRONG_CALL


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"softshard: warning: {str(message).removeprefix('softshard: ')}", file=sys.stderr)


def byte_size(text: str) -> int:
    """`256MB`, `1GiB` or a number of bytes, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB or 1GiB, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def print_json(value: object) -> None:
    """A command's result for a program to read."""
    print(json.dumps(value, indent=1))


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register tree, maps, pack, verify, stats and reshard."""
    add_tree(subparsers)
    add_maps(subparsers)
    _add_pack(subparsers)

    command = subparsers.add_parser("verify", help="check a data set and list every problem")
    command.add_argument(
        "dataset", nargs="+", metavar="DATASET", help="folder of a data set (or of several), or one shard"
    )
    command.add_argument("--decode", action="store_true", help="decode every pixel, not only the headers")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_verify)

    command = subparsers.add_parser("stats", help="count samples, classes, levels and bytes")
    command.add_argument("dataset", nargs="+", metavar="DATASET", help="folder of a data set, or of several")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts, too")
    command.set_defaults(run=_run_stats)
    _add_reshard(subparsers)


def _add_pack(subparsers: argparse._SubParsersAction) -> None:
    pack = subparsers.add_parser("pack", help="pack an image collection into shards")
    pack.add_argument(
        "source",
        metavar="SRC",
        help="folder of class folders or class tars (or of train and val with those), tar of class tars, list of path "
        "and label (.csv, .tsv, .jsonl), or WebDataset; a path or any fsspec URL",
    )
    pack.add_argument(
        "destination",
        metavar="DST",
        help="new folder, or any fsspec URL that can be written (s3://bucket/folder); shards go to DST/train and DST/val",
    )
    pack.add_argument(
        "--preset", choices=tuple(PRESETS), help="published settings; an option given beside it wins"
    )
    labels = pack.add_argument_group("labels")
    labels.add_argument(
        "--classes", metavar="LIST", help="class list that fixes the indices (default: the folders)"
    )
    labels.add_argument(
        "--tree", metavar="FILE", help="label tree whose hierarchical label vectors are packed"
    )
    labels.add_argument(
        "--label-maps",
        type=Path,
        metavar="DIR",
        help="label maps: DIR/<image's path below SRC, without its ending>.lmap",
    )
    images = pack.add_argument_group("images")
    images.add_argument("--size", type=int, metavar="PX", help="stored size (default: 224)")
    images.add_argument("--resize", choices=("squish", "short-edge", "none"), help="(default: squish)")
    images.add_argument("--upscale", action="store_true", help="enlarge images smaller than the size")
    images.add_argument("--quality", type=int, default=90, metavar="Q", help="JPEG quality (default: 90)")
    images.add_argument(
        "--copy-fitting",
        action="store_true",
        help="copy baseline JPEGs that fit already, without metadata, rather than encode them again",
    )
    split = pack.add_argument_group("classes and split")
    split.add_argument("--min-images", type=int, metavar="N", help="leave out classes with fewer images")
    split.add_argument("--val-per-class", type=int, metavar="N", help="images of each class for DST/val")
    split.add_argument(
        "--val-split", default="hash", choices=("hash", "lexical"), help="how they are chosen (default: hash)"
    )
    shards = pack.add_argument_group("shards")
    shards.add_argument(
        "--shard-bytes", type=byte_size, default=DEFAULT_SHARD_BYTES, metavar="SIZE", help="(default: 256MB)"
    )
    shards.add_argument("--shard-samples", type=int, metavar="N", help="samples of a shard instead of bytes")
    shards.add_argument("--seed", type=int, default=0, help="of the global shuffle (default: 0)")
    run = pack.add_argument_group("run")
    run.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    run.add_argument(
        "--max-bad",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="bad inputs that stop the run (default: 0.001; ten always may be)",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print what would be packed, and write nothing to DST"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    pack.set_defaults(run=_run_pack)


def _add_reshard(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "reshard",
        help="other shard sizes or order; merge, filter, drop components; no image is encoded again",
        description="Write a new data set with the samples of existing ones. Components are copied byte by byte.",
    )
    command.add_argument(
        "dataset", nargs="+", metavar="DATASET", help="folders with the same class list, tree and components"
    )
    command.add_argument(
        "destination", metavar="DST", help="new folder or fsspec URL; the shards go right into it"
    )
    command.add_argument(
        "--shard-bytes", type=byte_size, default=256 * 10**6, metavar="SIZE", help="(default: 256MB)"
    )
    command.add_argument("--shard-samples", type=int, metavar="N", help="samples of a shard instead of bytes")
    command.add_argument(
        "--classes",
        metavar="LIST",
        help="keep the samples of these classes; the class list and all indices stay as they are, so that "
        "label vectors, label maps and models still fit",
    )
    command.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COMPONENT",
        help="leave out, such as lmap (repeatable)",
    )
    command.add_argument(
        "--shuffle", type=int, metavar="SEED", help="a new global order (default: the order stays)"
    )
    command.add_argument("--name", help="of the data set and its shards (default: as before, or DST's name)")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.set_defaults(run=_run_reshard)


def _run_pack(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .images import ImageRecipe
    from .pack import PackOptions, pack
    from .preview import preview
    from .storage import public_name
    from .tree import LabelTree

    for name, value in {**_DEFAULTS, **PRESETS.get(args.preset, {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    options = PackOptions(
        image=ImageRecipe(args.size, args.resize, args.quality, args.upscale, reencode=not args.copy_fitting),
        min_images=args.min_images,
        val_per_class=args.val_per_class,
        val_split=args.val_split,
        label_maps=args.label_maps,
        shard_bytes=args.shard_bytes,
        shard_samples=args.shard_samples,
        seed=args.seed,
        max_bad=args.max_bad,
    )
    class_names = load_class_list(args.classes) if args.classes else None
    tree = LabelTree.load(args.tree) if args.tree else None
    if args.dry_run:
        report = preview(args.source, options, class_names=class_names, tree=tree)
        if args.json:
            print_json(report.to_json())
        else:
            print(report.text())
        return EXIT_FINE
    summary = pack(
        args.source,
        args.destination,
        options,
        class_names=class_names,
        tree=tree,
        workers=args.workers,
    )
    if args.json:
        print_json(
            {
                "read": summary.read,
                "packed": summary.packed,
                "bad": summary.bad,
                "dropped": dict(summary.dropped),
                "without_images": list(summary.without_images),
                "ignored": list(summary.ignored),
                "datasets": {
                    name: {
                        "samples": m.num_samples,
                        "shards": len(m.shards),
                        "bytes": m.num_bytes,
                        "fingerprint": m.fingerprint,
                    }
                    for name, m in summary.manifests.items()
                },
            }
        )
        return EXIT_FINE
    print(f"read {summary.read:,} = packed {summary.packed:,} + bad {summary.bad:,}")
    for name, manifest in summary.manifests.items():
        print(
            f"  {public_name(args.destination)}/{name}: {manifest.num_samples:,} samples of {manifest.num_classes:,} "
            f"classes in {len(manifest.shards):,} shards, "
            f"{manifest.num_bytes / manifest.num_samples:,.0f} bytes a sample"
        )
    if summary.bad:
        print(f"  bad inputs, with reasons: {public_name(args.destination)}/bad.jsonl")
    for what, names in (
        (
            "folders left out (too few images, or not in the class list)",
            [name for name, _ in summary.dropped],
        ),
        ("classes of the list without images", summary.without_images),
        ("files that are not images", summary.ignored),
    ):
        if names:
            print(f"  {len(names):,} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    return EXIT_FINE


def _run_verify(args: argparse.Namespace) -> int:
    from .verify import verify

    problems: list[str] = []
    shards = samples = 0
    for dataset in args.dataset:
        try:
            report = verify(dataset, decode=args.decode)
        except DataError as error:  # the others are looked at all the same
            problems.append(str(error))
            continue
        shards, samples = shards + report.shards, samples + report.samples
        problems.extend(report.problems)
    if args.json:
        print_json({"ok": not problems, "shards": shards, "samples": samples, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        outcome = f"{len(problems):,} problems" if problems else "no problems"
        print(f"{samples:,} samples in {shards:,} shards: {outcome}")
    return EXIT_BAD_DATA if problems else EXIT_FINE


def _run_stats(args: argparse.Namespace) -> int:
    from .stats import data_set_stats, format_stats
    from .verify import data_set_folders

    results = [data_set_stats(folder) for dataset in args.dataset for folder in data_set_folders(dataset)]
    if args.html is not None:
        from .stats_page import stats_page

        stats_page(results).write(args.html)
    if args.json:
        print_json(results)
    else:
        print("\n".join(format_stats(stats) for stats in results))
    return EXIT_FINE


def _run_reshard(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .reshard import ReshardOptions, reshard
    from .storage import public_name

    manifest = reshard(
        args.dataset,
        args.destination,
        ReshardOptions(
            shard_bytes=args.shard_bytes,
            shard_samples=args.shard_samples,
            classes=load_class_list(args.classes) if args.classes else None,
            drop=tuple(args.drop),
            shuffle=args.shuffle,
            name=args.name,
        ),
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
        f"{public_name(args.destination)}: {manifest.num_samples:,} of {read:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.num_bytes:,} bytes"
    )
    return EXIT_FINE
