"""Reads a model of one softmax per level down the tree, so that classes of different levels can be compared.

Training with semantic softmax never compares a class with one of another level, so among leaves, which stand on many
levels, the largest logit says little. Read down the tree a class has the probability of its parent times its own share
among its sisters: a distribution over the leaves.

Shape letters: N batch, C classes, L levels used, M classes on these levels, E edges from a parent to a child.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shards.tree import LabelTree
from .ancestors import leaf_classes
from .level_layout import LevelLayout
from .metrics import TopKAccuracy, TreeDistance


class DownTheTree(nn.Module):
    """Logits of a softmax per level to the logarithm of each class's probability, read down the tree.

    A class has the probability of its parent times its share among the parent's children; roots are children of one
    node with probability 1. In a tree of all paths a class has the sum over its parents, which is how often a walk
    from the root, drawn child by child, comes through it; children of one parent may there stand on different
    levels, and each brings its probability within its own. Computed in float64: products of twelve shares are small.

    Args:
        tree: a LabelTree.
        levels: how many levels were trained, from the root; None for all.
    """

    parent: Tensor
    child: Tensor

    def __init__(self, tree: LabelTree, levels: int | None = None) -> None:
        super().__init__()
        self.layout = LevelLayout(tree, levels=levels, owner="DownTheTree")
        parent, child, self.edges_per_level = _edges(tree, self.layout)
        self.register_buffer("parent", parent, persistent=False)
        self.register_buffer("child", child, persistent=False)

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Logits floating [N, C] in class order to float64 [N, C]; -inf for classes below the levels used."""
        num_columns = self.layout.num_columns
        levels = self.layout.split(self.layout.arrange(logits.double()))
        within_level = torch.cat([level.log_softmax(dim=1) for level in levels], dim=1)
        # A class is a row from here on: on a CPU, rows are summed much faster than columns.
        brought = within_level.T.contiguous()[self.child]
        shares = brought - _log_sums(brought, self.parent, num_columns + 1)[self.parent]
        # Rows as in level order, one more for the node above all roots, whose probability is 1.
        found = brought.new_full((num_columns + 1, len(logits)), -torch.inf)
        found[-1] = 0.0
        parts = zip(
            self.layout.level_sizes,
            *(part.split(self.edges_per_level) for part in (self.parent, self.child, shares)),
            strict=True,
        )
        start = 0
        for size, parent, child, share in parts:
            # Levels rise along every edge, so the parents are known by now.
            found[start : start + size] = _log_sums(found[parent] + share, child - start, size)
            start += size
        below = found.new_full((len(self.layout.position) - num_columns, len(logits)), -torch.inf)
        return torch.cat([found[:-1], below])[self.layout.position].T


class LeavesDownTheTree:
    """Leaf top-1, top-5 and tree distance of a model of one softmax per level, read down the tree.

    It works as a Counted does.

    Args:
        tree: a LabelTree.
        levels: how many levels were trained, from the root; None for all.
    """

    def __init__(self, tree: LabelTree, levels: int | None = None) -> None:
        self.reading = DownTheTree(tree, levels)
        self.metrics = (TopKAccuracy(len(tree.classes), leaf_classes(tree)), TreeDistance(tree))

    def update(self, logits: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], classes int64 [N], valid bool [N] or None."""
        if self.reading.child.device != logits.device:
            self.reading.to(logits.device)
        read = self.reading(logits)
        for metric in self.metrics:
            metric.update(read, classes, valid)

    def reduce(self) -> None:
        """Sum the counts over the ranks of torch.distributed; afterwards every rank computes the same."""
        for metric in self.metrics:
            metric.reduce()

    def compute(self) -> dict[str, Any]:
        """`leaf_top1`, `leaf_top5`, `leaf_tree_distance` and `leaf_tree_distance_of_errors`, as in metrics.py, each
        with `_down_the_tree` behind its name."""
        found = {name: value for metric in self.metrics for name, value in metric.compute().items()}
        names = ("leaf_top1", "leaf_top5", "leaf_tree_distance", "leaf_tree_distance_of_errors")
        return {f"{name}_down_the_tree": found[name] for name in names}


def _edges(tree: LabelTree, layout: LevelLayout) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Every edge to a class on one of the levels, by the child's place in level order.

    Returns:
        int64 [E], the parent's place, M above a root; int64 [E], the child's; and the number of edges to each level.
    """
    places = layout.position.numpy()
    pairs = np.concatenate(
        [np.stack([np.arange(len(tree.classes)), tree.parents], axis=1), tree.other_parents]
    )
    child, parent = places[pairs[:, 0]], np.where(pairs[:, 1] < 0, layout.num_columns, places[pairs[:, 1]])
    kept = child < layout.num_columns
    order = np.argsort(child[kept], kind="stable")
    parent, child = parent[kept][order], child[kept][order]
    counts = np.bincount(np.repeat(np.arange(layout.num_levels), layout.level_sizes)[child])
    return torch.from_numpy(parent), torch.from_numpy(child), tuple(counts.tolist())


def _log_sums(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """log sum exp over the rows of each group: floating [E, N] and int64 [E] to [G, N]; -inf for an empty one."""
    highest = values.new_full((num_groups, values.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, groups[:, None].expand(values.shape), values, "amax")
    highest = highest.masked_fill(highest.isneginf(), 0.0)
    sums = torch.zeros_like(highest).index_add(0, groups, (values - highest[groups]).exp())
    return sums.log() + highest
