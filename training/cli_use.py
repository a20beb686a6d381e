"""The commands `softshard evaluate` and `softshard predict`: what a trained model is used for."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..loaders.cli_connection import add_connection, connection_of
from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE, needs_extra
from ..shards.errors import UsageError
from .cli_process import add_device, add_pass, at_least_one, pass_of, torch_device

if TYPE_CHECKING:
    from .predict import Guess, Prediction


def add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    """Register `evaluate`."""
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
        "dataset",
        metavar="DATASET",
        help="folder or fsspec URL of a data set with the same classes; of a checkpoint also servers of softshard serve: "
        "grpc://HOST:PORT/NAME, several with commas between",
    )
    add_connection(command)
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
    _add_ensemble(command)
    add_pass(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_run_evaluate)


def add_predict(subparsers: argparse._SubParsersAction) -> None:
    """Register `predict`."""
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
        help="image files, as softshard pack reads them; or one folder of a data set; or servers of one: "
        "grpc://HOST:PORT/NAME, several with commas between",
    )
    add_connection(command)
    _add_ensemble(command)
    command.add_argument(
        "--top", type=int, default=3, metavar="K", help="classes listed of each level (default: 3)"
    )
    command.add_argument(
        "--down-the-tree",
        action="store_true",
        help="of a model of one softmax per level: a class has the probability of its parent times its share among its "
        "sisters, so that leaves of all levels compare; the path is that of the best leaf",
    )
    command.add_argument(
        "--other-classes",
        action="store_true",
        help="predict a data set with as many classes as the checkpoint, of other names",
    )
    add_device(command)
    command.add_argument("--json", action="store_true", help="print a JSON object a line, one for each image")
    command.set_defaults(run=_run_predict)


def _add_ensemble(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="another checkpoint for the same classes, which sees images prepared as it was trained on; the mean of all "
        "checkpoints' probabilities counts. May be repeated",
    )


def _run_evaluate(args: argparse.Namespace) -> int:
    at_least_one("--batch-size", args.batch_size)
    with needs_extra("softshard evaluate", "training"):
        from .ensemble import evaluate_ensemble
        from .evaluate import evaluate
        from .evaluate_timm import evaluate_timm
        from .preparation import PREFIX, timm_name
    options = {"label_sets": args.label_sets, **pass_of(args)}
    connection = connection_of(args, args.dataset)
    checkpoints = [args.checkpoint, *args.ensemble]
    if args.ensemble and any(timm_name(checkpoint) is not None for checkpoint in checkpoints):
        raise UsageError(
            f"--ensemble: expected checkpoints of softshard train, found {PREFIX}NAME among {', '.join(checkpoints)}"
        )
    name = timm_name(args.checkpoint)
    if name is not None:
        if connection is not None:
            raise UsageError(
                f"evaluate: expected the folder or URL of a data set for {args.checkpoint}, found {args.dataset}: "
                "images are prepared by its own manifest"
            )
        numbers = evaluate_timm(name, args.dataset, weights=args.weights, **options)
    elif args.weights is not None:
        raise UsageError(f"--weights: expected timm:NAME, which they are for, found {args.checkpoint}")
    elif args.ensemble:
        numbers = evaluate_ensemble(checkpoints, args.dataset, connection=connection, **options)
    else:
        numbers = evaluate(args.checkpoint, args.dataset, connection=connection, **options)
    if options["rank"] == 0:
        print(json.dumps(numbers, indent=1) if args.json else _table(numbers))
    return EXIT_FINE


def _run_predict(args: argparse.Namespace) -> int:
    with needs_extra("softshard predict", "training"):
        from .predict import Predictor, is_data_set
    predictor = Predictor(
        args.checkpoint,
        ensemble=args.ensemble,
        top=args.top,
        device=torch_device(args.device),
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
        dataset = args.images[0]
        predictions = predictor.data_set(
            dataset, other_classes=args.other_classes, connection=connection_of(args, dataset)
        )
    else:
        predictions = predictor.files(args.images, report)
    for prediction in predictions:
        print(json.dumps(prediction.to_json()) if args.json else _prediction_text(prediction), flush=True)
    return EXIT_BAD_DATA if bad else EXIT_FINE


def _prediction_text(prediction: Prediction) -> str:
    def text(guess: Guess) -> str:
        named = guess.shown if guess.shown == guess.name else f"{guess.shown} ({guess.name})"
        return f"{named} {guess.probability:.1%}"

    lines = [prediction.image, f"  path     {' > '.join(map(text, prediction.path))}"]
    for level, guesses in enumerate(prediction.best):
        label = f"level {level}" if len(prediction.best) > 1 else "best"
        lines.append(f"  {label:<8} {', '.join(map(text, guesses))}")
    return "\n".join(lines)


def _table(numbers: dict[str, Any]) -> str:
    """Names on the left, what was measured in a column beside them."""
    rows = []
    for name, value in numbers.items():
        if name == "per_level":
            rows += [(f"  level {level}", _shown(share)) for level, share in enumerate(value)]
        elif name == "differs":
            rows += [("differs from timm's own", line) for line in value]
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value))))
        elif name == "preparation":
            rows.append((name, ", ".join(f"{key} {part}" for key, part in value.items())))
        elif "tree_distance" in name and value is not None:
            rows.append((name, f"{value:.3f} edges"))
        elif name == "tags_per_image":
            rows.append((name, f"{value:.2f}"))
        else:
            rows.append((name, _shown(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}} {shown}" for name, shown in rows)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if isinstance(value, float) else str(value)
