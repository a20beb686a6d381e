"""Streaming from object storage: a real S3 server, 100 ms before every answer, 2 % of the answers broken in the middle.

The server is OpenStack Swift on loopback, seen through a proxy that adds the latency and the faults. Each epoch begins
with an empty cache; contenders take turns:

    local       the same shards in a local folder
    remote      through the network above, cache empty at the start of the epoch
    cached      the same loader's next epoch

once *at full speed* (decoding takes both cores, which the server shares) and once *paced* (the loop takes a batch when
a training step would, at `--pace` of the local full speed). The clock of a rate starts when the first shard's samples
have been served. Time to the first batch is given in downloads of one shard through the same network, alone.

Run: python benchmarks/streaming.py   (the result file has the numbers; see benchmarks/README.md for what they say)
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import arguments, make_data_set, sweep, write_result

from softshard.loaders import Augment, Cache, Loader
from softshard.loaders.download import Downloads
from softshard.loaders.fetch_stats import FetchCounters
from softshard.shards import Manifest, ReshardOptions, reshard

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.proxy import FaultyProxy
from servers.swift import ACCESS_KEY, REGION, SECRET_KEY, Swift, why_not

DELAY_S, BREAK_SHARE, BREAK_WITHIN = 0.1, 0.02, 8 * 2**20
BUCKET = "streaming"


def run_proxy(target: str, pipe: Any) -> None:
    """The network, in a process of its own; answers `reset` and `count` through a pipe."""
    with FaultyProxy(target, seed=1) as proxy:
        proxy.delay_s, proxy.break_share, proxy.break_within = DELAY_S, BREAK_SHARE, BREAK_WITHIN
        pipe.send(proxy.endpoint)
        before = (0, 0)
        while (word := pipe.recv()) != "stop":
            now = (proxy.bytes_out, proxy.faults)
            if word == "reset":
                before = now
            pipe.send((now[0] - before[0], now[1] - before[1]))


@contextmanager
def network(
    folder: Path, run: Callable[[str, Any], None] = run_proxy, last: Any = "stop", hint: str = ""
) -> Iterator[tuple[Swift, Any]]:
    """A server, and the pipe to the network before it; the environment points there.

    Args:
        folder: for the server's files.
        run: the network, in a process of its own: called with the server's endpoint and the pipe.
        last: what ends it, sent through the pipe.
        hint: what to do where there is no such server.
    """
    if reason := why_not(folder):
        raise SystemExit(f"the S3 server {reason}{hint}")
    context = multiprocessing.get_context("spawn")
    with Swift(folder / "swift") as server:
        mine, theirs = context.Pipe()
        process = context.Process(target=run, args=(server.endpoint, theirs), daemon=True)
        process.start()
        os.environ |= {
            "AWS_ENDPOINT_URL": mine.recv(),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        try:
            yield server, mine
        finally:
            mine.send(last)
            process.join()


def upload(server: Swift, folder: Path) -> str:
    """Copy a data set to the server itself, not through the network."""
    from botocore.session import get_session

    client = get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
    )
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=f"set/{path.name}", Body=path.read_bytes())
    return f"s3://{BUCKET}/set"


def one_download(url: str, manifest: Manifest, folder: Path) -> float:
    """Seconds that one shard takes alone, with its index: the unit of the time to the first batch."""
    downloads = Downloads(url, deadline_s=60, stopped=threading.Event(), counters=FetchCounters())
    record = manifest.shards[0]
    start = time.perf_counter()
    with open(folder / "shard", "wb") as file:
        downloads.whole(record.name, record.bytes, file.fileno())
        os.fsync(file.fileno())
    downloads.small(record.name.removesuffix(".tar") + ".idx", 2**26)
    return time.perf_counter() - start


def epoch(loader: Loader, start: float, skip: int, pace: float | None) -> dict[str, float]:
    """Images per second, and per CPU-second of this process, of an epoch from the sample `skip` on; when the first
    batch came.

    Args:
        start: when the clock of the first batch began.
        pace: images per second that the loop takes; None is as fast as they come.
    """
    first = begun = cpu = 0.0
    served = counted = 0
    due = 0.0
    for batch in loader:
        now = time.perf_counter()
        if not served:
            first, due = now - start, now
        served += len(batch)
        if pace:
            due = max(due, now) + len(batch) / pace
            time.sleep(max(0.0, due - time.perf_counter()))
        if begun:
            counted += len(batch)
        elif served >= skip:
            begun, cpu = time.perf_counter(), time.process_time()
    return {
        "images_per_s": counted / (time.perf_counter() - begun),
        "images_per_cpu_s": counted / (time.process_time() - cpu),
        "first_batch_s": first,
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=32_768)
    parser.add_argument("--shard-samples", type=int, default=2048)
    parser.add_argument("--pace", type=float, default=0.4, help="of the local full speed (default: 0.4)")
    parser.add_argument("--window", nargs="+", type=int, help="default: one shard's samples and four shards'")
    parser.add_argument("--speed", nargs="+", default=["full", "paced"], choices=["full", "paced"])
    parser.set_defaults(repeats=5)
    args = parser.parse_args()
    source = make_data_set(args.data, args.photos, size=224, samples=args.samples, components="jpg")
    dataset = args.data / f"streaming-{args.samples}-{args.shard_samples}"
    if not (dataset / "manifest.json").exists():
        reshard([source], dataset, ReshardOptions(shard_samples=args.shard_samples, name="set"))
    manifest = Manifest.load(dataset)
    scratch = Path(tempfile.mkdtemp(dir=args.data))
    try:
        with network(scratch) as (server, pipe):
            url = upload(server, dataset)
            downloads = [one_download(url, manifest, scratch) for _ in range(args.repeats)]
            download_s = statistics.median(downloads)

            def counted(word: str) -> tuple[int, int]:
                pipe.send(word)
                return pipe.recv()

            def one_epoch(where: str, window: int, seed: int, pace: float | None) -> dict[str, Any]:
                options: dict[str, Any] = dict(
                    batch_size=args.batch_size,
                    dtype="uint8",
                    augment=Augment(size=224),
                    num_threads=args.threads,
                    window=window,
                    seed=seed,
                )
                counted("reset")
                cache = Cache(folder=scratch / "cache")
                start = time.perf_counter()
                with Loader(dataset if where == "local" else url, cache=cache, **options) as loader:
                    figures: dict[str, Any] = dict(epoch(loader, start, args.shard_samples, pace))
                    if where == "remote":
                        num_bytes, faults = counted("count")
                        stats = loader.fetch_stats()
                        again = epoch(loader, time.perf_counter(), args.shard_samples, pace)
                        figures |= {
                            "cached": again["images_per_s"],
                            "bytes_fetched": num_bytes / manifest.num_bytes,
                            "faults": faults,
                            "requests": stats.requests,
                            "retries": stats.retries,
                            "waited_s": stats.waited_s,
                        }
                shutil.rmtree(scratch / "cache", ignore_errors=True)
                return figures

            def run(window: int, speed: str) -> dict[str, Any]:
                pace = None
                if speed == "paced":
                    pace = args.pace * one_epoch("local", window, 0, None)["images_per_s"]
                rounds = [
                    {
                        where: one_epoch(where, window, seed, pace)
                        for where in ("local", "remote")[:: (-1) ** seed]
                    }
                    for seed in range(args.repeats)
                ]

                def values(where: str, name: str) -> list[float]:
                    return [each[where][name] for each in rounds]

                def median(numbers: list[float], digits: int = 3) -> float:
                    return round(statistics.median(numbers), digits)

                local, remote = values("local", "images_per_s"), values("remote", "images_per_s")
                ratios = [far / near for far, near in zip(remote, local, strict=True)]
                cached = [far / near for far, near in zip(values("remote", "cached"), local, strict=True)]
                by_cpu = [
                    far / near
                    for far, near in zip(
                        values("remote", "images_per_cpu_s"), values("local", "images_per_cpu_s"), strict=True
                    )
                ]
                firsts = values("remote", "first_batch_s")
                return {
                    "local_images_per_s": median(local, 0),
                    "remote_images_per_s": median(remote, 0),
                    "of_local": median(ratios),
                    "of_local_low": round(min(ratios), 3),
                    "of_local_high": round(max(ratios), 3),
                    "of_local_by_cpu_time": median(by_cpu),
                    "cached_of_local": median(cached),
                    "first_batch_s": median(firsts),
                    "local_first_batch_s": median(values("local", "first_batch_s")),
                    "first_batch_in_downloads": median([first / download_s for first in firsts], 2),
                    "bytes_fetched_of_data_set": median(values("remote", "bytes_fetched"), 4),
                    "bytes_fetched_most": round(max(values("remote", "bytes_fetched")), 4),
                    "faults": values("remote", "faults"),
                    "requests": values("remote", "requests"),
                    "retries": values("remote", "retries"),
                }

            swept = {
                "window": args.window or [args.shard_samples, 4 * args.shard_samples],
                "speed": args.speed,
            }
            write_result(
                args.out,
                benchmark="streaming",
                job="random resized crop to 224, flip, uint8; S3 on loopback, 100 ms before each answer, 2 % broken",
                swept=swept,
                rows=sweep(swept, run),
                threads=args.threads,
                batch_size=args.batch_size,
                shards=len(manifest.shards),
                shard_bytes=manifest.shards[0].bytes,
                one_download_s=[round(each, 3) for each in downloads],
                pace=args.pace,
                load_average=os.getloadavg(),
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
