"""The commands of this package: bench, inspect, serve, stats, replay and doctor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE, local_path
from .cli_doctor import add_doctor
from .cli_order import add_order
from .cli_serve import add_serve
from .target_modes import TARGETS


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register bench, inspect, serve, stats, replay and doctor."""
    add_order(subparsers)
    add_doctor(subparsers)
    _add_bench(subparsers)
    _add_inspect(subparsers)
    add_serve(subparsers)


def _add_bench(subparsers: argparse._SubParsersAction) -> None:
    bench = subparsers.add_parser(
        "bench",
        help="measure the loader and its parts on a data set, and say what to change",
        description="Measure the loader on a data set, and what each of its parts could do alone on the same samples: "
        "fetch (of a URL), read, labels, decode, crops, resample, pool, copy. The last line names the nearest ceiling "
        "and the one setting to change.",
    )
    bench.add_argument(
        "dataset", metavar="DATASET", help="folder or URL of a data set, or somebody else's tars"
    )
    bench.add_argument("--batch-size", type=int, default=128, metavar="N", help="(default: 128)")
    bench.add_argument("--targets", default="none", choices=TARGETS, help="(default: none)")
    bench.add_argument(
        "--side", metavar="DIR|URL", help="side shards with the label maps that --targets pools"
    )
    bench.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    bench.add_argument(
        "--dtype", default="uint8", choices=("uint8", "float16", "float32"), help="(default: uint8)"
    )
    bench.add_argument(
        "--size", type=int, default=224, metavar="PX", help="side of the batch's images (default: 224)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="decoder threads (default: one a core)")
    bench.add_argument(
        "--steps", type=int, default=30, metavar="N", help="batches in one measurement (default: 30)"
    )
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements (default: 5)")
    bench.add_argument(
        "--against",
        metavar="NAME[=PYTHON],...",
        help="other loaders on the same shards and the same job, each in a process of its own: webdataset, "
        "torchvision, dali, ffcv, streaming, litdata, spdl; PYTHON runs one that is installed elsewhere",
    )
    bench.add_argument(
        "--work", metavar="DIR", type=Path, help="where they keep their own form of the data set"
    )
    bench.add_argument(
        "--cache",
        metavar="DIR",
        type=local_path,
        help="where shards behind a URL are kept (default: SOFTSHARD_CACHE)",
    )
    bench.add_argument("--json", metavar="FILE", type=local_path, help="write the result as JSON")
    bench.add_argument("--csv", metavar="FILE", type=local_path, help="write the rates as a table")
    bench.add_argument("--html", metavar="FILE", type=local_path, help="write a page with plots")
    bench.set_defaults(run=_run_bench)


def _add_inspect(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "inspect",
        help="a page with pictures of samples: stored image, crops, targets, label map",
        description="Write one HTML page that shows samples of a data set as they are stored and as the loader gives "
        "them: crop windows, crops with their targets, the label map of each class, labels on every level. The exit "
        "code is 1 where a sample is damaged.",
    )
    command.add_argument("dataset", metavar="DATASET", help="folder of a data set")
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
        "-o",
        "--output",
        type=local_path,
        default=Path("inspect.html"),
        metavar="FILE",
        help="(default: inspect.html)",
    )
    command.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    try:
        from .crops import Augment
        from .inspect_page import inspect_page
        from .inspection import InspectOptions, inspect_data_set
    except ModuleNotFoundError as error:
        from ..shards.errors import MissingExtraError

        raise MissingExtraError("softshard inspect", "loaders", error) from error
    options = InspectOptions(
        num_samples=args.samples,
        keys=tuple(args.keys),
        seed=args.seed,
        epoch=args.epoch,
        num_crops=args.crops,
        targets=args.targets,
        augment=Augment(size=args.size, scale=tuple(args.scale)),
        side=args.side,
    )
    found = inspect_data_set(args.dataset, options)
    inspect_page(found, top=args.top).write(args.output)
    print(f"{args.output}: {len(found.samples):,} samples, {args.output.stat().st_size:,} bytes")
    for problem in found.problems:
        print(f"  {problem}")
    return EXIT_BAD_DATA if found.problems else EXIT_FINE


def _run_bench(args: argparse.Namespace) -> int:
    try:
        from .against import parse_peers
        from .bench import bench, format_bench
        from .bench_page import bench_csv, bench_page
        from .cache import Cache
    except ModuleNotFoundError as error:
        from ..shards.errors import MissingExtraError

        raise MissingExtraError("softshard bench", "loaders", error) from error
    result = bench(
        args.dataset,
        batch_size=args.batch_size,
        targets=args.targets,
        side=args.side,
        device=args.device,
        dtype=args.dtype,
        size=args.size,
        num_threads=args.threads,
        steps=args.steps,
        repeats=args.repeats,
        against=None if args.against is None else parse_peers(args.against),
        work=args.work,
        cache=Cache(folder=args.cache),
    )
    print(format_bench(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.csv:
        args.csv.write_text(bench_csv(result))
    if args.html:
        bench_page(result).write(args.html)
    return 0
