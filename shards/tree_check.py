"""Compares a label tree with a class list, another tree or a data set, and names every difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .classes import class_list_sha256
from .errors import DataError
from .manifest import Manifest, load_tree
from .shard_files import dataset_name
from .text_limits import counted
from .tree import LabelTree
from .verify import data_set_folders

_SHOWN = 20


@dataclass(frozen=True)
class Difference:
    """One kind of difference.

    Attributes:
        what: a line that says it, with the number of places.
        places: each of them.
    """

    what: str
    places: tuple[str, ...] = ()

    def text(self, most: int = _SHOWN) -> str:
        """Lines for a terminal; no more than `most` places are named."""
        more = (
            [f"    and {len(self.places) - most:,} more (--json names all)"]
            if len(self.places) > most
            else []
        )
        return "\n".join([self.what, *(f"    {place}" for place in self.places[:most]), *more])


def compare_classes(tree: LabelTree, names: Sequence[str], where: str) -> list[Difference]:
    """What is different between the tree's classes and a class list.

    A list of the listed classes alone is as good as one of all classes.

    Args:
        tree: the tree.
        names: the class list.
        where: where it is from.
    """
    names = tuple(names)
    if names in (tree.classes, tree.classes[: tree.num_listed]):
        return []
    found: list[Difference] = []
    listed, wanted = set(names), set(tree.classes)
    inner_nodes = set(tree.classes[tree.num_listed :])
    missing = tuple(name for name in tree.classes if name not in listed and name not in inner_nodes)
    if not listed & inner_nodes:
        wanted -= inner_nodes
    else:
        missing = tuple(name for name in tree.classes if name not in listed)
    extra = tuple(name for name in names if name not in wanted)
    if missing:
        found.append(Difference(f"{where}: {counted(len(missing), 'class')} of the tree missing", missing))
    if extra:
        found.append(Difference(f"{where}: {counted(len(extra), 'class')} not in the tree", extra))
    common = [name for name in names if name in wanted]
    ordered = [name for name in tree.classes if name in listed]
    moved = tuple(
        f"expected {expected!r}, found {name!r}"
        for expected, name in zip(ordered, common, strict=True)
        if name != expected
    )
    if moved:
        found.append(
            Difference(
                f"{where}: {len(moved):,} of {counted(len(common), 'common class')} in another order", moved
            )
        )
    fingerprints = class_list_sha256(tree.classes)[:12], class_list_sha256(names)[:12]
    found.append(Difference(f"{where}: expected the class list {fingerprints[0]}, found {fingerprints[1]}"))
    return found


def compare_trees(tree: LabelTree, other: LabelTree, where: str) -> list[Difference]:
    """What is different between two trees.

    Args:
        tree: what is expected.
        other: what is found.
        where: where it is from.
    """
    if tree.fingerprint == other.fingerprint:
        return []
    found = [] if other.classes == tree.classes else compare_classes(tree, other.classes, where)
    if other.num_levels != tree.num_levels:
        found.append(
            Difference(f"{where}: expected {counted(tree.num_levels, 'level')}, found {other.num_levels}")
        )
    above, other_above = (
        {
            name: tuple(one.classes[parent] for parent in parents)
            for name, parents in zip(one.classes, one.all_parents, strict=True)
        }
        for one in (tree, other)
    )
    moved = tuple(
        f"{name}: expected {_parents_text(parents)}, found {_parents_text(other_above[name])}"
        for name, parents in above.items()
        if name in other_above and other_above[name] != parents
    )
    if moved:
        found.append(Difference(f"{where}: {counted(len(moved), 'class')} with another parent", moved))
    if tree.rule != other.rule:
        rules = [f"parents {r.parents}, inner {r.inner}, from {r.source}" for r in (tree.rule, other.rule)]
        found.append(Difference(f"{where}: expected a tree with {rules[0]}; found one with {rules[1]}"))
    found.append(
        Difference(f"{where}: expected the tree {tree.fingerprint[:12]}, found {other.fingerprint[:12]}")
    )
    return found


def compare_data_set(tree: LabelTree, dataset: str | Path) -> list[Difference]:
    """What is different between the tree and the one that a data set, or each in a folder, was packed with.

    A data set that was packed without a tree is compared by its class list.

    Raises:
        DataError: there is no data set, or its manifest cannot be read.
    """
    found: list[Difference] = []
    for folder in data_set_folders(dataset):
        manifest = Manifest.load(folder)
        if manifest.tree_sha256 is None:
            if tree.classes != manifest.class_names:
                found += compare_classes(tree, manifest.class_names, dataset_name(folder))
            continue
        try:
            packed = load_tree(folder, manifest)
        except DataError as error:
            found.append(Difference(str(error)))
            continue
        assert packed is not None
        found += compare_trees(tree, packed, dataset_name(folder))
    return found


def _parents_text(parents: Sequence[str]) -> str:
    return " and ".join(parents) or "a root"
