"""What the loader's parts could do on their own, on the user's own samples: the ceilings of `softshard bench`.

    fetch       whole shards from a URL into an empty cache
    read        every byte of the samples, from the page cache or the disk, once
    labels      the samples' labels, sizes and crop windows, without a pixel
    decode      whole JPEGs: no crop, no resize
    crops       only the rows and columns of each crop, as the loader decodes; on a GPU also resized
    resample    windows that are decoded already: resized, flipped, normalised (on the processor)
    pool        label maps to targets, where the targets are pooled
    copy        finished images to the GPU, where the loader decodes on the processor; without a GPU into another batch

All but `fetch` run over the same recorded batches, an epoch's first, again and again, with the loader's threads.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline

from ..shards.errors import DataError
from .cache import Cache
from .crops import Augment
from .data_set import open_data_set
from .decode import DTYPES, MEAN, STD, CpuDecoder, create_decoder, fn, types
from .make_batch import BatchMaker, BegunBatch
from .mixed_source import MixedSource
from .order import DEFAULT_WINDOW, Draws, num_steps, rank_slots
from .remote import RemoteShards
from .samples import Place
from .side_maps import SideFiles
from .source import Source
from .stages import Stages

MAX_RECORDED = 16
_KEPT_BATCHES = 4  # decoded windows and finished images are kept of so many: at 500 pixels 40 MB each
_FETCHED_SHARDS, _FETCH_S = 16, 20.0


@dataclass(frozen=True)
class Job:
    """What the loader is measured at; names as the loader's."""

    batch_size: int
    targets: str
    side: str | Path | None
    device: torch.device
    dtype: str
    size: int
    num_threads: int


@dataclass(frozen=True)
class Recorded:
    """A batch up to where its images are decoded.

    Attributes:
        draws: of its slots.
        begun: its labels, JPEGs and crops.
        windows: int32 [N, 4], crop_tlhw_px.
        flips: bool [N].
    """

    draws: Draws
    begun: BegunBatch
    windows: np.ndarray
    flips: np.ndarray


class _Recorder:
    """Takes a decoder's place, and remembers what it is to do."""

    def __init__(self) -> None:
        self.asked: tuple[np.ndarray, np.ndarray] | None = None

    def submit(self, jpegs: Sequence[np.ndarray], crop_tlhw_px: np.ndarray, flips: np.ndarray) -> None:
        self.asked = crop_tlhw_px, flips


class _WindowDecoder(CpuDecoder):
    """The CPU decoder without what comes after decoding; with `keep`, `kept` are copies of the windows."""

    keep = False
    kept: list[np.ndarray]

    def finish(
        self, windows: Sequence[np.ndarray], flips: np.ndarray, out: torch.Tensor, slots: np.ndarray
    ) -> None:
        if self.keep:
            self.kept = [window.copy() for window in windows]


class Ceilings:
    """Records an epoch's first batches; each ceiling is an iterator that gives the number of images of every batch.

    Args:
        source: an open data set of at least one batch.
        job: what the loader is measured at.
        cache: where side shards behind a URL are kept.

    Raises:
        UsageError: targets that the data set has no label maps for.
        DataError: no batch can be read.
    """

    def __init__(self, source: Source | MixedSource, job: Job, cache: Cache | None = None) -> None:
        self._job = job
        self._options: dict[str, Any] = dict(
            batch_size=job.batch_size, size=job.size, mean=MEAN, std=STD, num_threads=job.num_threads
        )
        self._maker = BatchMaker.create(
            source.parts,
            targets=job.targets,
            teacher=False,
            side=None if job.side is None else SideFiles(job.side, source.dataset, source.manifest, cache),
            augment=Augment(size=job.size),
            dtype=job.dtype,
            mean=MEAN,
            std=STD,
            seed=0,
            batch_size=job.batch_size,
            device=job.device,
            num_threads=job.num_threads,
            stages=Stages(),
        )
        order = source.order(0, 0, num_lanes=1, window=DEFAULT_WINDOW, shuffle=True)
        num = min(MAX_RECORDED, num_steps(source.num_samples, 1, job.batch_size, 0, "drop"))
        draws = [rank_slots(order, job.batch_size, i * job.batch_size, 0, 1) for i in range(num)]
        reader = self._maker.reader
        reader.expect(lambda: (step.samples for step in draws))
        self._batches: list[Recorded] = []
        problem: DataError | None = None
        for i, step in enumerate(draws):
            reader.shards.reached(i)
            try:
                self._batches.append(self._record(step))
            except DataError as error:  # the loader would leave a sample out; here the batch is
                problem = error
        reader.shards.forget()  # what was recorded is in memory
        if problem is not None and not self._batches:
            raise problem
        sizes = np.concatenate([reader.sizes(batch.begun.found) for batch in self._batches])
        self.stored_side = round(float(np.sqrt(sizes.prod(axis=1)).mean()))

    def _record(self, draws: Draws) -> Recorded:
        recorder = _Recorder()
        begun = self._maker.begin(draws, np.ones(len(draws.samples), bool), 0, recorder)
        assert recorder.asked is not None
        return Recorded(draws, begun, *recorder.asked)

    def close(self) -> None:
        """Let the shards go."""
        self._batches.clear()
        self._maker.close()

    def __enter__(self) -> Ceilings:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def contenders(self) -> dict[str, Callable[[], Iterator[int]]]:
        """Name to what starts it, for `take_turns`; only those that mean something for the job."""
        on_cpu = self._job.device.type == "cpu"
        return {
            "read": self.read,
            "labels": self.labels,
            "crops": self.crops,
            **({"resample": self.resample} if on_cpu else {}),
            **({"pool": self.pool} if self._maker.pools else {}),
            **({"copy": self.copy} if on_cpu else {}),
        }

    def decode(self) -> Iterator[int]:
        """DALI decodes whole JPEGs."""
        jpegs = (batch.begun.jpegs for batch in itertools.cycle(self._batches))
        return decoded_batches(jpegs, self._job.batch_size, self._job.num_threads, str(self._job.device))

    def read(self) -> Iterator[int]:
        """Every sample is read once, in the threads."""
        threads = self._job.num_threads

        def read(places: list[Place], first: int) -> None:
            for shard, place in places[first::threads]:
                shard.members(place)

        with ThreadPoolExecutor(threads, "softshard-bench") as pool:
            for batch in itertools.cycle(self._batches):
                places = batch.begun.found.places
                for done in [pool.submit(read, places, first) for first in range(threads)]:
                    done.result()
                yield len(places)

    def labels(self) -> Iterator[int]:
        """Labels, sizes and crop windows; in one thread, as in the loader."""
        recorder = _Recorder()
        valid = np.ones(self._job.batch_size, bool)
        for batch in itertools.cycle(self._batches):
            yield len(self._maker.begin_found(batch.draws, batch.begun.found, valid, 0, recorder).keys)

    def crops(self) -> Iterator[int]:
        """The loader's decoder, up to the pixels of the windows."""
        on_cpu = self._job.device.type == "cpu"
        decoder = (
            _WindowDecoder(**self._options, dtype="uint8")
            if on_cpu
            else create_decoder(self._job.device, **self._options, dtype=self._job.dtype)
        )
        batches = itertools.cycle(self._batches)
        try:
            for batch in itertools.islice(batches, 2):
                decoder.submit(batch.begun.jpegs, batch.windows, batch.flips)
            for batch in batches:
                decoder.take(np.arange(self._job.batch_size), self._job.batch_size)
                yield self._job.batch_size
                decoder.submit(batch.begun.jpegs, batch.windows, batch.flips)
        finally:
            decoder.close()

    def resample(self) -> Iterator[int]:
        """Decoded windows to finished images, by the loader's own code and threads."""
        slots, num = np.arange(self._job.batch_size), self._job.batch_size
        decoder = _WindowDecoder(**self._options, dtype=self._job.dtype)
        decoder.keep = True
        try:
            kept = []
            for batch in self._batches[:_KEPT_BATCHES]:
                decoder.submit(batch.begun.jpegs, batch.windows, batch.flips)
                decoder.take(slots, num)
                kept.append((decoder.kept, batch.flips))
            for windows, flips in itertools.cycle(kept):
                CpuDecoder.finish(decoder, windows, flips, decoder.empty(num), slots)
                yield num
        finally:
            decoder.close()

    def pool(self) -> Iterator[int]:
        """Label maps to targets."""
        for batch in itertools.cycle(self._batches):
            self._maker.make_targets(batch.begun, None)
            if self._job.device.type == "cuda":
                torch.cuda.current_stream(self._job.device).synchronize()
            yield self._job.batch_size

    def copy(self) -> Iterator[int]:
        """Finished images to the GPU, from page-locked memory, as a training loop would; without one, to another batch."""
        shape = (self._job.batch_size, self._job.size, self._job.size, 3)
        on_gpu = torch.cuda.is_available()
        finished = [
            torch.ones(shape, dtype=DTYPES[self._job.dtype], pin_memory=on_gpu) for _ in range(_KEPT_BATCHES)
        ]
        target = torch.empty_like(finished[0], device="cuda" if on_gpu else "cpu")
        for images in itertools.cycle(finished):
            target.copy_(images, non_blocking=True)
            if on_gpu:
                torch.cuda.current_stream().synchronize()
            yield self._job.batch_size


def decoded_batches(
    jpegs: Iterator[Sequence[np.ndarray]], batch_size: int, num_threads: int, device: str = "cpu"
) -> Iterator[int]:
    """DALI decodes whole JPEGs, batch after batch of an endless iterator; no crop, no resize, no labels."""
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
    held = [list(next(jpegs)), list(next(jpegs))]
    for batch in held:
        pipe.feed_input("jpegs", batch)
        pipe.schedule_run()
    try:
        while True:
            pipe.share_outputs()
            yield batch_size
            pipe.release_outputs()
            held = [held[1], list(next(jpegs))]
            pipe.feed_input("jpegs", held[1])
            pipe.schedule_run()
    finally:
        # DALI reads the batch that is under way in place: the shards must not go first.
        pipe.release_outputs()
        pipe.share_outputs()
        pipe.release_outputs()


def measure_fetch(dataset: str | Path, cache: Cache) -> dict[str, Any] | None:
    """Fetch whole shards into an empty cache, once: 16 of them, or as many as come in 20 seconds.

    Args:
        dataset: URL of a data set with a manifest; None comes back for any other.
        cache: how shards are fetched; those fetched here lie beside its own, and go again.

    Returns:
        Shards, images and bytes that came, and seconds, with rates.
    """
    cache.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.path) as folder:
        opened = open_data_set(dataset, replace(cache, folder=folder))
        if type(opened.shards) is not RemoteShards:
            return None
        records, room = opened.manifest.shards[:_FETCHED_SHARDS], opened.shards.max_bytes
        while len(records) > 1 and sum(record.bytes for record in records) > room:
            records = records[:-1]
        begun, num, elapsed_s = time.perf_counter(), 0, 0.0
        opened.shards.expect(iter([range(len(records))]))
        try:
            for i in range(len(records)):
                opened.shards[i]
                num, elapsed_s = i + 1, time.perf_counter() - begun
                if elapsed_s > _FETCH_S:
                    break
        finally:
            opened.shards.close()
    images, num_bytes = (
        sum(values) for values in zip(*((r.samples, r.bytes) for r in records[:num]), strict=True)
    )
    return {
        "shards": num,
        "images": images,
        "bytes": num_bytes,
        "seconds": round(elapsed_s, 3),
        "shards_per_s": round(num / elapsed_s, 2),
        "mb_per_s": round(num_bytes / elapsed_s / 1e6, 1),
        "images_per_s": round(images / elapsed_s, 1),
    }
