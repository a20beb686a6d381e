"""The plan of a packing run: which files go to which shard, in which order. Pure but for the size estimate.

A plan depends on the listing, the options and the seed alone, so that any worker, on any machine and at any
time, makes the same shard; `plan.json` holds its fingerprint and the one number that was measured.

It is made of index arrays into the listing; paths, keys and places are looked up shard by shard. 14 million files
so take a few hundred megabytes, most of them the names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError, UsageError, check_choice
from .files import canonical_json
from .keys import ambiguous_names, repeated_keys, sample_key
from .listing import ClassFolder, Listing, Location
from .names import Names, name_bytes
from .philox import PURPOSE_PLAN, permutation
from .storage import public_name
from .text_limits import counted, some

VAL_SPLITS = ("hash", "lexical")


class PlannedSample(NamedTuple):
    """One sample to make.

    Attributes:
        key: its key in the shard.
        path: its path below the source, as the shard records it.
        class_index: its class.
        location: where its bytes are.
        metadata: a JSON object of what else the source says, or empty.
    """

    key: str
    path: str
    class_index: int
    location: Location
    metadata: str = ""


@dataclass(frozen=True, eq=False)
class PlannedFiles:
    """The files of a plan, numbered through from 0: those of the first folder, then those of the second.

    Attributes:
        folders: the kept folders.
        starts: int64 [F + 1], number of each folder's first file; the last is the number of files.
        indices: int32 [F], class index of each folder.
        ambiguous: bool [F], folders all of whose keys need a hash.
        repeated: int [R], ascending numbers of the files whose keys would not be unique.
    """

    folders: tuple[ClassFolder, ...]
    starts: np.ndarray
    indices: np.ndarray
    ambiguous: np.ndarray
    repeated: np.ndarray

    def folders_of(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [N]: the folder of each file."""
        return np.searchsorted(self.starts, numbers, "right") - 1

    def samples(self, numbers: np.ndarray) -> list[PlannedSample]:
        """The samples of these files, in this order."""
        places = self.folders_of(numbers)
        at = np.searchsorted(self.repeated, numbers)
        repeated = np.zeros(len(numbers), bool)
        inside = at < len(self.repeated)
        repeated[inside] = self.repeated[at[inside]] == numbers[inside]
        unique = ~(repeated | self.ambiguous[places])
        samples = []
        rows = zip(
            places.tolist(),
            (numbers - self.starts[places]).tolist(),
            self.indices[places].tolist(),
            unique.tolist(),
            strict=True,
        )
        for place, i, index, is_unique in rows:
            folder = self.folders[place]
            samples.append(
                PlannedSample(
                    sample_key(folder.name, folder.files[i], is_unique=is_unique),
                    public_name(folder.file_path(i)),
                    index,
                    folder.location(i),
                    folder.metadata[i] if folder.metadata is not None else "",
                )
            )
        return samples


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """The samples of one split, in the order in which they are packed.

    Attributes:
        name: `train` or `val`.
        numbers: int32 [N] (int64 beyond 2**31 files), places in `files`, shuffled by the seed.
        files: what they point into.
    """

    name: str
    numbers: np.ndarray
    files: PlannedFiles

    def __len__(self) -> int:
        return len(self.numbers)

    def samples(self, start: int = 0, stop: int | None = None) -> list[PlannedSample]:
        """The samples from `start` to `stop`."""
        return self.files.samples(self.numbers[start:stop])

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths: for small sets."""
        return tuple(sample.path for sample in self.samples())

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys: for small sets."""
        return tuple(sample.key for sample in self.samples())

    @property
    def classes(self) -> np.ndarray:
        """int32 [N], class indices."""
        return self.files.indices[self.files.folders_of(self.numbers)]

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
    class_of: Mapping[str, str] | None = None,
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
        class_of: the class that each folder's images become, where it is not called like it; folders that it does not
            have are dropped.
        min_images: folders with fewer images are dropped. Counted before the split, as published.
        val_per_class: images of each class that go to `val`.
        val_split: `hash`: the smallest SHA-256 of `class/file name` (independent of order and locale, a new
            file moves at most one); `lexical`: the first in lexical order, as the published script does.
        seed: of the global shuffle.
        options: whatever else decides the result (image recipe, tree); part of the fingerprint.

    Raises:
        DataError: no class is left, or a class would have no training image.
    """
    check_choice("val_split", val_split, VAL_SPLITS)
    if min_images < 0 or val_per_class < 0:
        raise UsageError(
            f"expected min_images and val_per_class from 0, found {min_images} and {val_per_class}"
        )
    if listing.validation and val_per_class:
        raise UsageError(
            f"{listing.root}: expected no --val-per-class, because the source has a val folder, "
            f"found {val_per_class}"
        )
    listed = set(class_of) if class_of is not None else None if class_names is None else set(class_names)
    kept, dropped = _kept_folders(listing, listed, max(min_images, 1))
    too_few = [folder.name for folder in kept if len(folder.files) <= val_per_class]
    if too_few and val_per_class:
        raise DataError(
            f"{listing.root}: expected more than {counted(val_per_class, 'image')} in every class, so that some are "
            f"left for training, found {counted(len(too_few), 'class')} with fewer: {some(too_few)}. Use a smaller "
            f"--val-per-class or --min-images {val_per_class + 1}"
        )
    names = tuple(class_names) if class_names is not None else tuple(folder.name for folder in kept)
    index = {name: i for i, name in enumerate(names)}
    kept_names = {folder.name for folder in kept}
    validation = [folder for folder in listing.validation if folder.name in kept_names]
    dropped += [
        (_shown(folder), len(folder.files)) for folder in listing.validation if folder.name not in kept_names
    ]
    folders = (*kept, *validation)
    becomes = {folder.name: class_of[folder.name] if class_of is not None else folder.name for folder in kept}
    indices = np.array([index[becomes[folder.name]] for folder in folders], np.int32)
    files = _planned_files(folders, indices, kept_names)
    held_out = np.zeros(files.starts[-1], bool)
    held_out[files.starts[len(kept)] :] = True
    for folder, start in zip(kept, files.starts.tolist(), strict=False):
        held_out[start + _validation_places(folder, val_per_class, val_split)] = True
    splits = []
    number_type = np.int32 if len(held_out) < 2**31 else np.int64
    for number, (name, chosen) in enumerate((("train", ~held_out), ("val", held_out))):
        members = np.flatnonzero(chosen).astype(number_type)
        if len(members):
            order = permutation(seed, PURPOSE_PLAN, number, 0, len(members))
            splits.append(SplitPlan(name, members[order], files))
    settings = {"min_images": min_images, "val_per_class": val_per_class, "val_split": val_split}
    digest = hashlib.sha256(
        canonical_json({"classes": names, "seed": seed, "options": dict(options or {}), **settings})
    )
    # All else follows from the names: not where they lie, so that a run may go on from another copy.
    for which, folder in [("train", folder) for folder in kept] + [("val", folder) for folder in validation]:
        digest.update(canonical_json([which, folder.name, folder.path, folder.metadata is not None]))
        assert isinstance(folder.files, Names)
        folder.files.update(digest)
        if folder.metadata is not None:
            folder.metadata.update(digest)
    filled = set(becomes.values())
    without = tuple(name for name in names if name not in filled)
    return Plan(names, tuple(splits), tuple(dropped), without, digest.hexdigest())


def _kept_folders(
    listing: Listing, listed: set[str] | None, fewest: int
) -> tuple[list[ClassFolder], list[tuple[str, int]]]:
    """The folders of classes in a list (None: of any class) with enough images, and (folder, images) of the others."""
    kept: list[ClassFolder] = []
    dropped: list[tuple[str, int]] = []
    for folder in listing.folders:
        few = len(folder.files) < fewest
        if few or (listed is not None and folder.name not in listed):
            dropped.append((_shown(folder), len(folder.files)))
        else:
            kept.append(folder)
    if not kept:
        raise DataError(
            f"{listing.root}: expected a class folder with at least {counted(fewest, 'image')}"
            f"{'' if listed is None else ' that is in the class list'}, found none among {len(dropped)}: "
            f"{some([name for name, _ in dropped])}{_numbered_hint(listing, listed)}"
        )
    return kept, dropped


def check_shard_size(shard_bytes: int, shard_samples: int | None) -> None:
    """Refuse shards that nothing fits into.

    Raises:
        UsageError: less than one byte or sample.
    """
    if shard_bytes < 1 or (shard_samples is not None and shard_samples < 1):
        raise UsageError(
            f"expected a shard of at least one byte or sample, found shard_bytes={shard_bytes}, "
            f"shard_samples={shard_samples}"
        )


def _numbered_hint(listing: Listing, listed: set[str] | None) -> str:
    """Where folders are called 0, 1, ..., as in ImageNetV2, what that most likely means."""
    numbered = all(folder.name.isascii() and folder.name.isdigit() for folder in listing.folders)
    return "" if listed is None or not numbered else ". If they are places in the class list: --folders index"


def _shown(folder: ClassFolder) -> str:
    return folder.path if folder.path.endswith(folder.name) else folder.name


def _planned_files(folders: tuple[ClassFolder, ...], indices: np.ndarray, names: set[str]) -> PlannedFiles:
    starts = np.cumsum([0, *(len(folder.files) for folder in folders)], dtype=np.int64)
    ambiguous_classes = ambiguous_names(sorted(names))
    ambiguous = np.array([folder.name in ambiguous_classes for folder in folders], bool)
    repeated = [
        repeated_keys(folder.name, folder.files) + start
        for folder, start in zip(folders, starts.tolist(), strict=False)
        if isinstance(folder.files, Names)
    ]
    return PlannedFiles(
        folders, starts, indices, ambiguous, np.concatenate([*repeated, np.empty(0, np.int64)])
    )


def _validation_places(folder: ClassFolder, num: int, how: str) -> np.ndarray:
    """Places of the files of a class that are held out."""
    if num == 0 or how == "lexical":
        return np.arange(min(num, len(folder.files)))
    assert isinstance(folder.files, Names)
    sha256 = hashlib.sha256(name_bytes(f"{folder.name}/"))
    digests = []
    for name in folder.files.each_bytes():
        digest = sha256.copy()
        digest.update(name)
        digests.append(digest.digest())
    return np.array(sorted(range(len(digests)), key=digests.__getitem__)[:num])
