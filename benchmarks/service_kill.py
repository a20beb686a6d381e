"""Does every batch arrive, once and bit by bit, when servers of the data service are killed all the time?

Job: two servers of 2,048 photographs of 256 pixels, and two trainers that read epoch after epoch: one with batches in shared
memory, plain labels and CutMix; one over the socket, with pooled label maps. Every 2 to 5 seconds a server that
answers is killed (SIGKILL) and started anew at once, at the same address. Each trainer reads a
local Loader with the same options in step, and compares every batch field by field, bit by bit; since the local
loader's sequence is the whole epoch, in order, a batch that is lost, given twice or out of turn does not compare.

Run: python benchmarks/service_kill.py --minutes 10
"""

from __future__ import annotations

import multiprocessing
import random
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from harness import arguments, make_data_set, write_result
from serving import serving

from softshard.loaders import Augment, Connection, CutMix, Loader, RemoteLoader
from softshard.loaders.batch import Batch

BATCH, SIZE, SAMPLES = 32, 128, 2048
STEP_S = 0.1  # that a trainer computes: the machine is to have time for what is measured
PAUSE_S = 2.0, 5.0  # between two kills
BOUNDED = "--cache-bytes", "256MiB", "--memory-bytes", "256MiB"
_START_S = 300.0  # that the trainers have
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "dtype": "uint8", "window": 512, "num_threads": 1}
TRAINERS: dict[str, dict[str, Any]] = {
    "shared memory, cutmix": {
        "augment": Augment(size=SIZE, cutmix=CutMix()),
        "targets": "original",
        "seed": 1,
    },
    "socket, pooled label maps": {"augment": Augment(size=SIZE), "targets": "relabel", "seed": 2},
}


def is_same(found: Any, expected: Any) -> bool:
    """Whether two fields of batches hold the same, bit by bit."""
    if isinstance(expected, torch.Tensor):
        same_kind = (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return same_kind and torch.equal(bits(found), bits(expected))
    if isinstance(expected, tuple):
        return all(map(is_same, found, expected))
    return found == expected


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def different_fields(found: Batch | None, expected: Batch | None) -> list[str]:
    """Names of the fields in which two batches differ."""
    if found is None or expected is None:
        return ["lost" if found is None else "one too many"]
    mine = found.to_dict()
    return [name for name, value in expected.to_dict().items() if not is_same(mine[name], value)]


def train(name: str, servers: list[str], dataset: Path, begin: Any, stop: Any, results: Any) -> None:
    """Read and compare until it is told to stop; in a process of its own."""
    torch.set_num_threads(1)
    connection = Connection(shared_memory="memory" in name, request_s=20, deadline_s=300)
    options = OPTIONS | TRAINERS[name]
    batches, differing, epochs, waits, repeated = 0, [], 0, [], 0
    with (
        RemoteLoader(servers, connection=connection, **options) as remote,
        Loader(dataset, **options) as local,
    ):
        begin.wait(_START_S)
        while not stop.is_set():
            keys: set[str] = set()
            begun = time.monotonic()
            for step, (found, expected) in enumerate(zip_longest(remote, local)):
                waits.append(time.monotonic() - begun)
                if different := different_fields(found, expected):
                    differing.append({"epoch": epochs, "step": step, "fields": different})
                served = [] if found is None else found.keys
                repeated += len(served) - len(set(served) - keys)
                keys.update(served)
                batches += 1
                if stop.is_set():
                    break
                time.sleep(STEP_S)
                begun = time.monotonic()
            else:
                epochs += 1
        results.put(
            {
                "trainer": name,
                "batches": batches,
                "whole_epochs": epochs,
                "differing": differing,
                "samples_twice_in_an_epoch": repeated,
                "longest_wait_s": round(max(waits, default=0.0), 2),
                "requests": remote.fetch_stats().requests,
                "failed_requests": remote.fetch_stats().retries,
                "in_shared_memory": remote._pool.num_in_memory,
            }
        )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    args = parser.parse_args()
    dataset = make_data_set(args.data, args.photos, size=256, samples=SAMPLES)
    for (
        options
    ) in TRAINERS.values():  # compiles what is compiled once a machine: no server lives long enough for that
        with Loader(dataset, **OPTIONS | options) as local:
            next(iter(local))
    chance, context = random.Random(args.seed), multiprocessing.get_context("spawn")
    begin, stop, results = context.Barrier(3), context.Event(), context.Queue()
    kills = nobody = 0
    with serving(2, dataset, "--threads", "1", *BOUNDED) as servers:
        urls = [server.url for server in servers]
        trainers = [
            context.Process(target=train, args=(name, urls, dataset, begin, stop, results))
            for name in TRAINERS
        ]
        for trainer in trainers:
            trainer.start()
        begin.wait(_START_S)
        end = time.monotonic() + 60 * args.minutes
        while time.monotonic() < end and all(trainer.is_alive() for trainer in trainers):
            time.sleep(chance.uniform(*PAUSE_S))
            if answering := [server for server in servers if server.ready.is_set()]:
                victim = chance.choice(answering)
                victim.kill()
                victim.start()
                kills += 1
                nobody += not any(server.ready.is_set() for server in servers)
        stop.set()
        for trainer in trainers:
            trainer.join(300)
        if any(trainer.exitcode for trainer in trainers):
            raise SystemExit(
                "service_kill: expected trainers to get every batch, found one that ended with an error"
            )
        rows = [results.get(timeout=60) for _ in trainers]
    rows.sort(key=lambda row: row["trainer"])
    all_same = not any(row["differing"] or row["samples_twice_in_an_epoch"] for row in rows)
    write_result(
        args.out,
        benchmark="service_kill",
        job=f"two servers, one killed every {PAUSE_S[0]:g} to {PAUSE_S[1]:g} s; two trainers of batches of {BATCH}",
        swept={"trainer": list(TRAINERS)},
        rows=rows,
        minutes=args.minutes,
        kills=kills,
        kills_that_left_no_server=nobody,
        all_same=all_same,
    )
    if not all_same:
        raise SystemExit(
            "service_kill: expected every batch of the local loader, once, found others: see the rows"
        )


if __name__ == "__main__":
    main()
