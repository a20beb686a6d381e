"""The `softshard` command, and the commands of this package: tree, maps, pack, tags, verify, reshard, subset, completion.

Every package registers its commands through the entry-point group `softshard.commands`; the functions that a
command runs import what they need when they run, so that `softshard pack` never imports torch.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points, version

from .cli_completion import add_completion
from .cli_data_sets import add_data_sets
from .cli_help import ByTask, finish_help
from .cli_maps import add_maps
from .cli_subset import add_subset
from .cli_tags import add_build
from .cli_tree import add_tree
from .cli_values import (
    EXIT_BAD_DATA,
    EXIT_FINE,
    EXIT_INTERRUPTED,
    EXIT_WRONG_CALL,
    add_max_bad,
    byte_size,
    local_path,
    print_result,
)
from .cli_weigh import add_weigh
from .errors import DataError, SoftshardError, UsageError
from .schema import DEFAULT_SHARD_BYTES
from .standard_streams import open_streams, reader_has_gone

_DEFAULTS = {"size": 224, "resize": "squish", "min_images": 1, "val_per_class": 0}
_KEPT = (
    "What is finished is kept: packing, resharding and label maps continue when the same command is given again, training "
    "with --resume, tagging from its last 50 blocks (100,000 rows of a list); into a bucket with --work alone"
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# ImageNet-21K-P as published (Ridnik et al. 2021); its script keeps count > 500: --min-images 501.
PRESETS = {"imagenet-21k-p": {"size": 224, "resize": "squish", "min_images": 500, "val_per_class": 50}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 fine, 1 bad data, 2 wrong call, 130 interrupted)."""
    open_streams()
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        args = build_parser().parse_args(argv)
        _check_encoding(sys.getfilesystemencoding())
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
        print(f"softshard: interrupted. {_KEPT}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:  # no permission, no space, a file where a folder is expected
        if isinstance(error, BrokenPipeError) and reader_has_gone(error):
            return EXIT_FINE
        where = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        room = ". Make room, and give the same command again" if error.errno in _FULL else ""
        print(f"softshard: {where}{room}", file=sys.stderr)
        return EXIT_WRONG_CALL


def _check_encoding(encoding: str) -> None:
    """Refuse a locale by which the same folders would get other class names, and the data set other bytes."""
    if encoding != "utf-8":
        raise UsageError(
            f"environment: expected names of files in UTF-8, found the locale's encoding {encoding!r}. Run with "
            "PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser with the commands of all packages."""
    parser = ByTask(
        prog="softshard",
        description="Pack images with soft labels into WebDataset shards, stream them, and train on them.",
    )
    parser.add_argument("--version", action="version", version=f"softshard {version('softshard')}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser
    )
    for group in sorted(entry_points(group="softshard.commands"), key=lambda entry: entry.value):
        group.load()(subparsers)
    add_completion(subparsers, parser)
    finish_help(parser)
    return parser


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"softshard: warning: {str(message).removeprefix('softshard: ')}", file=sys.stderr)


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register tree, maps, pack, tags, verify, reshard and subset."""
    add_tree(subparsers)
    add_maps(subparsers)
    _add_pack(subparsers)
    add_build(subparsers)
    add_weigh(subparsers)
    add_data_sets(subparsers)
    add_subset(subparsers)


def _add_pack(subparsers: argparse._SubParsersAction) -> None:
    pack = subparsers.add_parser("pack", help="pack an image collection into shards")
    pack.add_argument(
        "source",
        metavar="SRC",
        help="folder of class folders or class tars (or of train and val with those), tar of class tars, list of path "
        "and label (.csv, .tsv, .jsonl), WebDataset, or WebVision folder; a path or any fsspec URL",
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
        "--subset",
        metavar="FILE",
        help="classes and groups that softshard subset classes chose: they are the class list, and the images of a "
        "group's folders become one class",
    )
    labels.add_argument(
        "--folders",
        choices=("name", "index"),
        default="name",
        help="what class folders are called: like their classes (default), or like their places in --classes, from 0, as "
        "in ImageNetV2",
    )
    labels.add_argument(
        "--tree", metavar="FILE", help="label tree whose hierarchical label vectors are packed"
    )
    labels.add_argument(
        "--label-maps",
        type=local_path,
        metavar="DIR",
        help="label maps: DIR/<image's path below SRC, without its ending>.lmap",
    )
    labels.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="vocabulary of the column `tags` of a list (softshard tags build), which is packed as indices into it",
    )
    labels.add_argument(
        "--weights",
        action="store_true",
        help="pack the column `weights` of a list (softshard tags weigh) as class weights",
    )
    images = pack.add_argument_group("images")
    images.add_argument("--size", type=int, metavar="PX", help="stored size (default: 224)")
    images.add_argument(
        "--resize",
        choices=("squish", "short-edge", "none"),
        help="squish: to --size x --size, whatever the shape (default); short-edge: the shorter side to --size, shape "
        "kept; none: pixels as they are",
    )
    images.add_argument(
        "--upscale",
        action="store_true",
        help="enlarge images smaller than the size in both sides, which else stay as they are",
    )
    images.add_argument("--quality", type=int, default=90, metavar="Q", help="JPEG quality (default: 90)")
    images.add_argument(
        "--copy-fitting",
        action="store_true",
        help="copy baseline JPEGs that fit already, without metadata, rather than encode them again",
    )
    split = pack.add_argument_group("classes and split")
    split.add_argument(
        "--min-images", type=int, metavar="N", help="leave out classes with fewer images (default: 1)"
    )
    split.add_argument(
        "--val-per-class", type=int, metavar="N", help="images of each class for DST/val (default: 0)"
    )
    split.add_argument(
        "--val-split",
        default="hash",
        choices=("hash", "lexical"),
        help="which ones: by a hash of their names (default; a new image moves one other at most), or the first by name",
    )
    shards = pack.add_argument_group("shards")
    shards.add_argument(
        "--shard-bytes",
        type=byte_size,
        default=DEFAULT_SHARD_BYTES,
        metavar="SIZE",
        help="about so large, such as 512MB or 1GiB (default: 256MB)",
    )
    shards.add_argument("--shard-samples", type=int, metavar="N", help="samples of a shard instead of bytes")
    shards.add_argument("--seed", type=int, default=0, help="of the global shuffle (default: 0)")
    run = pack.add_argument_group("run")
    run.add_argument("--workers", type=int, metavar="N", help="shards made at once (default: one a core)")
    run.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="local: processes of this machine (default); ray: the cluster that RAY_ADDRESS names (HOST:PORT or auto), "
        "else Ray on this machine. The machines of a cluster must share SRC and DST: folders mounted everywhere under "
        "the same path, or buckets",
    )
    add_max_bad(run, "bad inputs")
    run.add_argument(
        "--retry-bad",
        action="store_true",
        help="make shards again that bad inputs were left out of: after mending them in place",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print what would be packed, and write nothing to DST"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    pack.set_defaults(run=_run_pack)


def _run_pack(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .images import ImageRecipe
    from .pack import PackOptions, pack
    from .pack_report import summary_json, summary_text
    from .pack_soft import load_how
    from .preview import preview
    from .soft_labels import TAGS, WEIGHTS
    from .stored_vocabulary import Vocabulary
    from .subset_file import SubsetFile
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
        folders=args.folders,
        subset=SubsetFile.load(args.subset) if args.subset else None,
        vocabulary=Vocabulary.load(args.vocabulary) if args.vocabulary else None,
        weights=load_how(args.source, WEIGHTS) if args.weights else None,
        tags=load_how(args.source, TAGS) if args.vocabulary else None,
    )
    class_names = load_class_list(args.classes) if args.classes else None
    tree = LabelTree.load(args.tree) if args.tree else None
    if args.dry_run:
        report = preview(args.source, options, class_names=class_names, tree=tree)
        print_result(args, report.to_json(), report.text())
        return EXIT_FINE
    summary = pack(
        args.source,
        args.destination,
        options,
        class_names=class_names,
        tree=tree,
        workers=args.workers,
        retry_bad=args.retry_bad,
        engine=args.engine,
    )
    print_result(args, summary_json(summary), summary_text(summary, args.destination, tree))
    return EXIT_FINE
