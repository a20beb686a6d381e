"""Fewer classes of a class list: at random, in random groups, or as a file or a confusion matrix says (Gao 2021).

Pure but for reading the file. Merging WordNet siblings is merge_siblings.py, coarse labels are coarse_labels.py; METHODS of
all six: SUBSETS.md. What is random follows from (seed, class's place in the list) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .confusion_groups import confusion_groups, group_sizes
from .errors import DataError, UsageError
from .philox import PURPOSE_CHOOSE_CLASSES, permutation
from .storage import public_name
from .subset_file import ClassGroup
from .text_limits import counted, some
from .tree_sources import read_pairs


def random_classes(names: Sequence[str], num: int, seed: int) -> tuple[ClassGroup, ...]:
    """N classes at random, in the order of the list (METHODS' way 1). A smaller choice is part of a larger one.

    Raises:
        UsageError: not 1 to as many as there are.
    """
    check_num(names, num)
    chosen = permutation(seed, PURPOSE_CHOOSE_CLASSES, 0, 0, len(names))[:num]
    return tuple(ClassGroup.single(names[i]) for i in sorted(map(int, chosen)))


def random_groups(names: Sequence[str], num: int, seed: int) -> tuple[ClassGroup, ...]:
    """Every class in one of N random groups whose sizes differ by one at most (METHODS' way 2).

    Raises:
        UsageError: not 1 to as many groups as there are classes.
    """
    check_num(names, num)
    order = [int(i) for i in permutation(seed, PURPOSE_CHOOSE_CLASSES, 0, 0, len(names))]
    groups, start = [], 0
    for i, size in enumerate(group_sizes(len(names), num)):
        members = sorted(order[start : start + size])
        groups.append(ClassGroup(numbered("group", i, num), tuple(names[member] for member in members)))
        start += size
    return tuple(groups)


def confused_classes(
    names: Sequence[str], confusion: np.ndarray, num: int, seed: int
) -> tuple[ClassGroup, ...]:
    """N groups of the classes that are confused most, each with the sum of confusion inside (METHODS' way 4).

    Args:
        names: C class names.
        confusion: float64 [C, C], how much of a row's class is taken for a column's.
        num: N.
        seed: of the search.

    Raises:
        UsageError: not 1 to C groups.
    """
    check_num(names, num)
    found = confusion_groups(confusion, num, seed)
    return tuple(
        ClassGroup(
            numbered("confused", i, num), tuple(names[int(member)] for member in members), float(value)
        )
        for i, (members, value) in enumerate(zip(found.groups, found.values, strict=True))
    )


def groups_of_file(url: str, names: Sequence[str]) -> tuple[ClassGroup, ...]:
    """The groups of a hand-written file (METHODS' way 6): nested YAML, or a child,parent table.

        dog: [n02085620, n02085782]     # a group and its members
        n02123045:                      # a class that is kept as it is; so is each name of a plain list

    Args:
        url: `.yaml`, `.csv` or `.tsv`; a path or any fsspec URL.
        names: the classes there are.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: groups inside groups, a class in two of them, names of no class; all are named.
    """
    pairs, where = read_pairs(url), public_name(url)
    parents = {parent for _, parent in pairs if parent}
    tops = dict.fromkeys(parent or child for child, parent in pairs)
    known, problems = set(names), []
    members: dict[str, list[str]] = {name: [] for name in tops}
    group_of: dict[str, str] = {}
    for child, parent in pairs:
        if not parent:
            if child in parents:
                continue  # a group, whose members say the rest
            parent = child
        elif child in parents:
            problems.append(
                f"{where}: {child!r} is a group inside the group {parent!r}; write its classes out"
            )
            continue
        if child in group_of:
            problems.append(f"{where}: {child!r} stands in {group_of[child]!r} and in {parent!r}; keep one")
        group_of[child] = parent
        members[parent].append(child)
    if unknown := [name for name in group_of if name not in known]:
        problems.append(
            f"{where}: expected names of the {len(names):,} classes, found {counted(len(unknown), 'other')}: "
            f"{some(unknown)}; correct them, or leave them out"
        )
    if not pairs:
        problems.append(f"{where}: expected classes, found none")
    if problems:
        raise DataError("\n".join(problems))
    return tuple(ClassGroup(name, tuple(found)) for name, found in members.items() if found)


def check_num(names: Sequence[str], num: int) -> None:
    """Refuse a number of classes that cannot be.

    Raises:
        UsageError: not 1 to as many as there are.
    """
    if not 1 <= num <= len(names):
        raise UsageError(
            f"subset: expected 1 to {len(names):,} classes, as many as have images, found {num:,}"
        )


def numbered(what: str, i: int, num: int) -> str:
    """A name for one of `num` groups: they sort as they are numbered."""
    return f"{what}-{i:0{len(str(num - 1))}d}"
