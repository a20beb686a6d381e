"""The order of an epoch, and opening a data set, at the size of ImageNet-21K and far beyond it.

Jobs, each in a process of its own; its peak is the resident memory of all of it, the interpreter included
(`before_mb`):

- `epoch`: every sample of an epoch, in order, as a loader takes them window after window. 14 million samples in
  1,400 shards, windows of 32,768. Also class-balanced (exponents 0.5 and 1; class sizes fall as 1 / rank over 10,450
  classes), where an epoch's draws are chosen before its first batch, and mixed of two such data sets, 7 to 3.
- `open`: `Source.open` of a manifest with 100,000 shards of 10,000 samples and 21,841 classes, its fingerprint, and the
  first batch of 2,048 after restoring at the beginning, the middle and the end of an epoch.
- `keys`: a tenth of a million samples looked up by key in the indexes of 100 shards.

Seconds are of the wall clock; `cpu_s` is what the thread itself took, which other processes disturb less. No image
is read.

What came out, on two cores that others used as well (load 11): 1.5 s for an epoch's order of 14 million samples, 1.1 s
of it CPU; 50 ms of CPU and 69 MB before the first batch of a balanced epoch, 2.4 s for a mixed one; 2.2 s and
248 MB to open 100,000 shards, 25 ms to restore anywhere; 2.4 s to look up 100,000 of a million keys.

Run: python benchmarks/order_scale.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, in_own_process, peak_mb, sweep, write_result

from softshard.loaders.balance import Balance, load_kernel
from softshard.loaders.find_keys import find_keys
from softshard.loaders.mixture import MixedOrder, MixedPart
from softshard.loaders.order import EpochOrder, Order, count_drawn, rank_slots
from softshard.loaders.source import Source
from softshard.shards.classes import class_list_sha256
from softshard.shards.files import sha256_hex
from softshard.shards.index import ShardIndex, format_index
from softshard.shards.manifest import Manifest
from softshard.shards.writer import ShardRecord

WINDOW = 32_768
PER_SHARD = 10_000
GLOBAL_BATCH = 2_048
NUM_CLASSES = 10_450


def whole_epoch(make: Callable[[], Order], num_samples: int) -> dict[str, Any]:
    """Every draw of an epoch, a window at a time, without keeping them."""
    before, start, cpu = peak_mb(), time.perf_counter(), time.thread_time()
    order = make()
    order.lane_draws(0, 0, 1)
    first, first_cpu = time.perf_counter(), time.thread_time()
    for at in range(0, num_samples, WINDOW):
        order.lane_draws(0, at, at + WINDOW)
    return {
        "samples": order.num_samples,
        "first_batch_s": round(first - start, 3),
        "first_batch_cpu_s": round(first_cpu - cpu, 3),
        "epoch_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.thread_time() - cpu, 2),
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


def plain(num_samples: int) -> dict[str, Any]:
    return whole_epoch(
        lambda: EpochOrder(np.full(num_samples // PER_SHARD, PER_SHARD), 0, 0, window=WINDOW), num_samples
    )


def manifest_of(records: tuple[ShardRecord, ...]) -> Manifest:
    names = tuple(f"n{i:08d}" for i in range(21_841))
    return Manifest(
        name="train",
        components=("jpg", "cls", "msgpack"),
        class_names=names,
        classes_sha256=class_list_sha256(names),
        tree_sha256=None,
        num_levels=0,
        label_maps=None,
        recipe={},
        pixel_stack={},
        sidecar_sha256="0" * 64,
        shards=records,
    )


def opened(num_samples: int) -> dict[str, Any]:
    """A data set of which only the manifest is there."""
    digest = "0123456789abcdef" * 4
    manifest = manifest_of(
        tuple(
            ShardRecord(f"train-{i:06d}.tar", PER_SHARD, 2 * 10**9, digest, digest)
            for i in range(num_samples // PER_SHARD)
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest.save(folder)
        del manifest
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


def class_of_samples(num_samples: int) -> np.ndarray:
    """int32, sizes as 1 / rank, as they come when images are packed in a random order."""
    shares = 1 / np.arange(1, NUM_CLASSES + 1)
    rng = np.random.default_rng(0)
    return rng.choice(NUM_CLASSES, num_samples, p=shares / shares.sum()).astype(np.int32)


def balanced_order(balance: Balance, num_samples: int, turn: int = 0, first: int = 0) -> EpochOrder:
    ends = balance.ends(0, turn)
    counts = count_drawn(ends, np.full(num_samples // PER_SHARD, PER_SHARD))
    return EpochOrder(counts, 0, 0, 1, WINDOW, True, None, turn, first // PER_SHARD, first, ends)


def balanced(num_samples: int, exponent: float) -> dict[str, Any]:
    balance = Balance(class_of_samples(num_samples), NUM_CLASSES, exponent)
    load_kernel()  # compiled at the first use on a machine, then kept
    figures = whole_epoch(lambda: balanced_order(balance, num_samples), num_samples)
    return {**figures, "draws_of_one_sample_at_most": balance.most_draws}


def mixed(num_samples: int) -> dict[str, Any]:
    half = num_samples // 2

    def part(number: int) -> Callable[[int], EpochOrder]:
        counts = np.full(half // PER_SHARD, PER_SHARD)
        first = number * half
        return lambda turn: EpochOrder(counts, 0, 0, 1, WINDOW, True, None, turn, first // PER_SHARD, first)

    parts = [MixedPart(share, i * half, 1, part(i)) for i, share in enumerate((0.7, 0.3))]
    return whole_epoch(lambda: MixedOrder(parts, num_samples, 1), num_samples)


def keys_found(num_samples: int) -> dict[str, Any]:
    """A tenth of the keys, looked up in the indexes of all shards (five components, local disk)."""
    suffixes = ("jpg", "cls", "hier.npy", "lmap", "msgpack")
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for shard in range(num_samples // PER_SHARD):
            keys = tuple(f"n{shard:08d}_{i}" for i in range(PER_SHARD))
            offsets = np.arange(PER_SHARD * len(suffixes)).reshape(PER_SHARD, -1) * 20_480 + 512
            text = format_index(ShardIndex(suffixes, keys, offsets, np.full_like(offsets, 19_000))).encode()
            (Path(folder) / f"train-{shard:06d}.idx").write_bytes(text)
            name = f"train-{shard:06d}.tar"
            records.append(ShardRecord(name, PER_SHARD, 10**9, "0" * 64, sha256_hex(text)))
        manifest = replace(manifest_of(tuple(records)), components=suffixes)
        wanted = [f"n{i // PER_SHARD:08d}_{i % PER_SHARD}" for i in range(0, num_samples, 10)]
        before, start = peak_mb(), time.perf_counter()
        found = find_keys(folder, manifest, wanted)
        return {
            "samples": num_samples,
            "found": len(found),
            "seconds": round(time.perf_counter() - start, 2),
            "before_mb": before,
            "peak_mb": peak_mb(),
        }


JOBS: dict[str, Callable[[], dict[str, Any]]] = {
    "epoch, 14 million": partial(plain, 14_000_000),
    "epoch, 14 million, balance 0.5": partial(balanced, 14_000_000, 0.5),
    "epoch, 14 million, balance 1": partial(balanced, 14_000_000, 1.0),
    "epoch, 14 million, mixed 7 to 3": partial(mixed, 14_000_000),
    "open, 1,000 million": partial(opened, 10**9),
    "keys, 1 million": partial(keys_found, 1_000_000),
}


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    swept = {"job": list(JOBS)}
    write_result(
        args.out,
        benchmark="order_scale",
        job="the order of whole epochs; opening and restoring",
        swept=swept,
        rows=sweep(swept, lambda job: in_own_process(JOBS[job])),
    )


if __name__ == "__main__":
    main()
