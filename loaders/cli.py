"""The commands of this package: bench, inspect, serve, stats, replay and doctor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..shards.cli_values import local_path, needs_extra
from ..shards.errors import UsageError
from .cli_connection import add_connection, connection_of
from .cli_doctor import add_doctor
from .cli_inspect import add_inspect
from .cli_order import add_order
from .cli_serve import add_serve
from .target_modes import TARGETS


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Register bench, inspect, serve, stats, replay and doctor."""
    add_order(subparsers)
    add_doctor(subparsers)
    _add_bench(subparsers)
    add_inspect(subparsers)
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
        "dataset",
        metavar="DATASET",
        help="folder or URL of a data set, or somebody else's tars; or servers of one, which are measured as a trainer sees "
        "them: grpc://HOST:PORT/NAME, several with commas between",
    )
    add_connection(bench)
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


def _run_bench(args: argparse.Namespace) -> int:
    connection = connection_of(args, args.dataset)
    if connection is not None:
        for name in ("side", "against", "work", "cache", "html"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"bench: expected --{name} with the folder or URL of a data set, found {args.dataset}. Run it where "
                    "the shards are"
                )
    with needs_extra("softshard bench", "loaders"):
        from .against import parse_peers
        from .bench import BenchOptions, bench, format_bench
        from .bench_page import bench_csv, bench_page
        from .cache import Cache
    options = BenchOptions(
        batch_size=args.batch_size,
        targets=args.targets,
        device=args.device,
        dtype=args.dtype,
        size=args.size,
        num_threads=args.threads,
        steps=args.steps,
        repeats=args.repeats,
    )
    if connection is not None:
        from .bench_service import bench_service, format_bench_service

        result = bench_service(args.dataset, options, connection=connection)
        print(format_bench_service(result))
    else:
        result = bench(
            args.dataset,
            options,
            side=args.side,
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
