"""Makes batches: draws in, a Batch out, in two steps, so that images are decoded in between.

begin     reads labels and sizes, draws crops, hands the JPEGs to the decoder
finish    pools the label maps, waits for the images, and augments and mixes them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from ..shards.errors import DataError
from ..shards.schema import JPG
from .augment_batch import AugmentStage
from .batch import Batch, Mix, TeacherLevels
from .batch_buffers import BatchBuffers
from .crops import Augment, crop_fractions, draw_crops
from .decode import RESAMPLE, Decoder, MakeBuffers, create_decoder, naming_the_sample
from .make_targets import TargetMaker
from .mixing import MixPlan, draw_mix
from .one_thread import OneThreadEach
from .order import Draws
from .pooling import SparseTargets
from .sample_reader import Found, SampleReader
from .samples import Place
from .side_maps import SideFiles
from .source import Source
from .stages import Stages
from .target_modes import Targets, each_target

# A kind of targets: those of the slots, not mixed yet, and of what they give to their partners, where that differs.
Made = tuple[torch.Tensor | SparseTargets | None, torch.Tensor | SparseTargets | None]

# Slots whose samples are bad: where each lies, and what is wrong with it.
Blamed = dict[int, tuple[Place, DataError]]


@dataclass
class BegunBatch:
    """A batch whose images are still being decoded."""

    draws: Draws  # of N slots
    epoch: int
    slots: np.ndarray  # int64 [M], where the samples stand in the batch
    valid: np.ndarray  # bool [N], which slots have their own sample
    found: Found
    classes: np.ndarray  # int64 [N]
    levels: np.ndarray | None  # int64 [N, L] or [N, A, L]
    crops: np.ndarray  # float32 [N, 4]
    flips: np.ndarray  # bool [N]
    keys: list[str]
    jpegs: list[np.ndarray]
    label_maps: Sequence[memoryview]  # M of them, none without


class Submits(Protocol):
    """What `begin` asks of a decoder."""

    def submit(self, jpegs: Sequence[np.ndarray], crop_tlhw_px: np.ndarray, flips: np.ndarray) -> None:
        """See Decoder."""
        ...


class BatchMaker:
    """What all batches of one loader have in common.

    Args:
        reader: of the samples.
        target_makers: of their targets: name to maker, that of `batch.targets` first.
        augment: what is cut from the images, and how they are mixed.
        stage: what is done to them beyond that; None where nothing is.
        make_decoder: builds a decoder of their images.
        resample: threads that its decoders share, if any.
        seed: of all that is drawn.
        batch_size: N.
        device: where batches are.
        stages: the clock that is told what is being done.
    """

    def __init__(
        self,
        reader: SampleReader,
        target_makers: dict[str, TargetMaker],
        *,
        augment: Augment,
        stage: AugmentStage | None,
        make_decoder: Callable[[], Decoder],
        resample: OneThreadEach | None = None,
        seed: int,
        batch_size: int,
        device: torch.device,
        stages: Stages,
    ) -> None:
        self.reader, self._target_makers, self._stages = reader, target_makers, stages
        self._make_decoder, self._resample = make_decoder, resample
        self._augment, self._stage, self._seed = augment, stage, seed
        self._batch_size, self._device = batch_size, device

    @classmethod
    def create(
        cls,
        sources: Sequence[Source],
        *,
        targets: Targets,
        keep: int | None = None,
        teacher: bool,
        side: SideFiles | None,
        augment: Augment,
        dtype: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        batch_size: int,
        device: torch.device,
        num_threads: int,
        pin_memory: bool = False,
        make_buffers: MakeBuffers = BatchBuffers,
        stages: Stages,
    ) -> BatchMaker:
        """Put together what a loader with these options needs; see Loader.

        Raises:
            UsageError: see SampleReader and TargetMaker.
            DataError: label maps over other classes.
        """
        reader = SampleReader(sources, teacher=teacher, side=side, stages=stages)
        make = partial(
            TargetMaker,
            sources,
            keep=keep,
            side=side,
            num_slots=batch_size,
            device=device,
            num_threads=num_threads,
        )
        stage = None
        if augment.changes_pixels or augment.mixes:
            stage = AugmentStage(augment, seed, dtype, mean, std, num_threads, device)
        # A decoder is built anew after each bad image, its threads are not.
        resample = OneThreadEach(num_threads, RESAMPLE)
        make_decoder = partial(
            create_decoder,
            device,
            batch_size=batch_size,
            size=augment.size,
            dtype=dtype if stage is None else stage.decode_dtype,
            mean=mean,
            std=std,
            num_threads=num_threads,
            pin_memory=pin_memory,
            make_buffers=make_buffers,
            resample=resample,
        )
        return cls(
            reader,
            {str(each): make(each) for each in each_target(targets)},
            augment=augment,
            stage=stage,
            make_decoder=make_decoder,
            resample=resample,
            seed=seed,
            batch_size=batch_size,
            device=device,
            stages=stages,
        )

    def make_decoder(self) -> Decoder:
        """A decoder of their images. From here on all threads run that `finish` gives work to.

        Raises:
            RuntimeError: they cannot be started; in `finish` that would look like a bad sample.
        """
        if self._stage is not None:
            self._stage.start()
        return self._make_decoder()

    def begin(self, draws: Draws, valid: np.ndarray, epoch: int, decoder: Submits) -> BegunBatch:
        """Read the labels of a batch's samples, draw their crops and start decoding.

        Args:
            draws: of N slots.
            valid: bool [N], which slots have their own sample.
            epoch: of the crops and flips.
            decoder: of the images.

        Raises:
            DataError: a shard cannot be had, or a sample says nonsense.
        """
        found = self.reader.find(draws.samples[draws.samples >= 0])
        with self._stages("read"):
            return self.begin_found(draws, found, valid, epoch, decoder)

    def begin_found(
        self, draws: Draws, found: Found, valid: np.ndarray, epoch: int, decoder: Submits
    ) -> BegunBatch:
        """The same for samples whose shards are open."""
        num, reader = self._batch_size, self.reader
        slots = np.flatnonzero(draws.samples >= 0)
        hw = reader.sizes(found)
        tlhw, real_flips = draw_crops(
            self._augment,
            hw,
            draws.samples[slots],
            seed=self._seed,
            epoch=epoch,
            occurrence=draws.occurrences[slots],
        )
        classes = np.full(num, -1, np.int64)
        classes[slots] = reader.classes(found)
        levels, real_levels = None, reader.levels(found, classes[slots])
        if real_levels is not None:
            levels = np.full((num, *real_levels.shape[1:]), -1, np.int64)
            levels[slots] = real_levels
        crops = np.tile(np.array([0, 0, 1, 1], np.float32), (num, 1))
        crops[slots] = crop_fractions(tlhw, hw)
        flips = np.zeros(num, bool)
        flips[slots] = real_flips
        keys = [""] * num
        for slot, (shard, place) in zip(slots.tolist(), found.places, strict=True):
            keys[slot] = shard.index.keys[place]
        label_maps = reader.label_maps(found) if self.pools else ()
        jpegs = reader.jpegs(found)
        with naming_the_sample(jpegs, found.places):
            decoder.submit(jpegs, tlhw, real_flips)
        return BegunBatch(
            draws, epoch, slots, valid, found, classes, levels, crops, flips, keys, jpegs, label_maps
        )

    def finish(self, begun: BegunBatch, decoder: Decoder) -> Batch:
        """Pool a batch's label maps, while its images are decoded, wait for the images, augment and mix them.

        Raises:
            DataError: a damaged image or label map.
        """
        slots, draws = begun.slots, begun.draws
        # A slot that does not have its own sample is no partner: its pair stays as it is, as with padding.
        own = np.where(begun.valid, draws.samples, -1)
        plan = draw_mix(self._augment, own, seed=self._seed, epoch=begun.epoch, occurrence=draws.occurrences)
        with self._stages("pool"):
            made = self.make_targets(begun, plan)
            teacher = (
                self.reader.teacher(begun.found, slots, self._batch_size)
                if self.reader.reads_teacher
                else None
            )
        with self._stages("decode"), naming_the_sample(begun.jpegs, begun.found.places):
            images = decoder.take(slots, self._batch_size)
        if self._stage is not None:
            with self._stages("augment"):
                images = self._stage.augment(
                    images, slots, draws.samples[slots], begun.epoch, draws.occurrences[slots]
                )
                if plan is not None:
                    # No sparse ones: check_keep has seen to it.
                    self._stage.mix(images, list(made.values()), plan)  # pyright: ignore[reportArgumentType]

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self._device, non_blocking=True)

        every = [(name, own) for name, (own, _) in made.items() if own is not None]
        with self._stages("copy"):
            return Batch(
                images=images,
                classes=tensor(begun.classes),
                levels=None if begun.levels is None else tensor(begun.levels),
                targets=every[0][1] if every else None,
                crops=tensor(begun.crops),
                flips=tensor(begun.flips),
                keys=begun.keys,
                valid=tensor(begun.valid),
                teacher=None if teacher is None else TeacherLevels(*map(tensor, teacher)),
                mix=None if plan is None else Mix(*map(tensor, (plan.partners, plan.shares, plan.boxes))),
                more_targets=dict(every[1:]) or None,
            )

    @property
    def pools(self) -> bool:
        """Whether label maps are pooled."""
        return any(maker.pools for maker in self._target_makers.values())

    def make_targets(self, begun: BegunBatch, plan: MixPlan | None) -> dict[str, Made]:
        """A batch's targets, by name; see TargetMaker.make.

        Raises:
            DataError: a damaged label map, tags or weights.
        """
        sample_facts = begun.label_maps, begun.slots, begun.classes, begun.crops, begun.flips
        return {
            name: maker.make(self.reader, begun.found, *sample_facts, plan, self._augment.size)
            for name, maker in self._target_makers.items()
        }

    def find_unreadable(self, draws: Draws) -> Blamed:
        """Slots whose samples have a header or labels that cannot be read, one by one, with each one's error.

        Raises:
            DataError: a shard cannot be had.
        """
        bad: Blamed = {}
        for slot in np.flatnonzero(draws.samples >= 0).tolist():
            found = self.reader.find(draws.samples[slot : slot + 1])
            try:
                self.reader.sizes(found)
                self.reader.levels(found, self.reader.classes(found))
            except DataError as error:
                bad[slot] = found.places[0], error
        return bad

    def find_undecodable(self, begun: BegunBatch) -> Blamed:
        """Slots whose samples have a bad image, label map or teacher, one by one, with each one's error.

        Args:
            begun: the batch that could not be finished. Each error costs a decoder.

        Returns:
            None of them where no sample alone explains what happened: not one fails, or all do without damage that
            can be named (the GPU is gone, say, or no memory is left).
        """
        bad: Blamed = {}
        num_unexplained = 0
        decoder: Decoder | None = None
        try:
            for i, slot in enumerate(begun.slots.tolist()):
                decoder = decoder or self.make_decoder()
                try:
                    # The shards of this step stay open as long as it is: nothing is fetched, nothing else can fail.
                    self.finish(self._again(begun, i, decoder), decoder)
                except (DataError, RuntimeError) as error:
                    shard, place = begun.found.places[i]
                    if not isinstance(error, DataError):
                        num_unexplained += 1
                        error = DataError(
                            f"{shard.where(place, JPG.suffix)}: expected a JPEG that DALI decodes, found: {error}. Run: "
                            f"softshard verify --decode {shard.path}"
                        )
                    bad[slot] = (shard, place), error
                    failed, decoder = decoder, None
                    failed.close()
        finally:
            if decoder is not None:
                decoder.close()
        return {} if num_unexplained == len(begun.slots) > 1 else bad

    def _again(self, begun: BegunBatch, i: int, decoder: Decoder) -> BegunBatch:
        """A batch with the i-th of its samples alone, handed to another decoder."""
        alone = np.arange(self._batch_size) == begun.slots[i]
        draws = Draws(np.where(alone, begun.draws.samples, -1), begun.draws.occurrences)
        found = begun.found.only(i)
        return self.begin_found(draws, found, alone, begun.epoch, decoder)

    def close(self) -> None:
        """Let the shards go, and stop the threads that resample and augment."""
        self.reader.close()
        if self._resample is not None:
            self._resample.close()
        if self._stage is not None:
            self._stage.close()
