"""The commands `softshard subset confusion`, `score`, `evaluate` and `study`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..shards.cli_values import EXIT_FINE, actions_of, local_path, needs_extra, print_json
from ..shards.errors import UsageError
from .cli_process import add_device, add_pass, at_least_one, pass_of, process_of_torchrun, torch_device
from .cli_study import add_recipe, recipe_of, stopped
from .recipes import single_label

if TYPE_CHECKING:
    from .subset_study import StudySet


def add_subset(subparsers: argparse._SubParsersAction) -> None:
    """Register `subset confusion`, `subset score`, `subset evaluate` and `subset study`."""
    actions = actions_of(subparsers, "subset")
    _add_confusion(actions)
    _add_score(actions)
    _add_evaluate(actions)
    _add_study(actions)


def _add_confusion(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "confusion",
        help="count which classes a model takes for which",
        description="Show a model every image of a data set once and count what it takes them for: a row for each right "
        "class, a column for each answer, for softshard subset classes. On several GPUs: torchrun --nproc-per-node N "
        "--no-python softshard subset confusion ...",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder or fsspec URL of a data set")
    command.add_argument(
        "--model",
        required=True,
        metavar="CHECKPOINT|timm:NAME",
        help="checkpoint.pt of softshard train; or timm's name of a model with its own weights, such as "
        "timm:resnet50.a1_in1k. Images that it was trained on hide its confusion: give the validation set",
    )
    command.add_argument(
        "-o", "--out", required=True, metavar="FILE", help=".npy (numbers alone), or .csv with class names"
    )
    command.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read the data set with these labels, as softshard evaluate does",
    )
    add_pass(command)
    command.set_defaults(run=_run_confusion)


def _add_score(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "score",
        help="how hard each image is, from a model that did not train on it",
        description="Split a data set in two halves, equal within every class, train a model on each and score the images "
        "of the other: the probability of the right class, a line of JSON for each image, for softshard subset images. "
        "Nobody's weights are used to begin with, since they may have seen the images. A run that was killed continues "
        "when it is given again.",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder or fsspec URL of a data set")
    command.add_argument("--model", required=True, metavar="TIMM_NAME", help="architecture, such as resnet50")
    command.add_argument(
        "-o", "--out", required=True, type=local_path, metavar="FILE", help="the scores, such as scores.jsonl"
    )
    command.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read the data set with these labels instead of its own (see softshard train), such as the groups of softshard "
        "subset classes (.json), which softshard subset images then wants as --classes. It takes no scores of a label "
        "tree or a class list",
    )
    command.add_argument(
        "--runs", type=local_path, metavar="DIR", help="folder of both trainings (default: FILE.runs)"
    )
    add_recipe(command, name="the recipe single-label", settings="lr=0.01 or global_batch=64")
    command.add_argument("--epochs", type=int, metavar="N", help="of each half, instead of the recipe's 80")
    command.add_argument("--seed", type=int, default=0, help="of the halves and both trainings (default: 0)")
    command.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images a step when scoring (default: 256)"
    )
    add_device(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_score)


def _add_evaluate(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "evaluate",
        help="does a subset rank models as the full set does, and with fewer images?",
        description="Compare accuracy curves of the same models on a full set and on a subset: Kendall's tau-b and "
        "Spearman's rho of the final accuracies with 95 % bootstrap intervals over models; pairs that are ordered "
        "differently, and how many of them beyond noise; for each set the earliest epoch whose ranking is the final one and "
        "stays it, and the images looped until then (training images x that epoch).",
        epilog="Input: one CSV with the columns set, model, epoch, accuracy (set is `full` or `subset`), as softshard "
        "subset study writes it; or two CSVs with model, epoch, accuracy, the full set's first. Columns may be in any "
        "order, others are left alone. epoch counts the epochs trained, from 1; within a set all models need the same ones. "
        "accuracy is a share from 0 to 1, or with --percent from 0 to 100. The columns train_images and val_images, or "
        "the options, give each set's numbers of images. Noise: a gap between two models counts where it is larger than "
        "1.96 standard errors of a difference of two independent shares of the validation images, on both sets.",
    )
    command.add_argument(
        "curves", nargs="+", metavar="CURVES.csv", help="one file for both sets, or FULL.csv SUBSET.csv"
    )
    command.add_argument("--percent", action="store_true", help="accuracies are in percent")
    for kind, what in (("train", "training"), ("val", "validation")):
        for name in ("full", "subset"):
            command.add_argument(
                f"--{kind}-images-{name}",
                type=int,
                metavar="N",
                help=f"{what} images of the {name}{' set' if name == 'full' else ''}, where the file does not say",
            )
    command.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    command.add_argument("--html", type=local_path, metavar="FILE", help="write a page with table and plot")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_evaluate)


def _add_study(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "study",
        help="train models on a full set and on a subset, and compare their rankings",
        description="Train a list of timm models on a full set and on a subset, by one recipe, and write curves.csv, which "
        "softshard subset evaluate reads; its table is printed at the end. Every run is a folder of softshard train; a "
        "study that was killed continues when it is given again, also with more models.",
    )
    command.add_argument("full", metavar="FULL", help="folder or fsspec URL of the full training set")
    command.add_argument(
        "subset",
        metavar="SUBSET",
        help="the subset: a file of softshard subset classes or images (.json), with which FULL is read; a file (.txt) with "
        "the keys of the samples of FULL that it has, one a line; or a data set of its own",
    )
    command.add_argument("--val", required=True, metavar="DATASET", help="validation set of FULL")
    command.add_argument(
        "--val-subset", metavar="DATASET", help="validation set of the subset (default: that of FULL)"
    )
    command.add_argument(
        "--labels", metavar="FILE|LIST", help="read FULL and its validation set with these (see train)"
    )
    command.add_argument(
        "--labels-subset",
        metavar="FILE|LIST",
        help="read the subset and its validation set with these, such as a list of fewer classes (default: --labels)",
    )
    command.add_argument(
        "--models", required=True, metavar="A,B,...", help="timm's names of two architectures or more"
    )
    command.add_argument(
        "--epochs-full", type=int, default=100, metavar="N", help="on the full set (default: 100)"
    )
    command.add_argument(
        "--epochs-subset", type=int, default=50, metavar="N", help="on the subset (default: 50)"
    )
    command.add_argument(
        "-o",
        "--out",
        required=True,
        type=local_path,
        metavar="DIR",
        help="folder for the runs and curves.csv",
    )
    add_recipe(command, name="the recipe single-label", settings="lr=0.01 or global_batch=64")
    command.add_argument("--seed", type=int, default=0, help="of every run and the bootstrap (default: 0)")
    add_device(command)
    command.add_argument("--json", action="store_true", help="print the evaluation as JSON")
    command.set_defaults(run=_run_study)


def _one_process(command: str) -> None:
    """Refuse torchrun, under which every process would train the same.

    Raises:
        UsageError: there are several processes.
    """
    _, world_size, _ = process_of_torchrun()
    if world_size > 1:
        raise UsageError(
            f"{command}: expected one process, found {world_size} of torchrun's. Run it without torchrun"
        )


def _run_confusion(args: argparse.Namespace) -> int:
    at_least_one("--batch-size", args.batch_size)
    from ..shards.confusion_file import check_confusion_name, save_confusion
    from ..shards.storage import public_name

    check_confusion_name(args.out)
    with needs_extra("softshard subset confusion", "training"):
        from .confusion import confusion_of_model
    options = pass_of(args)
    found = confusion_of_model(args.model, args.dataset, weights=args.weights, **options)
    if options["rank"] == 0:
        save_confusion(args.out, found.counts, found.class_names)
        print(
            f"{found.counts.sum():,} images of {len(found.class_names):,} classes, {found.top1:.1%} taken for what they "
            f"are: {public_name(args.out)}"
        )
    return EXIT_FINE


def _run_score(args: argparse.Namespace) -> int:
    at_least_one("--batch-size", args.batch_size)
    _one_process("softshard subset score")
    recipe = recipe_of(args, single_label())
    if args.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=args.epochs)
    with needs_extra("softshard subset score", "training"):
        from .subset_score import score_data_set
    found = score_data_set(
        args.dataset,
        args.out,
        recipe=recipe,
        model=args.model,
        labels=args.labels,
        seed=args.seed,
        runs=args.runs,
        batch_size=args.batch_size,
        device=torch_device(args.device),
        num_threads=args.threads,
        progress=True,
    )
    if found.stopped_by is not None:
        return stopped("scoring", found.stopped_by)
    if args.json:
        print_json(
            {
                "path": str(found.path),
                "samples": found.samples,
                "skipped": found.skipped,
                "mean_probability": found.mean_probability,
            }
        )
    else:
        print(
            f"{found.samples:,} images scored, the right class has {found.mean_probability:.1%} on average: {found.path}"
        )
        if found.skipped:
            print(
                f"  {found.skipped:,} could not be read and have no score: bad_samples.jsonl in the folder of runs"
            )
    return EXIT_FINE


def _run_evaluate(args: argparse.Namespace) -> int:
    if len(args.curves) > 2:
        raise UsageError(
            f"subset evaluate: expected one CSV, or the full set's and the subset's, found {len(args.curves)}"
        )
    with needs_extra("softshard subset evaluate", "training"):
        from .curves import read_curves
        from .subset_evaluation import evaluate_subset, format_evaluation, with_images, write_page
    full, subset = read_curves(args.curves, percent=args.percent)
    full = with_images(
        full, train_images=args.train_images_full, val_images=args.val_images_full, where="full set:"
    )
    subset = with_images(
        subset, train_images=args.train_images_subset, val_images=args.val_images_subset, where="subset:"
    )
    result = evaluate_subset(full, subset, seed=args.seed)
    if args.html is not None:
        write_page(result, args.html)
    if args.json:
        print_json(result)
    else:
        print(format_evaluation(result))
    return EXIT_FINE


def _run_study(args: argparse.Namespace) -> int:
    _one_process("softshard subset study")
    recipe = recipe_of(args, single_label())
    for name in ("epochs_full", "epochs_subset"):
        at_least_one(f"--{name.replace('_', '-')}", getattr(args, name))
    with needs_extra("softshard subset study", "training"):
        from .curves import FULL, SUBSET, read_curves
        from .subset_evaluation import evaluate_subset, format_evaluation, write_page
        from .subset_study import StudySet, study_subset
    full = StudySet(args.full, args.val, labels=args.labels)
    found = study_subset(
        full,
        _study_subset(args, full),
        args.models.split(","),
        args.out,
        recipe=recipe,
        epochs={FULL: args.epochs_full, SUBSET: args.epochs_subset},
        seed=args.seed,
        device=torch_device(args.device),
        num_threads=args.threads,
    )
    if found.stopped_by is not None:
        return stopped("the study", found.stopped_by)
    result = evaluate_subset(*read_curves([found.curves]), seed=args.seed)
    write_page(result, found.curves.with_suffix(".html"))
    if args.json:
        print_json(result)
    else:
        print(format_evaluation(result))
        print(f"\n{found.curves}, {found.curves.with_suffix('.html')}")
    return EXIT_FINE


def _study_subset(args: argparse.Namespace, full: StudySet) -> StudySet:
    """What SUBSET names: part of FULL's shards by a file, or a data set of its own."""
    from ..loaders.subset import Subset
    from ..shards.subset_file import SubsetFile
    from .subset_study import StudySet

    val = args.val_subset or args.val
    labels = args.labels_subset or args.labels
    suffix = Path(args.subset).suffix.lower()
    if suffix == ".json":
        if args.labels_subset is not None:
            raise UsageError(
                "--labels-subset: expected no labels beside a file of softshard subset, which has its own"
            )
        return StudySet(full.dataset, val, subset=SubsetFile.load(args.subset))
    if suffix == ".txt":
        return StudySet(full.dataset, val, subset=Subset(keys=args.subset), labels=labels)
    return StudySet(args.subset, val, labels=labels)
