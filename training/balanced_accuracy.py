"""Accuracy with every class weighing the same: the mean over classes of each class's own top-k."""

from __future__ import annotations

import torch
from torch import Tensor

from .counted import Counted


class BalancedAccuracy(Counted):
    """Mean over classes of per-class top-1 and top-5, WebVision's metric (Yan et al. 2020): noisy sets have few images
    of some classes and many of others.

    Classes without a sample are left out of the mean, and counted. Top-k is among all C classes; with fewer than five,
    top-5 means top-C.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # Of each class: right within 1, right within 5, samples.
        self.counts = torch.zeros(num_classes, 3, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], classes int64 [N], valid bool [N] or None."""
        valid = self._begin(logits, self.num_classes, valid)
        # A padded slot may hold any class index: it adds zeros to class 0.
        classes = classes.masked_fill(~valid, 0)
        hits = logits.topk(min(5, self.num_classes), dim=1).indices == classes[:, None]
        found = torch.stack([hits[:, 0], hits.any(dim=1), torch.ones_like(valid)], dim=1) & valid[:, None]
        self.counts.index_add_(0, classes, found.to(torch.int64))

    def compute(self) -> dict[str, float | int | None]:
        """The numbers so far.

        Returns:
            `balanced_top1` and `balanced_top5`: shares in [0, 1], None where nothing was counted;
            `classes_seen`: how many classes had a sample, which are those of the mean.
        """
        counts = self.counts.cpu()
        seen = counts[counts[:, 2] > 0].double()
        top1, top5 = (seen[:, :2] / seen[:, 2:]).mean(dim=0).tolist() if len(seen) else (None, None)
        return {"balanced_top1": top1, "balanced_top5": top5, "classes_seen": len(seen)}
