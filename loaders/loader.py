"""The loader: iterate batches of a data set, each a pure function of (data set, options, seed, epoch, step).

This file puts the parts together:

    options.py   what cannot be       source.py      the data set                state.py    where it stands
    labels.py    what classes mean    subset.py      which samples are served    order.py    in which order
    fetch.py     their bytes          samples.py     their sizes, labels         crops.py    windows and flips
    decode.py    bytes -> images      pooling.py     maps -> targets             batch.py    what comes out
    make_batch.py    samples -> a batch, of all these          pipeline.py, background.py    ahead, in a thread
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.philox import check_seed
from ..shards.tree import LabelTree
from .background import Background
from .batch import Batch
from .crops import Augment
from .decode import MEAN, STD, CpuDecoder, Decoder, GpuDecoder, usable_device
from .labels import LabelSource
from .make_batch import BatchMaker
from .mixed_source import open_source
from .mixture import Mixture
from .options import check_choices, check_normalisation, check_numbers
from .order import DEFAULT_WINDOW, check_geometry, num_steps, rank_slots
from .pipeline import make_batches
from .state import STATE_VERSION, check_state
from .subset import Subset
from .target_modes import LabelPooling


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
        dataset: folder of a data set (with a manifest), or a Mixture of several.
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
        subset: None, or which part of the samples is served: some classes, some keys, a share of them.
        balance: None, or the exponent a, from 0 to 1, of class-balanced sampling: a class with n samples gets a share
            of the epoch's draws that goes with n^(1-a) (1: every class the same; 0.5: by the square root). An epoch
            is as long as before; samples of large classes sit out some epochs, those of small ones are drawn
            several times, each time with another crop.
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
        dataset: str | Path | Mixture,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        targets: str | LabelPooling = "none",
        labels: LabelSource | None = None,
        teacher: bool = False,
        subset: Subset | None = None,
        balance: float | None = None,
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
        check_choices(targets, dtype, last_batch)
        check_numbers(batch_size, prefetch, window, num_threads)
        check_normalisation(mean, std)
        check_geometry(batch_size * world_size, lanes, rank, world_size)
        check_seed(seed, 0)
        self.source = open_source(dataset, labels, subset, balance, lanes)
        self.dataset = self.source.dataset
        self.subset, self.balance = subset, balance
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
        self._maker = BatchMaker(
            self.source.parts,
            targets=targets,
            teacher=teacher,
            augment=self.augment,
            seed=seed,
            batch_size=batch_size,
            device=self.device,
        )
        self._per_lane = batch_size * world_size // lanes  # samples of every lane in a step
        if last_batch == "drop" and self.num_samples // lanes < self._per_lane:
            raise UsageError(
                f"{self.dataset}: expected a global batch of samples, which is {self.global_batch} on {lanes} lanes, found "
                f"{self.num_samples}. Use a smaller batch_size, or last_batch='pad'"
            )
        self._taken = 0  # samples that every lane has given in this epoch
        self._resume = False  # whether the next iteration starts there
        self._decoder: Decoder | None = None
        self._running: Background[Batch] | None = None
        self._closed = False

    def count_classes(self) -> np.ndarray:
        """int64 [C], how often each class is served in an epoch, on all ranks together.

        Raises:
            DataError: the file of the samples' classes is missing or damaged.
        """
        return self.source.count_classes()

    @property
    def manifest(self) -> Manifest:
        """The data set's manifest; of a mixture, that of its first data set."""
        return self.source.manifest

    @property
    def num_samples(self) -> int:
        """Samples that an epoch serves: of the whole data set, or those that labels and subset leave."""
        return self.source.num_samples

    @property
    def num_classes(self) -> int:
        """C of the labels that the data set is read with."""
        return self.source.labels.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in the order of `batch.classes`."""
        return self.source.labels.class_names

    @property
    def tree(self) -> LabelTree | None:
        """Over these classes; `batch.levels` are its vectors. None without one."""
        return self.source.labels.tree

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the data set gives, whatever the labels; hashed once."""
        return self.source.fingerprint

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
            "labels": self.source.labels_fingerprint(),
            "subset": None if self.subset is None else self.subset.to_json(),
            "balance": self.balance,
            "mixture": self.source.mixture_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken; the world size, and the global batch, may be others.

        Raises:
            UsageError: the state is of another data set, order, labels, subset, balance or mixture; both are named.
        """
        epoch, taken = check_state(state, self.state_dict(), -(-self.num_samples // self.lanes))
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
        order = self.source.order(
            self.seed, epoch, num_lanes=self.lanes, window=self.window, shuffle=self.shuffle
        )
        decoder = self._decoder = self._decoder or self._make_decoder()
        steps = (
            rank_slots(order, self.global_batch, taken + step * self._per_lane, self.rank, self.world_size)
            for step in range(self._num_steps(taken))
        )
        try:
            yield from make_batches(self._maker, decoder, steps, epoch)
        except GeneratorExit:
            decoder.drop()
            raise
        except BaseException:
            # DALI may give a pipeline up after an error: the next iteration builds another.
            self._decoder = None
            decoder.close()
            raise

    def _make_decoder(self) -> Decoder:
        options = (self.batch_size, self.augment.size, self.dtype, self.mean, self.std, self.num_threads)
        return GpuDecoder(*options, self.device) if self.device.type == "cuda" else CpuDecoder(*options)

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
