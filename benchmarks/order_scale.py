"""The order of an epoch, and opening a data set, at the size of ImageNet-21K and far beyond it.

Jobs, each in a process of its own; its peak is the resident memory of all of it, the interpreter included
(`before_mb`):

- `epoch`: every sample of an epoch, in order, as a loader takes them window after window. 14 million samples in
  1,400 shards, windows of 32,768. Also class-balanced (exponents 0.5 and 1; class sizes fall as 1 / rank over 10,450
  classes), where an epoch's draws are chosen before its first batch, and mixed of two such data sets, 7 to 3.
- `open`: `Source.open` of a manifest with 100,000 shards of 10,000 samples and 21,841 classes, its fingerprint, and the
  first batch of 2,048 after restoring at the beginning, the middle and the end of an epoch.

Seconds are of the wall clock; `cpu_s` is what the thread itself took, which other processes disturb less. No image
is read.

Run: python benchmarks/order_scale.py
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import RESULTS, arguments, sweep, write_result

from softshard.loaders.order import EpochOrder, Order, rank_slots
from softshard.loaders.source import Source
from softshard.shards.classes import class_list_sha256
from softshard.shards.manifest import Manifest
from softshard.shards.writer import ShardRecord

WINDOW = 32_768
PER_SHARD = 10_000
GLOBAL_BATCH = 2_048


def peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def whole_epoch(make: Callable[[], Order], num_samples: int) -> dict[str, Any]:
    """Every draw of an epoch, a window at a time, without keeping them."""
    before, start, cpu = peak_mb(), time.perf_counter(), time.thread_time()
    order = make()
    order.lane_draws(0, 0, 1)
    first = time.perf_counter()
    for at in range(0, num_samples, WINDOW):
        order.lane_draws(0, at, at + WINDOW)
    return {
        "samples": order.num_samples,
        "first_batch_s": round(first - start, 3),
        "epoch_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.thread_time() - cpu, 2),
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


def plain(num_samples: int) -> dict[str, Any]:
    return whole_epoch(
        lambda: EpochOrder(np.full(num_samples // PER_SHARD, PER_SHARD), 0, 0, window=WINDOW), num_samples
    )


def opened(num_samples: int) -> dict[str, Any]:
    """A data set of which only the manifest is there."""
    names = tuple(f"n{i:08d}" for i in range(21_841))
    digest = "0123456789abcdef" * 4
    records = tuple(
        ShardRecord(f"train-{i:06d}.tar", PER_SHARD, 2 * 10**9, digest, digest)
        for i in range(num_samples // PER_SHARD)
    )
    manifest = Manifest(
        name="train",
        components=("jpg", "cls", "msgpack"),
        class_names=names,
        classes_sha256=class_list_sha256(names),
        tree_sha256=None,
        num_levels=0,
        label_maps=None,
        recipe={},
        pixel_stack={},
        sidecar_sha256=digest,
        shards=records,
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest.save(folder)
        del manifest, records
        start, cpu = time.perf_counter(), time.thread_time()
        source = Source.open(folder, None, None)
        fingerprint = source.manifest.fingerprint
        opened_at, opened_cpu = time.perf_counter(), time.thread_time()
    figures = {
        "samples": source.num_samples,
        "shards": len(source.manifest.shards),
        "open_s": round(opened_at - start, 2),
        "cpu_s": round(opened_cpu - cpu, 2),
        "fingerprint": fingerprint[:12],
    }
    for name, taken in (("start", 0), ("middle", num_samples // 2), ("end", num_samples - GLOBAL_BATCH)):
        start = time.perf_counter()
        order = source.order(0, 3, num_lanes=1, window=WINDOW, shuffle=True)
        rank_slots(order, GLOBAL_BATCH, taken, 0, 1)
        figures[f"restore_{name}_ms"] = round(1000 * (time.perf_counter() - start), 1)
    return {**figures, "peak_mb": peak_mb()}


JOBS = {
    "epoch, 14 million": (plain, 14_000_000),
    "open, 1,000 million": (opened, 10**9),
}


def in_own_process(job: str) -> dict[str, Any]:
    function, num_samples = JOBS[job]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (num_samples,))


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    swept = {"job": list(JOBS)}
    write_result(
        args.out or RESULTS / "order_scale.json",
        benchmark="order_scale",
        job="the order of whole epochs; opening and restoring",
        swept=swept,
        rows=sweep(swept, in_own_process),
    )


if __name__ == "__main__":
    main()
