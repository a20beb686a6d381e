"""The loader: iterate batches of a data set, each a pure function of (data set, options, seed, epoch, step).

    order.py    which samples            crops.py    windows and flips       pooling.py   label maps -> targets
    fetch.py    their bytes              decode.py   bytes -> images         loader.py    all of it, in a thread
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import simplejpeg
import torch

from ..shards.errors import DataError, UsageError
from ..shards.jpeg import read_jpeg_header
from ..shards.manifest import Manifest, load_tree
from ..shards.pack import encode_levels
from ..shards.reader import decode_class, decode_levels
from ..shards.schema import CLS, HIER, JPG, LMAP
from .batch import Batch
from .crops import Augment, crop_fractions, draw_crops
from .decode import DTYPES, MEAN, STD, CpuDecoder, Decoder, GpuDecoder
from .fetch import OpenShard, ShardFiles
from .order import LAST_BATCHES, EpochOrder, check_geometry, num_steps, rank_slots
from .pooling import pool_label_maps

TARGETS = ("none", "relabel")
STATE_VERSION = 1
DEFAULT_WINDOW = 32_768


@dataclass
class _Prepared:
    """A batch whose images are still being decoded."""

    slots: np.ndarray  # int64 [M], where the real samples stand in the batch
    members: list[tuple[OpenShard, int]]  # their shards, and their places in them
    classes: np.ndarray  # int64 [N]
    levels: np.ndarray | None  # int64 [N, L]
    crops: np.ndarray  # float32 [N, 4]
    flips: np.ndarray  # bool [N]
    keys: list[str]
    jpegs: list[np.ndarray]


class Loader:
    """Iterates the batches of one epoch of a data set, for one rank.

    Every rank has the same number of steps. Without `load_state_dict`, iterating starts the epoch from its
    beginning; an epoch that was iterated to its end is followed by the next one. Not for several threads.

    Args:
        dataset: folder of a data set (with a manifest).
        batch_size: N, samples of one batch of one rank; the global batch is N times `world_size`.
        device: `cpu`, or a CUDA device, where images are then decoded and label maps pooled.
        targets: `none`, or `relabel` (each crop's pooled label map, softmaxed).
        augment: crop, size and flip; by default random resized crops of 224 pixels.
        dtype: of the images: `uint8`, or normalised `float16` or `float32`.
        mean: channel means (of values 0 to 1) that float images are normalised with.
        std: channel standard deviations.
        shuffle: False keeps the data set's order.
        last_batch: `drop` leaves out what fills no whole step, `pad` adds slots with `valid` False.
        seed: of order, crops and flips.
        rank: of this process.
        world_size: processes that share the global batch.
        lanes: K, contiguous parts of an epoch that are read side by side; divides the global batch. Set it to the
            number of hosts, so that each reads its own shards only.
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
        targets: str = "none",
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
            ("targets", targets, TARGETS),
            ("dtype", dtype, DTYPES),
            ("last_batch", last_batch, LAST_BATCHES),
        ):
            if value not in choices:
                raise UsageError(f"loader: expected {name} of {', '.join(choices)}, found {value!r}")
        if batch_size < 1 or prefetch < 1 or window < 1 or (num_threads is not None and num_threads < 1):
            raise UsageError(
                f"loader: expected batch_size, prefetch, window and num_threads from 1, found {batch_size}, {prefetch}, "
                f"{window} and {num_threads}"
            )
        check_geometry(batch_size * world_size, lanes, rank, world_size)
        self.dataset = str(dataset)
        self.manifest = Manifest.load(dataset)
        self.tree = load_tree(dataset, self.manifest)
        if targets == "relabel":
            _check_label_maps(self.dataset, self.manifest)
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise UsageError(f"loader: expected device 'cpu' or 'cuda', found {str(device)!r}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"loader: expected an NVIDIA GPU for device {str(device)!r}, found none. Use device='cpu'")
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
        self._taken = 0  # samples that every lane has given in this epoch
        self._resume = False  # whether the next iteration starts there
        self._decoder: Decoder | None = None
        self._running: _Run | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples

    @property
    def num_classes(self) -> int:
        return self.manifest.num_classes

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def step(self) -> int:
        """Steps of this epoch that have been yielded."""
        return -(-self._taken // (self.global_batch // self.lanes))

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
        """Choose the epoch to iterate next; a state loaded for this very epoch stays in force."""
        if epoch != self.epoch:
            self.epoch, self._taken, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the batch yielded last: a handful of numbers and a fingerprint."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self.manifest.fingerprint,
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
            UsageError: the state is of another data set, seed, number of lanes or window; both values are named.
        """
        if state.get("version") != STATE_VERSION:
            raise UsageError(f"loader state: expected version {STATE_VERSION}, found {state.get('version')!r}")
        mine = self.state_dict()
        for name in ("fingerprint", "seed", "lanes", "window", "shuffle"):
            if state.get(name) != mine[name]:
                raise UsageError(
                    f"loader state: expected {name} {mine[name]!r} of this loader, found {state.get(name)!r}; the rest of "
                    "the epoch would not be the one that was begun. Build the loader as it was, or start a new epoch"
                )
        epoch, taken = state.get("epoch"), state.get("taken")
        longest = -(-self.num_samples // self.lanes)
        if type(epoch) is not int or type(taken) is not int or epoch < 0 or not 0 <= taken <= longest:
            raise UsageError(
                f"loader state: expected an epoch from 0 and 0 to {longest} samples taken, found {epoch!r} and {taken!r}"
            )
        self._stop()
        self.epoch, self._taken, self._resume = epoch, taken, True

    def __iter__(self) -> Iterator[Batch]:
        if self._closed:
            raise UsageError("loader: expected an open loader, found one that was closed. Build a new one")
        self._stop()
        if not self._resume:
            self._taken = 0
        self._resume = False
        run = self._running = _Run(self._produce, self._prefetch)
        try:
            while (batch := run.next()) is not None:
                # Counted before the yield: a state taken in the loop's body says that this batch is done.
                self._taken += self.global_batch // self.lanes
                self._taken = min(self._taken, -(-self.num_samples // self.lanes))
                yield batch
            self.epoch, self._taken = self.epoch + 1, 0
        finally:
            run.stop()
            if self._running is run:
                self._running = None

    def _produce(self, put: Callable[[Batch], bool]) -> None:
        """Make the rest of the epoch's batches, a batch ahead in the decoder; runs in a thread of its own."""
        order = EpochOrder(self._counts, self.seed, self.epoch, self.lanes, self.window, self.shuffle)
        decoder = self._decoder = self._decoder or self._make_decoder()
        taken, begun = self._taken, deque[_Prepared]()
        try:
            for step in range(self._num_steps(taken) + 1):
                if step < self._num_steps(taken):
                    at = taken + step * (self.global_batch // self.lanes)
                    begun.append(self._begin(order, at, decoder))
                if (len(begun) > 1 or step == self._num_steps(taken)) and begun:
                    batch = self._finish(begun[0], decoder)
                    begun.popleft()
                    if not put(batch):
                        break
            while begun:
                prepared = begun.popleft()
                decoder.take(prepared.slots, self.batch_size)
        except BaseException:
            self._decoder = None  # DALI gives a pipeline up after an error; the next iteration builds another
            raise

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
        members = [(self._files[number], place) for number, place in zip(numbers.tolist(), places.tolist(), strict=True)]
        jpg, cls = self._columns[JPG.suffix], self._columns[CLS.suffix]
        jpegs: list[np.ndarray] = []
        hw = np.empty((len(real), 2), np.int64)
        classes = np.full(self.batch_size, -1, np.int64)
        keys = [""] * self.batch_size
        for i, (slot, (shard, place)) in enumerate(zip(slots.tolist(), members, strict=True)):
            where = shard.where(place, JPG.suffix)
            header = read_jpeg_header(shard.member(place, jpg), where)
            hw[i] = header.height, header.width
            start = int(shard.index.offsets[place, jpg])
            jpegs.append(shard.array[start : start + int(shard.index.sizes[place, jpg])])
            index = decode_class(shard.member(place, cls), where)
            if index >= self.num_classes:
                raise DataError(
                    f"{shard.where(place, CLS.suffix)}: expected a class below {self.num_classes}, found {index}. "
                    f"Run: softshard verify {self.dataset}"
                )
            classes[slot] = index
            keys[slot] = shard.index.keys[place]
        tlhw, real_flips = draw_crops(self.augment, hw, real, seed=self.seed, epoch=self.epoch)
        crops = np.tile(np.array([0, 0, 1, 1], np.float32), (self.batch_size, 1))
        crops[slots] = crop_fractions(tlhw, hw)
        flips = np.zeros(self.batch_size, bool)
        flips[slots] = real_flips
        prepared = _Prepared(slots, members, classes, self._levels(slots, members), crops, flips, keys, jpegs)
        with _naming_the_sample(prepared):
            decoder.submit(jpegs, tlhw, real_flips)
        return prepared

    def _levels(self, slots: np.ndarray, members: list[tuple[OpenShard, int]]) -> np.ndarray | None:
        """The hierarchical label vectors of a batch: int64 [N, L]."""
        if HIER.suffix not in self._columns:
            return None
        column, num_levels = self._columns[HIER.suffix], self.manifest.num_levels
        levels = np.full((self.batch_size, num_levels), -1, np.int64)
        example = encode_levels(np.zeros(num_levels, np.int16))
        header = example[: len(example) - 2 * num_levels]
        raw = [bytes(shard.member(place, column)) for shard, place in members]
        for (shard, place), data in zip(members, raw, strict=True):
            if len(data) != len(example) or not data.startswith(header):
                where = shard.where(place, HIER.suffix)
                found = decode_levels(data, where)
                raise DataError(f"{where}: expected int16 [{num_levels}], found int16 {list(found.shape)}")
        if raw:
            bodies = np.frombuffer(b"".join(raw), np.uint8).reshape(len(raw), -1)[:, len(header) :]
            levels[slots] = np.ascontiguousarray(bodies).view("<i2")
        return levels

    def _finish(self, prepared: _Prepared, decoder: Decoder) -> Batch:
        """Wait for a step's images and pool its label maps."""
        with _naming_the_sample(prepared):
            images = decoder.take(prepared.slots, self.batch_size)
        targets = self._targets(prepared) if self.targets == "relabel" else None
        valid = np.zeros(self.batch_size, bool)
        valid[prepared.slots] = True

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        return Batch(
            images=images,
            classes=tensor(prepared.classes),
            levels=None if prepared.levels is None else tensor(prepared.levels),
            targets=targets,
            crops=tensor(prepared.crops),
            flips=tensor(prepared.flips),
            keys=prepared.keys,
            valid=tensor(valid),
        )

    def _targets(self, prepared: _Prepared) -> torch.Tensor:
        if not prepared.members:
            return torch.zeros(self.batch_size, self.num_classes, device=self.device)
        column = self._columns[LMAP.suffix]
        pooled = pool_label_maps(
            [shard.member(place, column) for shard, place in prepared.members],
            prepared.crops[prepared.slots],
            num_classes=self.num_classes,
            device=self.device,
            wheres=[shard.where(place, LMAP.suffix) for shard, place in prepared.members],
        )
        if len(prepared.slots) == self.batch_size:
            return pooled
        targets = torch.zeros(self.batch_size, self.num_classes, device=self.device)
        targets[torch.from_numpy(prepared.slots).to(self.device)] = pooled
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


def _check_label_maps(dataset: str, manifest: Manifest) -> None:
    if LMAP.suffix not in manifest.components or manifest.label_maps is None:
        raise UsageError(
            f"{dataset}: expected label maps for targets='relabel', found components {list(manifest.components)}. "
            "Run: softshard maps make DATASET DST --teacher NAME"
        )
    if manifest.label_maps.num_classes != manifest.num_classes:
        raise DataError(
            f"{dataset}: expected label maps over the {manifest.num_classes} classes of the class list, found "
            f"{manifest.label_maps.num_classes}; the teacher has another class list"
        )


class _naming_the_sample:
    """Turns a decoder's error about a batch into one that names the shard and the sample."""

    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, RuntimeError):
            return
        for jpeg, (shard, place) in zip(self._prepared.jpegs, self._prepared.members, strict=True):
            try:
                simplejpeg.decode_jpeg(jpeg.tobytes(), "RGB", strict=True)
            except ValueError as reason:
                raise DataError(
                    f"{shard.where(place, JPG.suffix)}: expected a whole JPEG, found: {reason}. "
                    f"Run: softshard verify --decode {shard.name}"
                ) from error


class _Run:
    """One iteration: a thread that makes batches, and a short queue of them."""

    def __init__(self, produce: Callable[[Callable[[Batch], bool]], None], prefetch: int) -> None:
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(produce,), name="softshard-loader", daemon=True)
        self._thread.start()

    def _work(self, produce: Callable[[Callable[[Batch], bool]], None]) -> None:
        try:
            produce(self._put)
            self._put(None)
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Hand over an item; False once nobody wants any more."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self) -> Batch | None:
        """The next batch, or None at the end; raises what the thread died of."""
        while True:
            try:
                item = self._ready.get(timeout=1.0)
                break
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RuntimeError("loader: the thread that makes batches has died without a word") from None
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the thread; batches that are ready are dropped."""
        self._stopped.set()
        self._thread.join()
