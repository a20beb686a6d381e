"""Targets of a batch: one-hot classes, label maps pooled over the crops that were cut, or what the shards say of tags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ..shards.errors import UsageError
from ..shards.labelmap_header import check_geometry
from .mixing import MixPlan, visible_regions
from .pooling import SparseTargets, pool_label_maps, pool_top_classes
from .sample_reader import Found, SampleReader
from .samples import Place, check_label_maps
from .side_maps import SideFiles
from .soft_targets import SoftTargets
from .source import Source
from .target_modes import SOFT_KINDS, TARGET_MODES, LabelPooling

# The decoder's threads that give pooling one of its own: a map takes a twentieth of an image's time or less, and
# more threads would wait for the cores that decode.
DECODERS_PER_POOLER = 8


class TargetMaker:
    """Makes one kind of targets for a loader's batches.

    Args:
        sources: the data sets, whose classes mean the same.
        targets: one of the loader's.
        keep: None for dense targets, else how many values are kept of each.
        side: label maps that lie beside the data set.
        num_slots: N.
        device: where targets are.
        num_threads: of the decoder.

    Raises:
        UsageError: targets that a data set has no classes or label maps for.
        DataError: label maps over other classes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        targets: str | LabelPooling,
        *,
        keep: int | None = None,
        side: SideFiles | None,
        num_slots: int,
        device: torch.device,
        num_threads: int,
    ) -> None:
        self._num_classes = sources[0].labels.num_classes
        self._keep = None if keep is None else min(keep, max(1, self._num_classes))
        self._soft = (
            SoftTargets(sources, targets, num_slots=num_slots, device=device, keep=keep)
            if isinstance(targets, str) and targets in SOFT_KINDS
            else None
        )
        self._one_hot = targets == "original"
        if self._one_hot and not self._num_classes:
            raise UsageError(
                f"{sources[0].dataset}: expected classes for targets='original', found tars without classes"
            )
        pooling = targets if isinstance(targets, LabelPooling) else TARGET_MODES.get(targets)
        self._poolings = (
            [] if pooling is None else [_checked_pooling(pooling, source, side) for source in sources]
        )
        manifests = [source.manifest if side is None else side.manifest for source in sources]
        self._maps = (
            [info for manifest in manifests if (info := manifest.label_maps)] if self._poolings else []
        )
        self._num_slots, self._device = num_slots, device
        self._num_threads = max(1, num_threads // DECODERS_PER_POOLER)

    @property
    def pools(self) -> bool:
        """Whether label maps are read."""
        return bool(self._poolings)

    def make(
        self,
        reader: SampleReader,
        found: Found,
        label_maps: Sequence[memoryview],
        slots: np.ndarray,
        classes: np.ndarray,
        crops: np.ndarray,
        flips: np.ndarray,
        plan: MixPlan | None,
        size: int,
    ) -> tuple[torch.Tensor | SparseTargets | None, torch.Tensor | SparseTargets | None]:
        """The slots' targets, not mixed yet, and those of what they give to their partners, where that differs.

        Args:
            reader: names label maps in messages.
            found: M samples.
            label_maps: theirs, none without pooling.
            slots: int64 [M], where they stand.
            classes: int64 [N].
            crops: float32 [N, 4].
            flips: bool [N].
            plan: how images are mixed.
            size: S, pixels of the batch's images.

        Raises:
            DataError: a damaged label map, tags or weights.
        """
        if self._soft is not None:
            return self._soft.make(found, slots), None
        if not self._poolings and not self._one_hot:
            return None, None
        rest = (reader, found, label_maps, slots, classes, flips)
        if plan is None or not plan.visible or not plan.pasted.any():
            return self._of_crops(crops, *rest), None
        own, given = visible_regions(plan, crops, flips, size)
        return self._of_crops(own, *rest), self._of_crops(given, *rest)

    def _of_crops(
        self,
        crops: np.ndarray,
        reader: SampleReader,
        found: Found,
        label_maps: Sequence[memoryview],
        slots: np.ndarray,
        classes: np.ndarray,
        flips: np.ndarray,
    ) -> torch.Tensor | SparseTargets:
        """float32 [N, C], pooled over crops [N, 4] or regions [N, R, 4]; or the `keep` largest of each."""
        targets = None
        if not self._poolings:
            targets = self._empty()
            there, own = self._there(slots), self._there(classes[slots])
            if isinstance(targets, SparseTargets):
                targets.values[there, 0], targets.ids[there, 0] = 1, own
            else:
                targets[there, own] = 1
            return targets
        for i, rows in found.by_source():
            places, its_slots = [found.places[row] for row in rows], slots[rows]

            def where(j: int, places: list[Place] = places) -> str:
                return reader.where_map(places[j])

            maps = [label_maps[row] for row in rows]
            info = self._maps[i]
            check_geometry(maps, (info.top, info.rows, info.columns), info.num_classes, where)
            pool = pool_label_maps if self._keep is None else partial(pool_top_classes, keep=self._keep)
            pooled = pool(
                maps,
                crops[its_slots],
                num_classes=self._num_classes,
                device=self._device,
                wheres=where,
                pooling=self._poolings[i],
                flips=flips[its_slots],
                classes=classes[its_slots],
                num_threads=self._num_threads,
            )
            if len(rows) == self._num_slots:
                return pooled
            targets = self._empty() if targets is None else targets
            for part, found_part in zip(_parts(targets), _parts(pooled), strict=True):
                part[self._there(its_slots)] = found_part
        return self._empty() if targets is None else targets

    def _empty(self) -> torch.Tensor | SparseTargets:
        grid = (self._poolings[0].grid or ()) if self._poolings else ()
        shape = (self._num_slots, *grid, self._keep or self._num_classes)
        values = torch.zeros(shape, device=self._device)
        return (
            values
            if self._keep is None
            else SparseTargets(values, torch.zeros_like(values, dtype=torch.int64))
        )

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _parts(targets: torch.Tensor | SparseTargets) -> tuple[torch.Tensor, ...]:
    return targets if isinstance(targets, SparseTargets) else (targets,)


def _checked_pooling(pooling: LabelPooling, source: Source, side: SideFiles | None) -> LabelPooling:
    """How a data set's label maps are pooled into the loader's classes.

    Raises:
        UsageError: it has no label maps.
        DataError: they are over other classes.
    """
    num_renamed = None if pooling.class_map is None else len(pooling.class_map)
    check_label_maps(source.dataset, source.manifest if side is None else side.manifest, num_renamed)
    return source.labels.pooling(pooling)
