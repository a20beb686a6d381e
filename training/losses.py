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

from ..shards.errors import UsageError
from ..shards.tree import LabelTree

LevelClasses = Sequence[np.ndarray | Sequence[int]]


class SemanticSoftmaxLoss(nn.Module):
    """One softmax per level of a label tree (Ridnik et al. 2021, sec. 3.2).

    sum_k W_k CE_k, where CE_k is the cross-entropy over the classes of level k with smoothing eps / N_k, zero
    for samples without a label on that level, averaged over the whole batch; W_k = O_0 / O_k with
    O_k = sum_{j >= k} N_j makes up for the fewer samples that reach a deep level. The log-softmax runs in
    float32 also under autocast.

    Args:
        tree: a LabelTree, or its `level_classes`: for each level the class indices, ascending. None, which
            `loader.tree` may be, is refused.
        smoothing: eps in [0, 1).
        clamp: largest W_k (20 in the published code, which the paper does not mention); None for no limit.
        levels: how many levels are trained, from the root; None for all. The weights count the others too.
            The published code leaves out the deepest level of its fall11 tree: `levels=11`.

    Attributes:
        level_weights: tuple of float, W_k for the trained levels.
    """

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        smoothing: float = 0.2,
        clamp: float | None = 20.0,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        if tree is None:  # what `loader.tree` is then
            raise UsageError(
                "SemanticSoftmaxLoss: expected a label tree, found None; the data set has none. "
                "Run: softshard tree build, then softshard pack --tree"
            )
        level_classes = tree.level_classes if isinstance(tree, LabelTree) else tree
        # A tree cut by `--levels` still knows the sizes of the levels below the cut.
        level_sizes = tree.level_sizes if isinstance(tree, LabelTree) else [len(ids) for ids in level_classes]
        _check_smoothing(smoothing)
        num_levels = len(level_classes) if levels is None else levels
        if not 1 <= num_levels <= len(level_classes):
            raise UsageError(
                f"SemanticSoftmaxLoss: expected levels between 1 and {len(level_classes)} (the depth of the "
                f"tree), found {levels}"
            )
        self.smoothing = smoothing
        self.level_weights = semantic_level_weights(level_sizes, clamp)[:num_levels]
        self.num_levels = num_levels
        for level in range(num_levels):
            ids = torch.tensor(np.asarray(level_classes[level], dtype=np.int64))
            # Buffers follow .to(device); they come from the tree, so a checkpoint need not hold them.
            self.register_buffer(f"classes_{level}", ids, persistent=False)

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
            levels: int64 [N, L]: on each level the index within that level's classes, -1 for none.
            valid: see the module.
            num_valid: see the module.

        Returns:
            float32 scalar (float64 for float64 logits).
        """
        if levels.ndim != 2 or levels.shape[1] < self.num_levels:
            raise UsageError(
                f"SemanticSoftmaxLoss: expected levels [N, {self.num_levels}] or wider, "
                f"found {tuple(levels.shape)}; the data set was packed with another tree"
            )
        per_sample = logits.new_zeros(len(logits), dtype=_loss_dtype(logits))
        for level, weight in enumerate(self.level_weights):
            ids = self.get_buffer(f"classes_{level}")
            per_sample = per_sample + weight * F.cross_entropy(
                logits[:, ids].to(per_sample.dtype),
                levels[:, level],
                ignore_index=-1,
                reduction="none",
                label_smoothing=self.smoothing,
            )
        return _mean(per_sample, valid, num_valid)

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
            logits.to(_loss_dtype(logits)),
            classes,
            ignore_index=-1,  # the class of a padded slot
            reduction="none",
            label_smoothing=self.smoothing,
        )
        return _mean(per_sample, valid, num_valid)


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
        dtype = _loss_dtype(logits)
        per_sample = F.cross_entropy(logits.to(dtype), targets.to(dtype), reduction="none")
        return _mean(per_sample, valid, num_valid)


def semantic_level_weights(level_sizes: Sequence[int], clamp: float | None = 20.0) -> tuple[float, ...]:
    """W_k = O_0 / O_k with O_k = sum_{j >= k} N_j (Ridnik et al. 2021, eq. 6), at most `clamp`."""
    tail_sums = np.cumsum(np.asarray(level_sizes, dtype=np.int64)[::-1])[::-1]
    if not len(tail_sums) or tail_sums[-1] < 1:
        raise UsageError(
            f"level weights: expected at least one class on every level, found {list(level_sizes)}"
        )
    weights = tail_sums[0] / tail_sums
    return tuple(float(weight if clamp is None else min(weight, clamp)) for weight in weights)


def _mean(per_sample: Tensor, valid: Tensor | None, num_valid: Tensor | int | None) -> Tensor:
    if valid is not None:
        per_sample = per_sample.masked_fill(~valid, 0.0)
    if num_valid is None:
        # At least 1: a batch of padding has loss 0, not 0 / 0.
        num_valid = len(per_sample) if valid is None else valid.sum().clamp(min=1)
    return per_sample.sum() / num_valid


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check_smoothing(smoothing: float) -> None:
    if not 0.0 <= smoothing < 1.0:
        raise UsageError(f"smoothing: expected a number in [0, 1), found {smoothing}")
