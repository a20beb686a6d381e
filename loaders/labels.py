"""What a loader's classes and levels mean: the data set's own labels, or others that it is read with.

`shards/relabel.py` says what becomes of each class; nothing is rewritten. C_old classes of the data set, C of the
loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..shards.classes import load_class_list
from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.relabel import Relabelling, relabel
from ..shards.storage import public_name
from ..shards.subset_file import SubsetFile, is_subset_file
from ..shards.tree import LabelTree
from .target_modes import LabelPooling

LabelSource = LabelTree | Relabelling | SubsetFile | Sequence[str]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a loader.

    Attributes:
        class_names: C names.
        tree: over these classes, or None.
        relabelling: how they follow from the data set's; None where they are the data set's own.
    """

    class_names: tuple[str, ...]
    tree: LabelTree | None
    relabelling: Relabelling | None = None

    @classmethod
    def of(cls, manifest: Manifest, tree: LabelTree | None, labels: LabelSource | None = None) -> Labels:
        """Those of a data set, or others that it is read with.

        Args:
            manifest: of the data set.
            tree: the data set's own, or None.
            labels: a tree, class names (a subset or another order), a Relabelling, the classes of a SubsetFile, or
                None. What says the same as the data set's own labels is treated as these.

        Raises:
            UsageError: something else; none of the classes; a relabelling of another class list.
            DataError: see `relabel`.
        """
        own = cls(manifest.class_names, tree)
        if labels is None:
            return own
        if isinstance(labels, Relabelling):
            relabelling = labels
            _check_old_classes(manifest, relabelling)
        elif isinstance(labels, SubsetFile):
            relabelling = labels.relabelling(manifest.class_names, tree)
        elif isinstance(labels, LabelTree) or _are_names(labels):
            relabelling = relabel(manifest.class_names, labels, old_tree=tree)
        else:
            raise UsageError(
                f"loader: expected labels as a LabelTree, class names or a Relabelling, found {labels!r:.80}. "
                "A file is read with LabelTree.load"
            )
        if relabelling.class_names == own.class_names and relabelling.is_identity:
            trees = [None if each is None else each.fingerprint for each in (tree, relabelling.tree)]
            if trees[0] == trees[1]:
                return own
        return cls(relabelling.class_names, relabelling.tree, relabelling)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def level_shape(self) -> tuple[int, ...]:
        """(L,), the shape of a class's label vectors; (A, L) where classes have several parents; (0,) without a tree."""
        return (0,) if self.tree is None else self.tree.vectors().shape[1:]

    @property
    def fingerprint(self) -> str | None:
        """Of the relabelling; None where the labels are the data set's own."""
        return None if self.relabelling is None else self.relabelling.fingerprint

    @property
    def class_map(self) -> np.ndarray | None:
        """integer [C_old], the new index of each of the data set's classes, -1 where its samples are left out.

        None where every class keeps its index.
        """
        return (
            None if self.relabelling is None or self.relabelling.is_identity else self.relabelling.class_map
        )

    def keep_class(self, mask: np.ndarray) -> np.ndarray:
        """Which of the data set's classes are served.

        Args:
            mask: bool [C], which of the loader's classes are.

        Returns:
            bool [C_old].
        """
        return mask if self.class_map is None else (self.class_map >= 0) & mask[self.class_map]

    def pooling(self, pooling: LabelPooling) -> LabelPooling:
        """How label maps over the data set's classes, or over others that `pooling` takes to them, are pooled."""
        if self.class_map is None:
            return pooling
        if pooling.class_map is None:
            return replace(pooling, class_map=self.class_map)
        first = np.asarray(pooling.class_map)
        if first.max() >= len(self.class_map):
            raise UsageError(
                f"label pooling: expected a class map to the data set's classes, below {len(self.class_map)}, which "
                f"`labels` then takes to its own, found {first.max()}"
            )
        return replace(pooling, class_map=np.where(first < 0, -1, self.class_map[first]))


def load_labels(labels: str | Path | LabelSource | None) -> LabelSource | None:
    """What a loader reads a data set with, from a file or a name; anything else comes back as it is.

    Args:
        labels: a label tree or the file of a subset, for its classes (a file or URL that ends in `.json`); or a class
            list as `load_class_list` takes it.

    Raises:
        UsageError: there is no such file or list.
        DataError: it is no label tree, or no class list.
    """
    if not isinstance(labels, str | Path):
        return labels
    if PurePosixPath(public_name(str(labels))).suffix == ".json":
        return SubsetFile.load(labels) if is_subset_file(labels) else LabelTree.load(labels)
    return load_class_list(labels)


def _are_names(labels: object) -> bool:
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str | bytes)
        and all(isinstance(name, str) for name in labels)
    )


def _check_old_classes(manifest: Manifest, relabelling: Relabelling) -> None:
    """Refuse a relabelling of another class list: it says by name what became of each class.

    Raises:
        UsageError: with the first class that does not fit.
    """
    if len(relabelling.class_map) != manifest.num_classes:
        raise UsageError(
            f"loader: expected a relabelling of the data set's {manifest.num_classes:,} classes, found one of "
            f"{len(relabelling.class_map):,}. Make it with relabel(manifest.class_names, ...)"
        )
    merged, dropped = dict(relabelling.merged), set(relabelling.dropped)
    for name, new in zip(manifest.class_names, relabelling.class_map.tolist(), strict=True):
        fits = name in dropped if new < 0 else relabelling.class_names[new] == merged.get(name, name)
        if not fits:
            became = "leaves out" if new < 0 else f"makes {relabelling.class_names[new]!r}"
            raise UsageError(
                f"loader: expected a relabelling of the data set's classes, found one that {became} what is "
                f"{name!r} here; it is of another class list. Make it with relabel(manifest.class_names, ...)"
            )
