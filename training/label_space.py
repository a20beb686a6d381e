"""What a model's outputs stand for: a class list and, maybe, a label tree; or the keywords of a vocabulary, or both.
And how two of them differ.

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
from .recipe_targets import TAG_LOSSES


@dataclass(frozen=True)
class LabelSpace:
    """The meaning of C + T outputs.

    Attributes:
        class_names: C names in the order of the outputs; none for a model of keywords alone.
        classes_sha256: fingerprint of the class list.
        tree: over these classes, or None.
        tag_names: T keywords, in the order of the outputs after those of the classes; none but for the losses
            `weakly-tagged` and `joint`.
    """

    class_names: Sequence[str]
    classes_sha256: str
    tree: LabelTree | None
    tag_names: Sequence[str] = ()

    @classmethod
    def of(cls, manifest: Manifest, tree: LabelTree | None = None) -> LabelSpace:
        """That of a data set."""
        return cls(manifest.class_names, manifest.classes_sha256, tree)

    @classmethod
    def of_loader(cls, loader: Loader, loss: str | None = None) -> LabelSpace:
        """That of a loader's batches: of its data set, or of the labels that it is read with.

        Args:
            loader: of the data set.
            loss: of the model, one of `recipe_targets.LOSSES`: it decides whether classes, keywords or both have outputs.
        """
        tags = tag_names(loader) if loss in TAG_LOSSES else ()
        if loss == "weakly-tagged":
            return cls((), class_list_sha256(()), None, tags)
        return cls(loader.class_names, class_list_sha256(loader.class_names), loader.tree, tags)

    @property
    def num_outputs(self) -> int:
        """C + T."""
        return len(self.class_names) + len(self.tag_names)

    @property
    def shown(self) -> str:
        """How many outputs there are of what: `1000 classes`, `35,000 keywords`, or both."""
        parts = [f"{len(self.class_names)} classes"] if self.class_names or not self.tag_names else []
        return " and ".join([*parts, *([f"{len(self.tag_names):,} keywords"] if self.tag_names else [])])

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
            "tag_names": list(self.tag_names),
        }

    def differences(self, other: LabelSpace) -> list[str]:
        """What differs, each with both fingerprints (this one's first); empty where they belong together.

        Without a tree on one side there are no levels to mix up, so only two trees can differ. So with vocabularies,
        unless one of the models has no outputs but those.
        """
        found = []
        if self.tag_names and other.tag_names and list(self.tag_names) != list(other.tag_names):
            expected, tags = (class_list_sha256(each.tag_names) for each in (self, other))
            found.append(
                f"vocabulary: expected {expected}, found {tags} "
                f"({name_difference(self.tag_names, other.tag_names, 'keywords')})"
            )
        if bool(self.class_names) != bool(other.class_names):
            found.append(f"outputs: expected {self.shown}, found {other.shown}")
        elif self.classes_sha256 != other.classes_sha256:
            found.append(
                f"class list: expected {self.classes_sha256}, found {other.classes_sha256} "
                f"({name_difference(self.class_names, other.class_names)})"
            )
        if self.tree is not None and other.tree is not None:
            expected, tree = self.tree.fingerprint, other.tree.fingerprint
            if expected != tree:
                found.append(
                    f"label tree: expected {expected}, found {tree} ({_tree_difference(self.tree, other.tree)})"
                )
        return found


def name_difference(expected: Sequence[str], found: Sequence[str], what: str = "classes") -> str:
    """How two lists of names that are not the same differ, in words."""
    one = {"classes": "class", "keywords": "keyword"}[what]
    if list(expected) == list(found):  # under unequal hashes: one of the files was changed by hand
        return f"both {len(found):,} {what} of the same names"
    if len(expected) == len(found):
        counts = f"both {len(found):,} {what}"
        if sorted(expected) == sorted(found):
            counts = f"the same {len(found):,} {what} in another order"
    else:
        counts = f"{len(expected):,} {what}, not {len(found):,}"
    for index, (name, other) in enumerate(zip(expected, found, strict=False)):
        if name != other:
            return f"{counts}; the first that differs is {one} {index}: {name!r}, not {other!r}"
    longer = expected if len(expected) > len(found) else found
    common = min(len(expected), len(found))
    return f"{counts}; the first {common:,} agree, only one of them has {longer[common]!r}"


def tag_names(loader: Loader) -> tuple[str, ...]:
    """The keywords that a loader's data set has tags of; none without."""
    return () if loader.vocabulary is None else loader.vocabulary.tags


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
