"""Runs a command's processes on Ray, as torchrun would start them: `maps make --engine ray`, `teacher make --engine ray`.

    driver: connects, asks for N workers, starts one rank on each    ->    prints what rank 0 says

The ranks see source and destination under the same names, and need softshard with its extra `training`. Where one is
lost all end, and the same command continues with the shards that are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..shards.errors import SoftshardError, UsageError

_GRACE_S = 10.0  # for the rank whose end was an error of another

_LOST = (
    "--engine ray: expected its processes to live, found one that was lost (killed, out of memory, or the machine went "
    "away): {found} Finished shards are kept. Run it again to continue"
)


def add_engine(command: argparse.ArgumentParser) -> None:
    """Register `--engine` and `--workers`."""
    command.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where it runs: here, or under torchrun (local, the default); or on the Ray cluster that RAY_ADDRESS names, "
        "without it on a Ray that is started here: one process for each GPU, or, without any, for each machine",
    )
    command.add_argument("--workers", type=int, metavar="N", help="with --engine ray: processes")


def run_command(make: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command here, or on Ray where `--engine ray` was given.

    Args:
        make: the command, which reads rank, world size and local rank from torchrun's variables, and prints.
        args: of the command.

    Returns:
        Its exit code.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: no such cluster, or one that is smaller.
        SoftshardError: that of a rank; or one was lost.
    """
    if args.workers is not None and (args.engine != "ray" or args.workers < 1):
        raise UsageError(f"--workers: expected a number from 1 with --engine ray, found {args.workers}")
    if args.engine == "local":
        return make(args)
    from ..shards.engine_ray import connected, import_ray

    ray = import_ray()
    with connected(ray, args.workers):
        return _run_ranks(ray, make, args)


def _run_ranks(ray: ModuleType, make: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from ..shards.engine_ray import result_of

    resources = ray.cluster_resources()
    on_gpu = args.device == "cuda" or (args.device is None and resources.get("GPU", 0) >= 1)
    kind = "GPU" if on_gpu else "CPU"
    there = int(resources.get(kind, 0))
    num = args.workers or (there if on_gpu else sum(node["Alive"] for node in ray.nodes()))
    if not 1 <= num <= there:
        raise UsageError(
            f"--engine ray: expected a cluster with {max(num, 1)} {kind}s, one for each process, found {there}. Use fewer "
            "--workers, or a larger cluster"
        )
    args = argparse.Namespace(**{**vars(args), "device": "cuda" if on_gpu else "cpu", "run": None})
    actor = ray.remote(num_cpus=1, num_gpus=int(on_gpu), scheduling_strategy="SPREAD")(_Rank)
    ranks = [actor.remote() for _ in range(num)]
    try:
        host, port = ray.get(ranks[0].address.remote())
        common = {"WORLD_SIZE": str(num), "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        running = [
            rank.run.remote(make, args, {**common, "RANK": str(number)}, os.getcwd())
            for number, rank in enumerate(ranks)
        ]
        if error := _first_error(ray, running, lambda rank: result_of(ray, rank, _LOST)):
            raise error
        code, printed = ray.get(running[0])
        print(printed, end="")
        return code
    finally:
        for rank in ranks:
            ray.kill(rank)


def _first_error(
    ray: ModuleType, running: list[Any], result: Callable[[Any], object]
) -> BaseException | None:
    """Why the ranks end before they are done: the others would wait for the one that fails.

    They may be told so first: that a connection was closed is an error of theirs. One that says more is waited for.
    """
    found: BaseException | None = None
    while running:
        done, running = ray.wait(running, timeout=None if found is None else _GRACE_S)
        if not done:
            break
        for rank in done:
            try:
                result(rank)
            except SoftshardError as error:
                return error
            except Exception as error:
                found = found or error
    return found


class _Rank:
    """One process of the command, on a node of the cluster."""

    def address(self) -> tuple[str, int]:
        """This node, and a port that is free there: where the ranks meet."""
        import ray.util

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def run(
        self,
        make: Callable[[argparse.Namespace], int],
        args: argparse.Namespace,
        environment: dict[str, str],
        folder: str,
    ) -> tuple[int, str]:
        """The command's exit code and what it prints, with paths as they are in the driver's folder."""
        os.environ.update(environment)
        if os.path.isdir(folder):
            os.chdir(folder)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            return make(args), printed.getvalue()
