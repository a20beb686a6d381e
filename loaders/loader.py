"""The loader: iterate batches of a data set, each a pure function of (data set, options, seed, epoch, step).

This file puts the parts together:

    labels.py    what classes mean    subset.py      which samples are served    order.py    in which order
    fetch.py     their bytes          samples.py     their sizes, labels         crops.py    windows and flips
    decode.py    bytes -> images      pooling.py     maps -> targets             batch.py    what comes out
    make_batch.py    samples -> a batch, of all these          background.py    ahead, in a thread
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest, check_sidecar, load_sidecar, load_tree
from ..shards.philox import check_seed
from ..shards.tree import LabelTree
from .background import Background
from .batch import Batch
from .crops import Augment
from .decode import DTYPES, MEAN, STD, CpuDecoder, Decoder, GpuDecoder, usable_device
from .fetch import check_local
from .labels import Labels, LabelSource
from .make_batch import BatchMaker, BegunBatch
from .order import LAST_BATCHES, EpochOrder, check_geometry, count_kept, num_steps, rank_slots
from .subset import Subset, kept_samples
from .target_modes import TARGETS, LabelPooling

STATE_VERSION = 1
DEFAULT_WINDOW = 32_768


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
        labels: None, or what to read the data set with instead of its own labels, without rewriting it: a
            LabelTree, class names (a subset or another order), or what `relabel` gives. Classes, levels, label maps,
            `num_classes`, `class_names` and `tree` are then those; samples of classes that are left out are not
            served. Crops and flips stay what they are. A class that no label map names has the logit 0 there, and
            classes that become one the logit of either.
        teacher: read what a distillation teacher said of each image, stored in the shards, as `batch.teacher`.
        subset: None, or which part of the samples is served: some classes, a share of them.
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
        pin_memory: make the batches in page-locked memory, from which `batch.to(device, non_blocking=True)` and
            `on_device` copy while the GPU computes. It goes back to torch's pool of such memory, which keeps as
            much as was ever in use at a time, when nothing refers to the batch and its copies are done. As in
            torch's DataLoader, of no effect without a GPU (nor for a batch that is made on one).

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
        labels: LabelSource | None = None,
        teacher: bool = False,
        subset: Subset | None = None,
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
        pin_memory: bool = False,
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
        self._labels = Labels.of(self.manifest, load_tree(dataset, self.manifest), labels)
        self.subset = subset
        self.device = usable_device(device)
        self.pin_memory = pin_memory and self.device.type == "cpu" and torch.cuda.is_available()
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
        self._maker = BatchMaker(
            dataset,
            self.manifest,
            self._labels,
            targets=targets,
            teacher=teacher,
            augment=self.augment,
            seed=seed,
            batch_size=batch_size,
            device=self.device,
        )
        self._counts = np.array([shard.samples for shard in self.manifest.shards], np.int64)
        self._kept = self._choose_samples()
        if self._kept is not None:
            self._counts = count_kept(self._kept, self._counts)
        self._per_lane = batch_size * world_size // lanes  # samples of every lane in a step
        if last_batch == "drop" and self.num_samples // lanes < self._per_lane:
            raise UsageError(
                f"{dataset}: expected a global batch of samples, which is {self.global_batch} on {lanes} lanes, found "
                f"{self.num_samples}. Use a smaller batch_size, or last_batch='pad'"
            )
        self._taken = 0  # samples that every lane has given in this epoch
        self._resume = False  # whether the next iteration starts there
        self._decoder: Decoder | None = None
        self._running: Background[Batch] | None = None
        self._closed = False

    def _choose_samples(self) -> np.ndarray | None:
        """int64 [N], the samples that labels and subset leave, ascending; None where that is all of them."""
        subset = self.subset or Subset()
        kept = kept_samples(
            self._labels.keep_class(subset.class_mask(self.class_names)),
            self._stored_classes,
            self.manifest.num_samples,
            fraction=subset.fraction,
            seed=subset.seed,
        )
        if kept is not None and not len(kept):
            raise UsageError(
                f"{self.dataset}: expected samples of the chosen classes, found none. Give labels or a subset with "
                "classes that have samples: softshard stats counts them"
            )
        return kept

    def _stored_classes(self) -> np.ndarray:
        """int32 [samples of the data set], every sample's class in the data set."""
        check_sidecar(self.dataset, self.manifest)
        return load_sidecar(self.dataset, self.manifest)

    def count_classes(self) -> np.ndarray:
        """int64 [C], how many of the samples that are served, on all ranks together, each class has.

        Raises:
            DataError: the file of the samples' classes is missing or damaged.
        """
        stored = self._stored_classes()
        counts = np.bincount(
            stored if self._kept is None else stored[self._kept], minlength=self.manifest.num_classes
        )
        if (class_map := self._labels.class_map) is None:
            return counts
        result = np.zeros(self.num_classes, np.int64)
        np.add.at(result, class_map[class_map >= 0], counts[class_map >= 0])
        return result

    @property
    def num_samples(self) -> int:
        """Samples that are served: of the whole data set, or those that labels and subset leave."""
        return self.manifest.num_samples if self._kept is None else len(self._kept)

    @property
    def num_classes(self) -> int:
        """C of the labels that the data set is read with."""
        return self._labels.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in the order of `batch.classes`."""
        return self._labels.class_names

    @property
    def tree(self) -> LabelTree | None:
        """Over these classes; `batch.levels` are its vectors. None without one."""
        return self._labels.tree

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the data set gives, whatever the labels; hashed once."""
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

    @property
    def sampler(self) -> Loader:
        """The loader: Lightning and timm's train.py choose the epoch with `loader.sampler.set_epoch`."""
        return self

    batch_sampler = sampler  # Lightning expects both or neither

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
            "labels": self._labels.fingerprint,
            "subset": None if self.subset is None else self.subset.to_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken; the world size, and the global batch, may be others.

        Raises:
            UsageError: the state is of another data set, seed, number of lanes, window, labels or subset; both
                are named.
        """
        if state.get("version") != STATE_VERSION:
            raise UsageError(
                f"loader state: expected version {STATE_VERSION}, found {state.get('version')!r}"
            )
        mine = self.state_dict()
        for name in ("fingerprint", "seed", "lanes", "window", "shuffle", "labels", "subset"):
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
        if self.pin_memory:
            self._gpu = torch.cuda.current_device()
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
        if self.pin_memory:
            torch.cuda.set_device(self._gpu)  # every thread begins with GPU 0, and would take memory there
        order = EpochOrder(self._counts, self.seed, epoch, self.lanes, self.window, self.shuffle, self._kept)
        decoder = self._decoder = self._decoder or self._make_decoder()
        begun: deque[BegunBatch] = deque()
        problem: DataError | None = None
        try:
            for step in range(self._num_steps(taken)):
                at = taken + step * self._per_lane
                samples = rank_slots(order, self.global_batch, at, self.rank, self.world_size)
                try:
                    begun.append(self._maker.begin(samples, epoch, decoder))
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

    def _finish(self, begun: BegunBatch, decoder: Decoder) -> Batch:
        batch = self._maker.finish(begun, decoder)
        return batch.pin_memory() if self.pin_memory else batch  # its images are pinned from the start

    def _make_decoder(self) -> Decoder:
        options = (self.batch_size, self.augment.size, self.dtype, self.mean, self.std, self.num_threads)
        if self.device.type == "cuda":
            return GpuDecoder(*options, self.device)
        return CpuDecoder(*options, self.pin_memory)

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
        self._maker.close()
        self._closed = True

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
