"""A label tree's ancestors as tables: how far up each of them is, and which classes are leaves.

In a tree of all paths a class has the ancestors of all its paths, each of them once.

Shape letters: N batch, C classes, B a class, its ancestors and the common node above all roots, at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..shards.tree import LabelTree


class AncestorTable(NamedTuple):
    """Every class with all its ancestors; 1 MB of rows instead of a [C, C] table.

    Attributes:
        classes: int64 [C, B]. The class itself first, then its ancestors; C for the common node under which roots
            hang; -1 where a row is shorter.
        edges: int64 [C, B]. Edges of the shortest way up to each of them, 0 to the class itself.
    """

    classes: Tensor
    edges: Tensor


def ancestor_table(tree: LabelTree) -> AncestorTable:
    """The ancestors of all classes of a label tree; a cut of its levels does not count here."""
    num_classes = len(tree.classes)
    ways: list[dict[int, int]] = [{}] * num_classes
    for node in np.argsort(tree.levels, kind="stable").tolist():
        found = {node: 0}
        for parent in tree.all_parents[node]:
            for ancestor, edges in ways[parent].items():
                found[ancestor] = min(edges + 1, found.get(ancestor, num_classes + 1))
        if not tree.all_parents[node]:
            found[num_classes] = 1
        ways[node] = found
    width = max(map(len, ways))
    classes = np.full((num_classes, width), -1, np.int64)
    edges = np.zeros((num_classes, width), np.int64)
    for node, found in enumerate(ways):
        classes[node, : len(found)] = list(found)
        edges[node, : len(found)] = list(found.values())
    return AncestorTable(torch.from_numpy(classes), torch.from_numpy(edges))


def count_edges(table: AncestorTable, first: Tensor, second: Tensor) -> Tensor:
    """Edges between two classes of a label tree: of the shortest way up to a common ancestor and down again.

    Args:
        table: of the tree, on the device of the classes.
        first: int64 [N], class indices.
        second: int64 [N], class indices.

    Returns:
        int64 [N].
    """
    ours, theirs = table.classes[first][:, :, None], table.classes[second][:, None, :]
    edges = table.edges[first][:, :, None] + table.edges[second][:, None, :]
    # Every pair meets in the node above all roots, so there is always a way.
    no_way = torch.iinfo(edges.dtype).max
    return edges.masked_fill((ours != theirs) | (ours < 0), no_way).flatten(1).amin(dim=1)


def leaf_classes(tree: LabelTree) -> np.ndarray:
    """int64 array of the classes that are nobody's parent, ascending."""
    above = np.concatenate([tree.parents, tree.other_parents[:, 1]])
    return np.setdiff1d(np.arange(len(tree.classes)), above)
