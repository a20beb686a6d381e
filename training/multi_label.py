"""A sigmoid for each class: a label and all of its ancestors are right, every other class is wrong.

Where a class has several parents, the ancestors on all of its paths are right.

Shape letters: N batch, C classes, L levels, M classes on these levels, A paths to a class. `valid` and `num_valid` as in
losses.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shards.errors import UsageError
from ..shards.tree import LabelTree
from .level_layout import LevelClasses, LevelLayout, reached_levels
from .losses import loss_dtype, mean_over_valid

# Least probability whose logarithm is taken, as in the published code of ASL.
LEAST_PROBABILITY = 1e-8


class BinaryCrossEntropyLoss(nn.Module):
    """Binary cross-entropy of every class of a label tree (Ridnik et al. 2021, the multi-label baseline).

    Args:
        tree: a LabelTree, or its `level_classes`; None, which `loader.tree` may be, is refused. Classes below a
            cut of the tree have no part in the loss.
        levels: how many levels are trained, from the root; None for all.
        class_mean: average over a sample's M classes, as torch's binary cross-entropy does, instead of adding
            them up.
        level_order: the logits come in level order: see `LevelOrder`. The labels do not change.
    """

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        *,
        levels: int | None = None,
        class_mean: bool = False,
        level_order: bool = False,
    ) -> None:
        super().__init__()
        self.layout = LevelLayout(tree, levels=levels, level_order=level_order, owner=type(self).__name__)
        self.class_mean = class_mean

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        num_valid: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: floating [N, C].
            labels: int64 [N, L], a batch's `levels`: on each level the index within that level's classes, -1 for
                none; [N, A, L] in a tree of all paths. Or int64 [N], class indices, where the loss was made from a
                LabelTree. A sample with no label at all has loss 0.
            valid: see the module.
            num_valid: see the module.

        Returns:
            float32 scalar (float64 for float64 logits).
        """
        arranged = self.layout.arrange(logits).to(loss_dtype(logits))
        levels = self.layout.targets(labels)
        is_right = multi_label_targets(levels, self.layout, arranged.dtype)
        losses = self.class_losses(arranged, is_right)
        per_sample = losses.mean(dim=1) if self.class_mean else losses.sum(dim=1)
        # The first level tells: every path begins there, and who has no ancestor there has no label.
        return mean_over_valid(per_sample.masked_fill(~reached_levels(levels)[:, 0], 0.0), valid, num_valid)

    def class_losses(self, logits: Tensor, is_right: Tensor) -> Tensor:
        """The loss of every class: logits and targets (1.0 or 0.0) floating [N, M], to [N, M]."""
        return F.binary_cross_entropy_with_logits(logits, is_right, reduction="none")


class AsymmetricLoss(BinaryCrossEntropyLoss):
    """ASL: easy wrong classes count less than hard ones (Ben-Baruch et al. 2021, "Asymmetric Loss").

    With p the sigmoid of a logit: -(1 - p)^gamma_pos log(p) for a right class and -q^gamma_neg log(1 - q) with
    q = max(p - clip, 0) for a wrong one. The probabilities under a logarithm are at least 1e-8, so a right class
    with a smaller one has no gradient, as in the published code. Published sums are over the batch too; here the
    batch is averaged.

    Args:
        tree: this, `levels`, `class_mean` and `level_order`: see BinaryCrossEntropyLoss.
        gamma_neg: focusing of the wrong classes.
        gamma_pos: focusing of the right ones.
        clip: what is taken off the probability of a wrong class, in [0, 1).
        focus_gradient: let the gradient flow through the focusing weights too. False, as by default in the
            published `AsymmetricLoss` (its optimised twin and timm's copy default to True), takes them for
            constants.
    """

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        focus_gradient: bool = False,
        levels: int | None = None,
        class_mean: bool = False,
        level_order: bool = False,
    ) -> None:
        super().__init__(tree, levels=levels, class_mean=class_mean, level_order=level_order)
        gammas = (gamma_neg, gamma_pos)
        if not all(gamma >= 0.0 and math.isfinite(gamma) for gamma in gammas) or not 0.0 <= clip < 1.0:
            raise UsageError(
                "AsymmetricLoss: expected gamma_neg and gamma_pos of 0 or more and clip in [0, 1), found "
                f"{gamma_neg}, {gamma_pos} and {clip}"
            )
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.focus_gradient = focus_gradient

    def class_losses(self, logits: Tensor, is_right: Tensor) -> Tensor:
        """See BinaryCrossEntropyLoss."""
        right = is_right > 0
        probability = logits.sigmoid()
        # Probability of the right answer: yes for a right class, no for a wrong one.
        answer = torch.where(right, probability, (1.0 - probability + self.clip).clamp(max=1.0))
        losses = -answer.clamp(min=LEAST_PROBABILITY).log()
        # At least 1e-8, or a focusing below 1 would have an infinite gradient where the loss is 0.
        miss = (1.0 - (answer if self.focus_gradient else answer.detach())).clamp(min=LEAST_PROBABILITY)
        return losses * torch.where(right, miss.pow(self.gamma_pos), miss.pow(self.gamma_neg))


def multi_label_targets(levels: Tensor, layout: LevelLayout, dtype: torch.dtype = torch.float32) -> Tensor:
    """1.0 at a label and its ancestors, else 0.0.

    Args:
        levels: int64 [N, L] or [N, A, L], from `layout.targets`.
        layout: where the levels stand.
        dtype: of the result.

    Returns:
        [N, M], in level order as `layout.arrange` gives the logits.
    """
    has_level = (levels >= 0).to(dtype).flatten(1)
    targets = torch.zeros(len(levels), layout.num_columns, dtype=dtype, device=levels.device)
    # No target adds its 0 to the level's first column; targets are distinct, so no class is written twice.
    return targets.scatter_add_(1, layout.columns(levels), has_level)
