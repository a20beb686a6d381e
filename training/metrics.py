"""Accuracy over a label tree and over all classes, counted without waiting for the device.

Shape letters: N batch, C classes, L hierarchy levels.

Both classes work alike: `update` adds a batch's counts, `reduce` sums them over the ranks, `compute` turns
them into numbers (the first moment the host waits for the device). Counts, not means of means, are kept, so
uneven batches and padded slots do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from ..shards.errors import UsageError
from ..shards.tree import LabelTree
from .level_layout import LevelClasses


class SemanticAccuracy:
    """Share of (sample, level) pairs with a target whose argmax within the level is right (Ridnik et al.
    2021).

    Args:
        tree: a LabelTree, or its `level_classes`: for each level the class indices, ascending.
    """

    def __init__(self, tree: LabelTree | LevelClasses) -> None:
        level_classes = tree.level_classes if isinstance(tree, LabelTree) else tree
        self.level_classes = [torch.tensor(np.asarray(ids, dtype=np.int64)) for ids in level_classes]
        self.right = torch.zeros(len(level_classes), dtype=torch.int64)
        self.pairs = torch.zeros(len(level_classes), dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, levels: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: floating [N, C].
            levels: int64 [N, L]: on each level the index within that level's classes, -1 for none.
            valid: bool [N]; False slots are not counted.
        """
        if levels.shape != (len(logits), len(self.level_classes)):
            raise UsageError(
                f"SemanticAccuracy: expected levels {(len(logits), len(self.level_classes))}, "
                f"found {tuple(levels.shape)}; the data set was packed with another tree"
            )
        if self.right.device != logits.device:
            self.level_classes = [ids.to(logits.device) for ids in self.level_classes]
            self.right, self.pairs = self.right.to(logits.device), self.pairs.to(logits.device)
        counted = levels >= 0
        if valid is not None:
            counted = counted & valid[:, None]
        best = torch.stack([logits[:, ids].argmax(dim=1) for ids in self.level_classes], dim=1)
        self.right += ((best == levels) & counted).sum(dim=0)
        self.pairs += counted.sum(dim=0)

    def reduce(self) -> None:
        """Sum the counts over the ranks of torch.distributed; afterwards every rank computes the same."""
        _sum_over_ranks(self.right, self.pairs)

    def compute(self) -> dict[str, Any]:
        """The numbers so far.

        Returns:
            `semantic_accuracy`: over all pairs; `semantic_macro`: mean over the levels that have targets;
            `per_level`: one share per level. Shares lie in [0, 1] and are None where nothing was counted.
        """
        right, pairs = self.right.tolist(), self.pairs.tolist()
        per_level = [_share(part, whole) for part, whole in zip(right, pairs, strict=True)]
        reached = [share for share in per_level if share is not None]
        return {
            "semantic_accuracy": _share(sum(right), sum(pairs)),
            "semantic_macro": _share(sum(reached), len(reached)),
            "per_level": per_level,
        }


class TopKAccuracy:
    """Top-1 and top-5: of all samples among all C classes, and of leaf samples among the leaf classes.

    A model trained with semantic softmax never compares a class with its ancestors, so among all classes its
    answer may be an ancestor of the right one; among leaves it is not.

    With fewer than five classes top-5 means top-C, which is always right. Also counts the commonest class:
    the accuracy of a model that always answers with it.

    Args:
        num_classes: C.
        leaf_classes: int [number of leaves], class indices; None where there is no tree and every class is
            one.
    """

    def __init__(self, num_classes: int, leaf_classes: np.ndarray | Sequence[int] | None = None) -> None:
        self.num_classes = num_classes
        self.is_leaf = torch.ones(num_classes, dtype=torch.bool)
        if leaf_classes is not None:
            self.is_leaf[:] = False
            self.is_leaf[torch.tensor(np.asarray(leaf_classes, dtype=np.int64))] = True
        self.num_leaves = int(self.is_leaf.sum())
        # Right within 1, right within 5, samples; row 0 among all classes, row 1 among leaves.
        self.counts = torch.zeros(2, 3, dtype=torch.int64)
        self.per_class = torch.zeros(num_classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], classes int64 [N], valid bool [N] or None."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise UsageError(
                f"TopKAccuracy: expected logits [N, {self.num_classes}], found {tuple(logits.shape)}; "
                "the model was built for another class list"
            )
        if self.counts.device != logits.device:
            self.is_leaf, self.counts = self.is_leaf.to(logits.device), self.counts.to(logits.device)
            self.per_class = self.per_class.to(logits.device)
        valid = torch.ones_like(classes, dtype=torch.bool) if valid is None else valid
        # A padded slot may hold any class index, so it must not be used to look anything up.
        classes = classes.masked_fill(~valid, 0)
        self.counts[0] += _count_top_k(logits, classes, valid, min(5, self.num_classes))
        leaf_logits = logits.masked_fill(~self.is_leaf, -torch.inf)
        leaf_valid = valid & self.is_leaf[classes]
        self.counts[1] += _count_top_k(leaf_logits, classes, leaf_valid, min(5, self.num_leaves))
        self.per_class.scatter_add_(0, classes, valid.to(torch.int64))

    def reduce(self) -> None:
        """Sum the counts over the ranks of torch.distributed; afterwards every rank computes the same."""
        _sum_over_ranks(self.counts, self.per_class)

    def compute(self) -> dict[str, Any]:
        """The numbers so far: shares in [0, 1] (None where nothing was counted) and the number of samples.

        `chance` is 1 / C, `leaf_chance` 1 / number of leaves; `majority` the share of the commonest class
        among the samples counted.
        """
        (top1, top5, samples), (leaf_top1, leaf_top5, leaf_samples) = self.counts.tolist()
        return {
            "top1": _share(top1, samples),
            "top5": _share(top5, samples),
            "leaf_top1": _share(leaf_top1, leaf_samples),
            "leaf_top5": _share(leaf_top5, leaf_samples),
            "samples": samples,
            "leaf_samples": leaf_samples,
            "chance": 1.0 / self.num_classes,
            "leaf_chance": _share(1, self.num_leaves),
            "majority": _share(int(self.per_class.max()), samples),
        }


def leaf_classes(tree: LabelTree) -> np.ndarray:
    """int64 array of the classes that are nobody's parent, ascending."""
    parents = np.asarray(tree.parents)
    return np.setdiff1d(np.arange(len(parents)), parents[parents >= 0])


def _count_top_k(logits: Tensor, classes: Tensor, counted: Tensor, k: int) -> Tensor:
    """int64 [3]: counted samples right within 1, within k, and all counted ones."""
    hits = logits.topk(k, dim=1).indices == classes[:, None]
    found = torch.stack([hits[:, :1].any(dim=1), hits.any(dim=1), torch.ones_like(counted)], dim=1)
    return (found & counted[:, None]).sum(dim=0)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _sum_over_ranks(*counts: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        for count in counts:
            dist.all_reduce(count)
