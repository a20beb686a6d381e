"""What the data service costs beside a local loader: transport, throughput, shared decodes, a second server.

Job: photographs stored at 256 pixels, cropped to 224, batches of 64, servers and trainer on this machine.

- `transport`: batches that the server has in its cache, over the socket and in shared memory; CPU time of server and
  client together. `memory, first time` is the pass in which the server puts the batches there.
- `throughput`: new epochs, in turn from a local loader and from one server with as many threads, over the socket and in
  shared memory, in uint8 and in float32. The limit that transport sets is the local loader's rate times D / (D + T): D is
  its CPU time an image, T that of transport, both of uint8.
- `sweep`: four trainers at the same steps; images that servers decoded for each image of the epoch.
- `scale`: a trainer that does nothing but receive, and one or two servers of one thread, each on a core of its own; the
  trainer on both cores. In turn with them a local loader on one core and on two, which is what the cores give. The ceiling
  of the servers is what CPU time leaves: a core for each server, and no more than two cores for all.

CPU time is what to go by where others use the machine. Rates by the clock, and with them all of `scale`, are of the same
minutes, contender by contender, but say something only where nobody else works.

Run: python benchmarks/service.py [--only PART ...]   (four minutes on two quiet cores)
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from harness import arguments, make_data_set, write_result
from serving import ServerProcess, serving

from softshard.loaders import Augment, Connection, Loader, RemoteLoader

BATCH, SAMPLES = 64, 2048
SCALE_SAMPLES = 8192  # longer epochs: where they begin, a second server has nothing to do
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "dtype": "uint8", "augment": Augment(), "window": 1024}
WAYS = {"socket": Connection(shared_memory=False), "memory": Connection()}
PARTS = ("transport", "throughput", "sweep", "scale")

_epochs = count(1)  # each is served once, so that no cache has it; 0 is the one that caches have


def read_epoch(loader: Loader, epoch: int) -> int:
    """Read an epoch; its images."""
    loader.set_epoch(epoch)
    return sum(len(batch) for batch in loader)


def measure(loader: Loader, epochs: Sequence[int], servers: Sequence[ServerProcess] = ()) -> dict[str, float]:
    """Images per second, and CPU-milliseconds an image of this process and of the servers."""
    before = sum(server.cpu_s() for server in servers)
    wall, cpu = time.perf_counter(), time.process_time()
    images = sum(read_epoch(loader, epoch) for epoch in epochs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    there = sum(server.cpu_s() for server in servers) - before
    return {
        "images_per_s": images / wall,
        "client_cpu_ms": 1e3 * cpu / images,
        "server_cpu_ms": 1e3 * there / images,
        "cpu_ms": 1e3 * (cpu + there) / images,
    }


def medians(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of each figure; of the CPU time also the lowest and the highest."""
    found: dict[str, Any] = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    spread = [run["cpu_ms"] for run in runs]
    return found | {"cpu_ms_range": [round(min(spread), 4), round(max(spread), 4)], "repeats": len(runs)}


def ratio(name: str, above: Sequence[dict[str, float]], below: Sequence[dict[str, float]]) -> float:
    """The median over rounds of one figure of two contenders."""
    return statistics.median(a[name] / b[name] for a, b in zip(above, below, strict=True))


def transport(dataset: Path, repeats: int) -> list[dict[str, Any]]:
    """Batches that are in the server's cache."""
    rows = []
    with serving(1, dataset, "--threads", "1") as servers:
        for way, connection in WAYS.items():
            with RemoteLoader(servers[0].url, connection=connection, **OPTIONS) as remote:
                first = measure(remote, [0], servers)
                if way == "memory":
                    rows.append({"part": "transport", "way": "memory, first time", **medians([first])})
                runs = [measure(remote, [0, 0], servers) for _ in range(repeats)]
                rows.append({"part": "transport", "way": way, **medians(runs)})
    return rows


def throughput(
    dataset: Path, threads: int, repeats: int, costs: Mapping[str, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """New epochs, in turn from the local loader and from a server; rows, and ratios within rounds."""
    with (
        serving(1, dataset, "--threads", str(threads), "--cache-bytes", "256MiB") as servers,
        contextlib.ExitStack() as opened,
    ):
        loaders: dict[str, Loader] = {}
        for dtype in ("uint8", "float32"):
            options = OPTIONS | {"dtype": dtype}
            loaders[f"local, {dtype}"] = Loader(dataset, num_threads=threads, **options)
            for way, connection in WAYS.items():
                loaders[f"{way}, {dtype}"] = RemoteLoader(servers[0].url, connection=connection, **options)
        for loader in loaders.values():
            opened.enter_context(loader)
            read_epoch(loader, next(_epochs))  # outside the clock
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, loader in loaders.items():
                there = [] if name.startswith("local") else servers
                runs[name].append(measure(loader, [next(_epochs)], there))
    rows = [{"part": "throughput", "way": way, **medians(found)} for way, found in runs.items()]
    decode = statistics.median(run["cpu_ms"] for run in runs["local, uint8"])
    ratios: dict[str, Any] = {}
    for name, found in runs.items():
        way, dtype = name.split(", ")
        if way == "local":
            continue
        local = runs[f"local, {dtype}"]
        clock, cpu = ratio("images_per_s", found, local), ratio("cpu_ms", local, found)
        rounds = [a["cpu_ms"] / b["cpu_ms"] for a, b in zip(local, found, strict=True)]
        ratios[name] = {
            "of_local_by_clock": round(clock, 3),
            "of_local_by_cpu": round(cpu, 3),
            "of_local_by_cpu_range": [round(min(rounds), 3), round(max(rounds), 3)],
        }
        if dtype == "uint8":
            limit = decode / (decode + costs[way])
            ratios[name] |= {
                "limit_of_local": round(limit, 3),
                "of_limit_by_clock": round(clock / limit, 3),
                "of_limit_by_cpu": round(cpu / limit, 3),
            }
    return rows, ratios


def sweep_of_four(dataset: Path, num_servers: int) -> dict[str, Any]:
    """Four trainers that read the same epoch, each in a thread."""
    with serving(num_servers, dataset, "--threads", "1") as servers:
        urls = [server.url for server in servers]
        trainers = [RemoteLoader(urls, connection=WAYS["memory"], **OPTIONS) for _ in range(4)]
        before = sum(server.stats()["images"] for server in servers)
        images: list[int] = []
        threads = [
            threading.Thread(target=lambda each=each: images.append(read_epoch(each, 0))) for each in trainers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        decoded = sum(server.stats()["images"] for server in servers) - before
        hedged = sum(trainer._pool.num_hedged for trainer in trainers)
        for trainer in trainers:
            trainer.close()
    return {
        "part": "sweep",
        "servers": num_servers,
        "trainers": len(trainers),
        "images_received": sum(images),
        "images_decoded": decoded,
        "decodes": round(decoded / images[0], 3),
        "hedged_requests": hedged,
    }


@contextlib.contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """This thread, and those that it starts meanwhile, on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def scale(dataset: Path, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One and two servers on a core each, in turn with a local loader on as many cores; rows, and ratios within rounds."""
    both = sorted(os.sched_getaffinity(0))[:2]
    if len(both) < 2:
        raise SystemExit(
            "scale: expected two cores, found one. Leave this part out: --only transport throughput sweep"
        )
    server_options = "--threads", "1", "--cache-bytes", "256MiB"
    with (
        serving(2, dataset, *server_options, cores=[{core} for core in both]) as servers,
        contextlib.ExitStack() as opened,
    ):
        contenders: dict[str, tuple[Loader, Collection[int], list[ServerProcess]]] = {}
        for num in (1, 2):
            with on_cores(both[:num]):
                contenders[f"local, {num}"] = Loader(dataset, num_threads=num, **OPTIONS), both[:num], []
            urls = [server.url for server in servers[:num]]
            with on_cores(both):
                # As many batches under way on each server, so that one that is late holds up nobody.
                remote = RemoteLoader(urls, connection=WAYS["memory"], prefetch=4 * num, **OPTIONS)
            contenders[f"servers, {num}"] = remote, both, servers[:num]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for number in range(repeats + 1):
            for name, (loader, cores, there) in contenders.items():
                with on_cores(cores):
                    if number == 0:
                        opened.enter_context(loader)
                    found = measure(loader, [next(_epochs)], there)
                if number > 0:  # the first is outside the clock
                    runs[name].append(found)
        hedged = {
            name: loader._pool.num_hedged
            for name, (loader, _, _) in contenders.items()
            if isinstance(loader, RemoteLoader)
        }
    rows, ceilings = [], {}
    for name, found in runs.items():
        kind, num = name.split(", ")
        row = {
            "part": "scale",
            "way": kind,
            "cores" if kind == "local" else "servers": int(num),
            **medians(found),
        }
        if kind == "servers":
            ceilings[num] = 1e3 * min(int(num) / row["server_cpu_ms"], 2 / row["cpu_ms"])
            row["ceiling_images_per_s"] = round(ceilings[num], 1)
            row["of_ceiling"] = round(row["images_per_s"] / ceilings[num], 3)
            row["hedged_requests"] = hedged[name]
        used = [run["images_per_s"] * run["cpu_ms"] / 1e3 for run in found]
        rows.append(row | {"cores_used": round(statistics.median(used), 2)})
    return rows, {
        "two_servers_over_one": round(ratio("images_per_s", runs["servers, 2"], runs["servers, 1"]), 3),
        "ceiling_of_that_by_cpu": round(ceilings["2"] / ceilings["1"], 3),
        "local_on_two_cores_over_one": round(ratio("images_per_s", runs["local, 2"], runs["local, 1"]), 3),
        "one_server_over_local_on_one_core": round(
            ratio("images_per_s", runs["servers, 1"], runs["local, 1"]), 3
        ),
        "two_servers_over_local_on_two_cores": round(
            ratio("images_per_s", runs["servers, 2"], runs["local, 2"]), 3
        ),
    }


def judged(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was found by CPU time, and whether that is enough."""
    aims: list[tuple[str, Any, str, float]] = []
    for row in rows:
        if row["part"] == "transport":
            aims.append((f"transport, {row['way']}: CPU-ms an image", row["cpu_ms"], "at most", 0.3))
        elif row["part"] == "sweep":
            what = f"decodes for four trainers, servers: {row['servers']}"
            aims.append((what, row["decodes"], "at most", 1.2))
    for name, found in ratios.items():
        if "of_limit_by_cpu" in found:
            aims.append(
                (f"{name}: of the limit that transport sets", found["of_limit_by_cpu"], "at least", 0.9)
            )
        if name.startswith("memory"):
            aims.append((f"{name}: of the local loader", found["of_local_by_cpu"], "at least", 0.85))
    return [
        {"aim": what, "found": found, bound: bar, "met": found <= bar if bound == "at most" else found >= bar}
        for what, found, bound, bar in aims
    ]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="print these parts; write nothing")
    args = parser.parse_args()
    parts, load = args.only or PARTS, os.getloadavg()[1]  # of five minutes: what others make the machine do
    dataset = make_data_set(args.data, args.photos, size=256, samples=SAMPLES, components="jpg")
    rows, ratios = [], {}
    if "transport" in parts or "throughput" in parts:
        rows += transport(dataset, args.repeats)
    if "throughput" in parts:
        costs = {row["way"]: row["cpu_ms"] for row in rows}
        found, ratios = throughput(dataset, args.threads, args.repeats, costs)
        rows += found
    if "sweep" in parts:
        rows += [sweep_of_four(dataset, num) for num in (1, 2)]
    if "scale" in parts:
        larger = make_data_set(args.data, args.photos, size=256, samples=SCALE_SAMPLES, components="jpg")
        found, ratios["scale"] = scale(larger, args.repeats)
        rows += found
    aims = judged(rows, ratios)
    for shown in (*rows, *ratios.items(), *aims):
        print(shown)
    if args.only:
        return
    write_result(
        args.out,
        benchmark="service",
        job=f"{SAMPLES} photographs of 256 pixels ({SCALE_SAMPLES} in scale), crops of 224, batches of {BATCH}",
        swept={"part": PARTS},
        rows=rows,
        ratios=ratios,
        aims=aims,
        threads=args.threads,
        load_before=round(load, 2),
    )


if __name__ == "__main__":
    main()
