"""The command serve: the data service's server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE, byte_size, local_path, needs_extra
from ..shards.errors import UsageError

if TYPE_CHECKING:
    from .service_desk import ServedSet
    from .service_limits import Limits

DEFAULT_LISTEN, DEFAULT_HTTP = "127.0.0.1:7070", "127.0.0.1:7071"


def add_serve(subparsers: argparse._SubParsersAction) -> None:
    """Register serve."""
    command = subparsers.add_parser(
        "serve",
        help="decode batches for trainers: RemoteLoader, softshard train grpc://...",
        description="Decode batches of data sets and serve them to any number of trainers, until SIGTERM. Any server that "
        "has the data set makes any batch: start several, and give trainers all their addresses. Ready-made batches are "
        "those of a Loader with the trainer's options.",
    )
    command.add_argument(
        "datasets",
        nargs="+",
        metavar="[NAME=]DATASET",
        help="folder or URL of a data set, and the name that trainers call it (default: its folder's)",
    )
    command.add_argument(
        "--side",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="side shards of softshard maps make --side, whose label maps are joined to that data set's samples",
    )
    command.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"(default: {DEFAULT_LISTEN}; port 0: any; with --engine ray 127.0.0.1:0, on a cluster node:0, the node's own)",
    )
    command.add_argument(
        "--http",
        default=DEFAULT_HTTP,
        metavar="HOST:PORT",
        help=f"health and metrics, on the loopback address; none for neither (default: {DEFAULT_HTTP})",
    )
    safe = command.add_argument_group("for any other address than the loopback's, all three")
    safe.add_argument("--token-file", metavar="FILE", type=local_path, help="whose token trainers must have")
    safe.add_argument("--tls-cert", metavar="FILE", type=local_path, help="certificate chain, PEM")
    safe.add_argument("--tls-key", metavar="FILE", type=local_path, help="its key, PEM")
    command.add_argument("--device", default="cpu", help="that decodes: cpu or cuda (default: cpu)")
    command.add_argument(
        "--threads", type=int, metavar="N", help="decoder threads (default: one a core; with --engine ray 1)"
    )
    command.add_argument("--cache", metavar="DIR", type=local_path, help="where shards behind a URL are kept")
    command.add_argument(
        "--no-shared-memory", action="store_true", help="send batches over the socket to this host, too"
    )
    _add_pool(command)
    limits = command.add_argument_group("limits")
    for name, default, text in (
        ("cache-bytes", "2GiB", "recent batches that are kept for other trainers"),
        ("memory-bytes", "2GiB", "batches in shared memory"),
        ("max-batch-bytes", "512MiB", "of one batch"),
        ("max-sending-bytes", "2GiB", "batches on their way through sockets, for all trainers together"),
        ("max-request-bytes", "64MiB", "of one request"),
    ):
        limits.add_argument(
            f"--{name}",
            type=byte_size,
            default=byte_size(default),
            metavar="BYTES",
            help=f"{text} (default: {default})",
        )
    limits.add_argument(
        "--max-connections",
        type=int,
        default=1024,
        metavar="N",
        help="whether they ask for anything or not; beyond it those that never did are shut (default: 1024)",
    )
    limits.add_argument(
        "--max-recipes", type=int, default=8, metavar="N", help="sets of options in use (default: 8)"
    )
    limits.add_argument(
        "--max-clients", type=int, default=64, metavar="N", help="trainers at a time (default: 64)"
    )
    limits.add_argument(
        "--max-calls", type=int, default=256, metavar="N", help="requests at a time (default: 256)"
    )
    command.add_argument(
        "--drain-s",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for what is under way after SIGTERM (default: 30)",
    )
    command.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default: info)"
    )
    command.set_defaults(run=_run_serve)


def _add_pool(command: argparse.ArgumentParser) -> None:
    pool = command.add_argument_group("a pool of servers on Ray, which are started anew when they die")
    pool.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: see below (default: local, one server)",
    )
    pool.add_argument("--replicas", type=int, metavar="N", help="with --engine ray: servers (default: 1)")
    pool.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the cluster, or auto (default: RAY_ADDRESS; without it a Ray is started here)",
    )
    pool.add_argument(
        "--addresses",
        type=local_path,
        metavar="FILE.json",
        help="kept up to date with where the servers are; trainers take file:///.../FILE.json#NAME",
    )


def _run_serve(args: argparse.Namespace) -> int:
    with needs_extra("softshard serve", "service"):
        from .service_access import read_token
        from .service_run import logged_as_json
    token = None if args.token_file is None else read_token(args.token_file)
    tls = _read_tls(args.tls_cert, args.tls_key)
    with logged_as_json(args.log_level):
        return _run_pool(args) if args.engine == "ray" else _run_server(args, token, tls)


def _run_server(args: argparse.Namespace, token: str | None, tls: tuple[bytes, bytes] | None) -> int:
    from .cache import Cache
    from .service_address import split_address
    from .service_desk import Desk
    from .service_run import run_server

    if args.replicas is not None or args.address is not None or args.addresses is not None:
        raise UsageError("serve: expected --replicas, --address and --addresses with --engine ray")
    desk = Desk(
        named_sets(args.datasets, args.side),
        device=args.device,
        num_threads=args.threads,
        cache=Cache(folder=args.cache),
        limits=_limits(args),
    )
    finished = run_server(
        desk,
        listen=split_address(args.listen or DEFAULT_LISTEN),
        http=None if args.http == "none" else split_address(args.http),
        token=token,
        tls=tls,
        shared_memory=not args.no_shared_memory,
        drain_s=args.drain_s,
        say=lambda line: print(line, flush=True),
    )
    return EXIT_FINE if finished else EXIT_BAD_DATA


def _limits(args: argparse.Namespace) -> Limits:
    from .service_limits import Limits

    return Limits(
        cache_bytes=args.cache_bytes,
        memory_bytes=args.memory_bytes,
        batch_bytes=args.max_batch_bytes,
        sending_bytes=args.max_sending_bytes,
        request_bytes=args.max_request_bytes,
        connections=args.max_connections,
        recipes=args.max_recipes,
        clients=args.max_clients,
        calls=args.max_calls,
    )


def _run_pool(args: argparse.Namespace) -> int:
    from ..shards.engine_ray import ADDRESS_VARIABLE
    from .service_address import split_address
    from .service_ray import PoolOptions, run_pool

    on_cluster = args.address is not None or bool(os.environ.get(ADDRESS_VARIABLE))
    host, port = split_address(args.listen or ("node:0" if on_cluster else "127.0.0.1:0"))
    replicas, threads = args.replicas or 1, args.threads or 1
    if port != 0 or replicas < 1 or threads < 1:
        raise UsageError(
            f"serve --engine ray: expected port 0, and replicas and threads from 1, found port {port}, {args.replicas} and "
            f"{args.threads}. Servers take any free port, and say which with --addresses"
        )
    finished = run_pool(
        PoolOptions(
            named_sets(args.datasets, args.side),
            host=None if host == "node" else host,
            device=args.device,
            num_threads=threads,
            cache=args.cache,
            limits=_limits(args),
            token_file=args.token_file,
            tls=None if args.tls_cert is None else (args.tls_cert, args.tls_key),
            shared_memory=not args.no_shared_memory,
            log_level=args.log_level,
            folder=os.getcwd(),
        ),
        replicas=replicas,
        address=args.address,
        addresses=args.addresses,
        drain_s=args.drain_s,
        say=lambda line: print(line, flush=True),
    )
    return EXIT_FINE if finished else EXIT_BAD_DATA


def named_sets(datasets: list[str], sides: list[str]) -> dict[str, ServedSet]:
    """Data sets by the names that trainers call them.

    Args:
        datasets: `NAME=DATASET`, or `DATASET` for the name of its folder.
        sides: `NAME=DIR`.

    Raises:
        UsageError: two of one name, or side shards of none.
    """
    from .service_desk import ServedSet

    found: dict[str, ServedSet] = {}
    side_of = dict(_named(side) for side in sides)
    for dataset in datasets:
        name, place = _named(dataset)
        if not name or "/" in name or "," in name:
            raise UsageError(
                f"serve: expected a name without / and , found {name!r} of {place}. Give NAME={place}"
            )
        if name in found:
            raise UsageError(
                f"serve: expected data sets of different names, found {name!r} twice. Give NAME={place}"
            )
        found[name] = ServedSet(place, side_of.pop(name, None))
    if side_of:
        raise UsageError(
            f"serve: expected --side of one of {', '.join(found)}, found {', '.join(map(repr, side_of))}"
        )
    return found


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if equals and "/" not in name:
        return name, place
    return PurePosixPath(text.rstrip("/")).name, text


def _read_tls(certificate: Path | None, key: Path | None) -> tuple[bytes, bytes] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("serve: expected both --tls-cert and --tls-key, found one of them")
    try:
        return certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise UsageError(f"{error.filename}: expected a PEM file, found: {error.strerror}") from error
