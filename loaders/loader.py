"""The loader: iterate batches of a data set, each a pure function of (data set, options, seed, epoch, step).

This file puts the parts together:

    options.py   what cannot be       source.py      the data set                state.py    where it stands
    loader_data.py    what is served
    labels.py    what classes mean    subset.py      which samples are served    order.py    in which order
    data_set.py  their bytes          samples.py     their sizes, labels         crops.py    windows and flips
    decode.py    bytes -> images      pooling.py     maps -> targets             batch.py    what comes out
    epoch_plan.py    the steps of an epoch    make_batch.py    samples -> a batch, of all these
    pipeline.py, background.py    ahead, in a thread
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..shards.cores import usable_cores
from ..shards.errors import UsageError
from ..shards.philox import check_seed
from ..shards.subset_file import SubsetFile
from .background import Background
from .batch import Batch
from .batch_buffers import BatchBuffers
from .cache import Cache
from .crops import Augment
from .decode import MEAN, STD, MakeBuffers, usable_device
from .epoch_plan import EpochPlan
from .faults import Faults, Quarantine
from .fetch import Following
from .fetch_stats import FetchStats
from .labels import LabelSource
from .loader_stats import LoaderStats, LoopClock
from .make_batch import BatchMaker
from .memory import give_back_memory
from .mixed_source import MixedSource, open_source
from .mixing import check_mixing
from .mixture import Mixture
from .options import check_choices, check_enough, check_keep, check_normalisation, check_numbers, check_side
from .order import DEFAULT_WINDOW, check_geometry
from .pipeline import BatchRun
from .side_maps import SideFiles
from .source import Source
from .stages import Stages, Watchdog
from .state import NUM_EPOCHS, LoaderPosition
from .subset import Subset, labels_and_subset
from .target_modes import Targets


class Loader(LoaderPosition):
    """Iterates the batches of one epoch of a data set, for one rank.

    Every rank has the same number of steps. Without `load_state_dict`, iterating starts the epoch from its
    beginning; an epoch whose last batch was yielded is followed by the next one. One iteration at a time: a
    new one, `set_epoch` to another epoch, `load_state_dict` and `close` end the one before. Not for several
    threads.

    A sample that cannot be read or decoded is left out: it is logged, written down and counted (see Faults), its slot
    gets another sample of the same batch and `valid` False, and nothing else changes (but with Mixup or CutMix its partner
    stays unmixed). A shard that cannot be had, and
    more bad samples than are allowed, are errors, raised after the batches before them. A JPEG that is cut short is
    found by its missing end. Damage inside the compressed data is another matter: libjpeg warns of it on standard
    error and carries on, and below the crop nothing is read at all, so that pixels may be wrong without an error.
    `softshard verify` finds it: it compares every shard's hash.

    Args:
        dataset: folder of a data set (with a manifest), read in place; any fsspec URL of one, whose shards are fetched
            ahead of need into a cache; somebody else's tars (`.../{000000..000012}.tar`, or their folder or URL); or a
            Mixture of several.
        batch_size: N, samples of one batch of one rank; the global batch is N times `world_size`.
        device: `cpu`, or a CUDA device, where images are then decoded and label maps pooled.
        targets: `none`; `original` (the class, one-hot); `relabel` (each crop's pooled label map, softmaxed) and
            its variants `relabel-global` (the whole image's), `relabel-single` (one-hot) and
            `relabel-global-single`; or a LabelPooling with more options; `tags`, `weights` and `pseudo`, the
            shards' soft labels as they are. Or several names: the first makes `batch.targets`, the others
            `batch.more_targets`.
        keep_targets: None for dense targets, or m: SparseTargets with the m largest values of each.
        side: None, or the folder or URL of side shards (`softshard maps make --side`), whose label maps are joined to the
            samples in place of any that the data set has.
        labels: None, or what to read the data set with instead of its own labels, without rewriting it: a
            LabelTree, class names (a subset or another order), or what `relabel` gives. Classes, levels, label maps,
            `num_classes`, `class_names` and `tree` are then those; samples of classes that are left out are not
            served. Crops and flips stay what they are. A class that no label map names has the logit 0 there, and
            classes that become one the logit of either.
        teacher: read what a distillation teacher said of each image, stored in the shards, as `batch.teacher`.
        subset: None, or which part of the samples is served: some classes, some keys, a share of them; or a file of
            `softshard subset`, which says that and what classes become (then without `labels`).
        balance: None, or the exponent a, from 0 to 1, of class-balanced sampling: a class with n samples gets a share
            of the epoch's draws that goes with n^(1-a) (1: every class the same; 0.5: by the square root). An epoch
            is as long as before; samples of large classes sit out some epochs, those of small ones are drawn
            several times, each time with another crop.
        augment: crop, size and flip, by default random resized crops of 224 pixels; and what is done to pixels,
            Mixup and CutMix.
        dtype: of the images: `uint8`, or normalised `float16` or `float32`.
        mean: channel means (of values 0 to 1) that float images are normalised with.
        std: channel standard deviations.
        shuffle: False keeps the data set's order.
        last_batch: `drop` leaves out what fills no whole step, `pad` adds slots with `valid` False.
        seed: of order, crops, flips and everything else that is drawn.
        rank: of this process.
        world_size: processes that share the global batch.
        lanes: K, contiguous parts of an epoch that are read side by side; divides the global batch. Set it to
            the number of hosts, so that each reads its own shards only.
        window: W, samples that are shuffled among each other (whole shards are shuffled as well). The first batch
            needs the shards that W samples of every lane of this rank lie in: a smaller window starts sooner.
        num_threads: of the decoder, and of augmentation on the CPU; by default one a core that this process may use.
        prefetch: batches that are ready ahead of need.
        pin_memory: make the batches in page-locked memory, from which `batch.to(device, non_blocking=True)` and
            `on_device` copy while the GPU computes. It goes back to torch's pool of such memory, which keeps as
            much as was ever in use at a time, when nothing refers to the batch and its copies are done. As in
            torch's DataLoader, of no effect without a GPU (nor for a batch that is made on one).
        cache: where shards of a data set behind a URL are kept, and how they are fetched; see Cache.
        faults: how much bad data, and how long a silence, is put up with; see Faults.
        num_epochs: how many epochs are going to be served, if that is known: for what comes after them no shards are
            fetched ahead. It limits nothing else.

    Raises:
        UsageError: options that contradict each other or the data set.
        DataError: the data set is incomplete, damaged or of a newer version.
    """

    _make_buffers: MakeBuffers = BatchBuffers  # the memory of its batches' images
    _latest: Background[Batch] | None

    def __init__(
        self,
        dataset: str | Path | Mixture,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        targets: Targets = "none",
        keep_targets: int | None = None,
        side: str | Path | None = None,
        labels: LabelSource | None = None,
        teacher: bool = False,
        subset: Subset | SubsetFile | str | Path | None = None,
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
        pin_memory: bool = False,
        cache: Cache | None = None,
        faults: Faults | None = None,
        num_epochs: int | None = None,
    ) -> None:
        check_choices(targets, dtype, last_batch)
        check_numbers(batch_size, prefetch, window, num_threads)
        check_normalisation(mean, std)
        check_geometry(batch_size * world_size, lanes, rank, world_size)
        check_seed(seed, 0)
        labels, self.subset = labels_and_subset(labels, subset)
        self.balance = balance
        self.device = usable_device(device)
        self.pin_memory = pin_memory and self.device.type == "cpu" and torch.cuda.is_available()
        self.batch_size = batch_size
        self.targets, self.keep_targets = targets, keep_targets
        self._teacher = teacher
        self.augment = augment or Augment()
        check_mixing(self.augment, targets, batch_size, world_size, lanes)
        check_keep(keep_targets, targets, self.augment.mixes)
        self.dtype = dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.shuffle, self.last_batch = shuffle, last_batch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.lanes, self.window = lanes, window
        self.num_epochs = num_epochs
        self.num_threads = num_threads or usable_cores()
        self.faults = faults or Faults()
        self.epoch = 0
        self._taken, self._resume = 0, False
        self._prefetch = prefetch
        self._per_lane = self.global_batch // lanes
        self._stages, self._clock = Stages(), LoopClock()
        self._side = self._running = self._latest = None
        self._closed = False
        self.source = self._open_source(dataset, labels, cache)
        self.dataset = self.source.dataset
        self._plan = EpochPlan(
            self.source, seed, lanes, window, shuffle, self.global_batch, rank, world_size, last_batch
        )
        check_enough(self.dataset, self.num_samples, lanes, self.global_batch, last_batch)
        self._open_maker(side, cache)

    def _open_source(
        self, dataset: Any, labels: LabelSource | None, cache: Cache | None
    ) -> Source | MixedSource:
        """What is read; the other options stand already."""
        return open_source(dataset, labels, self.subset, self.balance, self.lanes, cache)

    def _open_maker(self, side: str | Path | None, cache: Cache | None) -> None:
        """What makes batches of the source, and what notes those samples that are bad."""
        if side is not None:
            check_side(side, self.targets, self.source.parts)
            self._side = SideFiles(side, self.dataset, self.manifest, cache)
        self._maker = BatchMaker.create(
            self.source.parts,
            targets=self.targets,
            keep=self.keep_targets,
            teacher=self._teacher,
            side=self._side,
            augment=self.augment,
            dtype=self.dtype,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            num_threads=self.num_threads,
            pin_memory=self.pin_memory,
            make_buffers=self._make_buffers,
            stages=self._stages,
        )
        if self.faults.check_images:
            self._maker.reader.look_first()
        # Between two epochs the next one's shards are fetched, in threads that know nothing of this loader.
        weakref.finalize(self, self._maker.reader.shards.abandon).atexit = False
        self._quarantine = self._new_quarantine()
        self._run = BatchRun(self._maker, self._quarantine)

    def _new_quarantine(self) -> Quarantine:
        """Last, since it makes a folder and a file: whatever may be refused has been checked."""
        return Quarantine(self.faults, self.num_samples // self.world_size, self.rank)

    def __iter__(self) -> Iterator[Batch]:
        if self._closed:
            raise UsageError("loader: expected an open loader, found one that was closed. Build a new one")
        if self._latest is not None:
            self._latest.check_free()
        self._stop()
        if not self._resume:
            self._taken = 0
        self._resume = False
        epoch, taken = self.epoch, self._taken
        if self.pin_memory:
            self._gpu = torch.cuda.current_device()
        watch = Watchdog(self._stages, self.faults.stall_s, self.faults.give_up_s)
        make = partial(self._stream.made, partial(self._batches, epoch, taken))
        run = self._running = self._latest = Background(
            make, self._prefetch, watch, self._interrupt, self._clock
        )
        left, thread = self._num_steps(taken), threading.current_thread()
        try:
            run.start()
            for batch in self._clock.timed(lambda: self._stream.taken(run.next())):
                left -= 1
                # Counted before the yield: a state taken in the loop's body says that this batch is done.
                self._taken = min(self._taken + self._per_lane, -(-self.num_samples // self.lanes))
                yield batch
                run.check_running()
        finally:
            # Garbage is collected in any thread, also in one that the loader's waits for: whoever begins anew waits then.
            run.stop(wait=(waits := threading.current_thread() is thread))
            give_back_memory()
            if self._running is run:
                self._running = None if waits else run
                if not left:  # also where the loop took all batches and never asked for the end
                    self.epoch, self._taken = epoch + 1, 0

    @property
    def _interrupt(self) -> Callable[[], None]:
        """Ends whatever `_batches` waits for, from another thread; holds no loader, which could not go otherwise."""
        return self._maker.reader.shards.interrupt

    def _batches(self, epoch: int, taken: int) -> Iterator[Batch]:
        """The rest of an epoch; runs in the background, and the decoder a step ahead of it."""
        if self.pin_memory:
            torch.cuda.set_device(self._gpu)  # every thread begins with GPU 0, and would take memory there
        plan, order = self._plan, self._plan.order(epoch)
        shards, is_done = self._maker.reader.shards, False
        is_last = epoch + 1 >= (self.num_epochs or NUM_EPOCHS)
        next_steps = None if is_last else partial(plan.whole_epoch, epoch + 1)
        following = Following((epoch, taken), plan.num_steps(taken), (epoch + 1, 0), next_steps)
        try:
            self._maker.reader.expect(partial(plan.samples, order, epoch, taken), following)
            steps = self._stages.each("order", plan.steps(order, epoch, taken))
            for batch in self._run.batches(steps):
                yield batch.pin_memory() if self.pin_memory else batch  # its images are pinned from the start
            is_done = True
        finally:
            if is_done:
                shards.rest()
            else:
                shards.forget()

    def fetch_stats(self) -> FetchStats:
        """What has been fetched since the loader was built: requests, bytes, retries, hits, evictions."""
        return self._maker.reader.shards.stats()

    def stats(self) -> LoaderStats:
        """What the loader has done since it was built, where its time went, and what holds it up; from any thread."""
        running, loop, stages = self._running, self._clock.times(), self._stages.times()
        depths = 0 if running is None else running.depth, self._prefetch, self._run.num_begun
        return LoaderStats(self.dataset, self.rank, loop, stages, *depths, self.num_bad, self.fetch_stats())

    def close(self) -> None:
        """Stop the threads and let the shards go. Batches that were yielded stay valid."""
        self._stop()
        self._closed = True
        if self._latest is None or not self._latest.is_of_another_process:  # where locks may be held for ever
            self._let_go()
        give_back_memory()

    def _let_go(self) -> None:
        if self._latest is None or not self._latest.is_lost:
            self._run.close()
        self._maker.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
