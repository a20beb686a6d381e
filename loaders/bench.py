"""`softshard bench`: the loader on a data set, beside the ceiling that decoding alone sets on its JPEGs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nvidia.dali.pipeline import Pipeline

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.schema import JPG
from .against import Peer, described
from .crops import Augment
from .decode import fn, types
from .fetch import ShardFiles, check_local
from .loader import Loader
from .measure import machine, take_turns
from .peers import Job


def loader_batches(loader: Loader) -> Iterator[int]:
    """Batches of a loader, epoch after epoch: the number of images of each."""
    while True:
        for batch in loader:
            yield len(batch)


def decode_only_batches(
    dataset: str | Path, batch_size: int, num_threads: int, device: str = "cpu"
) -> Iterator[int]:
    """The ceiling: DALI decodes whole JPEGs from the mapped shards; no crop, no resize, no labels."""
    manifest = Manifest.load(dataset)
    files = ShardFiles(dataset, manifest)

    def jpegs() -> Iterator[list[Any]]:
        batch = []
        while True:
            for number in range(len(manifest.shards)):
                shard = files[number]
                column = shard.index.column(JPG.suffix)
                for sample in range(len(shard.index.keys)):
                    batch.append(shard.member_array(sample, column))
                    if len(batch) == batch_size:
                        yield batch
                        batch = []

    gpu = device.startswith("cuda")
    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=int(device.partition(":")[2] or 0) if gpu else None,
        prefetch_queue_depth=1,
    )
    with pipe:
        encoded = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
        pipe.set_outputs(fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB))
    pipe.build()
    source = jpegs()
    held = [next(source), next(source)]
    for batch in held:
        pipe.feed_input("jpegs", batch)
        pipe.schedule_run()
    try:
        while True:
            pipe.share_outputs()
            yield batch_size
            pipe.release_outputs()
            held = [held[1], next(source)]
            pipe.feed_input("jpegs", held[1])
            pipe.schedule_run()
    finally:
        # DALI reads the batch that is under way in place: the shards must not go first.
        pipe.release_outputs()
        pipe.share_outputs()
        pipe.release_outputs()


def bench(
    dataset: str | Path,
    *,
    batch_size: int = 128,
    targets: str = "none",
    side: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "uint8",
    size: int = 224,
    num_threads: int | None = None,
    steps: int = 30,
    repeats: int = 5,
    warmup: int = 5,
    against: Mapping[str, str] | None = None,
    work: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the loader, decoding alone and other loaders, in turn.

    Args:
        against: names of peers.py and the Python that runs each; all do the same job with uint8 batches, without
            targets.
        work: folder where peers keep their own form of the data set; by default a temporary one.

    Returns:
        A JSON-ready dict: options, machine, images per second of both (median, lowest, highest), their ratio.

    Raises:
        UsageError: the data set has fewer samples than a batch.
    """
    for name, value, least in (("steps", steps, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise UsageError(f"bench: expected {name} from {least}, found {value}")
    check_local(dataset)
    manifest = Manifest.load(dataset)
    if manifest.num_samples < batch_size:
        raise UsageError(
            f"{dataset}: expected at least one batch of {batch_size}, found {manifest.num_samples} samples. "
            "Use a smaller --batch-size"
        )
    threads = len(os.sched_getaffinity(0)) if num_threads is None else num_threads
    with ExitStack() as stack:
        if against:
            work = work or stack.enter_context(tempfile.TemporaryDirectory(prefix="softshard-bench-"))
        job = Job(str(Path(dataset).resolve()), str(work), batch_size, size, threads)
        started = [stack.enter_context(Peer(name, job, python)) for name, python in (against or {}).items()]
        loader = stack.enter_context(
            Loader(
                dataset,
                batch_size=batch_size,
                targets=targets,
                side=side,
                device=device,
                dtype=dtype,
                augment=Augment(size=size),
                num_threads=threads,
            )
        )
        results = take_turns(
            {
                "loader": lambda: loader_batches(loader),
                "decode only": lambda: decode_only_batches(dataset, batch_size, threads, device),
            },
            warmup=warmup,
            steps=steps,
            repeats=repeats,
            elsewhere={peer.name: peer.measure for peer in started},
        )
        versions = described(started)
    ours = results["loader"].median
    return {
        "dataset": str(dataset),
        "samples": manifest.num_samples,
        "bytes_per_sample": round(manifest.num_bytes / manifest.num_samples, 1),
        "options": {
            "batch_size": batch_size,
            "targets": targets,
            "side": None if side is None else str(side),
            "device": device,
            "dtype": dtype,
            "size": size,
            "num_threads": threads,
            "warmup": warmup,
            "steps": steps,
        },
        "machine": machine(),
        "results": {name: result.to_json() for name, result in results.items()},
        "ratio_to_decode_only": round(ours / results["decode only"].median, 3),
        "peers": {
            name: {"version": found, "loader_is_times": round(ours / results[name].median, 2)}
            for name, found in versions.items()
        },
    }


def format_bench(result: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    options = result["options"]
    lines = [
        f"{result['dataset']}: {result['samples']:,} samples, {result['bytes_per_sample']:,.0f} bytes each; "
        f"{options['num_threads']} threads, batches of {options['batch_size']}, {options['dtype']}, "
        f"{options['size']} pixels, targets {options['targets']}, {options['device']}",
    ]
    for name, values in result["results"].items():
        lines.append(
            f"  {name:<12} {values['images_per_s']:>9,.0f} images/s  ({values['low']:,.0f} to "
            f"{values['high']:,.0f} in {values['repeats']} runs), {values['images_per_cpu_s']:,.0f} "
            "a CPU-second"
        )
    lines.append(f"  the loader reaches {result['ratio_to_decode_only']:.2f} of decoding alone")
    for name, peer in result["peers"].items():
        lines.append(f"  it is {peer['loader_is_times']:.2f} times as fast as {name} {peer['version']}")
    return "\n".join(lines)
