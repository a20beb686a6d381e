"""The command `softshard teacher make`."""

from __future__ import annotations

import argparse
from functools import partial

from ..shards.cli_values import needs_extra
from ..shards.text_limits import counted
from .cli_over_shards import add_over_shards, add_source_and_destination, print_made, where_it_runs
from .ray_ranks import run_command


def add_teacher(subparsers: argparse._SubParsersAction) -> None:
    """Register `teacher make`."""
    teacher = subparsers.add_parser("teacher", help="store a distillation's teacher in a data set's shards")
    actions = teacher.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="run a trained model over a data set and store its best classes of every level",
        description="Ask a model that softshard train made about every image of a data set, whole and squished to the "
        "model's size, and add its ceil(N/20) best classes of each level of N classes to the samples, with their "
        "probabilities: 2 kB an image for ImageNet-21K-P. `softshard train semantic-kd` then learns from them without "
        "--teacher. Images are not encoded again. A run that was killed continues when it is given again. On several GPUs "
        "or processes: torchrun --nproc-per-node N --no-python softshard teacher make ..., or --engine ray.",
    )
    add_source_and_destination(make, "a data set with a label tree", "the stored teacher")
    make.add_argument(
        "--teacher",
        required=True,
        metavar="CHECKPOINT",
        help="checkpoint.pt of softshard train, with the same classes and tree",
    )
    add_over_shards(make, batch_size=64, amp="the teacher in mixed precision")
    make.set_defaults(run=partial(run_command, _run_make))


def _run_make(args: argparse.Namespace) -> int:
    with needs_extra("softshard teacher make", "training"):
        from .teacher_store import store_teacher
    from ..shards.storage import public_name

    options = {"batch_size": args.batch_size, "amp": args.amp, **where_it_runs(args)}
    made = store_teacher(args.dataset, args.destination, args.teacher, **options)
    assert made.teacher is not None
    where = public_name(args.destination)
    lines = (
        f"{counted(made.num_samples, 'sample')} with the levels of {made.teacher.model}; "
        f"{made.num_bytes / made.num_samples:,.0f} bytes a sample: {where}",
        f"Run: softshard train semantic-kd {where} --model TIMM_NAME --out DIR",
    )
    return print_made(made, args, lines)
