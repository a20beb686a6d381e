"""Losses for noisy web labels: several right answers of unequal weight, over one softmax (Yan et al. 2020).

    loss of an image = sum_t w_t CE_t = sum_t w_t (log sum_j exp z_j - z_t)

with w_t = 1 for each keyword of a weakly tagged image, and the label weights of a label-weighted one. Weights are not
normalised: an image with five keywords weighs five times as much as one with one.

Shape letters: N batch, C classes, T keywords, K kept targets. `valid` and `num_valid` as in losses.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..loaders.pooling import SparseTargets
from ..shards.errors import UsageError
from .losses import loss_dtype, mean_over_valid

# Logits that are worked on at a time: on a CPU 1 MiB of float32, which stays in its cache; on a GPU 64 MiB, so that few
# kernels are started.
_PIECE_CPU, _PIECE_GPU = 1 << 18, 1 << 24


class LabelWeightedLoss(nn.Module):
    """Cross-entropy with every class that has a weight, summed: sum_t w_t CE_t (Yan et al. 2020, label-weighted set).

    An image without any weight adds 0 and has no gradient; it counts among the valid ones, which the sum is divided by.

    Memory: beside the logits one tensor of their shape and dtype, the gradient. Sparse targets are gathered and never
    become dense. Computed in float32 (float64 for float64), also from half precision and under autocast.
    """

    def forward(
        self,
        logits: Tensor,
        targets: Tensor | SparseTargets,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: floating [N, C].
            targets: weights from 0, floating [N, C]; or SparseTargets of values and ids [N, K], where a value of 0 is
                padding, whatever its id. They get no gradient.
            valid: see losses.py.
            num_valid: see losses.py.

        Returns:
            float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: the targets have another shape.
        """
        return mean_over_valid(self.per_sample(logits, targets), valid, num_valid)

    def per_sample(self, logits: Tensor, targets: Tensor | SparseTargets) -> Tensor:
        """The images' losses, float32 [N], before they are averaged; arguments as in `forward`."""
        values, ids = targets if isinstance(targets, SparseTargets) else (targets, None)
        if ids is None:
            fits = values.shape == logits.shape
        else:
            fits = ids.shape == values.shape and ids.ndim == 2 and len(ids) == len(logits)
        if logits.ndim != 2 or not fits:
            found = str(tuple(values.shape)) if ids is None else f"sparse {tuple(ids.shape)}"
            raise UsageError(
                f"{type(self).__name__}: expected logits [N, C] and targets for them, found {tuple(logits.shape)} and "
                f"{found}; the model was built for another class list or vocabulary"
            )
        if ids is not None:
            ids = ids.masked_fill(values == 0, 0)  # padding may hold any id
        result: Any = _WeightedCrossEntropy.apply(logits, values, ids)
        return result


class WeaklyTaggedLoss(LabelWeightedLoss):
    """Softmax cross-entropy summed over an image's keywords, which is not binary cross-entropy (Yan et al. 2020).

    LabelWeightedLoss with the weight 1 for each keyword: targets are multi-hot, [N, T], or SparseTargets whose values
    are 1. An image without keywords adds 0, has no gradient and counts among the valid ones.
    """


class JointLoss(nn.Module):
    """Both at once, for a model of C + T outputs: label weights of its first C, keywords of its last T.

    Args:
        num_classes: C.
        tag_weight: what the loss of the keywords is multiplied with.
    """

    def __init__(self, num_classes: int, tag_weight: float = 1.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tag_weight = tag_weight
        self.of_classes = LabelWeightedLoss()
        self.of_tags = WeaklyTaggedLoss()

    def forward(
        self,
        logits: Tensor,
        targets: tuple[Tensor | SparseTargets, Tensor | SparseTargets],
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch: logits floating [N, C + T], targets the label weights [N, C] and the keywords [N, T], each
        of them dense or sparse; a scalar as in LabelWeightedLoss."""
        num_tags = logits.shape[1] - self.num_classes
        if num_tags < 1:
            raise UsageError(
                f"JointLoss: expected logits of {self.num_classes} classes and some keywords, found {tuple(logits.shape)}"
            )
        class_logits, tag_logits = logits.split([self.num_classes, num_tags], dim=1)
        weights, tags = targets
        per_sample = self.of_classes.per_sample(class_logits, weights)
        per_sample = per_sample + self.tag_weight * self.of_tags.per_sample(tag_logits, tags)
        return mean_over_valid(per_sample, valid, num_valid)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, tag_weight={self.tag_weight}"


class _WeightedCrossEntropy(torch.autograd.Function):
    """sum_t w_t (logsumexp(z) - z_t) for every row; its gradient is (sum_t w_t) softmax(z) - w.

    By hand, because autograd keeps several tensors of the logits' shape for it: the float32 copy of half precision,
    the scattered gradient of `gather`, and the sum of both. A few rows at a time are enough.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, ids: Tensor | None) -> Tensor:
        dtype = loss_dtype(logits)
        log_sums = logits.new_empty(len(logits), dtype=dtype)
        losses, totals = torch.empty_like(log_sums), values.sum(dim=1, dtype=dtype)
        for rows in _pieces(logits):
            piece = logits[rows].to(dtype)
            log_sums[rows] = piece.logsumexp(dim=1)
            chosen = piece if ids is None else piece.gather(1, ids[rows])
            # Not totals * log_sums - weights * chosen: of large logits little would be left of the difference.
            losses[rows] = (log_sums[rows, None] - chosen).mul_(values[rows]).sum(dim=1)
        ctx.save_for_backward(logits, values, log_sums, totals, *(() if ids is None else (ids,)))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, values, log_sums, totals, *rest = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _pieces(logits):
            piece = (logits[rows].to(log_sums.dtype) - log_sums[rows, None]).exp_()
            piece *= (totals[rows] * grad[rows])[:, None]
            weights, scale = values[rows].to(log_sums.dtype), grad[rows, None]
            if rest:
                piece.scatter_add_(1, rest[0][rows], -scale * weights)
            else:
                piece.addcmul_(weights, scale, value=-1)
            result[rows] = piece
        return result, None, None


def _pieces(logits: Tensor) -> Iterator[slice]:
    """Rows [N, C], a few at a time, at least one."""
    most = _PIECE_CPU if logits.device.type == "cpu" else _PIECE_GPU
    step = max(1, most // max(1, logits.shape[1]))
    return (slice(start, start + step) for start in range(0, len(logits), step))
