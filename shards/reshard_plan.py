"""What a reshard is about to do: its options, whether the data sets fit together, which samples go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .destination import Destination
from .errors import DataError, UsageError
from .gather import SampleTable, alike, key_hashes
from .manifest import Manifest
from .plan import check_shard_size
from .schema import COMPONENT_BY_SUFFIX, DEFAULT_SHARD_BYTES, HIER, KD, LMAP, SOFT, TAR_BLOCK_BYTES
from .shard_files import dataset_name
from .stored_vocabulary import Vocabulary
from .subset_file import SubsetFile
from .text_limits import counted, some
from .tree import LabelTree

_MOST_SUSPECTS = 1000  # samples whose keys are read to name them


@dataclass(frozen=True)
class ReshardOptions:
    """What to change.

    Attributes:
        shard_bytes: wanted size of a shard.
        shard_samples: samples of a shard instead.
        classes: names of the classes whose samples are kept, or None for all. The class list stays whole
            and every index as it is: `cls`, label vectors and label maps all count in the data set's own
            list, models trained on the whole set can be evaluated on the part, and parts can be merged again.
        subset: file of `softshard subset`: its images and classes are kept, and the classes become the class list:
            `cls` and `hier.npy` are written anew, and label maps, which are over the old classes, must be dropped.
        drop: components to leave out.
        tree: label tree whose hierarchical label vectors are added to the samples, or take the place of theirs.
        label_maps: folder of label maps that are added, or take the place of the samples' own; laid out as for
            `pack`, by the images' original paths.
        tags: list (`.jsonl`) whose column `tags` is added, or takes the place of the samples' tags; needs a vocabulary.
        vocabulary: of the tags.
        weights: list whose column `weights` is added, or takes the place of the samples' class weights.
        shuffle: seed of a new global order, or None to keep the order.
        name: of the result and its shards; by default the sources' where they share one, else the
            destination folder's.
    """

    shard_bytes: int = DEFAULT_SHARD_BYTES
    shard_samples: int | None = None
    classes: Sequence[str] | None = None
    subset: SubsetFile | None = None
    drop: Sequence[str] = ()
    tree: LabelTree | None = None
    label_maps: Path | None = None
    tags: Path | None = None
    vocabulary: Vocabulary | None = None
    weights: Path | None = None
    shuffle: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        check_shard_size(self.shard_bytes, self.shard_samples)
        for suffix in self.drop:
            known = COMPONENT_BY_SUFFIX.get(suffix)
            if known and known.required:
                raise UsageError(
                    f"drop: expected an optional component, found {suffix!r}, which all sets have"
                )
        added = (HIER.suffix, self.tree), (LMAP.suffix, self.label_maps)
        for suffix in (suffix for suffix, value in added if value is not None and suffix in self.drop):
            raise UsageError(f"expected {suffix!r} to be added or dropped, found both")
        added_labels = (self.classes, self.tree, self.label_maps, self.tags, self.weights)
        if self.subset is not None and any(value is not None for value in added_labels):
            raise UsageError(
                "reshard: expected a subset by itself, since it brings its own class list, found it beside classes, a "
                "tree, label maps, tags or weights. Write the subset, then add these to it"
            )
        if (self.tags is None) != (self.vocabulary is None):
            raise UsageError("expected tags and their vocabulary together, found one of them. Give both")
        if self.shuffle is not None and not 0 <= self.shuffle < 2**64:
            raise UsageError(f"shuffle: expected a seed from 0 to 2**64 - 1, found {self.shuffle}")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Components of the sources that are not copied: dropped, or replaced."""
        has_tree = self.tree is not None or self.subset is not None
        replaced = [HIER.suffix] * has_tree + [LMAP.suffix] * (self.label_maps is not None)
        return (*self.drop, *replaced)

    def to_json(self) -> dict[str, Any]:
        """What is done, but for what is added: that is told by its fingerprint."""
        return {
            "shard_bytes": self.shard_bytes if self.shard_samples is None else None,
            "shard_samples": self.shard_samples,
            "classes": None if self.classes is None else list(self.classes),
            "drop": sorted(set(self.drop)),
            "shuffle": self.shuffle,
            # Not where there is none, so that plans made before it was thought of stay the same.
            **({} if self.subset is None else {"subset": self.subset.record()}),
        }


def check_fit(sources: Sequence[tuple[str | Path, Manifest]], options: ReshardOptions) -> None:
    """Refuse data sets that cannot be one, with everything that differs from the first."""
    if not sources:
        raise UsageError("expected a data set, found none")
    first_folder, first = sources[0]
    problems = [
        f"{dataset_name(folder)}: expected a component {suffix!r} to drop, found {', '.join(manifest.components)}"
        for folder, manifest in sources
        for suffix in options.drop
        if suffix not in manifest.components
    ]
    if options.subset is not None:
        problems += [
            f"{dataset_name(folder)}: expected no component {suffix!r}, which is over the old classes and not over those "
            f"of the subset. Add: --drop {suffix}; or read the data set through the subset, without copying it"
            for folder, manifest in sources
            for suffix in (LMAP.suffix, KD.suffix)
            if suffix in manifest.components and suffix not in options.drop
        ]
    # A stored teacher says something of the levels of its tree, and nothing without it.
    new_tree = None if options.tree is None else options.tree.fingerprint
    if options.subset is None and KD.suffix not in options.drop and HIER.suffix in options.left_out:
        problems += [
            f"{dataset_name(folder)}: expected the tree {(manifest.tree_sha256 or 'none')[:12]}, whose levels its "
            f"component 'kd' is about, found {(new_tree or 'none')[:12]} for the result. Add: --drop kd"
            for folder, manifest in sources
            if KD.suffix in manifest.components and manifest.tree_sha256 != new_tree
        ]
    same: list[tuple[str, Any]] = [
        ("the class list", lambda manifest: manifest.classes_sha256[:12]),
        ("components", lambda manifest: sorted(set(manifest.components) - set(options.left_out))),
    ]
    # Label vectors are all that the tree says of a sample: without them, samples of two trees may be mixed.
    if HIER.suffix not in options.left_out or options.subset is not None:
        same.append(("the label tree", lambda manifest: (manifest.tree_sha256 or "none")[:12]))
    if LMAP.suffix not in options.left_out:
        same.append(("label maps", lambda manifest: manifest.label_maps and vars(manifest.label_maps)))
    if KD.suffix not in options.left_out:
        same.append(("the stored teacher", lambda manifest: manifest.teacher and manifest.teacher.to_json()))
    if options.tags is None:
        same.append(("the tags' vocabulary", lambda manifest: (manifest.vocabulary_sha256 or "none")[:12]))
    replaced = ["weights"] * (options.weights is not None) + ["pseudo"] * (SOFT.suffix in options.drop)
    same.append(("weights and pseudo labels", lambda manifest: _soft_kinds(manifest, replaced)))
    for folder, manifest in sources[1:]:
        problems += [
            f"{dataset_name(folder)}: expected {what} {value(first)} of {dataset_name(first_folder)}, found "
            f"{value(manifest)}"
            for what, value in same
            if value(manifest) != value(first)
        ]
    if problems:
        raise DataError("\n".join(problems))


def _soft_kinds(manifest: Manifest, replaced: Sequence[str]) -> str:
    """Which class weights and pseudo labels samples have that stay, however they were made."""
    found = {} if manifest.soft_labels is None else manifest.soft_labels.to_json()
    return (
        " and ".join(kind for kind in ("weights", "pseudo") if kind in found and kind not in replaced)
        or "none"
    )


def kept_samples(manifest: Manifest, classes: np.ndarray, options: ReshardOptions) -> np.ndarray:
    """int64 numbers of the samples whose class is kept."""
    if options.subset is not None:
        kept = np.flatnonzero(options.subset.relabelling(manifest.class_names).class_map[classes] >= 0)
        if not len(kept):
            raise DataError(f"{manifest.name}: expected samples of the subset's classes, found none")
        return kept
    if options.classes is None:
        return np.arange(len(classes))
    index = {name: i for i, name in enumerate(manifest.class_names)}
    unknown = [name for name in options.classes if name not in index]
    if unknown:
        raise DataError(
            f"classes to keep: expected names of the class list {manifest.classes_sha256[:12]}, found "
            f"{counted(len(unknown), 'other')}: {some(unknown)}"
        )
    wanted = np.zeros(manifest.num_classes, bool)
    wanted[[index[name] for name in options.classes]] = True
    kept = np.flatnonzero(wanted[classes])
    if not len(kept):
        raise DataError(f"{manifest.name}: expected samples of the classes to keep, found none")
    return kept


def with_keys(table: SampleTable, kept: np.ndarray, keys: Sequence[str] | None) -> np.ndarray:
    """Of the kept samples those with these keys; all where it is None.

    Raises:
        DataError: keys of none of them; the first are named.
    """
    if keys is None:
        return kept
    hashes = key_hashes(keys)
    found = np.isin(hashes, table.key_hashes[kept])
    if not found.all():
        missing = [key for key, there in zip(keys, found.tolist(), strict=True) if not there]
        raise DataError(
            f"subset: expected keys of the data sets' {len(kept):,} samples of its classes, found {len(missing):,} of "
            f"{len(keys):,} that they do not have: {some(missing)}; it was chosen from another data set"
        )
    return kept[np.isin(table.key_hashes[kept], hashes)]


def check_keys(table: SampleTable, kept: np.ndarray) -> None:
    """Refuse samples that share a key; hashes are compared first, so that no more keys are in memory."""
    again = kept[alike(table.key_hashes[kept])]
    if not len(again):
        return
    suspects = again[:_MOST_SUSPECTS]
    places: dict[str, list[str]] = {}
    for number, sample in zip(
        suspects.tolist(), table.read(suspects, tuple(COMPONENT_BY_SUFFIX)), strict=True
    ):
        places.setdefault(sample.key, []).append(table.shards[table.shard_of(number)].where)
    clashes = sorted(f"{key!r} in {' and '.join(where)}" for key, where in places.items() if len(where) > 1)
    if clashes:  # and not two keys of one hash
        num_again = len(again) - len(np.unique(table.key_hashes[again]))
        raise DataError(
            f"expected each key once, found {num_again} again: {some(clashes, 20, str)}; the "
            "data sets share samples, or were packed from folders with the same names. Leave one out, or pack "
            "their sources together"
        )


def shard_bounds(sample_bytes: np.ndarray, options: ReshardOptions) -> list[tuple[int, int]]:
    """(first, past the last) sample of each shard: near-equal bytes, or near-equal counts."""
    num = len(sample_bytes)
    if options.shard_samples is not None:
        shards = -(-num // options.shard_samples)
        cuts = [i * num // shards for i in range(shards + 1)]
    else:
        ends = np.cumsum(sample_bytes)
        total = int(ends[-1])
        room = max(1, options.shard_bytes - 2 * TAR_BLOCK_BYTES)
        shards = min(num, -(-total // room))
        cuts = [0, *(int(np.searchsorted(ends, i * total // shards)) for i in range(1, shards)), num]
    # A sample larger than a shard leaves its neighbours without any.
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop]


def result_name(manifests: Sequence[Manifest], destination: Destination, options: ReshardOptions) -> str:
    names = {manifest.name for manifest in manifests}
    name = options.name or (names.pop() if len(names) == 1 else destination.base)
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"name: expected a file name, found {name!r}")
    return name
