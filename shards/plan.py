"""The plan of a packing run: which files go to which shard, in which order. Pure but for the size estimate.

A plan depends on the listing, the options and the seed alone, so that any worker, on any machine and at any
time, makes the same shard; `plan.json` holds its fingerprint and the one number that was measured.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import DataError, UsageError
from .manifest import canonical_json, sha256_hex
from .philox import PURPOSE_PLAN, permutation
from .schema import KEY_STEM_LENGTH
from .sources import ClassFolder, Listing

VAL_SPLITS = ("hash", "lexical")
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class SplitPlan:
    """The samples of one split, in the order in which they are packed.

    Attributes:
        name: `train` or `val`.
        paths: N paths below the source's root, shuffled by the seed.
        classes: int32 [N], class indices.
        keys: N sample keys.
    """

    name: str
    paths: tuple[str, ...]
    classes: np.ndarray
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def shard_bounds(self, samples_per_shard: int) -> list[tuple[int, int]]:
        """Near-equal runs of at most `samples_per_shard` samples."""
        shards = -(-len(self) // samples_per_shard)
        return [(i * len(self) // shards, (i + 1) * len(self) // shards) for i in range(shards)]


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        class_names: the class list; class indices point into it.
        splits: the non-empty splits.
        dropped: (folder, images) of the folders left out, because they have fewer than `min_images` images or
            are not in the class list.
        without_images: names of the class list that have no folder or no image.
        sha256: fingerprint of all of it.
    """

    class_names: tuple[str, ...]
    splits: tuple[SplitPlan, ...]
    dropped: tuple[tuple[str, int], ...]
    without_images: tuple[str, ...]
    sha256: str

    @property
    def num_samples(self) -> int:
        return sum(len(split) for split in self.splits)


def make_plan(
    listing: Listing,
    *,
    class_names: Sequence[str] | None = None,
    min_images: int = 1,
    val_per_class: int = 0,
    val_split: str = "hash",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Choose classes, split and shuffle.

    Args:
        listing: the source.
        class_names: the class list, where it is given (its order fixes the indices, and folders that are not
            in it are dropped); by default the folders that are kept, in lexical order.
        min_images: folders with fewer images are dropped. Counted before the split, as published.
        val_per_class: images of each class that go to `val`.
        val_split: `hash`: the smallest SHA-256 of `class/file name` (independent of order and locale, a new
            file moves at most one); `lexical`: the first in lexical order, as the published script does.
        seed: of the global shuffle.
        options: whatever else decides the result (image recipe, tree); part of the fingerprint.

    Raises:
        DataError: no class is left, or a class would have no training image.
    """
    if val_split not in VAL_SPLITS:
        raise UsageError(f"val_split: expected one of {', '.join(VAL_SPLITS)}, found {val_split!r}")
    if min_images < 0 or val_per_class < 0:
        raise UsageError(
            f"expected min_images and val_per_class from 0, found {min_images} and {val_per_class}"
        )
    if listing.validation and val_per_class:
        raise UsageError(
            f"{listing.root}: expected no --val-per-class, because the source has a val folder, "
            f"found {val_per_class}"
        )
    listed = None if class_names is None else set(class_names)
    kept: list[ClassFolder] = []
    dropped: list[tuple[str, int]] = []
    for folder in listing.folders:
        few = len(folder.files) < max(min_images, 1)
        if few or (listed is not None and folder.name not in listed):
            dropped.append((folder.path, len(folder.files)))
        else:
            kept.append(folder)
    if not kept:
        raise DataError(
            f"{listing.root}: expected a class folder with at least {max(min_images, 1)} images"
            f"{'' if listed is None else ' that is in the class list'}, found none among {len(dropped)}: "
            f"{some([name for name, _ in dropped])}"
        )
    too_few = [folder.name for folder in kept if len(folder.files) <= val_per_class]
    if too_few and val_per_class:
        raise DataError(
            f"{listing.root}: expected more than {val_per_class} images in every class, so that some are "
            f"left for training, found {len(too_few)} classes with fewer: {some(too_few)}. Use a smaller "
            f"--val-per-class or --min-images {val_per_class + 1}"
        )
    names = tuple(class_names) if class_names is not None else tuple(folder.name for folder in kept)
    index = {name: i for i, name in enumerate(names)}
    kept_names = {folder.name for folder in kept}
    validation = [folder for folder in listing.validation if folder.name in kept_names]
    dropped += [
        (folder.path, len(folder.files)) for folder in listing.validation if folder.name not in kept_names
    ]
    ambiguous = _ambiguous_names([folder.name for folder in kept])
    parts: dict[str, tuple[list[str], list[int], list[str]]] = {"train": ([], [], []), "val": ([], [], [])}
    for split, folder in [("train", folder) for folder in kept] + [("val", folder) for folder in validation]:
        held_out = _validation_files(folder, val_per_class, val_split)
        keys = _sample_keys(folder, folder.name in ambiguous)
        for file, key in zip(folder.files, keys, strict=True):
            paths, classes, split_keys = parts["val" if file in held_out else split]
            paths.append(f"{folder.path}/{file}")
            classes.append(index[folder.name])
            split_keys.append(key)
    splits = []
    for number, (name, (paths, classes, split_keys)) in enumerate(parts.items()):
        if paths:
            order = permutation(seed, PURPOSE_PLAN, number, 0, len(paths))
            splits.append(
                SplitPlan(
                    name,
                    tuple(paths[i] for i in order),
                    np.array(classes, np.int32)[order],
                    tuple(split_keys[i] for i in order),
                )
            )
    digest = hashlib.sha256(canonical_json({"classes": names, "seed": seed, "options": dict(options or {})}))
    for split in splits:
        digest.update(canonical_json([split.name, len(split)]))
        for path, key in zip(split.paths, split.keys, strict=True):
            digest.update(_name_bytes(f"{path}\0{key}\n"))
    without = tuple(name for name in names if name not in kept_names)
    return Plan(names, tuple(splits), tuple(dropped), without, digest.hexdigest())


def some(names: Sequence[str], num: int = 5) -> str:
    """The first few names, for a message."""
    shown = ", ".join(repr(name) for name in names[:num])
    return shown if len(names) <= num else f"{shown} and {len(names) - num} more"


def _validation_files(folder: ClassFolder, num: int, how: str) -> set[str]:
    if how == "lexical":
        return set(folder.files[:num])
    ranked = sorted(folder.files, key=lambda file: _path_sha256(folder, file))
    return set(ranked[:num])


def _path_sha256(folder: ClassFolder, file: str) -> str:
    return sha256_hex(_name_bytes(f"{folder.name}/{file}"))


def _name_bytes(name: str) -> bytes:
    """A file name's bytes, which need not be UTF-8; not os.fsencode, which depends on the locale."""
    return name.encode("utf-8", "surrogateescape")


def _ambiguous_names(names: Sequence[str]) -> set[str]:
    """Class names that, joined to a file's stem, could give the key of another class's file."""
    # In lower case: some file systems and readers do not tell `A_x` from `a_x`.
    clean = [_NOT_IN_A_KEY.sub("-", name).lower() for name in names]
    counts = Counter(clean)
    known = set(clean)
    found = set()
    for name, spelling in zip(names, clean, strict=True):
        prefixes = (spelling[:i] for i, letter in enumerate(spelling) if letter == "_")
        if counts[spelling] > 1 or any(prefix in known for prefix in prefixes):
            found.add(name)
    return found


def _sample_keys(folder: ClassFolder, ambiguous: bool) -> list[str]:
    """`class_stem` of every file, and 8 hex digits of the path's hash where it was changed or not unique."""
    raw = []
    for file in folder.files:
        stem = file.rpartition(".")[0]
        # ImageNet's own names start with their class already.
        raw.append(stem if stem.startswith(f"{folder.name}_") else f"{folder.name}_{stem}")
    clean = [_NOT_IN_A_KEY.sub("-", name)[:KEY_STEM_LENGTH] for name in raw]
    # Some file systems and readers ignore case: keys that differ in nothing else count as one.
    counts = Counter(name.lower() for name in clean)
    keys = []
    for file, name, spelling in zip(folder.files, raw, clean, strict=True):
        if ambiguous or name != spelling or counts[spelling.lower()] > 1:
            spelling += "-" + _path_sha256(folder, file)[:8]
        keys.append(spelling)
    return keys
