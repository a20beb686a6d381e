"""Does a packing run that is killed end in the bytes of one that is not, whenever it is killed?

Job: 480 photographs to 24 shards, two workers, by the command line. Each row starts `softshard pack` in a process of
its own and kills it (SIGKILL) at a random moment: when 0 to 23 shards are finished and up to two shards' time later.
(A moment drawn from the whole length of a run would mostly fall into Ray's start.) It gives the same command again at
once, with no wait for what the killed run left, and compares every file (shards, indexes, receipts, sidecars, manifest,
plan, ledger) with those of an uninterrupted run of the local engine. `ray` starts a Ray of its own each time; on `ray
cluster` the Ray goes on when the run is killed.

What came out: 60 kills, 20 of each, after 0 to 24 finished shards: every file the same in every row, and nothing left
over.

Run: python benchmarks/kill_pack.py   (some minutes)
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import arguments, photographs, sweep, write_result

NUM_SHARDS, SHARD_SAMPLES = 24, 20
NUM_PHOTOGRAPHS = NUM_SHARDS * SHARD_SAMPLES


def make_source(folder: Path, photos: Path | None) -> Path:
    """The photographs, over and over, in three classes."""
    data = list(photographs(photos))[:NUM_PHOTOGRAPHS]
    for i in range(NUM_PHOTOGRAPHS):
        file = folder / f"class{i % 3}" / f"{i:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data[i % len(data)])
    return folder


def start_pack(source: Path, destination: Path, engine: str, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-c", "import sys; from softshard.shards.cli import main; sys.exit(main())"]
    command += ["pack", str(source), str(destination), "--shard-samples", str(SHARD_SAMPLES)]
    command += ["--workers", "2", "--engine", engine.split()[0]]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def files(folder: Path) -> dict[str, bytes]:
    """Every file; the lock is empty and of no account."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def num_receipts(folder: Path) -> int:
    return len(list(folder.glob("train/receipts/*.json")))


def is_at(folder: Path, finished: int) -> bool:
    return (folder / "plan.json").exists() and num_receipts(folder) >= finished


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """A Ray of two CPUs that outlives the runs; its address."""
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield running.address
    finally:
        running.shutdown()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each engine (default: 20)")
    parser.add_argument("--engines", nargs="+", default=["local", "ray", "ray cluster"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    swept = {"engine": args.engines, "kill": list(range(args.kills))}
    # Ray's sockets lie in this folder, and their names are short of space.
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ss", ignore_cleanup_errors=True))
        )
        os.environ["RAY_TMPDIR"] = str(folder)
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(16)
        os.environ.pop("RAY_ADDRESS", None)
        environments = {engine: dict(os.environ) for engine in args.engines}
        if "ray cluster" in args.engines:
            environments["ray cluster"]["RAY_ADDRESS"] = stack.enter_context(cluster())
        source = make_source(folder / "source", args.photos)
        seconds: dict[str, float] = {}
        expected: dict[str, bytes] = {}
        for engine in dict.fromkeys(["local", *args.engines]):
            start = time.perf_counter()
            run = start_pack(source, folder / "whole", engine, environments.get(engine, dict(os.environ)))
            if run.wait():
                raise SystemExit(f"{engine}: expected an uninterrupted run to end well")
            seconds[engine] = time.perf_counter() - start
            expected = expected or files(folder / "whole")
            if files(folder / "whole") != expected:
                raise SystemExit(f"{engine}: expected the files of the local engine, found others")
            shutil.rmtree(folder / "whole")

        def kill_once(engine: str, kill: int) -> dict[str, Any]:
            chance = random.Random(f"{args.seed} {engine} {kill}")
            finished = chance.randrange(NUM_SHARDS)
            delay = chance.uniform(0, 2 * seconds["local"] / NUM_SHARDS)
            run = start_pack(source, folder / "set", engine, environments[engine])
            while run.poll() is None and not is_at(folder / "set", finished):
                time.sleep(0.002)
            time.sleep(delay)
            run.kill()
            run.wait()
            receipts = num_receipts(folder / "set")
            again = start_pack(source, folder / "set", engine, environments[engine]).wait()
            row = {
                "after_shards": finished,
                "and_s": round(delay, 3),
                "killed": run.returncode == -9,
                "shards_at_kill": receipts,
                "exit_code_again": again,
                "same": files(folder / "set") == expected,
            }
            shutil.rmtree(folder / "set", ignore_errors=True)
            return row

        rows = sweep(swept, kill_once)
        write_result(
            args.out,
            benchmark="kill_pack",
            job=f"{NUM_PHOTOGRAPHS} photographs, {SHARD_SAMPLES} a shard, killed and run again",
            swept=swept,
            rows=rows,
            uninterrupted_s={engine: round(value, 2) for engine, value in seconds.items()},
            all_same=all(row["same"] and row["exit_code_again"] == 0 for row in rows),
        )


if __name__ == "__main__":
    main()
