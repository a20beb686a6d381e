"""Losses for classes, label trees and soft targets: plain modules for anybody's training loop.

Shape letters: N batch, C classes, L hierarchy levels, N_k classes of level k.

Every loss takes `valid` and `num_valid`:

    valid      bool [N]. Slots that are False (padding, a sample that could not be read) count for nothing.
    num_valid  what the sum over samples is divided by; by default the valid samples of this batch. Under
               DistributedDataParallel, which averages gradients over ranks, pass the number of valid samples
               of the *global* batch and multiply the loss by the world size: every sample then weighs the
               same, however the valid ones are spread over the ranks.

None of them waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shards.errors import UsageError, check_choice
from ..shards.tree import LabelTree
from .level_layout import LevelClasses, LevelLayout
from .level_softmax import level_cross_entropy
from .recipe_targets import BALANCES


class SemanticSoftmaxLoss(nn.Module):
    """One softmax per level of a label tree (Ridnik et al. 2021, sec. 3.2).

    sum_k W_k CE_k, where CE_k is the cross-entropy over the classes of level k with smoothing eps / N_k, zero
    for samples without a label on that level, averaged over the whole batch; W_k = O_0 / O_k with
    O_k = sum_{j >= k} N_j makes up for the fewer samples that reach a deep level. The log-softmax runs in
    float32 also under autocast.

    In a tree of all paths CE_k is the cross-entropy against the uniform distribution over the sample's distinct
    classes on level k, with the same smoothing; a level counts where any path reaches it. With one class there, which
    is all that the paper knows, that is the published loss.

    Args:
        tree: a LabelTree, or its `level_classes`: for each level the class indices, ascending. None, which
            `loader.tree` may be, is refused.
        smoothing: eps in [0, 1).
        clamp: largest W_k (20 in the published code, which the paper does not mention); None for no limit.
        levels: how many levels are trained, from the root; None for all. The weights count the others too.
            The published code leaves out the deepest level of its fall11 tree: `levels=11`.
        balance: what O_k counts: `classes`, as published, or `images`, for data sets whose classes differ much
            in size.
        class_counts: int [C], images of each class; for `balance="images"` alone.
        level_order: the logits come in level order: see `LevelOrder`. The labels do not change.

    Attributes:
        level_weights: tuple of float, W_k for the trained levels.
    """

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        smoothing: float = 0.2,
        clamp: float | None = 20.0,
        levels: int | None = None,
        *,
        balance: str = "classes",
        class_counts: np.ndarray | Sequence[int] | None = None,
        level_order: bool = False,
    ) -> None:
        super().__init__()
        self.layout = LevelLayout(tree, levels=levels, level_order=level_order, owner="SemanticSoftmaxLoss")
        assert tree is not None  # the layout refused it
        _check_smoothing(smoothing)
        self.smoothing = smoothing
        counts = _level_counts(tree, balance, class_counts)
        self.level_weights = semantic_level_weights(counts, clamp)[: self.num_levels]

    @property
    def num_levels(self) -> int:
        """How many levels are trained."""
        return self.layout.num_levels

    def forward(
        self,
        logits: Tensor,
        levels: Tensor,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: floating [N, C].
            levels: int64 [N, L]: on each level the index within that level's classes, -1 for none; [N, A, L] in
                a tree of all paths. Or int64 [N], class indices, where the loss was made from a LabelTree.
            valid: see the module.
            num_valid: see the module.

        Returns:
            float32 scalar (float64 for float64 logits).
        """
        targets = self.layout.targets(levels)
        arranged = self.layout.arrange(logits).to(loss_dtype(logits))
        per_sample = level_cross_entropy(arranged, targets, self.layout, self.level_weights, self.smoothing)
        return mean_over_valid(per_sample, valid, num_valid)

    def extra_repr(self) -> str:
        return f"levels={self.num_levels}, smoothing={self.smoothing}"


class SingleLabelLoss(nn.Module):
    """Cross-entropy with one class per sample; the smoothing is spread over all C classes.

    Args:
        smoothing: eps in [0, 1).
    """

    def __init__(self, smoothing: float = 0.2) -> None:
        super().__init__()
        _check_smoothing(smoothing)
        self.smoothing = smoothing

    def forward(
        self,
        logits: Tensor,
        classes: Tensor,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch: logits floating [N, C], classes int64 [N]; a scalar as in SemanticSoftmaxLoss."""
        per_sample = F.cross_entropy(
            logits.to(loss_dtype(logits)),
            classes,
            ignore_index=-1,  # the class of a padded slot
            reduction="none",
            label_smoothing=self.smoothing,
        )
        return mean_over_valid(per_sample, valid, num_valid)


class SoftTargetLoss(nn.Module):
    """Cross-entropy with a distribution over the classes, such as a pooled label map (Yun et al. 2021)."""

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch: logits floating [N, C], targets floating [N, C] that sum to 1 in every row."""
        if logits.shape != targets.shape:
            raise UsageError(
                f"SoftTargetLoss: expected targets {tuple(logits.shape)}, found {tuple(targets.shape)}; "
                "the model was built for another class list"
            )
        dtype = loss_dtype(logits)
        per_sample = F.cross_entropy(logits.to(dtype), targets.to(dtype), reduction="none")
        return mean_over_valid(per_sample, valid, num_valid)


def semantic_level_weights(level_counts: Sequence[int], clamp: float | None = 20.0) -> tuple[float, ...]:
    """W_k = O_0 / O_k with O_k = sum_{j >= k} N_j (Ridnik et al. 2021, eq. 6), at most `clamp`.

    Args:
        level_counts: N_k, the classes (or images) of every level.
        clamp: largest weight, also that of levels below which nothing was counted; None for no limit.

    Raises:
        UsageError: nothing was counted, or nothing from some level on and there is no limit.
    """
    tail_sums = np.cumsum(np.asarray(level_counts, dtype=np.int64)[::-1])[::-1]
    if not len(tail_sums) or tail_sums[0] < 1 or (clamp is None and tail_sums[-1] < 1):
        raise UsageError(
            f"level weights: expected at least one class on every level (or image, without a clamp), "
            f"found {list(level_counts)}"
        )
    weights = tail_sums[0] / np.maximum(tail_sums, 1)
    weights[tail_sums == 0] = np.inf
    return tuple(float(weight if clamp is None else min(weight, clamp)) for weight in weights)


def mean_over_valid(per_sample: Tensor, valid: Tensor | None, num_valid: Tensor | int | None) -> Tensor:
    """Sum of the valid samples' losses [N] over their number: the contract of this module, for any loss."""
    if valid is not None:
        per_sample = per_sample.masked_fill(~valid, 0.0)
    if num_valid is None:
        # At least 1: a batch of padding has loss 0, not 0 / 0.
        num_valid = len(per_sample) if valid is None else valid.sum().clamp(min=1)
    return per_sample.sum() / num_valid


def loss_dtype(logits: Tensor) -> torch.dtype:
    """In which a loss is computed: float32 for half precision and float32, float64 for float64."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _level_counts(
    tree: LabelTree | LevelClasses, balance: str, class_counts: np.ndarray | Sequence[int] | None
) -> list[int]:
    """Classes or images of every level; a tree cut by `--levels` still knows the levels below the cut."""
    check_choice("SemanticSoftmaxLoss: balance", balance, BALANCES)
    if (class_counts is None) == (balance == "images"):
        raise UsageError(
            "SemanticSoftmaxLoss: class_counts: expected with balance='images' and without 'classes', "
            f"found {'none' if class_counts is None else 'some'} with {balance!r}"
        )
    if class_counts is None:
        return list(tree.level_sizes) if isinstance(tree, LabelTree) else [len(ids) for ids in tree]
    counts = np.asarray(class_counts, dtype=np.int64)
    if isinstance(tree, LabelTree):
        num_classes, level_of = len(tree.classes), tree.levels
    else:
        num_classes = max(int(np.max(ids)) for ids in tree) + 1
        level_of = np.full(num_classes, len(tree))  # one level more, for classes on none
        for level, ids in enumerate(tree):
            level_of[np.asarray(ids)] = level
    if counts.shape != (num_classes,) or counts.min() < 0:
        raise UsageError(
            f"SemanticSoftmaxLoss: class_counts: expected {num_classes} numbers of images, found "
            f"{list(counts.shape)}, the lowest {counts.min(initial=0)}"
        )
    by_level = np.bincount(level_of, weights=counts).astype(np.int64).tolist()
    return by_level if isinstance(tree, LabelTree) else by_level[: len(tree)]


def _check_smoothing(smoothing: float) -> None:
    if not 0.0 <= smoothing < 1.0:
        raise UsageError(f"smoothing: expected a number in [0, 1), found {smoothing}")
