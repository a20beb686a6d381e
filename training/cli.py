"""The commands of softshard.training: `demo` and `train`, and those of the other cli modules here.

`softshard pack` imports these modules too, so torch, timm and DALI are imported only when a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil

from ..loaders.cli_connection import add_connection, connection_of
from ..shards.cli_values import needs_extra
from ..shards.errors import UsageError
from .cli_maps import add_maps
from .cli_process import EXIT_SIGNAL, add_device, process_of_torchrun, torch_device
from .cli_pseudo import add_pseudo
from .cli_subset import add_subset
from .cli_tags import add_tags
from .cli_teacher import add_teacher
from .cli_use import add_evaluate, add_predict
from .precision import PRECISIONS
from .recipe_list import RECIPES
from .recipe_presets import PRESETS, with_settings
from .recipes import Recipe


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register demo, maps, subset, teacher, pseudo, tags, train, evaluate and predict."""
    _add_demo(subparsers)
    add_maps(subparsers)
    add_subset(subparsers)
    add_teacher(subparsers)
    add_pseudo(subparsers)
    add_tags(subparsers)
    _add_train(subparsers)
    add_evaluate(subparsers)
    add_predict(subparsers)


def _add_demo(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("demo", help="the whole of it on real photographs, in a few minutes")
    command.add_argument(
        "--images",
        metavar="DIR",
        help="folder of class folders named by wnid or noun (default: photographs inside scikit-image and scikit-learn)",
    )
    command.add_argument("--out", default="demo-out", metavar="DIR", help="output folder (default: demo-out)")
    command.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads (default: one a core)")
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
    command.add_argument(
        "recipe",
        choices=sorted(RECIPES),
        metavar="RECIPE",
        help="labels: single-label, multi-label and asl (a sigmoid for each class), semantic-softmax (all levels of a "
        "tree); a teacher: relabel (label maps), semantic-kd, live-distillation; noisy web images: weakly-tagged, "
        "label-weighted, joint, then fine-tune, larger-images, pseudo; other classes: transfer",
    )
    command.add_argument(
        "dataset",
        metavar="DATASET",
        help="folder or fsspec URL of a data set, or servers of softshard serve: "
        "grpc://HOST:PORT/NAME, several with commas between, or their list, file:///.../servers.json#NAME",
    )
    command.add_argument("--model", required=True, metavar="TIMM_NAME", help="architecture, such as resnet50")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the checkpoint, metrics and weights"
    )
    data = command.add_argument_group("data")
    data.add_argument("--val", metavar="DATASET", help="data set to evaluate on after every epoch")
    data.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read both data sets with these labels instead of their own; nothing is packed again. A label tree (a file "
        "that ends in .json, of softshard tree build); or a class list (a file of names, the folder of another data "
        "set, or a known list such as imagenet-1k), whose classes, in its order, are then those of the model. Images "
        "of other classes are left out. --resume wants the same labels again",
    )
    data.add_argument(
        "--subset",
        metavar="FILE",
        help="train on the images that softshard subset chose, and read both data sets with its classes and groups; "
        "nothing is packed again. --resume wants the same again",
    )
    data.add_argument(
        "--side",
        metavar="DIR|URL",
        help="side shards of softshard maps make --side, whose label maps are joined to the training set's samples. "
        "--resume wants the same again",
    )
    add_connection(data)
    start = command.add_argument_group("what it begins with, and learns from")
    weights = start.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained",
        action="store_true",
        help="begin with timm's own weights; their head is left out unless the data set's classes are its own",
    )
    weights.add_argument(
        "--init-from",
        metavar="FILE|TIMM_NAME",
        help="begin with these weights: a checkpoint, safetensors, or timm's such as resnet50.a1_in1k. A head for a "
        "class list known to be another is refused; one of another size and unknown origin is left out",
    )
    start.add_argument(
        "--new-head",
        action="store_true",
        help="begin with a new head whatever the weights bring (the recipes transfer, fine-tune and pseudo always do)",
    )
    start.add_argument(
        "--freeze", action="store_true", help="train the head only; the rest stays as it was loaded"
    )
    start.add_argument(
        "--teacher",
        metavar="CHECKPOINT|timm:NAME",
        help="checkpoint.pt of the model that the recipes semantic-kd and live-distillation learn from, with the same "
        "classes and tree: it is asked about every crop. live-distillation also takes a model of timm's, such as "
        "timm:resnet50.a1_in1k; semantic-kd does without where the data set has a stored one: softshard teacher make",
    )
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out; begin where there is none",
    )
    recipe = command.add_argument_group("the recipe")
    recipe.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="paper: the recipe as published (default); paper-cutmix: ReLabel with CutMix, off for the last 5 epochs; "
        "visible-cutmix: that, with targets pooled from what is visible of both images; small: 128 pixels, batch 64, "
        "20 epochs for one small machine, without augmentation beside crop and flip",
    )
    recipe.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    recipe.add_argument(
        "--global-batch",
        type=int,
        metavar="N",
        help="samples per step over all processes, instead of the recipe's",
    )
    recipe.add_argument(
        "--lanes",
        type=int,
        metavar="K",
        help="parts of an epoch that are read side by side; as many as there are machines, so that each fetches the shards "
        "of its own part only (default: 1). They decide the order: --resume wants the same again",
    )
    recipe.add_argument("--lr", type=float, help="highest learning rate, instead of the recipe's")
    recipe.add_argument("--image-size", type=int, metavar="PX", help="instead of the recipe's")
    recipe.add_argument(
        "--class-balance",
        type=float,
        metavar="EXPONENT",
        help="class-balanced sampling, from 0 (the data set as it is) to 1 (every class the same): a class with n "
        "samples has a share of an epoch that goes with n^(1 - EXPONENT)",
    )
    recipe.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the forward pass, instead of the recipe's float32; bfloat16 on a GPU made since 2020, float16 (with "
        "loss scaling) on an older one",
    )
    recipe.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="cut each process's part of the global batch into N micro-batches, for less memory",
    )
    recipe.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change any other field of the recipe, such as ema_decay=0.9998, schedule=cosine, "
        "augment=color-jitter:0.4+lighting:0.1+mixup:0.2; may be repeated",
    )
    run = command.add_argument_group("run")
    run.add_argument(
        "--compile", action="store_true", help="run the model through torch.compile (needs a C++ compiler)"
    )
    run.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the numbers of metrics.csv and epochs.csv for TensorBoard, too",
    )
    run.add_argument("--seed", type=int, default=0, help="of weights, dropout, order and crops (default: 0)")
    add_device(run, threads="decoding threads of each process (default: one a core)")
    run.add_argument(
        "--max-bad",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="stop when more of the samples than this cannot be read (default: 0.001; ten always may). They are listed in "
        "bad_samples.jsonl",
    )
    run.add_argument(
        "--check-images",
        action="store_true",
        help="decode each image in full the first time, to find damage that decoders show as grey (for tars without hashes; "
        "slows the first epoch down)",
    )
    run.add_argument(
        "--log-steps",
        type=int,
        default=10,
        metavar="N",
        help="steps between lines of metrics.csv (default: 10)",
    )
    run.add_argument(
        "--checkpoint-steps",
        type=int,
        metavar="N",
        help="also write a checkpoint every N steps, not only every epoch",
    )
    command.set_defaults(run=_run_train)


def _run_demo(args: argparse.Namespace) -> int:
    with needs_extra("softshard demo", "demo"):
        from .demo import run_demo
    run_demo(args.out, args.images, seed=args.seed, num_threads=args.threads)
    return 0


def _run_train(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    if args.compile:
        _check_compiler()
    rank, world_size, local_rank = process_of_torchrun()
    with needs_extra("softshard train", "training"):
        from .train import train
    result = train(
        recipe,
        args.dataset,
        model=args.model,
        out=args.out,
        val=args.val,
        labels=args.labels,
        subset=args.subset,
        side=args.side,
        connection=connection_of(args, args.dataset, args.val),
        pretrained=args.pretrained,
        init_from=args.init_from,
        teacher=args.teacher,
        resume=args.resume,
        seed=args.seed,
        device=torch_device(args.device, local_rank),
        rank=rank,
        world_size=world_size,
        num_threads=args.threads,
        max_bad=args.max_bad,
        check_images=args.check_images,
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
        "lanes": args.lanes,
        "lr": args.lr,
        "image_size": args.image_size,
        "class_balance": args.class_balance,
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
