"""The command `softshard pseudo make`."""

from __future__ import annotations

import argparse
from functools import partial

from ..shards.cli_values import needs_extra
from ..shards.text_limits import counted
from .cli_over_shards import add_over_shards, add_source_and_destination, print_made, where_it_runs
from .ray_ranks import run_command


def add_pseudo(subparsers: argparse._SubParsersAction) -> None:
    """Register `pseudo make`."""
    pseudo = subparsers.add_parser("pseudo", help="let trained models label the images of a data set")
    actions = pseudo.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="run models over a data set and store the classes that they are sure of",
        description="Ask models that softshard train made about every image of a data set, whole and squished to the "
        "largest model's size, and add the most probable classes to the samples, where the best one is probable enough. The "
        "labels that images came with stay; `softshard train pseudo` learns from the new ones. Images are not encoded "
        "again. A run that was killed continues when it is given again. On several GPUs or processes: torchrun "
        "--nproc-per-node N --no-python softshard pseudo make ..., or --engine ray.",
    )
    add_source_and_destination(make, "a data set", "pseudo labels")
    make.add_argument(
        "--model",
        required=True,
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoint.pt of softshard train for the same classes; of several the mean of their probabilities counts",
    )
    make.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="least probability of an image's best class (default: 0.5)",
    )
    make.add_argument(
        "--top",
        type=int,
        default=1,
        metavar="K",
        help="classes that an image gets, weighted by their probabilities, which are scaled to add up to 1 (default: 1, "
        "the best class alone)",
    )
    make.add_argument(
        "--below",
        choices=("own", "none"),
        default="own",
        help="what an image gets whose best class is less probable: its own label (default), or none, so that it adds "
        "nothing to the loss",
    )
    add_over_shards(make, batch_size=64, amp="models in mixed precision")
    make.set_defaults(run=partial(run_command, _run_make))


def _run_make(args: argparse.Namespace) -> int:
    with needs_extra("softshard pseudo make", "training"):
        from .pseudo_store import PseudoOptions, make_pseudo_labels
    from ..shards.storage import public_name

    sure = seen = 0

    def labelled(num_sure: int, num_seen: int) -> None:
        nonlocal sure, seen
        sure, seen = sure + num_sure, seen + num_seen

    made = make_pseudo_labels(
        args.dataset,
        args.destination,
        args.model,
        PseudoOptions(args.threshold, args.top, args.below, args.batch_size, args.amp),
        **where_it_runs(args),
        labelled=labelled,
    )
    where = public_name(args.destination)
    rest = {"own": "the others keep their own label", "none": "the others have none"}[args.below]
    found = f"{sure:,} of the {seen:,} images of this process got a label of the model's, {rest}"
    lines = (
        f"{counted(made.num_samples, 'sample')} with pseudo labels: {where}" + (f"; {found}" if seen else ""),
        f"Run: softshard train pseudo {where} --model TIMM_NAME --init-from FILE --out DIR",
    )
    return print_made(made, args, lines)
