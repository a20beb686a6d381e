"""The loader: iterate batches of a data set, each a pure function of (data set, options, seed, epoch, step).

This file puts the parts together:

    order.py     which samples          crops.py    windows and flips    pooling.py      maps -> targets
    fetch.py     their bytes            decode.py   bytes -> images      background.py   ahead, in a thread
    samples.py   their sizes, labels    batch.py    what comes out
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest, load_tree
from ..shards.philox import check_seed
from ..shards.schema import CLS, HIER, JPG, LMAP
from .background import Background
from .batch import Batch
from .crops import Augment, crop_fractions, draw_crops
from .decode import DTYPES, MEAN, STD, CpuDecoder, Decoder, GpuDecoder, naming_the_sample, usable_device
from .fetch import ShardFiles, check_local
from .order import LAST_BATCHES, EpochOrder, check_geometry, num_steps, rank_slots
from .pooling import pool_label_maps
from .samples import Place, check_label_maps, read_classes, read_levels, read_sizes
from .target_modes import TARGET_MODES, TARGETS, LabelPooling

STATE_VERSION = 1
DEFAULT_WINDOW = 32_768


@dataclass
class _Prepared:
    """A batch whose images are still being decoded."""

    slots: np.ndarray  # int64 [M], where the real samples stand in the batch
    places: list[Place]  # their shards, and their places in them
    classes: np.ndarray  # int64 [N]
    levels: np.ndarray | None  # int64 [N, L]
    crops: np.ndarray  # float32 [N, 4]
    flips: np.ndarray  # bool [N]
    keys: list[str]
    jpegs: list[np.ndarray]


class Loader:
    """Iterates the batches of one epoch of a data set, for one rank.

    Every rank has the same number of steps. Without `load_state_dict`, iterating starts the epoch from its
    beginning; an epoch that was iterated to its end is followed by the next one. One iteration at a time: a
    new one, `set_epoch` to another epoch, `load_state_dict` and `close` end the one before. Not for several
    threads.

    A sample that cannot be read or decoded is an error that names its shard and key, raised after the batches
    before it. Damage inside the compressed data of a JPEG is another matter: libjpeg warns of it on standard
    error and carries on, and below the crop nothing is read at all, so that pixels may be wrong without an
    error. `softshard verify` finds it: it compares every shard's hash.

    Args:
        dataset: folder of a data set (with a manifest).
        batch_size: N, samples of one batch of one rank; the global batch is N times `world_size`.
        device: `cpu`, or a CUDA device, where images are then decoded and label maps pooled.
        targets: `none`; `original` (the class, one-hot); `relabel` (each crop's pooled label map, softmaxed) and
            its variants `relabel-global` (the whole image's), `relabel-single` (one-hot) and
            `relabel-global-single`; or a LabelPooling with more options.
        augment: crop, size and flip; by default random resized crops of 224 pixels.
        dtype: of the images: `uint8`, or normalised `float16` or `float32`.
        mean: channel means (of values 0 to 1) that float images are normalised with.
        std: channel standard deviations.
        shuffle: False keeps the data set's order.
        last_batch: `drop` leaves out what fills no whole step, `pad` adds slots with `valid` False.
        seed: of order, crops and flips.
        rank: of this process.
        world_size: processes that share the global batch.
        lanes: K, contiguous parts of an epoch that are read side by side; divides the global batch. Set it to
            the number of hosts, so that each reads its own shards only.
        window: W, samples that are shuffled among each other (whole shards are shuffled as well).
        num_threads: of the decoder; by default one a core that this process may use.
        prefetch: batches that are ready ahead of need.

    Raises:
        UsageError: options that contradict each other or the data set.
        DataError: the data set is incomplete, damaged or of a newer version.
    """

    def __init__(
        self,
        dataset: str | Path,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        targets: str | LabelPooling = "none",
        augment: Augment | None = None,
        dtype: str = "float32",
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        shuffle: bool = True,
        last_batch: str = "drop",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
        window: int = DEFAULT_WINDOW,
        num_threads: int | None = None,
        prefetch: int = 2,
    ) -> None:
        for name, value, choices in (
            ("targets", "none" if isinstance(targets, LabelPooling) else targets, TARGETS),
            ("dtype", dtype, DTYPES),
            ("last_batch", last_batch, LAST_BATCHES),
        ):
            if value not in choices:
                raise UsageError(f"loader: expected {name} of {', '.join(choices)}, found {value!r}")
        if batch_size < 1 or prefetch < 1 or window < 1 or (num_threads is not None and num_threads < 1):
            raise UsageError(
                "loader: expected batch_size, prefetch, window and num_threads from 1, found "
                f"{batch_size}, {prefetch}, {window} and {num_threads}"
            )
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise UsageError(
                f"loader: expected a mean and a std above 0 of three channels, found {mean} and {std}"
            )
        check_geometry(batch_size * world_size, lanes, rank, world_size)
        check_seed(seed, 0)
        check_local(dataset)
        self.dataset = str(dataset)
        self.manifest = Manifest.load(dataset)
        self.tree = load_tree(dataset, self.manifest)
        self._pooling = targets if isinstance(targets, LabelPooling) else TARGET_MODES.get(targets)
        if self._pooling is not None:
            renamed = self._pooling.class_map
            check_label_maps(self.dataset, self.manifest, None if renamed is None else len(renamed))
        self.device = usable_device(device)
        self.batch_size = batch_size
        self.targets = targets
        self.augment = augment or Augment()
        self.dtype = dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.shuffle, self.last_batch = shuffle, last_batch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.lanes, self.window = lanes, window
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.epoch = 0
        self._prefetch = prefetch
        self._counts = np.array([shard.samples for shard in self.manifest.shards], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._files = ShardFiles(dataset, self.manifest)
        self._columns = {suffix: i for i, suffix in enumerate(self.manifest.components)}
        self._per_lane = batch_size * world_size // lanes  # samples of every lane in a step
        if last_batch == "drop" and self.manifest.num_samples // lanes < self._per_lane:
            raise UsageError(
                f"{dataset}: expected a global batch of samples, which is {self.global_batch} on {lanes} lanes, found "
                f"{self.manifest.num_samples}. Use a smaller batch_size, or last_batch='pad'"
            )
        self._taken = 0  # samples that every lane has given in this epoch
        self._resume = False  # whether the next iteration starts there
        self._decoder: Decoder | None = None
        self._running: Background[Batch] | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples

    @property
    def num_classes(self) -> int:
        return self.manifest.num_classes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the data set gives; hashed once."""
        return self.manifest.fingerprint

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def step(self) -> int:
        """Steps of this epoch that have been yielded."""
        return -(-self._taken // self._per_lane)

    @property
    def num_left_out(self) -> int:
        """Samples of an epoch that `last_batch="drop"` leaves out."""
        return 0 if self.last_batch == "pad" else self.num_samples - len(self) * self.global_batch

    def __len__(self) -> int:
        """Steps of a whole epoch; the same on every rank."""
        return self._num_steps(0)

    def _num_steps(self, taken: int) -> int:
        return num_steps(self.num_samples, self.lanes, self.global_batch, taken, self.last_batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate next; a state loaded for this very epoch stays in force.

        Raises:
            UsageError: not a whole number from 0 to 2**32 - 1.
        """
        check_seed(self.seed, epoch)
        if epoch != self.epoch:
            self._stop()
            self.epoch, self._taken, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the batch yielded last: a handful of numbers and a fingerprint."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": self.epoch,
            "taken": self._taken,
            "global_batch": self.global_batch,
            "lanes": self.lanes,
            "window": self.window,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken; the world size, and the global batch, may be others.

        Raises:
            UsageError: the state is of another data set, seed, number of lanes or window; both are named.
        """
        if state.get("version") != STATE_VERSION:
            raise UsageError(
                f"loader state: expected version {STATE_VERSION}, found {state.get('version')!r}"
            )
        mine = self.state_dict()
        for name in ("fingerprint", "seed", "lanes", "window", "shuffle"):
            if state.get(name) != mine[name]:
                raise UsageError(
                    f"loader state: expected {name} {mine[name]!r} of this loader, found "
                    f"{state.get(name)!r}; the rest of the epoch would not be the one that was begun. "
                    "Build the loader as it was, or start a new epoch"
                )
        epoch, taken = state.get("epoch"), state.get("taken")
        longest = -(-self.num_samples // self.lanes)
        if type(epoch) is not int or type(taken) is not int or not 0 <= taken <= longest:
            raise UsageError(
                f"loader state: expected an epoch from 0 and 0 to {longest} samples taken, found {epoch!r} "
                f"and {taken!r}"
            )
        check_seed(self.seed, epoch)
        self._stop()
        self.epoch, self._taken, self._resume = epoch, taken, True

    def __iter__(self) -> Iterator[Batch]:
        if self._closed:
            raise UsageError("loader: expected an open loader, found one that was closed. Build a new one")
        self._stop()
        if not self._resume:
            self._taken = 0
        self._resume = False
        epoch, taken = self.epoch, self._taken
        run = self._running = Background(lambda: self._batches(epoch, taken), self._prefetch)
        try:
            while (batch := run.next()) is not None:
                # Counted before the yield: a state taken in the loop's body says that this batch is done.
                self._taken = min(self._taken + self._per_lane, -(-self.num_samples // self.lanes))
                yield batch
                if run.stopped:
                    raise UsageError(
                        "loader: expected one iteration at a time, found this one continued after another "
                        "began, or after set_epoch, load_state_dict or close. Build a second loader for that"
                    )
            self.epoch, self._taken = epoch + 1, 0
        finally:
            run.stop()
            if self._running is run:
                self._running = None

    def _batches(self, epoch: int, taken: int) -> Iterator[Batch]:
        """The rest of an epoch; runs in the background, and the decoder a step ahead of it."""
        order = EpochOrder(self._counts, self.seed, epoch, self.lanes, self.window, self.shuffle)
        decoder = self._decoder = self._decoder or self._make_decoder()
        begun: deque[_Prepared] = deque()
        problem: DataError | None = None
        try:
            for step in range(self._num_steps(taken)):
                try:
                    begun.append(self._begin(order, taken + step * self._per_lane, decoder))
                except DataError as error:
                    problem = error  # raised in its turn: the step before it is whole
                    break
                if len(begun) > 1:
                    yield self._finish(begun.popleft(), decoder)
            while begun:
                yield self._finish(begun.popleft(), decoder)
            if problem is not None:
                raise problem
        except GeneratorExit:
            decoder.drop()
            raise
        except BaseException:
            # DALI may give a pipeline up after an error: the next iteration builds another.
            self._decoder = None
            decoder.close()
            raise
        finally:
            problem = None  # its traceback holds this frame: a cycle, which would keep the shards open

    def _make_decoder(self) -> Decoder:
        options = (self.batch_size, self.augment.size, self.dtype, self.mean, self.std, self.num_threads)
        return GpuDecoder(*options, self.device) if self.device.type == "cuda" else CpuDecoder(*options)

    def _begin(self, order: EpochOrder, taken: int, decoder: Decoder) -> _Prepared:
        """Choose a step's samples, read their labels, draw their crops and start decoding."""
        samples = rank_slots(order, self.global_batch, taken, self.rank, self.world_size)
        slots = np.flatnonzero(samples >= 0)
        real = samples[slots]
        numbers = np.searchsorted(self._starts, real, side="right") - 1
        places = real - self._starts[numbers]
        found = [
            (self._files[number], place)
            for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]
        hw = read_sizes(found, self._columns[JPG.suffix])
        jpegs = [shard.member_array(place, self._columns[JPG.suffix]) for shard, place in found]
        tlhw, real_flips = draw_crops(self.augment, hw, real, seed=self.seed, epoch=order.epoch)

        classes = np.full(self.batch_size, -1, np.int64)
        classes[slots] = read_classes(found, self._columns[CLS.suffix], self.num_classes)
        levels = None
        if HIER.suffix in self._columns:
            levels = np.full((self.batch_size, self.manifest.num_levels), -1, np.int64)
            levels[slots] = read_levels(found, self._columns[HIER.suffix], self.manifest.num_levels)
        crops = np.tile(np.array([0, 0, 1, 1], np.float32), (self.batch_size, 1))
        crops[slots] = crop_fractions(tlhw, hw)
        flips = np.zeros(self.batch_size, bool)
        flips[slots] = real_flips
        keys = [""] * self.batch_size
        for slot, (shard, place) in zip(slots.tolist(), found, strict=True):
            keys[slot] = shard.index.keys[place]
        with naming_the_sample(jpegs, found):
            decoder.submit(jpegs, tlhw, real_flips)
        return _Prepared(slots, found, classes, levels, crops, flips, keys, jpegs)

    def _finish(self, prepared: _Prepared, decoder: Decoder) -> Batch:
        """Pool a step's label maps, while its images are decoded, and wait for the images."""
        targets = self._targets(prepared)
        with naming_the_sample(prepared.jpegs, prepared.places):
            images = decoder.take(prepared.slots, self.batch_size)
        valid = np.zeros(self.batch_size, bool)
        valid[prepared.slots] = True

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        batch = Batch(
            images=images,
            classes=tensor(prepared.classes),
            levels=None if prepared.levels is None else tensor(prepared.levels),
            targets=targets,
            crops=tensor(prepared.crops),
            flips=tensor(prepared.flips),
            keys=prepared.keys,
            valid=tensor(valid),
        )
        if self.device.type == "cuda":
            # The copies run on this thread's stream; whoever takes the batch may be on another.
            torch.cuda.current_stream(self.device).synchronize()
        return batch

    def _targets(self, prepared: _Prepared) -> torch.Tensor | None:
        if self._pooling is None and self.targets == "none":
            return None
        slots, classes = prepared.slots, prepared.classes[prepared.slots]
        grid = () if self._pooling is None or self._pooling.grid is None else self._pooling.grid

        def empty() -> torch.Tensor:
            return torch.zeros(self.batch_size, *grid, self.num_classes, device=self.device)

        if self._pooling is None or not prepared.places:
            targets = empty()
            targets[torch.from_numpy(slots).to(self.device), torch.from_numpy(classes).to(self.device)] = 1
            return targets
        column = self._columns[LMAP.suffix]
        pooled = pool_label_maps(
            [shard.member(place, column) for shard, place in prepared.places],
            prepared.crops[slots],
            num_classes=self.num_classes,
            device=self.device,
            wheres=lambda i: prepared.places[i][0].where(prepared.places[i][1], LMAP.suffix),
            pooling=self._pooling,
            flips=prepared.flips[slots],
            classes=classes,
        )
        if len(slots) == self.batch_size:
            return pooled
        targets = empty()
        targets[torch.from_numpy(slots).to(self.device)] = pooled
        return targets

    def _stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def close(self) -> None:
        """Stop the threads and let the shards go. Batches that were yielded stay valid."""
        self._stop()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._files.close()
        self._closed = True

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
