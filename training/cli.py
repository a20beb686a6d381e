"""The commands of softshard.training: `demo`, `train`, `evaluate`, `predict`, and those of `cli_maps` and `cli_teacher`.

`softshard pack` imports this module too, so torch, timm and DALI are imported only when a command runs. This
is also the only place that reads torchrun's environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..shards.errors import MissingExtraError, UsageError
from .cli_maps import add_maps
from .cli_teacher import add_teacher
from .recipes import PRECISIONS, PRESETS, RECIPES, Recipe, with_settings

if TYPE_CHECKING:
    from .predict import Guess, Prediction

EXIT_BAD_DATA = 1
EXIT_SIGNAL = 128  # a run that a signal stopped exits with this plus its number, as shells expect


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register demo, maps, teacher, train, evaluate and predict."""
    _add_demo(subparsers)
    add_maps(subparsers)
    add_teacher(subparsers)
    _add_train(subparsers)
    _add_evaluate(subparsers)
    _add_predict(subparsers)


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
        "On several GPUs: torchrun --nproc-per-node N --no-python softshard train ... "
        "What decides the result stands in the recipe: RECIPE names it, --preset small shrinks it, --set and the "
        "options below change it.",
    )
    command.add_argument("recipe", choices=sorted(RECIPES), metavar="RECIPE", help=", ".join(sorted(RECIPES)))
    command.add_argument("dataset", metavar="DATASET", help="folder or fsspec URL of a data set")
    command.add_argument("--model", required=True, metavar="TIMM_NAME", help="architecture, such as resnet50")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the checkpoint, metrics and weights"
    )
    command.add_argument("--val", metavar="DATASET", help="data set to evaluate on after every epoch")
    command.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read both data sets with these labels instead of their own; nothing is packed again. A label tree (a file "
        "that ends in .json, of softshard tree build); or a class list (a file of names, the folder of another data "
        "set, or a known list such as imagenet-1k), whose classes, in its order, are then those of the model. Images "
        "of other classes are left out. --resume wants the same labels again",
    )
    command.add_argument(
        "--side",
        metavar="DIR",
        help="side shards of softshard maps make --side, whose label maps are joined to the training set's samples. "
        "--resume wants the same again",
    )
    start = command.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="begin with timm's own weights")
    start.add_argument(
        "--init-from",
        metavar="FILE|TIMM_NAME",
        help="begin with these weights: a checkpoint, safetensors, or timm's such as resnet50.a1_in1k. A head for a "
        "class list known to be another is refused; one of another size and unknown origin is left out",
    )
    command.add_argument(
        "--new-head",
        action="store_true",
        help="begin with a new head whatever the weights bring (the recipe transfer always does)",
    )
    command.add_argument(
        "--freeze", action="store_true", help="train the head only; the rest stays as it was loaded"
    )
    command.add_argument(
        "--teacher",
        metavar="CHECKPOINT|timm:NAME",
        help="checkpoint.pt of the model that the recipes semantic-kd and live-distillation learn from, with the same "
        "classes and tree: it is asked about every crop. live-distillation also takes a model of timm's, such as "
        "timm:resnet50.a1_in1k; semantic-kd does without where the data set has a stored one: softshard teacher make",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out; begin where there is none",
    )
    command.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="paper: the recipe as published (default); paper-cutmix: ReLabel with CutMix, off for the last 5 epochs; "
        "visible-cutmix: that, with targets pooled from what is visible of both images; small: 128 pixels, batch 64, "
        "20 epochs for one small machine, without augmentation beside crop and flip",
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
        "--precision",
        choices=PRECISIONS,
        help="of the forward pass, instead of the recipe's float32; bfloat16 on a GPU made since 2020, float16 (with "
        "loss scaling) on an older one",
    )
    command.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="cut each process's part of the global batch into N micro-batches, for less memory",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change any other field of the recipe, such as ema_decay=0.9998, schedule=cosine, "
        "augment=color-jitter:0.4+lighting:0.1+mixup:0.2; may be repeated",
    )
    command.add_argument(
        "--compile", action="store_true", help="run the model through torch.compile (needs a C++ compiler)"
    )
    command.add_argument(
        "--tensorboard", action="store_true", help="write the numbers of metrics.csv for TensorBoard, too"
    )
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
    command = subparsers.add_parser(
        "evaluate",
        help="measure a checkpoint, or a model of timm's, on a data set",
        description="Measure a checkpoint or a model of timm's. "
        "On several GPUs: torchrun --nproc-per-node N --no-python softshard evaluate ...",
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT|timm:NAME",
        help="checkpoint.pt of softshard train; or timm's name of a model with its own weights, such as "
        "timm:resnet50.a1_in1k, whose images are prepared as timm says, as far as the stored ones allow (`differs`)",
    )
    command.add_argument(
        "dataset", metavar="DATASET", help="folder or fsspec URL of a data set with the same classes"
    )
    command.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read the data set with these labels instead of its own, for a checkpoint of softshard train --labels, or "
        "a data set with other classes or another tree: a label tree (.json) or a class list, as there. They must "
        "be the checkpoint's",
    )
    command.add_argument(
        "--label-sets",
        metavar="real|FILE",
        help="several right classes for an image, any of which counts: ReaL's, for ImageNet's validation images under "
        'their own names; or a JSON file such as {"dog_and_cat.jpg": ["dog", "cat"]}. Images with none are left out. The '
        "mean average precision over classes is given, too",
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="with timm:NAME: these weights of that architecture instead of timm's own",
    )
    command.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="of each process (default: 256)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_evaluate)


def _add_predict(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "predict",
        help="what a checkpoint says of images, level by level",
        description="Predict images, or those of a data set. With a label tree: the path from the root and the best "
        "classes of each level, with their probabilities within the level. Images that cannot be read are reported "
        "on standard error; the exit code is then 1.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of softshard train")
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE|DATASET",
        help="image files, as softshard pack reads them; or one folder of a data set",
    )
    command.add_argument(
        "--top", type=int, default=3, metavar="K", help="classes listed of each level (default: 3)"
    )
    command.add_argument(
        "--down-the-tree",
        action="store_true",
        help="of a model of one softmax per level: a class has the probability of its parent times its share among its "
        "sisters, so that leaves of all levels compare; the path is that of the best leaf",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads")
    command.add_argument("--json", action="store_true", help="print a JSON object a line, one for each image")
    command.set_defaults(run=_run_predict)


def _run_demo(args: argparse.Namespace) -> int:
    with _needs_extra("softshard demo", extra="demo"):
        from .demo import run_demo
    run_demo(args.out, args.images, seed=args.seed, num_threads=args.threads)
    return 0


def _run_train(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    if args.compile:
        _check_compiler()
    rank, world_size, local_rank = (_torchrun(name, default) for name, default in _TORCHRUN.items())
    with _needs_extra("softshard train"):
        from .train import train
    result = train(
        recipe,
        args.dataset,
        model=args.model,
        out=args.out,
        val=args.val,
        labels=args.labels,
        side=args.side,
        pretrained=args.pretrained,
        init_from=args.init_from,
        teacher=args.teacher,
        resume=args.resume,
        seed=args.seed,
        device=_device(args.device, local_rank),
        rank=rank,
        world_size=world_size,
        num_threads=args.threads,
        compile=args.compile,
        tensorboard=args.tensorboard,
        log_steps=args.log_steps,
        checkpoint_steps=args.checkpoint_steps,
    )
    return 0 if result.stopped_by is None else EXIT_SIGNAL + result.stopped_by


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that a command line names, with everything it changes."""
    recipe = with_settings(PRESETS[args.preset](RECIPES[args.recipe]()), args.set)
    overrides = {
        "epochs": args.epochs,
        "global_batch": args.global_batch,
        "lr": args.lr,
        "image_size": args.image_size,
        "precision": args.precision,
        "accumulate": args.accumulate,
        "freeze": args.freeze or None,
        "new_head": args.new_head or None,
    }
    return dataclasses.replace(
        recipe, **{name: value for name, value in overrides.items() if value is not None}
    )


def _check_compiler() -> None:
    """torch.compile looks for one only at the first step, and says so in a page of text."""
    candidates = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if not any(name and shutil.which(name) for name in candidates):
        raise UsageError(
            "--compile: expected a C++ compiler (g++, clang++ or $CXX), found none. Install one, or run without "
            "--compile"
        )


def _run_evaluate(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, found {args.batch_size}")
    rank, world_size, local_rank = (_torchrun(name, default) for name, default in _TORCHRUN.items())
    with _needs_extra("softshard evaluate"):
        from .evaluate import evaluate
        from .evaluate_timm import evaluate_timm
        from .preparation import PREFIX
    options: dict[str, Any] = {
        "labels": args.labels,
        "label_sets": args.label_sets,
        "batch_size": args.batch_size,
        "device": _device(args.device, local_rank),
        "rank": rank,
        "world_size": world_size,
        "num_threads": args.threads,
        "progress": rank == 0 and sys.stderr.isatty(),
    }
    if args.checkpoint.startswith(PREFIX):
        name = args.checkpoint.removeprefix(PREFIX)
        numbers = evaluate_timm(name, args.dataset, weights=args.weights, **options)
    elif args.weights is not None:
        raise UsageError(f"--weights: expected timm:NAME, which they are for, found {args.checkpoint}")
    else:
        numbers = evaluate(args.checkpoint, args.dataset, **options)
    if rank == 0:
        print(json.dumps(numbers, indent=1) if args.json else _table(numbers))
    return 0


def _run_predict(args: argparse.Namespace) -> int:
    with _needs_extra("softshard predict"):
        from .predict import Predictor, is_data_set
    predictor = Predictor(
        args.checkpoint,
        top=args.top,
        device=_device(args.device, local_rank=0),
        num_threads=args.threads,
        down_the_tree=args.down_the_tree,
    )
    bad = 0

    def report(error: Exception) -> None:
        nonlocal bad
        bad += 1
        print(f"softshard: {error}", file=sys.stderr)

    if any(is_data_set(path) for path in args.images):
        if len(args.images) > 1:
            raise UsageError("predict: expected image files or one data set, found a data set among others")
        predictions = predictor.data_set(args.images[0])
    else:
        predictions = predictor.files(args.images, report)
    for prediction in predictions:
        print(json.dumps(prediction.to_json()) if args.json else _prediction_text(prediction), flush=True)
    return EXIT_BAD_DATA if bad else 0


def _prediction_text(prediction: Prediction) -> str:
    def text(guess: Guess) -> str:
        named = guess.shown if guess.shown == guess.name else f"{guess.shown} ({guess.name})"
        return f"{named} {guess.probability:.1%}"

    lines = [prediction.image, f"  path     {' > '.join(map(text, prediction.path))}"]
    for level, guesses in enumerate(prediction.best):
        label = f"level {level}" if len(prediction.best) > 1 else "best"
        lines.append(f"  {label:<8} {', '.join(map(text, guesses))}")
    return "\n".join(lines)


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
            lines += [f"  level {level:<20} {_shown(share)}" for level, share in enumerate(value)]
        elif name == "differs":
            lines += [f"differs from timm's own        {line}" for line in value]
        elif name == "preparation":
            lines.append(f"{name:<28} {', '.join(f'{key} {part}' for key, part in value.items())}")
        else:
            unit = " edges" if "tree_distance" in name and value is not None else ""
            shown = f"{value:.3f}{unit}" if unit else _shown(value)
            lines.append(f"{name:<28} {shown}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if isinstance(value, float) else str(value)
