"""Cross-entropy over every level of a label tree at once, and its gradient, in few passes over the logits.

Shape letters: N batch, L levels, N_k classes of level k, M classes on these levels, A paths to a class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .level_layout import LevelLayout, reached_levels


def level_cross_entropy(
    arranged: Tensor, targets: Tensor, layout: LevelLayout, level_weights: tuple[float, ...], smoothing: float
) -> Tensor:
    """sum_k W_k CE_k of every sample, CE_k zero where a sample has no target on level k.

    CE_k is the cross-entropy of the softmax over level k's classes with smoothing eps / N_k, stable for logits
    of any size. Where a sample has several targets on a level, it is that against the uniform distribution over them.
    It can be differentiated once.

    Args:
        arranged: float32 or float64 [N, M], from `layout.arrange`.
        targets: int64 [N, L] or [N, A, L], from `layout.targets`.
        layout: where the levels stand.
        level_weights: L weights W_k.
        smoothing: eps in [0, 1).

    Returns:
        [N] in the dtype of the logits.
    """
    per_sample: Tensor = _LevelCrossEntropy.apply(
        arranged,
        layout.columns(targets),
        _target_shares(targets, arranged.dtype),
        reached_levels(targets),
        layout.level_sizes,
        level_weights,
        smoothing,
    )  # pyright: ignore[reportAssignmentType]
    return per_sample


def _target_shares(targets: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What each target counts on its level: [N, A, L], 1 / number of them, 0 for no target. None where a level has one
    at most, which counts whole."""
    if targets.ndim == 2:
        return None
    counts = (targets >= 0).to(dtype)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)


class _LevelCrossEntropy(torch.autograd.Function):
    """One softmax per level, kept for the gradient, which is written out for all levels at once.

    Left to autograd, a cross-entropy per level copies every level several times forward and backward.
    """

    @staticmethod
    def forward(
        ctx,
        arranged: Tensor,
        columns: Tensor,
        target_shares: Tensor | None,
        has_target: Tensor,
        level_sizes: tuple[int, ...],
        level_weights: tuple[float, ...],
        smoothing: float,
    ) -> Tensor:
        levels = arranged.split(level_sizes, dim=1)
        shares = [level.softmax(dim=1) for level in levels]
        highest = torch.stack([level.amax(dim=1) for level in levels], dim=1)
        # The softmax of the highest logit is 1 / sum exp(z - highest): never 0, however far off the target is.
        log_sums = -torch.stack([share.amax(dim=1) for share in shares], dim=1).log()
        logits = arranged.gather(1, columns)
        if target_shares is not None:  # their mean; a logit of -inf that is no target is none of it
            logits = logits.view(target_shares.shape).masked_fill(target_shares == 0, 0.0)
            logits = (logits * target_shares).sum(dim=1)
        losses = log_sums - (1.0 - smoothing) * (logits - highest)
        if smoothing:  # else a logit of -inf would give 0 * inf
            means = torch.stack([level.mean(dim=1) for level in levels], dim=1)
            losses = losses - smoothing * (means - highest)
        losses = losses.masked_fill(~has_target, 0.0)
        ctx.save_for_backward(columns, target_shares, has_target, *shares)
        ctx.constants = (level_sizes, level_weights, smoothing)
        # A weight is a Python number: a tensor of them would be rounded by a module's .half().
        return torch.stack([w * loss for w, loss in zip(level_weights, losses.unbind(1), strict=True)]).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        columns, target_shares, has_target, *shares = ctx.saved_tensors
        level_sizes, level_weights, smoothing = ctx.constants
        weights = torch.stack([gradients[0] * weight for weight in level_weights], dim=1)
        weights = weights.masked_fill(~has_target, 0.0)
        gradient = torch.cat(shares, dim=1)  # a copy: backward may run again
        for level, view in enumerate(gradient.split(level_sizes, dim=1)):
            view.mul_(weights[:, level, None])
            if smoothing:
                view.sub_(weights[:, level, None] * (smoothing / view.shape[1]))
        pulls = weights * (smoothing - 1.0)
        if target_shares is not None:
            pulls = (pulls[:, None] * target_shares).flatten(1)
        gradient.scatter_add_(1, columns, pulls)
        return gradient, None, None, None, None, None, None
