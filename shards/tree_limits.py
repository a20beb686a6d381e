"""What no label tree can be: refused before more memory is taken, whether a tree is built or read."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from . import relations
from .errors import DataError, UsageError
from .schema import MAX_LEVEL_CLASSES
from .text_limits import counted, some
from .tree_paths import MAX_VECTOR_ELEMENTS, MAX_VECTOR_VALUES, check_num_paths, check_other_parents

if TYPE_CHECKING:
    from .tree import LabelTree

MAX_LEVELS = MAX_VECTOR_VALUES

_SHOWN = 10  # of a cycle
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_tree(tree: LabelTree) -> None:
    """Refuse what no tree can be.

    Raises:
        UsageError: no classes, or no level.
        DataError: all else.
    """
    num_classes = len(tree.classes)
    if num_classes == 0:
        raise UsageError("tree: expected classes, found none")
    if tree.max_levels is not None and tree.max_levels < 1:
        raise UsageError(f"tree: levels: expected 1 or more, found {tree.max_levels}")
    if twice := [name for name, count in Counter(tree.classes).items() if count > 1]:
        raise DataError(f"tree: classes: expected distinct names, found twice: {some(twice, show=_shown)}")
    if wrong := [name for name in (*tree.classes, *tree.names) if not is_plain_text(name)]:
        raise DataError(
            f"tree: classes: expected names of one line without control characters, found {some(wrong, show=_shown)}"
        )
    if len(tree.names) != num_classes or tree.parents.shape != (num_classes,):
        raise DataError(
            f"tree: expected a name and a parent for each of {num_classes} classes, "
            f"found {counted(len(tree.names), 'name')} and parents of shape {tree.parents.shape}"
        )
    if not 1 <= tree.num_listed <= num_classes:
        raise DataError(f"tree: num_listed: expected 1 to {num_classes}, found {tree.num_listed}")
    lowest, highest = int(tree.parents.min()), int(tree.parents.max())
    if lowest < -1 or highest >= num_classes:
        raise DataError(
            f"tree: parents: expected -1 to {num_classes - 1}, found {lowest if lowest < -1 else highest}"
        )
    for level, size in enumerate(tree.level_sizes):
        if size > MAX_LEVEL_CLASSES:
            raise DataError(
                f"tree: level {level}: expected at most {MAX_LEVEL_CLASSES} classes, found {size}; "
                "a hierarchical label is an int16; list fewer classes, or make inner nodes classes"
            )
    check_other_parents(tree.parents, tree.other_parents, tree.levels)
    if len(tree.other_parents):
        check_num_paths(tree.classes, tree.parents, tree.other_parents, tree.levels, tree.num_levels)


def count_levels(classes: tuple[str, ...], parents: np.ndarray) -> np.ndarray:
    """int32 [C], the number of ancestors of each class.

    Raises:
        DataError: a cycle, or levels that no label vector holds.
    """
    levels = np.zeros(len(classes), np.int32)
    above = parents
    # A cycle would climb for ever, and the vectors of a very deep tree would not fit anywhere.
    for _ in range(min(MAX_LEVELS, MAX_VECTOR_ELEMENTS // len(classes))):
        if not (below_root := above >= 0).any():
            return levels
        levels += below_root
        above = np.where(below_root, parents[above], -1)
    graph = {node: [] if above < 0 else [above] for node, above in enumerate(parents.tolist())}
    if cycles := relations.find_cycles(graph):
        raise DataError(
            f"tree: parents: {' -> '.join(classes[i] for i in cycles[0][:_SHOWN])} is a cycle"
            + (f"; {len(cycles) - 1} more" if len(cycles) > 1 else "")
        )
    raise DataError(
        f"tree: expected at most {MAX_LEVELS} levels and {MAX_VECTOR_ELEMENTS} label-vector elements, "
        f"found more with {len(classes)} classes; make the tree less deep"
    )


def is_plain_text(name: str) -> bool:
    """Whether a name can stand on a line of a class list: not empty, no control characters, no lone surrogates.

    Bytes of a folder name that are not UTF-8 (`\\udc80` to `\\udcff`) are allowed.
    """
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return bool(name.strip()) and not _CONTROL.search(name)


def _shown(name: str) -> str:
    return repr(name[:60])
