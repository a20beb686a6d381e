"""Who serves every sample once: softshard's order and stock WebDataset on the same uneven shards, over many worlds.

Swept: worlds of 1 to 12 ranks, 1 to 64 shards of 5 to 40 samples, batches of 8 and 16 a rank. For every cell, over all
ranks: samples never served, servings too many, and the fewest and most steps of a rank. Each contender and number of
shards runs in a process of its own with a timeout; nothing is decoded.

- `softshard`: `EpochOrder`, `last_batch="pad"` (the padding is marked invalid and is no serving), and `drop`.
- `wds, split by node`: `WebDataset(urls, nodesplitter=split_by_node).batched(N)`, as its examples divide shards.
- `wds, resampled`: `WebDataset(urls, resampled=True).batched(N).with_epoch(steps)`, which its documentation gives for
  distributed training: every rank draws shards with replacement.
- `wds, repeated`: split by node, then `.repeat()` up to the same number of steps on every rank.

A rank that runs out of batches leaves the others waiting in the next all-reduce: uneven steps are a hang. The last row
shows one for real: two processes, gloo, three shards.

What came out: softshard serves every sample once in all 56 cells, in as many steps on every rank (with `drop` all but less
than a batch). Stock WebDataset is exact in 10 of 56 cells split by node (8 of them a single process, 2 where three ranks
happen to get as much) and in the same 10 repeated, in none resampled; elsewhere it dies, leaves ranks waiting, repeats or
drops.

Run: python benchmarks/exactness.py
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, in_own_process, write_result

from softshard.loaders.order import EpochOrder, num_steps, rank_slots

WORLDS = (1, 2, 3, 4, 6, 8, 12)
SHARDS = (1, 3, 7, 64)
BATCHES = (8, 16)
TIMEOUT_S = 240


def shard_counts(num_shards: int) -> np.ndarray:
    return 5 + np.arange(num_shards) * 17 % 36


def write_shards(folder: Path, num_shards: int) -> list[str]:
    """Tars of one small text a sample: its number."""
    urls, number = [], 0
    for shard, count in enumerate(shard_counts(num_shards).tolist()):
        path = folder / f"{shard:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for _ in range(count):
                data = str(number).encode()
                member = tarfile.TarInfo(f"{number:08d}.txt")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                number += 1
        urls.append(str(path))
    return urls


def softshard_steps(
    urls: list[str], batch: int, rank: int, world: int, last_batch: str
) -> Iterator[list[int]]:
    counts = shard_counts(len(urls))
    order = EpochOrder(counts, seed=0, epoch=0, window=64)
    for step in range(num_steps(order.num_samples, 1, batch * world, 0, last_batch)):
        samples = rank_slots(order, batch * world, step * batch * world, rank, world).samples
        yield samples[samples >= 0].tolist()


def wds_steps(urls: list[str], batch: int, rank: int, world: int, kind: str) -> Iterator[list[int]]:
    import webdataset as wds

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))  # where its splitter looks
    even = -(-int(shard_counts(len(urls)).sum()) // (batch * world))
    if kind == "resampled":
        # Every rank draws shards from all of them, with replacement: no split.
        data = wds.WebDataset(
            urls, resampled=True, nodesplitter=iter, shardshuffle=False, seed=rank, empty_check=False
        )
    else:
        data = wds.WebDataset(
            urls, nodesplitter=wds.split_by_node, shardshuffle=False, empty_check=kind == "split"
        )
    batched = data.to_tuple("txt").batched(batch, partial=True, collation_fn=list)
    if kind == "resampled":
        batched = batched.with_epoch(even)
    if kind == "repeated":
        batched = batched.repeat(10**6).with_epoch(even)
    for samples in batched:
        yield [int(text) for (text,) in samples]


CONTENDERS: dict[str, Callable[[list[str], int, int, int], Iterator[list[int]]]] = {
    "softshard, pad": lambda *cell: softshard_steps(*cell, "pad"),
    "softshard, drop": lambda *cell: softshard_steps(*cell, "drop"),
    "wds, split by node": lambda *cell: wds_steps(*cell, "split"),
    "wds, resampled": lambda *cell: wds_steps(*cell, "resampled"),
    "wds, repeated": lambda *cell: wds_steps(*cell, "repeated"),
}


def outcome(row: dict[str, Any]) -> str:
    """The cell in a word or two."""
    found = []
    if row["error"]:
        found.append("dies")
    elif row["fewest_steps"] != row["most_steps"]:
        found.append("hangs")
    found += [word for word in ("repeats", "drops") if row[word]]
    return ", ".join(found) or "exact"


def measure(contender: str, num_shards: int) -> list[dict[str, Any]]:
    """All cells of one contender and number of shards."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        urls = write_shards(Path(folder), num_shards)
        num_samples = int(shard_counts(num_shards).sum())
        for world in WORLDS:
            for batch in BATCHES:
                served: Counter[int] = Counter()
                steps, error = [], ""
                for rank in range(world):
                    taken = 0
                    try:
                        for samples in CONTENDERS[contender](urls, batch, rank, world):
                            served.update(samples)
                            taken += 1
                            if taken > 10_000:
                                raise RuntimeError("never ends")
                    except Exception as problem:
                        error = error or f"rank {rank}: {type(problem).__name__}: {problem}"[:160]
                    steps.append(taken)
                row = {
                    "contender": contender,
                    "shards": num_shards,
                    "world": world,
                    "batch": batch,
                    "samples": num_samples,
                    "drops": num_samples - len(served),
                    "repeats": served.total() - len(served),
                    "fewest_steps": min(steps),
                    "most_steps": max(steps),
                    "error": error,
                }
                rows.append({**row, "outcome": outcome(row)})
    return rows


def train_rank(rank: int, urls: list[str], meet: str, queue: Any, done: Any) -> None:
    """One rank of a training loop that only adds up how many samples all ranks have."""
    import torch
    from torch import distributed as dist

    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2, timeout=timedelta(seconds=10))
    steps = 0
    try:
        for samples in CONTENDERS["wds, split by node"](urls, 8, rank, 2):
            dist.all_reduce(torch.tensor([len(samples)]))
            steps += 1
        queue.put((rank, steps, "ended"))
    except Exception as error:
        queue.put((rank, steps, f"waited 10 s in step {steps}: {type(error).__name__}"))
    done.wait()  # a process that ends closes its connections, which the other would notice


def hang_for_real() -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue, done = context.Queue(), context.Event()
    with tempfile.TemporaryDirectory() as folder:
        urls = write_shards(Path(folder), 3)
        args = [(rank, urls, f"{folder}/meet", queue, done) for rank in range(2)]
        processes = [context.Process(target=train_rank, args=each) for each in args]
        for process in processes:
            process.start()
        try:
            ranks = sorted(queue.get(timeout=TIMEOUT_S) for _ in processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
    return {"contender": "wds, split by node", "job": "all-reduce after each batch", "ranks": ranks}


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    swept = {"contender": list(CONTENDERS), "shards": SHARDS, "world": WORLDS, "batch": BATCHES}
    rows = []
    for contender in CONTENDERS:
        for num_shards in SHARDS:
            try:
                cells = in_own_process(measure, contender, num_shards, timeout_s=TIMEOUT_S)
            except multiprocessing.TimeoutError:
                cells = [
                    {"contender": contender, "shards": num_shards, "outcome": f"no end in {TIMEOUT_S} s"}
                ]
            print(contender, num_shards, dict(Counter(row["outcome"] for row in cells)))
            rows += cells
    hang = hang_for_real()
    print(hang)
    write_result(
        args.out,
        benchmark="exactness",
        job="one epoch over all ranks",
        swept=swept,
        hang=hang,
        rows=rows,
    )


if __name__ == "__main__":
    main()
