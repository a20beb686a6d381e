"""Accuracy over a label tree and over all classes, counted without waiting for the device.

Shape letters: N batch, C classes, L hierarchy levels, A paths to a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shards.errors import UsageError
from ..shards.tree import LabelTree
from .ancestors import ancestor_table, count_edges, leaf_classes
from .counted import Counted
from .level_layout import LevelClasses, distinct_targets


class SemanticAccuracy(Counted):
    """Share of (sample, level) pairs with a target whose argmax within the level is right (Ridnik et al. 2021).

    In a tree of all paths a pair counts once, however many classes the label has on the level, and is right where the
    argmax is any of them. With one path that is the published number.

    Args:
        tree: a LabelTree, or its `level_classes`: for each level the class indices, ascending.
    """

    _summed = ("counts", "per_class")

    def __init__(self, tree: LabelTree | LevelClasses) -> None:
        level_classes = tree.level_classes if isinstance(tree, LabelTree) else tree
        self.level_classes = [torch.tensor(np.asarray(ids, dtype=np.int64)) for ids in level_classes]
        self.level_sizes = [len(ids) for ids in level_classes]
        self.starts = torch.tensor([0, *self.level_sizes[:-1]]).cumsum(0)
        # Of each level: right pairs, all pairs.
        self.counts = torch.zeros(2, len(level_classes), dtype=torch.int64)
        # How often each class was a target on its level, level by level.
        self.per_class = torch.zeros(sum(self.level_sizes), dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, levels: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: floating [N, C].
            levels: int64 [N, L]: on each level the index within that level's classes, -1 for none; [N, A, L] in a
                tree of all paths.
            valid: bool [N]; False slots are not counted.
        """
        paths = distinct_targets(levels[:, None] if levels.ndim == 2 else levels)
        if paths.ndim != 3 or paths.shape[::2] != (len(logits), len(self.level_classes)):
            raise UsageError(
                f"SemanticAccuracy: expected levels {(len(logits), len(self.level_classes))}, or several rows of them "
                f"for each sample, found {tuple(levels.shape)}; the data set was packed with another tree"
            )
        self._follow(logits)
        counted = paths >= 0
        if valid is not None:
            counted = counted & valid[:, None, None]
        best = torch.stack([logits[:, ids].argmax(dim=1) for ids in self.level_classes], dim=1)
        right = (best[:, None] == paths) & counted
        self.counts += torch.stack([pairs.any(dim=1).sum(dim=0) for pairs in (right, counted)])
        # A padded slot may hold any index, so it must not be used to look anything up.
        places = self.starts + paths.masked_fill(~counted, 0)
        self.per_class.scatter_add_(0, places.flatten(), counted.flatten().to(torch.int64))

    def compute(self) -> dict[str, Any]:
        """The numbers so far.

        Returns:
            `semantic_accuracy`: over all pairs, as published.
            `semantic_choice`: over the pairs on levels of two classes or more. A level of one class is right
            whatever the model says: every tree with a single root has one, and each of its samples a pair there.
            `semantic_macro`: mean over the levels that have targets.
            `semantic_chance`: the semantic accuracy to expect of a guess on every level; `semantic_majority`:
            that of always answering with each level's commonest class.
            `per_level`: one share per level.
            Shares lie in [0, 1] and are None where nothing was counted.
        """
        right, pairs = self.counts.tolist()
        targets = self.per_class.cpu().split(self.level_sizes)
        commonest = [int(level.max()) for level in targets]
        per_level = [_share(part, whole) for part, whole in zip(right, pairs, strict=True)]
        reached = [share for share in per_level if share is not None]
        choices = [level for level, size in enumerate(self.level_sizes) if size > 1]
        guessed = sum(int(level.sum()) / size for level, size in zip(targets, self.level_sizes, strict=True))
        return {
            "semantic_accuracy": _share(sum(right), sum(pairs)),
            "semantic_choice": _share(sum(right[k] for k in choices), sum(pairs[k] for k in choices)),
            "semantic_macro": _share(sum(reached), len(reached)),
            "semantic_chance": _share(guessed, sum(pairs)),
            "semantic_majority": _share(sum(commonest), sum(pairs)),
            "per_level": per_level,
        }


class TopKAccuracy(Counted):
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

    _summed = ("counts", "per_class")

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
        valid = self._begin(logits, self.num_classes, valid)
        # A padded slot may hold any class index, so it must not be used to look anything up.
        classes = classes.masked_fill(~valid, 0)
        self.counts[0] += _count_top_k(logits, classes, valid, min(5, self.num_classes))
        leaf_logits = logits.masked_fill(~self.is_leaf, -torch.inf)
        leaf_valid = valid & self.is_leaf[classes]
        self.counts[1] += _count_top_k(leaf_logits, classes, leaf_valid, min(5, self.num_leaves))
        self.per_class.scatter_add_(0, classes, valid.to(torch.int64))

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


class TreeDistance(Counted):
    """How far off the answers are: edges of the label tree between the predicted class and the right one.

    The way leads up to the lowest common ancestor and down again: 0 for the right class, 1 for its parent, 2 for
    a sister. Roots hang under a common node of their own, so two roots are 2 edges apart. Where classes have several
    paths the shortest way counts. Two counts, as in TopKAccuracy: of all samples, the best of all classes; of leaf
    samples, the best of the leaf classes.

    Args:
        tree: a LabelTree; a cut of its levels does not count here.
    """

    def __init__(self, tree: LabelTree) -> None:
        self.ancestors = ancestor_table(tree)
        self.is_leaf = torch.zeros(len(tree.classes), dtype=torch.bool)
        self.is_leaf[torch.tensor(leaf_classes(tree))] = True
        # Edges, wrong answers, samples; row 0 among all classes, row 1 among leaves.
        self.counts = torch.zeros(2, 3, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], classes int64 [N], valid bool [N] or None."""
        valid = self._begin(logits, len(self.is_leaf), valid)
        classes = classes.masked_fill(~valid, 0)
        for row, among in enumerate((logits, logits.masked_fill(~self.is_leaf, -torch.inf))):
            counted = valid if row == 0 else valid & self.is_leaf[classes]
            edges = count_edges(self.ancestors, among.argmax(dim=1), classes)
            found = torch.stack([edges, edges > 0, torch.ones_like(edges)], dim=1)
            self.counts[row] += found.masked_fill(~counted[:, None], 0).sum(dim=0)

    def compute(self) -> dict[str, float | None]:
        """The numbers so far, in edges: no shares.

        Returns:
            `tree_distance`: mean over all samples; `tree_distance_of_errors`: mean over the wrong answers alone,
            which tells how bad an error is from how many there are; `leaf_...`: the same among leaves. None where
            nothing was counted.
        """
        (edges, wrong, samples), (leaf_edges, leaf_wrong, leaf_samples) = self.counts.tolist()
        return {
            "tree_distance": _share(edges, samples),
            "tree_distance_of_errors": _share(edges, wrong),
            "leaf_tree_distance": _share(leaf_edges, leaf_samples),
            "leaf_tree_distance_of_errors": _share(leaf_edges, leaf_wrong),
        }


def _count_top_k(logits: Tensor, classes: Tensor, counted: Tensor, k: int) -> Tensor:
    """int64 [3]: counted samples right within 1, within k, and all counted ones."""
    hits = logits.topk(k, dim=1).indices == classes[:, None]
    found = torch.stack([hits[:, :1].any(dim=1), hits.any(dim=1), torch.ones_like(counted)], dim=1)
    return (found & counted[:, None]).sum(dim=0)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
