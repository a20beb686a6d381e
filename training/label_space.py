"""What a model's outputs stand for: a class list and, maybe, a label tree; and how two of them differ.

Mixing two versions of a class list gives a model that looks trained and is wrong (the most common failure that
users of ImageNet-21K-P report). So data sets, checkpoints and exported weights carry both, and a mismatch is
refused with the fingerprints and with the first names that differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..loaders.loader import Loader
from ..shards.classes import class_list_sha256
from ..shards.manifest import Manifest
from ..shards.tree import LabelTree


@dataclass(frozen=True)
class LabelSpace:
    """The meaning of C outputs.

    Attributes:
        class_names: C names in the order of the outputs.
        classes_sha256: fingerprint of the class list.
        tree: over these classes, or None.
    """

    class_names: Sequence[str]
    classes_sha256: str
    tree: LabelTree | None

    @classmethod
    def of(cls, manifest: Manifest, tree: LabelTree | None = None) -> LabelSpace:
        """That of a data set."""
        return cls(manifest.class_names, manifest.classes_sha256, tree)

    @classmethod
    def of_loader(cls, loader: Loader) -> LabelSpace:
        """That of a loader's batches: of its data set, or of the labels that it is read with."""
        return cls(loader.class_names, class_list_sha256(loader.class_names), loader.tree)

    @property
    def tree_json(self) -> str | None:
        """The label tree as JSON text, as files keep it."""
        return None if self.tree is None else json.dumps(self.tree.to_json())

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: the fields of these names there."""
        return {
            "class_names": list(self.class_names),
            "classes_sha256": self.classes_sha256,
            "tree_sha256": None if self.tree is None else self.tree.fingerprint,
            "tree_json": self.tree_json,
        }

    def differences(self, other: LabelSpace) -> list[str]:
        """What differs, each with both fingerprints (this one's first); empty where they belong together.

        Without a tree on one side there are no levels to mix up, so only two trees can differ.
        """
        found = []
        if self.classes_sha256 != other.classes_sha256:
            found.append(
                f"class list: expected {self.classes_sha256}, found {other.classes_sha256} "
                f"({_class_difference(self.class_names, other.class_names)})"
            )
        if self.tree is not None and other.tree is not None:
            expected, tree = self.tree.fingerprint, other.tree.fingerprint
            if expected != tree:
                found.append(
                    f"label tree: expected {expected}, found {tree} ({_tree_difference(self.tree, other.tree)})"
                )
        return found


def _class_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    if list(expected) == list(found):  # under unequal hashes: one of the files was changed by hand
        return f"both {len(found):,} classes of the same names"
    if len(expected) == len(found):
        counts = f"both {len(found):,} classes"
        if sorted(expected) == sorted(found):
            counts = f"the same {len(found):,} classes in another order"
    else:
        counts = f"{len(expected):,} classes, not {len(found):,}"
    for index, (name, other) in enumerate(zip(expected, found, strict=False)):
        if name != other:
            return f"{counts}; the first that differs is class {index}: {name!r}, not {other!r}"
    longer = expected if len(expected) > len(found) else found
    common = min(len(expected), len(found))
    return f"{counts}; the first {common:,} agree, only one of them has {longer[common]!r}"


def _tree_difference(expected: LabelTree, found: LabelTree) -> str:
    parts = []
    if expected.num_levels != found.num_levels:
        parts.append(f"{expected.num_levels} levels, not {found.num_levels}")
    if expected.rule.parents != found.rule.parents:
        parts.append(f"parents by the rule {expected.rule.parents!r}, not {found.rule.parents!r}")
    parents, others = _parent_names(expected), _parent_names(found)
    moved = [name for name in parents.keys() & others.keys() if parents[name] != others[name]]
    if moved:
        first = min(moved, key=lambda name: expected.class_index[name])
        parts.append(
            f"another parent for {len(moved):,} of the classes in both, the first of them {first!r}: "
            f"{parents[first]!r}, not {others[first]!r}"
        )
    return "; ".join(parts) or "other classes"


def _parent_names(tree: LabelTree) -> dict[str, str]:
    return {
        name: " and ".join(tree.classes[parent] for parent in parents) or "none"
        for name, parents in zip(tree.classes, tree.all_parents, strict=True)
    }
