"""What the data service costs beside a local loader: transport, throughput, shared decodes, a second server.

Job: photographs stored at 256 pixels, cropped to 224, batches of 64 in uint8, servers and trainer on this machine.

- `transport`: batches that the server has in its cache, over the socket and in shared memory; CPU time of server and
  client together. `memory, first time` is the pass in which the server puts the batches there.
- `throughput`: new epochs, in turn from a local loader and from one server with as many threads, over the socket and in
  shared memory. The limit that transport sets is the local loader's rate times D / (D + T): D is its CPU time an
  image, T that of transport.
- `sweep`: four trainers at the same steps; images that servers decoded for each image of the epoch.
- `scale`: one trainer that does nothing but receive, one and two servers of one thread each. The ceiling is what the cores
  give: one core for each server, and no more than all cores for servers and trainer together.

CPU time is what to go by where others use the machine. Rates by the clock are of the same minutes, contender by
contender, but say something only where nobody else works.

Run: python benchmarks/service.py   (three minutes on two quiet cores)
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from harness import RESULTS, arguments, make_data_set, write_result
from serving import ServerProcess, serving

from softshard.loaders import Augment, Connection, Loader, RemoteLoader
from softshard.loaders.measure import machine

BATCH, SAMPLES = 64, 2048
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "dtype": "uint8", "augment": Augment(), "window": 1024}
WAYS = {"socket": Connection(shared_memory=False), "memory": Connection()}
BARS = {"transport": 0.3, "of_limit": 0.9, "memory_of_local": 0.85, "decodes": 1.2}

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
    dataset: Path, threads: int, repeats: int, costs: dict[str, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """New epochs, in turn from the local loader and from a server; rows, and ratios within rounds."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("local", *WAYS)}
    with (
        serving(1, dataset, "--threads", str(threads), "--cache-bytes", "256MiB") as servers,
        Loader(dataset, num_threads=threads, **OPTIONS) as local,
    ):
        remotes = {
            way: RemoteLoader(servers[0].url, connection=connection, **OPTIONS)
            for way, connection in WAYS.items()
        }
        for loader in (local, *remotes.values()):
            read_epoch(loader, next(_epochs))  # outside the clock
        for _ in range(repeats):
            runs["local"].append(measure(local, [next(_epochs)]))
            for way, remote in remotes.items():
                runs[way].append(measure(remote, [next(_epochs)], servers))
        for remote in remotes.values():
            remote.close()
    rows = [{"part": "throughput", "way": way, **medians(found)} for way, found in runs.items()]
    decode = statistics.median(run["cpu_ms"] for run in runs["local"])
    ratios: dict[str, Any] = {}
    for way in WAYS:
        limit = decode / (decode + costs[way])
        clock = [b["images_per_s"] / a["images_per_s"] for a, b in zip(runs["local"], runs[way], strict=True)]
        cpu = [a["cpu_ms"] / b["cpu_ms"] for a, b in zip(runs["local"], runs[way], strict=True)]
        ratios[way] = {
            "limit_of_local": round(limit, 3),
            "of_local_by_clock": round(statistics.median(clock), 3),
            "of_local_by_cpu": round(statistics.median(cpu), 3),
            "of_limit_by_clock": round(statistics.median(clock) / limit, 3),
            "of_limit_by_cpu": round(statistics.median(cpu) / limit, 3),
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


def scale(dataset: Path, repeats: int) -> list[dict[str, Any]]:
    """One and two servers of one thread, in turn."""
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with serving(2, dataset, "--threads", "1", "--cache-bytes", "256MiB") as servers:
        remotes = {
            num: RemoteLoader(
                [server.url for server in servers[:num]],
                connection=WAYS["memory"],
                prefetch=2 * num,
                **OPTIONS,
            )
            for num in runs
        }
        for remote in remotes.values():
            read_epoch(remote, next(_epochs))  # outside the clock
        for _ in range(repeats):
            for num, remote in remotes.items():
                runs[num].append(measure(remote, [next(_epochs)], servers))
        for remote in remotes.values():
            remote.close()
    cores, rows = machine()["cores"], []
    for num, found in runs.items():
        row = medians(found)
        ceiling = 1e3 * min(num / row["server_cpu_ms"], cores / row["cpu_ms"])
        rate = row["images_per_s"]
        used = [run["images_per_s"] * run["cpu_ms"] / 1e3 for run in found]
        rows.append(
            {
                "part": "scale",
                "servers": num,
                **row,
                "ceiling_images_per_s": round(ceiling, 1),
                "of_ceiling": round(rate / ceiling, 3),
                "cores_used": round(statistics.median(used), 2),
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    args = parser.parse_args()
    dataset = make_data_set(args.data, args.photos, size=256, samples=SAMPLES, components="jpg")
    load = os.getloadavg()[1]  # of five minutes: what others make the machine do
    rows = transport(dataset, args.repeats)
    costs = {row["way"]: row["cpu_ms"] for row in rows}
    found, ratios = throughput(dataset, args.threads, args.repeats, costs)
    rows += found
    rows += [sweep_of_four(dataset, num) for num in (1, 2)]
    rows += scale(dataset, args.repeats)
    for row in rows:
        print(row)
    print(ratios)
    write_result(
        args.out or RESULTS / "service.json",
        benchmark="service",
        job=f"{SAMPLES} photographs of 256 pixels, 224 uint8, batches of {BATCH}",
        swept={"part": ["transport", "throughput", "sweep", "scale"]},
        rows=rows,
        ratios=ratios,
        bars=BARS,
        threads=args.threads,
        load_before=round(load, 2),
    )


if __name__ == "__main__":
    main()
