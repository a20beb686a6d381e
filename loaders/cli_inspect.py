"""The command inspect: one page in a file, or all pages served on this machine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE, local_path, needs_extra
from .target_modes import TARGETS

if TYPE_CHECKING:
    from .inspect_views import InspectOptions


def add_inspect(subparsers: argparse._SubParsersAction) -> None:
    """Register inspect."""
    command = subparsers.add_parser(
        "inspect",
        help="pictures of samples: stored image, crops, targets, label map; as a page, or served on this machine",
        description="Write one HTML page that shows samples of a data set as they are stored and as the loader gives "
        "them: crop windows, crops with their targets, the label map of each class, labels on every level. The exit "
        "code is 1 where a sample is damaged. With --serve, all shards, classes, samples and batches as pages to walk "
        "through.",
    )
    command.add_argument(
        "dataset", metavar="DATASET", help="folder or URL of a data set, or somebody else's tars"
    )
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument(
        "--samples", type=int, default=12, metavar="N", help="the first N of the epoch (default: 12)"
    )
    chosen.add_argument(
        "--keys", nargs="+", action="extend", default=[], metavar="KEY", help="these samples instead"
    )
    command.add_argument("--seed", type=int, default=0, help="of the loader's order and crops (default: 0)")
    command.add_argument(
        "--epoch", type=int, default=0, metavar="N", help="whose samples and crops (default: 0)"
    )
    command.add_argument(
        "--crops",
        type=int,
        default=3,
        metavar="N",
        help="of each sample, from N epochs, which cut one each (default: 3)",
    )
    command.add_argument(
        "--side", metavar="DIR|URL", help="side shards of `softshard maps make --side`: their label maps"
    )
    command.add_argument(
        "--targets", choices=TARGETS, help="(default: relabel with label maps, none without)"
    )
    command.add_argument("--top", type=int, default=5, metavar="K", help="classes of a target (default: 5)")
    command.add_argument(
        "--size", type=int, default=224, metavar="PX", help="side of the loader's images (default: 224)"
    )
    command.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.08, 1.0),
        metavar=("LOW", "HIGH"),
        help="share of the area that a crop keeps (default: 0.08 1)",
    )
    command.add_argument(
        "--augment",
        default="none",
        metavar="PARTS",
        help="what is done to pixels beside crop and flip, as for `softshard train`, such as color-jitter:0.4+cutmix:1; "
        "mixing is shown in batches (default: none)",
    )
    command.add_argument(
        "--step", type=int, metavar="T", help="the batch of this step of --epoch, too, with --batch-size"
    )
    command.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="global batch of --step (default: 32)"
    )
    command.add_argument(
        "--quarantine",
        type=local_path,
        metavar="FILE",
        help="a loader's file of bad samples (bad_samples.jsonl of a run), to be shown",
    )
    command.add_argument(
        "--serve", action="store_true", help="write no file: serve all pages on this machine until Ctrl-C"
    )
    command.add_argument(
        "--port", type=int, default=0, metavar="P", help="of --serve (default: 0, which takes a free one)"
    )
    command.add_argument(
        "-o",
        "--output",
        type=local_path,
        default=Path("inspect.html"),
        metavar="FILE",
        help="(default: inspect.html)",
    )
    command.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    command, extra = ("inspect --serve", "inspect") if args.serve else ("inspect", "loaders")
    with needs_extra(f"softshard {command}", extra):
        from .augment_text import parse_augment
        from .browse_bad import add_quarantine
        from .browse_step import Step, add_step
        from .inspect_figures import ClassNames
        from .inspect_links import Places
        from .inspect_page import inspect_page
        from .inspect_views import InspectOptions
        from .inspection import inspect_data_set
    options = InspectOptions(
        num_samples=args.samples,
        keys=tuple(args.keys),
        seed=args.seed,
        epoch=args.epoch,
        num_crops=args.crops,
        targets=args.targets,
        augment=replace(parse_augment(args.augment), size=args.size, scale=tuple(args.scale)),
        side=args.side,
    )
    if args.serve:
        return _serve(args, options)
    found = inspect_data_set(args.dataset, options)
    page = inspect_page(found, top=args.top, more=_further_words(args))
    if args.step is not None:
        asked = Step(args.epoch, args.step, args.batch_size)
        page.heading(f"The batch of epoch {args.epoch}, step {args.step}")
        add_step(
            page,
            args.dataset,
            options,
            found.targets,
            asked,
            ClassNames(found),
            top=args.top,
            places=Places(),
        )
        if asked.num_parts > 1:
            page.paragraph(f"Its first {asked.slots} of {asked.batch_size:,} slots.")
    if args.quarantine is not None:
        add_quarantine(page, args.quarantine, 0, found.manifest.num_samples, Places())
    page.write(args.output)
    print(f"{args.output}: {len(found.samples):,} samples, {args.output.stat().st_size:,} bytes")
    for problem in found.problems:
        print(f"  {problem}")
    return EXIT_BAD_DATA if found.problems else EXIT_FINE


def _further_words(args: argparse.Namespace) -> list[str]:
    """The options of this page that InspectOptions does not have."""
    words = [] if args.augment == "none" else ["--augment", args.augment]
    words += [] if args.step is None else ["--step", str(args.step), "--batch-size", str(args.batch_size)]
    return words + ([] if args.quarantine is None else ["--quarantine", str(args.quarantine)])


def _serve(args: argparse.Namespace, options: InspectOptions) -> int:
    with needs_extra("softshard inspect --serve", "inspect"):
        from .browse import Browser
        from .browse_app import serve
    browser = Browser(args.dataset, options, args.quarantine, args.top)

    def say(address: str) -> None:
        print(f"{browser.title}: {address} (stop with Ctrl-C)", flush=True)

    serve(browser, args.port, say)
    return EXIT_FINE
