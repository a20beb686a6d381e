"""The commands `softshard subset classes` and `softshard subset images`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_values import EXIT_FINE, actions_of, print_json
from .errors import UsageError
from .storage import public_name
from .text_limits import counted

if TYPE_CHECKING:
    from .subset_file import SubsetFile

_SHOWN = 10


def add_subset(subparsers: argparse._SubParsersAction) -> None:
    """Register `subset classes` and `subset images`."""
    actions = actions_of(subparsers, "subset")
    _add_classes(actions)
    _add_images(actions)


def _add_classes(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "classes",
        help="choose or group classes: six ways",
        description="Write a small file that says which classes, or groups of classes, a data set is read with: "
        "softshard train --subset, reshard --subset, pack --subset, Loader(subset=...). Nothing is copied.",
    )
    command.add_argument(
        "source",
        metavar="DATASET|LIST",
        help="data set (folder or URL), folder of class folders, or class list (a file of names, imagenet-1k, ...)",
    )
    command.add_argument(
        "--method",
        required=True,
        choices=("random", "groups", "siblings", "confusion", "coarse", "file"),
        help="random: N classes. groups: all classes in N random groups. siblings: merge WordNet's (or --tree's) siblings, "
        "the deepest first, until N are left. confusion: N groups of the classes confused most. coarse: the labels of a "
        "table, merged or split until there are N. file: as written by hand",
    )
    _add_shape(command, needs_images=False)
    command.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    command.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="confusion: the matrix (.npy, .csv; row: true class, column: taken for). coarse: a table (.csv: "
        "synset,categories, or category,labels). file: the groups (.yaml: nested names; .csv: child,parent)",
    )
    command.add_argument(
        "--exact", action="store_true", help="siblings: merge part of a family where whole ones do not meet N"
    )
    command.add_argument(
        "--tree",
        metavar="FILE",
        help="siblings, coarse: label tree in place of the data set's, or of WordNet",
    )
    command.add_argument(
        "--meaning",
        action="append",
        default=[],
        metavar="NAME=CLASS[,CLASS]",
        help="coarse: which class a name of the table stands for, where it may be any of several (repeatable)",
    )
    _add_result(command)
    command.set_defaults(run=_run_classes)


def _add_images(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "images",
        help="choose as many images of each class: at random, stratified or by difficulty",
        description="Write a small file with the keys of the chosen images, and the classes or groups that they are of.",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder or fsspec URL of a data set")
    command.add_argument(
        "--classes",
        metavar="FILE",
        help="classes or groups chosen before with softshard subset classes (default: all classes with images)",
    )
    command.add_argument(
        "--method",
        default="random",
        choices=("random", "stratified", "difficulty"),
        help="random (default). stratified: as many of each fine class of a group. difficulty: as many of each whole "
        "percent of the right label's probability, as --scores has it",
    )
    _add_shape(command, needs_images=True)
    command.add_argument(
        "--scores",
        metavar="FILE",
        help="difficulty: what softshard subset score wrote, or a .csv of key,score",
    )
    command.add_argument(
        "--cap",
        default="class",
        choices=("class", "set"),
        help="difficulty: images a percent at most, for each class (default) or one cap for the whole set, with M "
        "images a class on average",
    )
    command.add_argument(
        "--allow-fewer", action="store_true", help="take all images of a class that has fewer than M"
    )
    command.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    _add_result(command)
    command.set_defaults(run=_run_images)


def _add_shape(command: argparse.ArgumentParser, *, needs_images: bool) -> None:
    if not needs_images:
        command.add_argument("-n", "--num-classes", type=int, metavar="N", help="classes that are left")
    command.add_argument(
        "-m",
        "--per-class",
        type=int,
        metavar="M",
        help="images of each class" if needs_images else "say where a class has fewer images",
    )
    command.add_argument(
        "--config",
        metavar="NxM",
        help="N and M by name: 200x500, 100x1000, 20x5000, 20x2500, 10x5000 (CIFAR-10's), 100x500 (CIFAR-100's)",
    )


def _add_result(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--val",
        metavar="DATASET",
        help="validation set, to warn where few of its images are of these classes (default: the folder val beside train)",
    )
    command.add_argument("-o", "--out", required=True, metavar="FILE", help="file to write (.json)")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def _run_classes(args: argparse.Namespace) -> int:
    from .make_subset import ClassChoice, make_class_subset
    from .subset_pool import Pool
    from .tree import LabelTree

    num, per_class = _shape(args, args.num_classes)
    choice = ClassChoice(
        method=args.method,
        num=num,
        seed=args.seed,
        exact=args.exact,
        tree=LabelTree.load(args.tree) if args.tree else None,
        file=args.file,
        meanings=_meanings(args.meaning),
        per_class=per_class,
    )
    subset = make_class_subset(Pool.open(args.source), choice)
    return _finish(args, args.source, subset)


def _run_images(args: argparse.Namespace) -> int:
    from .make_subset import ImageChoice, make_image_subset
    from .subset_file import SubsetFile

    num, per_class = _shape(args, None)
    if per_class is None:
        raise UsageError("images: expected --per-class or --config, found neither")
    choice = ImageChoice(per_class, args.method, args.seed, args.scores, args.cap, args.allow_fewer)
    classes = SubsetFile.load(args.classes) if args.classes else None
    subset = make_image_subset(args.dataset, choice, classes)
    if num is not None and len(subset.groups) != num:
        raise UsageError(
            f"config {args.config}: expected {num} classes, found {len(subset.groups)}; choose or group them first: "
            f"softshard subset classes {public_name(args.dataset)} --config {args.config} --method ..., and give the "
            "file as --classes"
        )
    return _finish(args, args.dataset, subset)


def _shape(args: argparse.Namespace, num: int | None) -> tuple[int | None, int | None]:
    """N and M of the options; either may be None.

    Raises:
        UsageError: a configuration beside numbers, or one that does not exist.
    """
    from .subset_configs import configuration

    if args.config is None:
        return num, args.per_class
    if num is not None or args.per_class is not None:
        raise UsageError("--config: expected it without --num-classes and --per-class, found both")
    return configuration(args.config)


def _meanings(texts: list[str]) -> dict[str, list[str]]:
    meanings: dict[str, list[str]] = {}
    for text in texts:
        name, equals, classes = text.rpartition("=")
        found = [part.strip() for part in classes.split(",")]
        if not equals or not name or not all(found):
            raise UsageError(f"--meaning: expected NAME=CLASS[,CLASS], found {text!r}")
        meanings[name] = found
    return meanings


def _finish(args: argparse.Namespace, source: str, subset: SubsetFile) -> int:
    """Warn, write the file, say what is in it."""
    from dataclasses import replace

    from .make_subset import count_validation
    from .subset_configs import small_validation

    val = args.val or _beside(source)
    if val is not None and (warning := small_validation(count_validation(val, subset), len(subset.groups))):
        # Once: it may have been said of the classes.
        subset = replace(subset, notes=tuple(dict.fromkeys((*subset.notes, warning))))
    for note in subset.notes:
        print(f"softshard: note: {note}", file=sys.stderr)
    subset.save(args.out)
    if args.json:
        print_json(_summary(subset))
        return EXIT_FINE
    grouped = sum(len(group.members) > 1 for group in subset.groups)
    print(
        f"{public_name(args.out)}: {counted(len(subset.groups), 'class')} of "
        f"{counted(len(subset.class_of), 'class')} of the data set"
        + (f", {grouped:,} of them groups" if grouped else "")
        + (f"; {counted(len(subset.keys), 'image')}" if subset.keys is not None else "")
    )
    if grouped:
        for group in subset.groups[:_SHOWN]:
            value = "" if group.value is None else f", confusion {group.value:,.4g}"
            print(f"  {group.to_json().get('title', group.name)}: {len(group.members):,}{value}")
        if len(subset.groups) > _SHOWN:
            print(f"  and {len(subset.groups) - _SHOWN:,} more")
    return EXIT_FINE


def _summary(subset: SubsetFile) -> dict[str, Any]:
    return {
        **subset.record(),
        "source": dict(subset.class_source),
        "groups": [
            {"name": group.name, "num": len(group.members), "value": group.value} for group in subset.groups
        ],
        "notes": list(subset.notes),
    }


def _beside(source: str) -> str | None:
    """The validation set that lies beside a local training set, or in a folder with it."""
    from .schema import MANIFEST_NAME

    for folder in (Path(source) / "val", Path(source).parent / "val"):
        is_val = Path(source).name == "train" or folder.parent == Path(source)
        if is_val and (folder / MANIFEST_NAME).is_file():
            return str(folder)
    return None
