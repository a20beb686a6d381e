"""A data set that a loader reads: its manifest, the labels it is read with, and which of its samples are served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest, check_sidecar, load_sidecar, load_tree
from .fetch import check_local
from .labels import Labels, LabelSource
from .order import EpochOrder, count_kept
from .subset import Subset, kept_samples


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader reads.

    Attributes:
        dataset: folder of the data set.
        manifest: its manifest.
        labels: what its classes and levels mean.
        kept: int64 [N], the samples that labels and subset leave, ascending; None where that is all of them.
        counts: int64 [S], how many of them each shard has.
    """

    dataset: str
    manifest: Manifest
    labels: Labels
    kept: np.ndarray | None
    counts: np.ndarray

    @classmethod
    def open(cls, dataset: str | Path, labels: LabelSource | None, subset: Subset | None) -> Source:
        """Read a data set's manifest and tree, and choose its samples.

        Raises:
            UsageError: labels or a subset that do not fit the data set, or leave none of its samples.
            DataError: it is incomplete, damaged or of a newer version.
        """
        check_local(dataset)
        manifest = Manifest.load(dataset)
        meant = Labels.of(manifest, load_tree(dataset, manifest), labels)
        counts = np.array([shard.samples for shard in manifest.shards], np.int64)
        kept = _choose_samples(dataset, manifest, meant, subset or Subset())
        return cls(str(dataset), manifest, meant, kept, counts if kept is None else count_kept(kept, counts))

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples if self.kept is None else len(self.kept)

    def order(self, seed: int, epoch: int, *, num_lanes: int, window: int, shuffle: bool) -> EpochOrder:
        """The order of one epoch of these samples."""
        return EpochOrder(self.counts, seed, epoch, num_lanes, window, shuffle, self.kept)

    def count_classes(self) -> np.ndarray:
        """int64 [C], how many of the samples that are served each class has.

        Raises:
            DataError: the file of the samples' classes is missing or damaged.
        """
        stored = _stored_classes(self.dataset, self.manifest)
        counts = np.bincount(
            stored if self.kept is None else stored[self.kept], minlength=self.manifest.num_classes
        )
        if (class_map := self.labels.class_map) is None:
            return counts
        result = np.zeros(self.labels.num_classes, np.int64)
        np.add.at(result, class_map[class_map >= 0], counts[class_map >= 0])
        return result


def _choose_samples(
    dataset: str | Path, manifest: Manifest, labels: Labels, subset: Subset
) -> np.ndarray | None:
    kept = kept_samples(
        labels.keep_class(subset.class_mask(labels.class_names)),
        lambda: _stored_classes(dataset, manifest),
        manifest.num_samples,
        fraction=subset.fraction,
        seed=subset.seed,
    )
    if kept is not None and not len(kept):
        raise UsageError(
            f"{dataset}: expected samples of the chosen classes, found none. Give labels or a subset with "
            "classes that have samples: softshard stats counts them"
        )
    return kept


def _stored_classes(dataset: str | Path, manifest: Manifest) -> np.ndarray:
    """int32 [samples of the data set], every sample's class in the data set."""
    check_sidecar(dataset, manifest)
    return load_sidecar(dataset, manifest)
