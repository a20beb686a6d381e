"""Fewer classes by merging siblings of a tree, the deepest first (METHODS' third way; Gao 2021).

z               Five classes a to e. For 2: x becomes one (3 left), then y (2 left).
  x   a b c     For 4: all of x would leave 3, so it is passed over, and y fits (4 left).
  y   d e       For 3: x alone, or y and then, with exact=True, two of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .choose_classes import check_num
from .philox import PURPOSE_CHOOSE_CLASSES, permutation
from .relabel import restrict_tree
from .relations import ONE_PARENT_RULES
from .subset_file import ClassGroup
from .tree import LabelTree
from .tree_text import children_of_classes


class Merged(NamedTuple):
    """What merging came to.

    Attributes:
        groups: classes and merged families, in the order of their first members.
        notes: why there are more than were asked for, and which family was merged in part.
    """

    groups: tuple[ClassGroup, ...]
    notes: tuple[str, ...]


class _Unit(NamedTuple):
    """Classes that have become one: its name, and their indices in the list."""

    name: str
    members: tuple[int, ...]


def ancestor_tree(names: Sequence[str], tree: LabelTree | None = None) -> LabelTree:
    """The tree of some classes and all their ancestors, one parent each.

    Args:
        names: the classes.
        tree: the data set's own, or None. Of a user's own relations, beyond its roots WordNet goes on; of one that
            was built from WordNet only the rule that chooses among several parents counts, so that it makes no
            difference which inner nodes it has.

    Raises:
        DataError: names that neither the tree nor WordNet knows.
    """
    if tree is None or tree.rule.source.startswith("WordNet "):
        rule = tree.rule.parents if tree is not None and tree.rule.parents in ONE_PARENT_RULES else "first"
        return LabelTree.from_wordnet(names, parents=rule, inner="all")
    return restrict_tree(tree, names, inner="all", beyond_roots=True)


def merge_siblings(tree: LabelTree, num: int, seed: int = 0, *, exact: bool = False) -> Merged:
    """Merge the classes below a parent into one, the deepest parents first, until N are left.

    A parent's classes are those right below it, with what has been merged below them, and itself where it is one of
    the classes. A family whose merging would leave fewer than N is passed over, and smaller ones that fit are
    merged after it.

    Args:
        tree: over the classes (the listed ones) and all their ancestors, see `ancestor_tree`. Its levels are depths.
        num: N.
        seed: in which order parents of one depth come.
        exact: where N is not met, merge only as many classes of the first family that was passed over as it takes.

    Raises:
        UsageError: N is not 1 to the number of classes.
    """
    check_num(tree.classes[: tree.num_listed], num)
    children = children_of_classes(tree)
    units: list[list[_Unit]] = [[] for _ in tree.classes]  # at or below each node that was looked at
    count = tree.num_listed
    passed_over = -1
    for node in _deepest_first(tree.levels, seed):
        own = [_Unit(tree.classes[node], (node,))] if node < tree.num_listed else []
        found = own + [unit for child in children[node] for unit in units[child]]
        fewer = len(found) - 1
        if fewer > 0 and count - fewer >= num:
            found = [_merge(tree.classes[node], found)]
            count -= fewer
        elif fewer > 0 and count > num and passed_over < 0:
            passed_over = node
        units[node] = found
    roots = [unit for node in np.flatnonzero(tree.parents < 0).tolist() for unit in units[node]]
    notes = []
    if count > num and passed_over >= 0:
        name, family = tree.classes[passed_over], units[passed_over]
        title = f"{name} {tree.names[passed_over]}" if tree.names[passed_over] != name else name
        if exact:
            order = permutation(seed, PURPOSE_CHOOSE_CLASSES, 2, 0, len(family))
            part = [family[i] for i in order[: count - num + 1].tolist()]
            rest = [unit for unit in roots if unit not in part]
            name += "-part"
            while any(unit.name == name for unit in rest):
                name += "-part"
            roots = [*rest, _merge(name, part)]
            notes.append(f"of the {len(family)} classes below {title}, {len(part)} were merged")
        else:
            notes.append(
                f"{count:,} classes are left and not {num:,}: merging the {len(family)} below {title} would leave "
                f"{count - len(family) + 1:,}. With --exact only some of these are merged"
            )
    elif count > num:
        notes.append(f"{count:,} classes are left and not {num:,}: the tree has as many roots")
    roots.sort(key=lambda unit: unit.members)
    names = tree.classes
    groups = tuple(ClassGroup(unit.name, tuple(names[i] for i in unit.members)) for unit in roots)
    return Merged(groups, tuple(notes))


def _deepest_first(levels: np.ndarray, seed: int) -> list[int]:
    """Nodes, the deepest first; those of one depth in an order that the seed decides."""
    shuffled = permutation(seed, PURPOSE_CHOOSE_CLASSES, 1, 0, len(levels))
    return shuffled[np.argsort(-levels[shuffled], kind="stable")].tolist()


def _merge(name: str, units: Sequence[_Unit]) -> _Unit:
    return _Unit(name, tuple(sorted(i for unit in units for i in unit.members)))
