"""Makes batches: sample indices in, a Batch out, in two steps, so that images are decoded in between.

begin     reads labels and sizes, draws crops, hands the JPEGs to the decoder
finish    pools the label maps, and waits for the images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from ..shards.schema import CLS, HIER, JPG, KD, LMAP
from ..shards.teacher_levels import decode_teacher_levels, num_kept
from .batch import Batch, TeacherLevels
from .crops import Augment, crop_fractions, draw_crops
from .decode import Decoder, naming_the_sample
from .fetch import ShardFiles
from .labels import Labels
from .pooling import pool_label_maps
from .samples import Place, check_label_maps, read_classes, read_levels, read_sizes
from .target_modes import TARGET_MODES, LabelPooling


@dataclass
class BegunBatch:
    """A batch whose images are still being decoded."""

    slots: np.ndarray  # int64 [M], where the real samples stand in the batch
    places: list[Place]  # their shards, and their places in them
    classes: np.ndarray  # int64 [N]
    levels: np.ndarray | None  # int64 [N, L] or [N, A, L]
    crops: np.ndarray  # float32 [N, 4]
    flips: np.ndarray  # bool [N]
    keys: list[str]
    jpegs: list[np.ndarray]


class BatchMaker:
    """Holds the shards open, and all that batches of one loader have in common.

    Args:
        dataset: folder of the data set.
        manifest: its manifest.
        labels: what classes and levels mean.
        targets: as the loader's.
        teacher: whether to read the stored teacher.
        augment: what is cut from the images.
        seed: of crops and flips.
        batch_size: N.
        device: where batches are.

    Raises:
        UsageError: targets that the data set has no label maps for; a teacher that it does not have, or that is
            about another tree than the labels'.
        DataError: label maps over other classes.
    """

    def __init__(
        self,
        dataset: str | Path,
        manifest: Manifest,
        labels: Labels,
        *,
        targets: str | LabelPooling,
        teacher: bool,
        augment: Augment,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._labels, self._num_old_classes = labels, manifest.num_classes
        self._one_hot = targets == "original"
        pooling = targets if isinstance(targets, LabelPooling) else TARGET_MODES.get(targets)
        if pooling is not None:
            check_label_maps(
                str(dataset), manifest, None if pooling.class_map is None else len(pooling.class_map)
            )
            pooling = labels.pooling(pooling)
        self._pooling = pooling
        self._level_sizes = _teacher_level_sizes(str(dataset), manifest, labels) if teacher else None
        self._augment, self._seed = augment, seed
        self._batch_size, self._device = batch_size, device
        self._columns = {suffix: i for i, suffix in enumerate(manifest.components)}
        self._starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)], dtype=np.int64)
        self._files = ShardFiles(dataset, manifest)

    def begin(self, samples: np.ndarray, epoch: int, decoder: Decoder) -> BegunBatch:
        """Read the labels of a batch's samples, draw their crops and start decoding.

        Args:
            samples: int64 [N], sample indices in the manifest's order, -1 in empty slots.
            epoch: of the crops and flips.
            decoder: of the images.
        """
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
        tlhw, real_flips = draw_crops(self._augment, hw, real, seed=self._seed, epoch=epoch)

        num = self._batch_size
        real_classes = self._read_classes(found)
        classes = np.full(num, -1, np.int64)
        classes[slots] = real_classes
        levels, real_levels = None, self._read_levels(found, real_classes)
        if real_levels is not None:
            levels = np.full((num, *real_levels.shape[1:]), -1, np.int64)
            levels[slots] = real_levels
        crops = np.tile(np.array([0, 0, 1, 1], np.float32), (num, 1))
        crops[slots] = crop_fractions(tlhw, hw)
        flips = np.zeros(num, bool)
        flips[slots] = real_flips
        keys = [""] * num
        for slot, (shard, place) in zip(slots.tolist(), found, strict=True):
            keys[slot] = shard.index.keys[place]
        with naming_the_sample(jpegs, found):
            decoder.submit(jpegs, tlhw, real_flips)
        return BegunBatch(slots, found, classes, levels, crops, flips, keys, jpegs)

    def _read_classes(self, places: list[Place]) -> np.ndarray:
        """int64 [M], classes of the label space."""
        stored = read_classes(places, self._columns[CLS.suffix], self._num_old_classes)
        if self._labels.class_map is None:
            return stored
        classes = self._labels.class_map[stored].astype(np.int64)
        if (dropped := np.flatnonzero(classes < 0)).size:
            shard, place = places[dropped[0]]
            raise DataError(
                f"{shard.where(place, CLS.suffix)}: expected a class that the labels keep, as classes.npy says, "
                f"found {stored[dropped[0]]}, which they leave out. Run: softshard verify {shard.path}"
            )
        return classes

    def _read_levels(self, places: list[Place], classes: np.ndarray) -> np.ndarray | None:
        """int64 [M, L] or [M, A, L], those of the label space."""
        if self._labels.relabelling is not None:
            vectors = self._labels.relabelling.vectors
            return None if vectors is None else vectors[classes].astype(np.int64)
        if HIER.suffix not in self._columns:
            return None
        return read_levels(places, self._columns[HIER.suffix], self._labels.level_shape)

    def finish(self, begun: BegunBatch, decoder: Decoder) -> Batch:
        """Pool a batch's label maps, while its images are decoded, and wait for the images."""
        targets = self._targets(begun)
        teacher = None if self._level_sizes is None else self._teacher(begun, self._level_sizes)
        with naming_the_sample(begun.jpegs, begun.places):
            images = decoder.take(begun.slots, self._batch_size)
        valid = np.zeros(self._batch_size, bool)
        valid[begun.slots] = True

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self._device, non_blocking=True)

        batch = Batch(
            images=images,
            classes=tensor(begun.classes),
            levels=None if begun.levels is None else tensor(begun.levels),
            targets=targets,
            crops=tensor(begun.crops),
            flips=tensor(begun.flips),
            keys=begun.keys,
            valid=tensor(valid),
            teacher=None if teacher is None else TeacherLevels(*map(tensor, teacher)),
        )
        if self._device.type == "cuda":
            # The copies run on this thread's stream; whoever takes the batch may be on another.
            torch.cuda.current_stream(self._device).synchronize()
        return batch

    def _targets(self, begun: BegunBatch) -> torch.Tensor | None:
        if self._pooling is None and not self._one_hot:
            return None
        slots, classes = begun.slots, begun.classes[begun.slots]
        grid = () if self._pooling is None or self._pooling.grid is None else self._pooling.grid

        def empty() -> torch.Tensor:
            return torch.zeros(self._batch_size, *grid, self._labels.num_classes, device=self._device)

        if self._pooling is None or not begun.places:
            targets = empty()
            targets[torch.from_numpy(slots).to(self._device), torch.from_numpy(classes).to(self._device)] = 1
            return targets
        column = self._columns[LMAP.suffix]
        pooled = pool_label_maps(
            [shard.member(place, column) for shard, place in begun.places],
            begun.crops[slots],
            num_classes=self._labels.num_classes,
            device=self._device,
            wheres=lambda i: begun.places[i][0].where(begun.places[i][1], LMAP.suffix),
            pooling=self._pooling,
            flips=begun.flips[slots],
            classes=classes,
        )
        if len(slots) == self._batch_size:
            return pooled
        targets = empty()
        targets[torch.from_numpy(slots).to(self._device)] = pooled
        return targets

    def _teacher(self, begun: BegunBatch, level_sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, probabilities): int64 and float16 [N, K], zeros in empty slots."""
        width = sum(num_kept(level_sizes))
        ids = np.zeros((self._batch_size, width), np.int64)
        probabilities = np.zeros((self._batch_size, width), np.float16)
        ids[begun.slots], probabilities[begun.slots] = decode_teacher_levels(
            [shard.member(place, self._columns[KD.suffix]) for shard, place in begun.places],
            level_sizes,
            [shard.where(place, KD.suffix) for shard, place in begun.places],
        )
        return ids, probabilities

    def close(self) -> None:
        """Let the shards go."""
        self._files.close()


def _teacher_level_sizes(dataset: str, manifest: Manifest, labels: Labels) -> tuple[int, ...]:
    """Classes of the levels that the stored teacher is about.

    Raises:
        UsageError: there is none, or it is about another tree than the labels'.
    """
    if KD.suffix not in manifest.components or manifest.tree_sha256 is None:
        raise UsageError(
            f"{dataset}: expected a stored teacher to distil from, a label tree and the component 'kd', found components "
            f"{list(manifest.components)}. Store what a teacher says: softshard teacher make DATASET DST --teacher "
            "CHECKPOINT; or ask a live one: softshard train --teacher CHECKPOINT"
        )
    if labels.tree is None or labels.tree.fingerprint != manifest.tree_sha256:
        found = "none" if labels.tree is None else labels.tree.fingerprint[:12]
        raise UsageError(
            f"{dataset}: expected labels over the tree {manifest.tree_sha256[:12]}, whose levels the stored teacher is "
            f"about, found {found}. Leave out these labels, or ask a live teacher that knows them: softshard train --teacher"
        )
    return labels.tree.level_sizes[: labels.tree.num_levels]
