"""The commands `softshard maps make`, `maps check` and `maps study`."""

from __future__ import annotations

import argparse
from functools import partial

from ..shards.cli_values import actions_of, needs_extra, print_json
from .cli_over_shards import add_over_shards, add_source_and_destination, print_made, where_it_runs
from .cli_process import add_device, torch_device
from .cli_study import add_recipe, add_study, print_study, recipe_of
from .ray_ranks import run_command
from .recipes import relabel


def add_maps(subparsers: argparse._SubParsersAction) -> None:
    """Register `maps make`, `maps check` and `maps study`."""
    actions = actions_of(subparsers, "maps")
    _add_make(actions)
    _add_check(actions)
    _add_study(actions)


def _add_make(actions: argparse._SubParsersAction) -> None:
    make = actions.add_parser(
        "make",
        help="run a teacher over a data set and pack its label maps",
        description="Run one or more timm models densely over a data set and add their label maps to it; images are not "
        "encoded again. A run that was killed continues when it is given again. On several GPUs or processes: "
        "torchrun --nproc-per-node N --no-python softshard maps make ..., or --engine ray.",
    )
    add_source_and_destination(make, "a data set", "label maps")
    _add_teacher(make, required=True, several="; given again, the dense logits of all are averaged")
    make.add_argument(
        "--size", type=int, default=475, metavar="PX", help="images are squished to it (default: 475)"
    )
    make.add_argument("--top", type=int, default=5, metavar="K", help="classes kept per cell (default: 5)")
    make.add_argument(
        "--scores",
        default="uint8",
        choices=("uint8", "float16"),
        help="how the kept logits are stored: uint8, affine in each map (default); or float16, in twice the bytes",
    )
    make.add_argument(
        "--side",
        action="store_true",
        help="write side shards with the label maps alone; `softshard maps join` makes a data set of both",
    )
    add_over_shards(make, batch_size=32, amp="mixed precision for all but the head")
    make.set_defaults(run=partial(run_command, _run_make))


def _add_check(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="tell whether the label maps' rows and columns are swapped, and how well they agree with the labels",
        description="Compare a data set's label maps with its labels (top-1 of the map pooled over the whole image) and, "
        "with a teacher, with what the teacher says of crops beside the diagonal: pooled as the maps are stored and "
        "with rows and columns swapped.",
    )
    check.add_argument(
        "dataset", metavar="DATASET", help="folder or fsspec URL of a data set with label maps"
    )
    check.add_argument(
        "--side",
        metavar="DIR|URL",
        help="side shards of softshard maps make --side: their label maps, in place of any that the data set has",
    )
    _add_teacher(check, required=False, several="; without one only the labels are compared")
    check.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="the teacher's crops are squished to it (default: what it was trained on)",
    )
    check.add_argument(
        "--images", type=int, default=500, metavar="N", help="images shown to the teacher (default: 500)"
    )
    check.add_argument(
        "--seed", type=int, default=0, help="of the choice of images and the bootstrap (default: 0)"
    )
    check.add_argument("--batch-size", type=int, default=64, metavar="N", help="crops a step (default: 64)")
    add_device(check)
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.set_defaults(run=_run_check)


def _add_study(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "study",
        help="train with label maps, with the labels and with a live teacher, and compare",
        description="Train the recipe relabel with each kind of target (Yun et al. 2021): local-multi (ReLabel), "
        "global-multi, local-single, global-single, original, label-smoothing and, with a teacher, live-distillation; "
        "with the same start, images, crops and number of steps, for several seeds. Prints top-1 on --val, the difference "
        "from the original labels with its 95 percent bootstrap interval, and the time of a step; writes study.json. A "
        "study that was killed continues when it is given again.",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder of a data set with label maps")
    command.add_argument("--targets", metavar="A,B,...", help="these only, such as local-multi,original")
    command.add_argument(
        "--teacher",
        metavar="CHECKPOINT|timm:NAME",
        help="what live-distillation asks: checkpoint.pt of softshard train, or a model of timm's with its own weights",
    )
    add_recipe(command, name="the recipe relabel", settings="epochs=30, image_size=128, lr=0.05")
    add_study(command, model="resnet50", labels="both data sets")
    command.set_defaults(run=_run_study)


def _add_teacher(command: argparse.ArgumentParser, *, required: bool, several: str) -> None:
    command.add_argument(
        "--teacher",
        required=required,
        action="append",
        metavar="TIMM_NAME",
        help=f"architecture, such as resnet50{several}",
    )
    command.add_argument(
        "--checkpoint",
        action="append",
        metavar="FILE",
        help="what `softshard train` wrote, one for each teacher in their order (default: timm's own weights)",
    )
    command.add_argument(
        "--labels",
        action="append",
        metavar="LIST",
        help="the class list that a teacher's outputs mean, one for each teacher in their order: a file of names, the "
        "folder of a data set, or a known list such as imagenet-1k (default: timm's wnids for that number of outputs; a "
        "checkpoint must be for the data set's own list). Outputs that are no class of the data set are left out",
    )


def _run_make(args: argparse.Namespace) -> int:
    with needs_extra("softshard maps make", "training"):
        from .maps import MapOptions, load_teachers, make_label_maps
    from ..shards.manifest import Manifest
    from ..shards.storage import public_name

    options = MapOptions(args.size, args.top, args.scores, args.batch_size, args.amp, args.side)
    teachers = load_teachers(
        args.teacher,
        args.checkpoint or [],
        Manifest.load(args.dataset),
        size=args.size,
        labels=args.labels or (),
    )
    made = make_label_maps(args.dataset, args.destination, teachers, options, **where_it_runs(args))
    maps, where = made.label_maps, public_name(args.destination)
    assert maps is not None
    lines = [each.outputs.line(each.name) for each in teachers if each.outputs is not None]
    lines.append(
        f"{made.num_samples:,} label maps, top {maps.top} of {maps.num_classes} classes on {maps.rows} x {maps.columns} "
        f"cells; {made.num_bytes / made.num_samples:,.0f} bytes a sample: {where}"
    )
    if args.side:
        lines.append(f"Run: softshard maps join {public_name(args.dataset)} {where} DST")
    return print_made(made, args, lines)


def _run_check(args: argparse.Namespace) -> int:
    with needs_extra("softshard maps check", "training"):
        from .maps_check import check_label_map_labels, check_orientation, format_check
        from .maps_teacher import load_teachers
    from ..shards.errors import UsageError
    from ..shards.manifest import Manifest

    if args.teacher and len(args.teacher) > 1:
        raise UsageError(f"--teacher: expected one to check with, found {len(args.teacher)}")
    manifest = Manifest.load(args.dataset)
    result: dict = {"labels": check_label_map_labels(args.dataset, manifest, side=args.side)}
    if args.teacher:
        (teacher,) = load_teachers(
            args.teacher, args.checkpoint or [], manifest, size=args.size, labels=args.labels or ()
        )
        result["orientation"] = check_orientation(
            args.dataset,
            manifest,
            teacher,
            size=args.size,
            num_images=args.images,
            seed=args.seed,
            batch_size=args.batch_size,
            device=torch_device(args.device),
            num_threads=args.threads,
            side=args.side,
        )
    if args.json:
        print_json(result)
    else:
        print(format_check(result))
    return 0


def _run_study(args: argparse.Namespace) -> int:
    with needs_extra("softshard maps study", "training"):
        from .study import format_study, study
    result = study(
        args.dataset,
        args.val,
        recipe=recipe_of(args, relabel()),
        model=args.model,
        out=args.out,
        seeds=args.seeds,
        contenders=None if args.targets is None else args.targets.split(","),
        teacher=args.teacher,
        labels=args.labels,
        device=torch_device(args.device),
        num_threads=args.threads,
    )
    return print_study(result, args, format_study)
