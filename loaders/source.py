"""A data set that a loader reads: its manifest, the labels it is read with, and which of its samples are served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.stored_vocabulary import Vocabulary
from .balance import Balance
from .cache import Cache
from .data_set import DataSet, open_data_set
from .fetch import Shards
from .find_keys import find_keys
from .labels import Labels, LabelSource
from .order import EpochOrder, count_drawn, count_kept
from .subset import Subset, kept_samples


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader reads.

    Attributes:
        dataset: its name, for messages.
        manifest: its manifest.
        shards: its bytes.
        load_classes: reads int32 [samples], every sample's class in the data set.
        labels: what its classes and levels mean.
        kept: int64 [N], the samples that labels and subset leave, ascending; None where that is all of them.
        balance: how often each is drawn in an epoch; None where each is once.
        shard_counts: int64 [S], samples of each shard.
        load_vocabulary: reads what tags mean; None where samples have none.
    """

    dataset: str
    manifest: Manifest
    shards: Shards
    load_classes: Callable[[], np.ndarray]
    labels: Labels
    kept: np.ndarray | None
    balance: Balance | None
    shard_counts: np.ndarray
    load_vocabulary: Callable[[], Vocabulary | None] = lambda: None

    @classmethod
    def open(
        cls,
        dataset: str | Path,
        labels: LabelSource | None = None,
        subset: Subset | None = None,
        balance: float | None = None,
        cache: Cache | None = None,
    ) -> Source:
        """Read a data set's manifest and tree, and choose its samples.

        Args:
            dataset: folder or URL of a data set, or somebody else's tars; see `open_data_set`.
            labels: as the loader's.
            subset: as the loader's.
            balance: exponent of class-balanced sampling, or None.
            cache: where remote shards are kept.

        Raises:
            UsageError: labels, a subset or a balance that do not fit the data set, or leave none of its samples.
            DataError: it is incomplete, damaged or of a newer version.
        """
        opened = open_data_set(dataset, cache)
        manifest = opened.manifest
        meant = Labels.of(manifest, opened.tree, labels)
        kept = _choose_samples(dataset, opened, meant, subset or Subset())
        draws = None
        if balance is not None:
            draws = Balance(_classes(opened.load_classes, meant, kept), meant.num_classes, balance)
        counts = np.array([shard.samples for shard in manifest.shards], np.int64)
        words = opened.load_vocabulary
        return cls(
            opened.name, manifest, opened.shards, opened.load_classes, meant, kept, draws, counts, words
        )

    @property
    def num_samples(self) -> int:
        """Draws of an epoch, as many as samples are served."""
        return self.manifest.num_samples if self.kept is None else len(self.kept)

    @property
    def parts(self) -> tuple[Source, ...]:
        """The data sets that are read: this one."""
        return (self,)

    @property
    def most_draws(self) -> int:
        """How often an epoch draws a sample at most."""
        return 1 if self.balance is None else self.balance.most_draws

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the data set gives, whatever the labels."""
        return self.manifest.fingerprint

    def labels_fingerprint(self) -> str | None:
        """Of the labels it is read with; None where they are its own."""
        return self.labels.fingerprint

    def mixture_state(self) -> None:
        """What a loader's state says of the mixture: there is none."""

    def order(
        self,
        seed: int,
        epoch: int,
        *,
        num_lanes: int,
        window: int,
        shuffle: bool,
        turn: int = 0,
        first_shard: int = 0,
        first_position: int = 0,
    ) -> EpochOrder:
        """The order of one epoch of these samples.

        It takes milliseconds, whatever the size; balanced, for 14 million samples 60 of them, and 110 MB.
        """
        counts = self.shard_counts if self.kept is None else self._kept_counts
        ends = None
        if self.balance is not None:
            ends = self.balance.ends(seed, epoch + turn)
            counts = count_drawn(ends, counts)
        return EpochOrder(
            counts,
            seed,
            epoch,
            num_lanes,
            window,
            shuffle,
            self.kept,
            turn,
            first_shard,
            first_position,
            ends,
        )

    @cached_property
    def _kept_counts(self) -> np.ndarray:
        """int64 [S], served samples of each shard."""
        assert self.kept is not None
        return count_kept(self.kept, self.shard_counts)

    def count_classes(self) -> np.ndarray:
        """int64 [C], the draws of each class in an epoch.

        Raises:
            DataError: the file of the samples' classes is missing or damaged.
        """
        if self.balance is not None:
            return self.balance.class_draws
        classes = _classes(self.load_classes, self.labels, self.kept)
        return np.bincount(classes, minlength=self.labels.num_classes)


def _choose_samples(
    dataset: str | Path, opened: DataSet, labels: Labels, subset: Subset
) -> np.ndarray | None:
    manifest = opened.manifest
    kept = kept_samples(
        labels.keep_class(subset.class_mask(labels.class_names)),
        opened.load_classes,
        manifest.num_samples,
        chosen=None if subset.key_set is None else find_keys(dataset, manifest, subset.key_set),
        fraction=subset.fraction,
        seed=subset.seed,
    )
    if kept is not None and not len(kept):
        raise UsageError(
            f"{opened.name}: expected samples of the chosen classes and keys, found none. Give labels or a subset "
            "with classes that have samples: softshard stats counts them"
        )
    return kept


def _classes(load_classes: Callable[[], np.ndarray], labels: Labels, kept: np.ndarray | None) -> np.ndarray:
    """int32 [N], the class that each of the served samples is read with."""
    stored = load_classes()
    stored = stored if kept is None else stored[kept]
    return stored if labels.class_map is None else labels.class_map.astype(np.int32)[stored]
