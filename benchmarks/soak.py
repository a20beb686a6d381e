"""A soak: loaders for an hour over bad storage with bad samples. Memory, descriptors and threads must stay flat.

A real S3 server (OpenStack Swift on loopback; a local folder with `--local`) behind a proxy whose faults change every few
seconds: slow, paced, answers broken in the middle, connections cut, refused, away for longer than the loader waits.
In the data set seven samples are bad. Two processes, each with a loader of its own, share a cache that holds half of the
data set, and do at random what people do: whole epochs, epochs that are broken off, states restored in another loader, an
exception in the loop, closed and built anew. A third one like them is killed and begun again every minute.

Each whole epoch must serve every good sample once, and each restored one exactly the rest. An error may only be the
storage's, and only after the proxy was away for longer than the deadline.

Every few seconds: private memory (RssAnon: mapped shards are the page cache's), what of it is allocated, descriptors and
threads of both processes, with glibc's arenas as users have them (`--arenas 2` sets MALLOC_ARENA_MAX).
Over the second half a straight line is laid through each; the soak fails where it rises by more than

    memory        5 %, or 24 MB where that is more (private, and allocated)
    descriptors   5 %, or 4
    threads       5 %, or 2

Run: python benchmarks/soak.py [--minutes 60]      exits with 1 when something grew, died or was not served
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, make_data_set, write_result
from streaming import network, upload

from softshard.loaders import Augment, Cache, Faults, Loader
from softshard.shards import Manifest, ReshardOptions, reshard
from softshard.shards.errors import StorageError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import spoiling

from servers.proxy import FaultyProxy

SIZE, SAMPLES, SHARD_SAMPLES, BATCH = 96, 4096, 256, 64
DEADLINE_S, PACE_S, VICTIM_S = 20.0, 0.02, 60.0
BAD = {
    5: {"jpg": lambda data: b"x"},
    300: {"jpg": spoiling.cut_in_the_middle},
    301: {"jpg": spoiling.without_segment(0xDB)},
    700: {"lmap": spoiling.map_with_nan},
    701: {"lmap": spoiling.map_of_another_shape},
    1500: {"hier.npy": spoiling.levels_out_of_range},
    4000: {"cls": lambda data: b"x"},
}
CALM = {"delay_s": 0.0, "bytes_per_s": None, "break_share": 0.0, "refuse": False}
# (weight, seconds, what is wrong meanwhile)
WEATHER = [
    (3, 10.0, {}),
    (3, 10.0, {"delay_s": 0.2}),
    (3, 10.0, {"break_share": 0.2}),
    (2, 10.0, {"bytes_per_s": 500_000.0}),
    (2, 5.0, {"refuse": True}),
    (1, 2 * DEADLINE_S, {"refuse": True}),
]
MOST_GROWTH = {
    "memory_mb": (0.05, 24.0),
    "allocated_mb": (0.05, 24.0),
    "descriptors": (0.05, 4.0),
    "threads": (0.05, 2.0),
}


def make_loader(url: str, cache: str) -> Loader:
    return Loader(
        url,
        batch_size=BATCH,
        targets="relabel",
        augment=Augment(size=64),
        dtype="float32",
        last_batch="pad",
        window=512,
        num_threads=1,
        cache=Cache(
            cache,
            max_bytes=int(os.environ["SOAK_CACHE_BYTES"]),
            num_fetchers=4,
            ahead=4,
            deadline_s=DEADLINE_S,
        ),
        faults=Faults(max_bad=0.01, stall_s=300),
    )


def check(expected: Any, found: Any, what: str) -> None:
    if expected != found:
        raise AssertionError(f"{what}: expected {expected}, found {found}")


def serve(loader: Loader, until: int | None = None) -> list[str]:
    """Own keys of the rest of an epoch, or of so many of its batches."""
    keys = []
    for number, batch in enumerate(loader):
        keys += [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]
        time.sleep(PACE_S)
        if until is not None and number + 1 >= until:
            break
    return keys


def do_something(loader: Loader, url: str, cache: str, choice: random.Random) -> tuple[str, Loader]:
    """One of the things that people do; the loader to go on with."""
    what = choice.choice(["epoch", "epoch", "break", "restore", "exception", "anew"])
    num_good = SAMPLES - len(BAD)
    if what == "epoch":
        keys = serve(loader)
        check((num_good, num_good), (len(keys), len(set(keys))), "samples of an epoch")
    elif what == "break":
        serve(loader, choice.randrange(1, len(loader)))
    elif what == "restore":
        first = serve(loader, choice.randrange(1, len(loader)))
        state = loader.state_dict()
        loader.close()
        loader = make_loader(url, cache)
        loader.load_state_dict(state)
        keys = first + serve(loader)
        check((num_good, num_good), (len(keys), len(set(keys))), "samples of a restored epoch")
    elif what == "exception":
        with suppress(LookupError):
            for _ in loader:
                raise LookupError("the caller's own")
    else:
        loader.close()
        loader = make_loader(url, cache)
    return what, loader


def allocated_mb(path: str) -> float:
    """What is allocated in this process, of all of glibc's arenas; the rest of its private memory is free, and kept."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    totals = Path(path).read_text().rpartition("</heap>")[2]

    def size(kind: str) -> int:
        return int(re.findall(rf'type="{kind}"[^/]* size="(\d+)"', totals)[0])

    return (size("current") + size("mmap") - size("fast") - size("rest")) / 2**20


def work(url: str, cache: str, seed: int, until: float, pipe: Any) -> None:
    """A process with a loader, until the time is up."""
    import torch

    torch.set_num_threads(1)
    choice, done = random.Random(seed), Counter()
    loader = None
    while time.time() < until:
        try:
            loader = loader or make_loader(url, cache)
            what, loader = do_something(loader, url, cache, choice)
            done[what] += 1
        except StorageError as error:  # it was away for longer than the deadline; everything begins again
            done["storage errors"] += 1
            if not any(word in str(error) for word in ("cannot be", "no answer")):
                raise
            if loader is not None:
                loader.close()
            loader = None
        gc.collect()
        pipe.send((dict(done), allocated_mb(f"{cache}.malloc.{os.getpid()}")))
    if loader is not None:
        loader.close()


def run_proxy(target: str, pipe: Any) -> None:
    """The network, in a process of its own; takes its faults through a pipe."""
    with FaultyProxy(target, seed=1) as proxy:
        pipe.send(proxy.endpoint)
        while (changes := pipe.recv()) is not None:
            for name, value in changes.items():
                setattr(proxy, name, value)
            if changes.get("refuse"):
                proxy.cut()
            pipe.send((proxy.connections, proxy.faults, proxy.bytes_out))


class Worker:
    """A process with a loader, and what it says of itself."""

    def __init__(self, url: str, cache: str, seed: int, until: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(url, cache, seed, until, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.done: dict[str, int] = {}
        self.allocated_mb = 0.0

    def hear(self) -> None:
        with suppress(EOFError):
            while self._pipe.poll():
                self.done, self.allocated_mb = self._pipe.recv()

    def look(self) -> dict[str, float] | None:
        """Memory, descriptors, threads; None once it has ended."""
        place = Path("/proc") / str(self.process.pid)
        try:
            status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            return {
                "allocated_mb": round(self.allocated_mb, 1),
                "memory_mb": int(status["RssAnon"].split()[0]) / 1024,
                "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
                "descriptors": len(os.listdir(place / "fd")),
                "threads": int(status["Threads"]),
            }
        except (OSError, KeyError):
            return None


def growth(rows: list[dict[str, Any]], worker: int) -> dict[str, dict[str, float]]:
    """How much a straight line through the second half of the time rises, and how much it may."""
    own = [row for row in rows if row["worker"] == worker]
    own = own[len(own) // 2 :]
    found = {}
    for name, (share, least) in MOST_GROWTH.items():
        times, values = np.array([row["s"] for row in own]), np.array([row[name] for row in own])
        slope = float(np.polyfit(times, values, 1)[0]) if len(own) > 2 else 0.0
        found[name] = {
            "median": float(np.median(values)),
            "most": float(values.max()),
            "rises_by": round(slope * float(times[-1] - times[0]), 2),
            "may_rise_by": round(max(share * float(np.median(values)), least), 2),
        }
    return found


def prepare(data: Path, folder: Path) -> Path:
    """A data set in small shards with bad samples."""
    source = make_data_set(data, None, size=SIZE, samples=SAMPLES)
    copied = folder / "set"
    reshard([source], copied, ReshardOptions(shard_samples=SHARD_SAMPLES, name="set"))
    spoiling.rewrite(copied, BAD)
    return copied


def soak(url: str, folder: Path, minutes: float, every_s: float, proxy: Any) -> dict[str, Any]:
    """Run it; the rows, what was done, and what is wrong."""
    begun, choice = time.time(), random.Random(0)
    until = begun + 60 * minutes
    cache = str(folder / "cache")
    workers = [Worker(url, cache, seed, until) for seed in range(2)]
    victim, kills = Worker(url, cache, 99, until), 0
    rows, problems, weather, seen = [], [], Counter(), (0, 0, 0)
    next_weather = next_look = 0.0
    next_kill = time.time() + VICTIM_S
    while time.time() < until:
        time.sleep(0.5)
        now = time.time()
        if proxy is not None and now >= next_weather:
            _, lasts_s, changes = choice.choices(WEATHER, [weight for weight, _, _ in WEATHER])[0]
            weather[json.dumps(changes)] += 1
            proxy.send(CALM | changes)
            seen = proxy.recv()
            next_weather = now + lasts_s
        if now >= next_kill:
            victim.process.kill()
            victim.process.join()
            victim, kills = Worker(url, cache, 99 + kills, until), kills + 1
            next_kill = now + VICTIM_S
        for worker in workers:
            worker.hear()
        if now >= next_look:
            next_look = now + every_s
            for number, worker in enumerate(workers):
                if (found := worker.look()) is not None:
                    rows.append({"s": round(now - begun, 1), "worker": number, **found})
        if dead := [worker for worker in workers if not worker.process.is_alive()]:
            problems += [f"a process ended with {worker.process.exitcode}" for worker in dead]
            break
    if proxy is not None:
        proxy.send(CALM)
        seen = proxy.recv()
    victim.process.kill()
    for worker in workers:
        worker.process.join(180)
        worker.hear()
        if worker.process.exitcode != 0 and not problems:
            problems.append(f"a process ended with {worker.process.exitcode} (None: not at all)")
            worker.process.kill()
    grown = [growth(rows, number) for number in range(2)]
    for number, found in enumerate(grown):
        problems += [
            f"process {number}: {name} rises by {value['rises_by']}, expected at most {value['may_rise_by']}"
            for name, value in found.items()
            if value["rises_by"] > value["may_rise_by"]
        ]
    return {
        "minutes": round((time.time() - begun) / 60, 1),
        "problems": problems,
        "growth": grown,
        "done": [worker.done for worker in workers],
        "kills": kills,
        "weather": dict(weather),
        "proxy": dict(zip(("connections", "faults", "bytes"), seen, strict=True)),
        "rows": rows,
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks (default: 10)")
    parser.add_argument("--local", action="store_true", help="a local folder instead of the S3 server")
    parser.add_argument(
        "--arenas", type=int, default=0, help="glibc's MALLOC_ARENA_MAX, 0 for its own (default: 0)"
    )
    args = parser.parse_args()
    if args.arenas:
        os.environ["MALLOC_ARENA_MAX"] = str(args.arenas)  # read when a process starts: the workers'
    folder = Path(tempfile.mkdtemp(prefix="softshard-soak-"))
    try:
        data_set = prepare(args.data, folder)
        num_bytes = Manifest.load(data_set).num_bytes
        os.environ["SOAK_CACHE_BYTES"] = str(num_bytes // 2)
        if args.local:
            result = soak(str(data_set), folder, args.minutes, args.every, None)
        else:
            with network(folder, run_proxy, None, ". Run it with --local") as (server, proxy):
                result = soak(upload(server, data_set), folder, args.minutes, args.every, proxy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_result(
        args.out,
        benchmark="soak",
        job=f"{result['minutes']} minutes of two loaders and one that is killed, {'local' if args.local else 'S3'}",
        swept={},
        arenas=args.arenas,
        bad_samples=len(BAD),
        cache_bytes=num_bytes // 2,
        **result,
    )
    print(
        json.dumps(
            {name: result[name] for name in ("minutes", "done", "kills", "growth", "problems")}, indent=1
        )
    )
    sys.exit(bool(result["problems"]))


if __name__ == "__main__":
    main()
