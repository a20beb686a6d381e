"""`softshard bench`: the loader on a data set, beside the ceilings of its parts and other loaders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..shards.cores import usable_cores
from ..shards.errors import UsageError
from ..shards.shard_files import dataset_name
from ..shards.storage import is_remote
from ..shards.text_limits import counted
from .against import Peer, described
from .cache import Cache
from .ceilings import Ceilings, Job, measure_fetch
from .crops import Augment
from .decode import usable_device
from .fetch import check_local
from .loader import Loader
from .measure import machine, take_turns
from .mixed_source import open_source
from .peers import Job as PeerJob
from .verdict import Situation, judge


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and for how long; most names are a loader's.

    Attributes:
        num_threads: None for what the loader takes.
        steps: batches in one measurement.
        repeats: measurements.
        warmup: batches before each of them.
    """

    batch_size: int = 128
    targets: str = "none"
    device: str = "cpu"
    dtype: str = "uint8"
    size: int = 224
    num_threads: int | None = None
    steps: int = 30
    repeats: int = 5
    warmup: int = 5

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("repeats", 1), ("warmup", 0)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"bench: expected {name} from {least}, found {value}")

    def of_loader(self) -> dict[str, Any]:
        """A loader's options."""
        return {
            "batch_size": self.batch_size,
            "targets": self.targets,
            "device": self.device,
            "dtype": self.dtype,
            "augment": Augment(size=self.size),
            "num_threads": self.num_threads,
        }

    def turns(self) -> dict[str, Any]:
        """Arguments of `take_turns`."""
        return {"warmup": self.warmup, "steps": self.steps, "repeats": self.repeats}

    def to_json(self) -> dict[str, Any]:
        """What a report says of them; how often it was measured stands with each result."""
        found = asdict(self)
        del found["repeats"]
        return found


def loader_batches(loader: Loader) -> Iterator[int]:
    """Batches of a loader, epoch after epoch: the number of images of each."""
    while True:
        for batch in loader:
            yield len(batch)


def bench(
    dataset: str | Path,
    options: BenchOptions,
    *,
    side: str | Path | None = None,
    against: Mapping[str, str] | None = None,
    work: str | Path | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Measure the loader, its parts' ceilings and other loaders, in turn.

    Args:
        dataset: as the loader's: a folder, any fsspec URL, or somebody else's tars.
        options: what is measured, and for how long.
        side: as the loader's.
        against: names of peers.py and the Python that runs each; all do the same job with uint8 batches, without
            targets.
        work: folder where peers keep their own form of the data set; by default a temporary one.
        cache: of a data set behind a URL.

    Returns:
        A JSON-ready dict: options, machine, images per second of all (median, lowest, highest), the loader's share of
        decoding alone, its `stats()` over all rounds, and the verdict of verdict.py.

    Raises:
        UsageError: the data set has fewer samples than a batch; a URL, which peers do not read.
    """
    if against:
        check_local(dataset)
    cache = cache or Cache()
    source = open_source(dataset, None, None, None, 1, cache)
    if source.num_samples < options.batch_size:
        raise UsageError(
            f"{source.dataset}: expected at least one batch of {options.batch_size}, found "
            f"{counted(source.num_samples, 'sample')}. Use a smaller --batch-size"
        )
    cores = usable_cores()
    threads = cores if options.num_threads is None else options.num_threads
    options = replace(options, num_threads=threads)
    batch_size, size = options.batch_size, options.size
    device = usable_device(options.device)
    job = Job(batch_size, options.targets, side, device, options.dtype, size, threads)
    with ExitStack() as stack:
        started = []
        if against:
            work = work or stack.enter_context(tempfile.TemporaryDirectory(prefix="softshard-bench-"))
            asked = PeerJob(str(Path(dataset).resolve()), str(work), batch_size, size, threads)
            started = [stack.enter_context(Peer(name, asked, python)) for name, python in against.items()]
        fetched = measure_fetch(dataset, cache) if is_remote(dataset) else None
        loader = stack.enter_context(Loader(dataset, **options.of_loader(), side=side, cache=cache))
        ceilings = stack.enter_context(Ceilings(source, job, cache))
        results = take_turns(
            {
                "loader": lambda: loader_batches(loader),
                "decode only": ceilings.decode,
                **(parts := ceilings.contenders()),
            },
            **options.turns(),
            elsewhere={peer.name: peer.measure for peer in started},
        )
        versions, stats, stored_side = described(started), loader.stats(), ceilings.stored_side
    ours = results["loader"].median
    rates = {name: results[name].median for name in parts}
    verdict = judge(
        Situation(
            ours,
            rates if fetched is None else {"fetch": fetched["images_per_s"], **rates},
            stats.longest_stage,
            num_threads=threads,
            cores=cores,
            batch_size=batch_size,
            dtype=options.dtype,
            size=size,
            stored_side=stored_side,
            prefetch=stats.queue_size,
            num_fetchers=cache.num_fetchers,
            other_gpu=device.type == "cpu" and torch.cuda.is_available(),
        )
    )
    num_bytes = sum(part.manifest.num_bytes for part in source.parts)
    return {
        "dataset": source.dataset,
        "samples": source.num_samples,
        "bytes_per_sample": round(num_bytes / sum(part.manifest.num_samples for part in source.parts), 1),
        "stored_side": stored_side,
        "options": options.to_json() | {"side": None if side is None else dataset_name(side)},
        "machine": machine(),
        "results": {name: result.to_json() for name, result in results.items() if name not in parts},
        "ceilings": {name: results[name].to_json() for name in parts},
        "fetch": fetched,
        "ratio_to_decode_only": round(ours / results["decode only"].median, 3),
        "peers": {
            name: {"version": found, "loader_is_times": round(ours / results[name].median, 2)}
            for name, found in versions.items()
        },
        "stats": stats.to_json(),
        "verdict": asdict(verdict),
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
        lines.append(rate_line(name, values))
    lines.append(f"  the loader reaches {result['ratio_to_decode_only']:.2f} of decoding alone")
    for name, peer in result["peers"].items():
        lines.append(f"  it is {peer['loader_is_times']:.2f} times as fast as {name} {peer['version']}")
    lines.append("its parts, each alone on the same samples and threads:")
    if (fetched := result["fetch"]) is not None:
        lines.append(
            f"  {'fetch':<12} {fetched['images_per_s']:>9,.0f} images/s  ({fetched['shards']} shards, "
            f"{fetched['mb_per_s']:,.0f} MB/s, once)"
        )
    lines.extend(rate_line(name, values) for name, values in result["ceilings"].items())
    return "\n".join([*lines, result["verdict"]["text"]])


def rate_line(name: str, values: dict[str, Any]) -> str:
    """Images per second of one contender, for a terminal."""
    return (
        f"  {name:<12} {values['images_per_s']:>9,.0f} images/s  ({values['low']:,.0f} to {values['high']:,.0f} in "
        f"{values['repeats']} runs), {values['images_per_cpu_s']:,.0f} a CPU-second"
    )
