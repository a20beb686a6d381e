"""Trees whose classes may have several parents (`all-paths`): who they are, and a label vector for every path.

The level of a class is its number of ancestors on the longest of its paths, so that every class still stands on one
level. A shorter path passes over levels: its vector has -1 there.

C classes, A paths at most, L hierarchy levels kept, E further parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter

import numpy as np

from .errors import DataError
from .relations import Graph, nearest_kept
from .schema import HIER, MIB

MAX_VECTOR_VALUES = (HIER.max_bytes - 128) // 2  # int16 behind the 128 bytes of an .npy header
MAX_VECTOR_ELEMENTS = 64 * MIB  # C * A * L


def kept_parents(nodes: Sequence[str], graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """The parents of the kept nodes among each other.

    A parent is a nearest kept ancestor. One that is above another parent says nothing new and is left out.

    Args:
        nodes: C kept nodes.
        graph: of these and all their ancestors; no cycles.

    Returns:
        int32 [C], each node's parent on its longest path (of several the one with the lowest class index), -1 at a
        root; and int32 [E, 2], the further parents as (child, parent), ascending.
    """
    place = {node: i for i, node in enumerate(nodes)}
    nearest = nearest_kept(graph, place)
    parents = np.full(len(nodes), -1, np.int32)
    if all(len(nearest[node]) < 2 for node in nodes):
        for i, node in enumerate(nodes):
            if nearest[node]:
                parents[i] = place[nearest[node][0]]
        return parents, np.empty((0, 2), np.int32)
    above: dict[str, set[str]] = {}
    level: dict[str, int] = {}
    other_parents: list[tuple[int, int]] = []
    for node in TopologicalSorter({node: nearest[node] for node in nodes}).static_order():
        above[node] = set(nearest[node]).union(*(above[parent] for parent in nearest[node]))
        level[node] = 1 + max((level[parent] for parent in nearest[node]), default=-1)
        if level[node] >= MAX_VECTOR_VALUES:
            raise DataError(
                f"tree: expected at most {MAX_VECTOR_VALUES} levels, found more above {node!r}; make it less deep"
            )
        found = [p for p in nearest[node] if not any(p in above[other] for other in nearest[node])]
        if found:
            # By class index, not in the order of the graph: the same relations give the same fingerprint.
            first = min(place[parent] for parent in found if level[parent] == level[node] - 1)
            parents[place[node]] = first
            other_parents += [(place[node], place[parent]) for parent in found if place[parent] != first]
    return parents, np.array(sorted(other_parents), np.int32).reshape(-1, 2)


def parents_of_classes(parents: np.ndarray, other_parents: np.ndarray) -> list[list[int]]:
    """All parents of each class, the one in `parents` first."""
    found = [[parent] if parent >= 0 else [] for parent in parents.tolist()]
    for child, parent in other_parents.tolist():
        found[child].append(parent)
    return found


def check_other_parents(parents: np.ndarray, other_parents: np.ndarray, levels: np.ndarray) -> None:
    """Refuse further parents that no tree has. Levels that rise along every edge leave no room for a cycle.

    Raises:
        DataError: see the checks.
    """
    num_classes = len(parents)
    if other_parents.ndim != 2 or other_parents.shape[1] != 2:
        raise DataError(
            f"tree: other_parents: expected (child, parent) pairs, found shape {list(other_parents.shape)}"
        )
    if not len(other_parents):
        return
    if other_parents.min() < 0 or other_parents.max() >= num_classes:
        raise DataError(
            f"tree: other_parents: expected class indices 0 to {num_classes - 1}, found "
            f"{other_parents.min()} to {other_parents.max()}"
        )
    children, above = other_parents.T
    wrong = (levels[above] >= levels[children]) | (parents[children] == above)
    if wrong.any():
        child, parent = other_parents[int(wrong.argmax())].tolist()
        raise DataError(
            f"tree: other_parents: expected another parent of class {child}, on a level above its own, found "
            f"{parent}; the file was changed, or has a cycle"
        )
    # As numbers that ascend as the pairs do.
    if (np.diff(children.astype(np.int64) * num_classes + above) <= 0).any():
        raise DataError(
            "tree: other_parents: expected every pair once, ascending, found another order or a pair twice"
        )


def check_num_paths(
    classes: Sequence[str], parents: np.ndarray, other_parents: np.ndarray, levels: np.ndarray, kept: int
) -> None:
    """Refuse more paths than a label vector holds, before any is made.

    Args:
        classes: C names.
        parents: int32 [C].
        other_parents: int32 [E, 2].
        levels: int32 [C].
        kept: L.

    Raises:
        DataError: see above.
    """
    num_paths = [0] * len(parents)
    above = parents_of_classes(parents, other_parents)
    most = min(MAX_VECTOR_VALUES // kept, MAX_VECTOR_ELEMENTS // (kept * len(parents)))
    for node in np.argsort(levels, kind="stable").tolist():
        num_paths[node] = sum(num_paths[parent] for parent in above[node]) or 1
        if num_paths[node] > most:
            raise DataError(
                f"tree: class {classes[node]!r}: expected at most {most} paths of {kept} levels to a root, found "
                f"{num_paths[node]}; a sample's label vectors would be too large. Run: softshard tree build with "
                "another --parents rule, or fewer --levels"
            )


def path_vectors(
    parents: np.ndarray, other_parents: np.ndarray, levels: np.ndarray, place: np.ndarray, kept: int
) -> np.ndarray:
    """Label vectors of all paths to all classes.

    Args:
        parents: int32 [C].
        other_parents: int32 [E, 2].
        levels: int32 [C].
        place: int16 [C]. The index of each class within its level.
        kept: L.

    Returns:
        int16 [C, A, L]. The rows of a class are its distinct paths, first along `parents`; then rows of -1.
    """
    rows: list[list[tuple[int, ...]]] = [[]] * len(parents)
    above = parents_of_classes(parents, other_parents)
    for node in np.argsort(levels, kind="stable").tolist():
        level = int(levels[node])
        paths = [path for parent in above[node] for path in rows[parent]] or [(-1,) * kept]
        if level < kept:
            paths = [(*path[:level], int(place[node]), *path[level + 1 :]) for path in paths]
        rows[node] = list(dict.fromkeys(paths))
    vectors = np.full((len(parents), max(map(len, rows)), kept), -1, np.int16)
    for node, paths in enumerate(rows):
        vectors[node, : len(paths)] = paths
    return vectors
