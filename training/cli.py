"""The commands of softshard.training: `demo`, `train`, `evaluate`, and those of `cli_maps`.

`softshard pack` imports this module too, so torch, timm and DALI are imported only when a command runs. This
is also the only place that reads torchrun's environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..shards.errors import MissingExtraError, UsageError
from .cli_maps import add_maps
from .recipes import RECIPES

EXIT_SIGNAL = 128  # a run that a signal stopped exits with this plus its number, as shells expect


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register demo, maps, train and evaluate."""
    _add_demo(subparsers)
    add_maps(subparsers)
    _add_train(subparsers)
    _add_evaluate(subparsers)


def _add_demo(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("demo", help="the whole of it on real photographs, in a few minutes")
    command.add_argument(
        "--images",
        metavar="DIR",
        help="folder of class folders named by wnid or noun (default: photographs inside scikit-image and scikit-learn)",
    )
    command.add_argument("--out", default="demo-out", metavar="DIR", help="output folder (default: demo-out)")
    command.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads")
    command.set_defaults(run=_run_demo)


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "train",
        help="train a timm model on a data set",
        description="Train a timm model. "
        "On several GPUs: torchrun --nproc-per-node N --no-python softshard train ...",
    )
    command.add_argument("recipe", choices=sorted(RECIPES), metavar="RECIPE", help=", ".join(sorted(RECIPES)))
    command.add_argument("dataset", metavar="DATASET", help="folder of a data set")
    command.add_argument("--model", required=True, metavar="TIMM_NAME", help="architecture, such as resnet50")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the checkpoint, metrics and weights"
    )
    command.add_argument("--val", metavar="DATASET", help="data set to evaluate on after every epoch")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="begin with timm's own weights")
    start.add_argument(
        "--init-from", metavar="FILE", help="begin with these weights; a head of another size is left out"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out; begin where there is none",
    )
    command.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    command.add_argument(
        "--global-batch",
        type=int,
        metavar="N",
        help="samples per step over all processes, instead of the recipe's",
    )
    command.add_argument("--lr", type=float, help="highest learning rate, instead of the recipe's")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="instead of the recipe's")
    command.add_argument(
        "--seed", type=int, default=0, help="of weights, dropout, order and crops (default: 0)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads of each process")
    command.add_argument(
        "--log-steps", type=int, default=10, metavar="N", help="steps between lines of metrics.csv (10)"
    )
    command.add_argument(
        "--checkpoint-steps",
        type=int,
        metavar="N",
        help="also write a checkpoint every N steps, not only every epoch",
    )
    command.set_defaults(run=_run_train)


def _add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("evaluate", help="measure a checkpoint on a data set")
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of softshard train")
    command.add_argument("dataset", metavar="DATASET", help="folder of a data set with the same classes")
    command.add_argument("--batch-size", type=int, default=256, metavar="N", help="default: 256")
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_evaluate)


def _run_demo(args: argparse.Namespace) -> int:
    with _needs_extra("softshard demo", extra="demo"):
        from .demo import run_demo
    run_demo(args.out, args.images, seed=args.seed, num_threads=args.threads)
    return 0


def _run_train(args: argparse.Namespace) -> int:
    recipe = RECIPES[args.recipe]()
    overrides = {
        "epochs": args.epochs,
        "global_batch": args.global_batch,
        "lr": args.lr,
        "image_size": args.image_size,
    }
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in overrides.items() if value is not None}
    )
    rank, world_size, local_rank = (_torchrun(name, default) for name, default in _TORCHRUN.items())
    with _needs_extra("softshard train"):
        from .train import train
    result = train(
        recipe,
        args.dataset,
        model=args.model,
        out=args.out,
        val=args.val,
        pretrained=args.pretrained,
        init_from=args.init_from,
        resume=args.resume,
        seed=args.seed,
        device=_device(args.device, local_rank),
        rank=rank,
        world_size=world_size,
        num_threads=args.threads,
        log_steps=args.log_steps,
        checkpoint_steps=args.checkpoint_steps,
    )
    return 0 if result.stopped_by is None else EXIT_SIGNAL + result.stopped_by


def _run_evaluate(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, found {args.batch_size}")
    with _needs_extra("softshard evaluate"):
        from .evaluate import evaluate
    numbers = evaluate(
        args.checkpoint,
        args.dataset,
        batch_size=args.batch_size,
        device=_device(args.device, local_rank=0),
        num_threads=args.threads,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(numbers, indent=1) if args.json else _table(numbers))
    return 0


# torchrun's variables and what they are without it.
_TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _torchrun(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"environment: {name}: expected a number as torchrun sets it, found {text!r}")
    return int(text)


def _device(name: str | None, local_rank: int) -> str:
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            "--device cuda: expected an NVIDIA GPU, found none that torch can use. Run with --device cpu"
        )
    return f"cuda:{local_rank}" if available and name != "cpu" else "cpu"


@contextmanager
def _needs_extra(command: str, extra: str = "training") -> Iterator[None]:
    """Around an import: a missing package becomes the error that names the pip command."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "softshard":  # a bug here, not a missing package
            raise
        raise MissingExtraError(command, extra, error) from error


def _table(numbers: dict[str, Any]) -> str:
    lines = []
    for name, value in numbers.items():
        if name == "per_level":
            lines += [f"  level {level:<14} {_shown(share)}" for level, share in enumerate(value)]
        else:
            lines.append(f"{name:<22} {_shown(value)}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if isinstance(value, float) else str(value)
