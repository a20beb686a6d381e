"""The commands about the order of samples: stats, which can measure the shuffle, and replay."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from ..shards.cli_data_sets import add_stats, run_stats
from ..shards.cli_values import EXIT_FINE, needs_extra, print_json
from ..shards.errors import UsageError
from .order import DEFAULT_WINDOW


def add_order(subparsers: argparse._SubParsersAction) -> None:
    """Register stats and replay."""
    stats = add_stats(subparsers)
    shuffle = stats.add_argument_group("the loader's shuffle")
    shuffle.add_argument(
        "--shuffle",
        action="store_true",
        help="measure it, too: how far samples move, the class entropy of batches, beside a full shuffle and none",
    )
    shuffle.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="global batch (default: 256)"
    )
    shuffle.add_argument(
        "--window",
        type=int,
        default=DEFAULT_WINDOW,
        metavar="W",
        help=f"samples that are shuffled among each other (default: {DEFAULT_WINDOW})",
    )
    shuffle.add_argument(
        "--lanes",
        type=int,
        default=1,
        metavar="K",
        help="parts of an epoch that are read side by side (default: 1)",
    )
    shuffle.add_argument("--seed", type=int, default=0, help="(default: 0)")
    shuffle.add_argument("--epoch", type=int, default=0, help="(default: 0)")
    stats.set_defaults(run=lambda args: run_stats(args, partial(_measure, args) if args.shuffle else None))
    _add_replay(subparsers)


def _add_replay(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "replay",
        help="make one batch of a run again, and show it",
        description="Make one batch of a run again from a line of its log, and show its keys, classes and crops. "
        "Options that are left out have the loader's defaults.",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder of a data set")
    which = command.add_argument_group("which batch")
    which.add_argument("--epoch", type=int, default=0, metavar="N", help="(default: 0)")
    which.add_argument("--step", type=int, default=0, metavar="T", help="of the epoch (default: 0)")
    which.add_argument("--seed", type=int, default=0, help="(default: 0)")
    which.add_argument("--batch-size", type=int, default=256, metavar="N", help="global batch (default: 256)")
    which.add_argument(
        "--state",
        metavar="JSON",
        help="a loader's state_dict as JSON, or a file of it: the batch that follows it; instead of the options above "
        "and of lanes, window, order and balance",
    )
    which.add_argument("--rank", type=int, default=0, metavar="R", help="show this rank's part (default: 0)")
    which.add_argument("--world-size", type=int, default=1, metavar="R", help="(default: 1, the whole batch)")
    run = command.add_argument_group("how the run read the data set")
    run.add_argument("--lanes", type=int, default=1, metavar="K", help="(default: 1)")
    run.add_argument(
        "--window", type=int, default=DEFAULT_WINDOW, metavar="W", help=f"(default: {DEFAULT_WINDOW})"
    )
    run.add_argument("--no-shuffle", action="store_true", help="in the data set's order")
    run.add_argument("--balance", type=float, metavar="A", help="exponent of class-balanced sampling")
    run.add_argument("--labels", metavar="FILE", help="label tree (.json) or class list it was read with")
    run.add_argument("--size", type=int, default=224, metavar="PX", help="(default: 224)")
    run.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.08, 1.0),
        metavar=("LOW", "HIGH"),
        help="share of the image that crops keep (default: 0.08 1.0)",
    )
    run.add_argument("--whole-image", action="store_true", help="no crop")
    run.add_argument("--no-flip", action="store_true", help="nothing is mirrored")
    command.add_argument("--json", action="store_true", help="print the batch as JSON")
    command.add_argument("--out", type=Path, metavar="FILE", help="write a page with the pictures, too")
    command.set_defaults(run=_run_replay)


def _run_replay(args: argparse.Namespace) -> int:
    with needs_extra("softshard replay", "loaders"):
        from .replay import describe, format_rows, replay, replay_command, replay_page, state_options
    from .crops import Augment
    from .labels import load_labels
    from .loader import Loader

    state = None if args.state is None else _read_state(args.state)
    options = _options_of_run(args) if state is None else state_options(state)
    global_batch = options.pop("batch_size")
    if global_batch % max(1, args.world_size):
        raise UsageError(
            f"replay: expected a world size that divides the global batch {global_batch}, found {args.world_size}"
        )
    scale = None if args.whole_image else tuple(args.scale)
    with Loader(
        args.dataset,
        **options,
        batch_size=global_batch // max(1, args.world_size),
        labels=load_labels(args.labels),
        augment=Augment(size=args.size, scale=scale, flip=not args.no_flip),
        dtype="uint8",
        last_batch="pad",
        rank=args.rank,
        world_size=args.world_size,
        prefetch=1,
    ) as loader:
        if state is not None:
            loader.load_state_dict(state)
        epoch = args.epoch if state is None else state["epoch"]
        taken = args.step * loader.global_batch // loader.lanes if state is None else state["taken"]
        batch = replay(loader, epoch, taken)
        rows = describe(batch, loader.class_names)
        step = taken * loader.lanes // loader.global_batch
        title = f"{loader.manifest.name}: epoch {epoch}, step {step}, seed {loader.seed}, global batch {loader.global_batch}"
        if args.out is not None:
            command = replay_command(loader, epoch, step, args.labels) or ""
            replay_page(loader, batch, rows, epoch=epoch, taken=taken, title=title, command=command).write(
                args.out
            )
    if args.json:
        print_json({"dataset": loader.dataset, "epoch": epoch, "taken": taken, "slots": rows})
    else:
        print(f"{title}\n{format_rows(rows)}")
    return EXIT_FINE


def _options_of_run(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the order, as `state_options` gives it of a state."""
    names = ("seed", "batch_size", "lanes", "window", "balance")
    return {name: getattr(args, name) for name in names} | {"shuffle": not args.no_shuffle}


def _read_state(given: str) -> dict[str, Any]:
    """A state from JSON, or from a file of it.

    Raises:
        UsageError: neither.
    """
    text = given
    try:
        if not given.lstrip().startswith("{"):
            text = Path(given).read_text("utf-8")
        state = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"replay: expected a loader's state as JSON or a file of it, found: {error}"
        ) from error
    if not isinstance(state, dict):
        raise UsageError(f"replay: expected a loader's state as a JSON object, found {text[:60]!r}")
    return state


def _measure(args: argparse.Namespace, folder: str | Path) -> tuple[dict[str, Any], str]:
    from .shuffle_quality import format_quality, shuffle_quality

    result = shuffle_quality(
        folder,
        global_batch=args.batch_size,
        window=args.window,
        num_lanes=args.lanes,
        seed=args.seed,
        epoch=args.epoch,
    )
    return {"shuffle": result}, format_quality(result)
