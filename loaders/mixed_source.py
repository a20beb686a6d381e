"""Several data sets that a loader reads as one, with what the loader asks of a single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..shards.errors import UsageError
from ..shards.files import canonical_json, sha256_hex
from ..shards.manifest import Manifest
from .cache import Cache
from .labels import Labels, LabelSource
from .mixture import MixedOrder, MixedPart, Mixture, check_passes
from .source import Source
from .subset import Subset


@dataclass(frozen=True, eq=False)
class MixedSource:
    """A mixture that is open.

    Attributes:
        mixture: data sets and their shares.
        parts: the data sets.
    """

    mixture: Mixture
    parts: tuple[Source, ...]

    @classmethod
    def open(
        cls,
        mixture: Mixture,
        labels: LabelSource | None,
        subset: Subset | None,
        balance: float | None,
        num_lanes: int,
        cache: Cache | None = None,
    ) -> MixedSource:
        """Open every data set; labels, subset and balance hold for each.

        Raises:
            UsageError: see `Source.open` and `check_passes`; the data sets' labels differ, both are named.
            DataError: a data set is incomplete, damaged or of a newer version.
        """
        if subset is not None and subset.keys is not None:
            raise UsageError(
                "mixture: expected a subset by classes or fraction, which holds for every data set, found keys. "
                "Choose by keys from a single data set"
            )
        parts = tuple(Source.open(folder, labels, subset, balance, cache) for folder in mixture.weights)
        for part in parts[1:]:
            _check_same_labels(parts[0], part)
        opened = cls(mixture, parts)
        check_passes(
            dict(zip(map(str, mixture.weights), mixture.shares, strict=True)),
            [part.num_samples for part in parts],
            [part.most_draws for part in parts],
            opened.num_samples,
            num_lanes,
        )
        return opened

    @property
    def dataset(self) -> str:
        """The folders, for messages."""
        return " + ".join(part.dataset for part in self.parts)

    @property
    def labels(self) -> Labels:
        return self.parts[0].labels

    @property
    def manifest(self) -> Manifest:
        """Of the first data set."""
        return self.parts[0].manifest

    @property
    def num_samples(self) -> int:
        """Draws of an epoch."""
        return self.mixture.epoch_samples or sum(part.num_samples for part in self.parts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the data sets' fingerprints."""
        return sha256_hex(canonical_json([part.fingerprint for part in self.parts]))

    def labels_fingerprint(self) -> str | None:
        """Over what each data set is read with; None where it is all their own."""
        found = [part.labels_fingerprint() for part in self.parts]
        return sha256_hex(canonical_json(found)) if any(found) else None

    def mixture_state(self) -> dict[str, Any]:
        """What a loader's state says of the mixture."""
        return {"shares": list(self.mixture.shares), "epoch_samples": self.num_samples}

    def order(self, seed: int, epoch: int, *, num_lanes: int, window: int, shuffle: bool) -> MixedOrder:
        """The order of one epoch."""
        mixed, first_shard, first_sample = [], 0, 0
        for part, share in zip(self.parts, self.mixture.shares, strict=True):

            def make_order(
                turn: int, part: Source = part, shard: int = first_shard, sample: int = first_sample
            ):
                return part.order(
                    seed,
                    epoch,
                    num_lanes=num_lanes,
                    window=window,
                    shuffle=shuffle,
                    turn=turn,
                    first_shard=shard,
                    first_position=sample,
                )

            mixed.append(MixedPart(share, first_sample, part.most_draws, make_order))
            first_shard += len(part.manifest.shards)
            first_sample += part.manifest.num_samples
        return MixedOrder(mixed, self.num_samples, num_lanes)

    def count_classes(self) -> np.ndarray:
        """int64 [C], the draws that each class has in an epoch on average, rounded.

        Raises:
            DataError: a file of the samples' classes is missing or damaged.
        """
        means = [
            share * self.num_samples * part.count_classes() / part.num_samples
            for part, share in zip(self.parts, self.mixture.shares, strict=True)
        ]
        return np.rint(np.sum(means, axis=0)).astype(np.int64)


def open_source(
    dataset: str | Path | Mixture,
    labels: LabelSource | None,
    subset: Subset | None,
    balance: float | None,
    num_lanes: int,
    cache: Cache | None = None,
) -> Source | MixedSource:
    """Open what a loader is given: a data set, or a mixture of several; the arguments and errors are theirs."""
    if isinstance(dataset, Mixture):
        return MixedSource.open(dataset, labels, subset, balance, num_lanes, cache)
    return Source.open(dataset, labels, subset, balance, cache)


def _check_same_labels(one: Source, other: Source) -> None:
    """Refuse data sets whose classes or levels would mean different things in one batch.

    Raises:
        UsageError: naming both, and where they part.
    """
    hint = "Give labels= that both are read with"
    names = one.labels.class_names, other.labels.class_names
    if names[0] != names[1]:
        raise UsageError(
            f"mixture: expected the same classes in {one.dataset} and {other.dataset}, found "
            f"{_first_difference(*names)}. {hint}"
        )
    trees = [None if part.labels.tree is None else part.labels.tree.fingerprint for part in (one, other)]
    if trees[0] != trees[1]:
        found = ["none" if tree is None else tree[:12] for tree in trees]
        raise UsageError(
            f"mixture: expected the same label tree in {one.dataset} and {other.dataset}, found {found[0]} and "
            f"{found[1]}. {hint}"
        )


def _first_difference(names: Sequence[str], others: Sequence[str]) -> str:
    for i, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            return f"class {i} {name!r} and {other!r}"
    return f"{len(names):,} classes and {len(others):,}"
