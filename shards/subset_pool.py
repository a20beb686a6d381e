"""What a subset is chosen from: classes, with how many images each has where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .classes import KNOWN_LISTS, class_list_sha256, load_class_list
from .manifest import Manifest, load_tree, sample_classes
from .schema import MANIFEST_NAME
from .shard_files import dataset_path
from .sources import open_source
from .storage import is_remote, public_name
from .subset_file import ClassGroup
from .tree import LabelTree

_LIST_SUFFIXES = (".txt", ".csv", ".list")


@dataclass(frozen=True, eq=False)
class Pool:
    """Classes to choose from.

    Attributes:
        name: of the data set or class list.
        names: the classes; of a data set or folder those with images.
        all_names: the whole class list, with classes that have none.
        counts: int64 [C], images of each of `names`; None of a bare class list.
        tree: the data set's label tree, or None.
        fingerprint: of the data set, or None.
    """

    name: str
    names: tuple[str, ...]
    all_names: tuple[str, ...]
    counts: np.ndarray | None = None
    tree: LabelTree | None = None
    fingerprint: str | None = None

    @classmethod
    def open(cls, source: str | Path) -> Pool:
        """Read a class list, a folder of class folders, or a data set (of a folder with `train`, that).

        Raises:
            UsageError: there is no such thing.
            DataError: it is damaged.
        """
        text = str(source)
        if text in KNOWN_LISTS or (is_remote(text) and text.lower().endswith(_LIST_SUFFIXES)):
            names = load_class_list(text)
            return cls(public_name(text), names, names)
        found = training_set(text)
        if found is None and Path(text).is_dir():
            return cls._of_folder(Path(text))
        if found is None:
            names = load_class_list(text)
            return cls(Path(text).name, names, names)
        dataset = dataset_path(found)
        manifest = Manifest.load(dataset)
        counts = np.bincount(sample_classes(dataset, manifest), minlength=manifest.num_classes)
        filled = np.flatnonzero(counts)
        return cls(
            name=manifest.name,
            names=tuple(manifest.class_names[i] for i in filled.tolist()),
            all_names=manifest.class_names,
            counts=counts[filled],
            tree=load_tree(dataset, manifest),
            fingerprint=manifest.fingerprint,
        )

    @classmethod
    def _of_folder(cls, folder: Path) -> Pool:
        listing = open_source(folder)
        sizes = {entry.name: len(entry.files) for entry in listing.folders if len(entry.files)}
        names = listing.class_names or tuple(sizes)
        filled = tuple(name for name in names if name in sizes)
        return cls(folder.name, filled, tuple(names), np.array([sizes[name] for name in filled], np.int64))

    def source(self) -> dict[str, Any]:
        """What a subset says it was chosen from."""
        return {
            "name": self.name,
            "classes_sha256": class_list_sha256(self.all_names),
            "fingerprint": self.fingerprint,
        }

    def group_counts(self, groups: Sequence[ClassGroup]) -> np.ndarray | None:
        """int64 [N], images of each group; None where they were not counted."""
        if self.counts is None:
            return None
        images = dict(zip(self.names, self.counts.tolist(), strict=True))
        return np.array([sum(images[member] for member in group.members) for group in groups], np.int64)


def training_set(source: str | Path) -> str | Path | None:
    """The data set that a folder is or has as `train`; None where it is a local folder or file of another kind."""
    if is_remote(source):
        return source
    folders = (Path(source), Path(source, "train"))
    return next((folder for folder in folders if (folder / MANIFEST_NAME).exists()), None)
