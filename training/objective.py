"""What a recipe minimises: its loss module, and what of a batch the loss compares the logits with.

A new loss is a name in `recipe_targets.LOSSES` and a case in each of the two functions here.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ..loaders.batch import Batch, TeacherLevels
from ..loaders.loader import Loader
from ..loaders.pooling import SparseTargets
from ..shards.tree import LabelTree
from .distillation import LiveTeacherLoss, SemanticKDLoss
from .losses import SemanticSoftmaxLoss, SingleLabelLoss, SoftTargetLoss
from .multi_label import AsymmetricLoss, BinaryCrossEntropyLoss
from .recipe_targets import TARGET_LOSSES, TREE_LOSSES
from .recipes import Recipe
from .weighted_softmax import JointLoss, LabelWeightedLoss, WeaklyTaggedLoss

Target = Tensor | SparseTargets | tuple[Tensor | SparseTargets, Tensor | SparseTargets]


class DistilledLoss(nn.Module):
    """A loss of the labels plus a weighted one of a teacher.

    Args:
        loss: called with logits, target, `valid` and `num_valid`.
        distillation: called with what the teacher says, too.
        weight: of the distillation.
    """

    def __init__(self, loss: nn.Module, distillation: SemanticKDLoss, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.distillation = distillation
        self.weight = weight

    def forward(
        self,
        logits: Tensor,
        teacher: Tensor | TeacherLevels,
        target: Tensor,
        valid: Tensor,
        num_valid: Tensor | int,
    ) -> Tensor:
        """Loss of a batch: logits floating [N, C] of the student, those of the teacher or what was stored of them; the
        others as in losses.py."""
        distance = self.distillation(logits, teacher, target, valid, num_valid)
        return self.loss(logits, target, valid, num_valid) + self.weight * distance


def create_loss(
    recipe: Recipe, tree: LabelTree | None, class_counts: np.ndarray | None = None, *, num_classes: int = 0
) -> nn.Module:
    """The recipe's loss: called with logits, target, `valid` and `num_valid` (see losses.py).

    With a teacher (`Recipe.wants_teacher`) its logits, or what was stored of them, come second.

    Args:
        recipe: which loss, and its options.
        tree: the data set's, or None.
        class_counts: for `balance="images"`: int [C], see `count_images`.
        num_classes: C, for the loss `joint`.
    """
    shared = {"levels": recipe.levels, "level_order": recipe.level_order}
    if recipe.loss == "multi-label":
        return BinaryCrossEntropyLoss(tree, **shared)
    if recipe.loss == "asl":
        return AsymmetricLoss(
            tree, gamma_neg=recipe.gamma_neg, gamma_pos=recipe.gamma_pos, clip=recipe.asl_clip, **shared
        )
    if recipe.loss == "soft-target":
        return SoftTargetLoss()
    if recipe.loss == "weakly-tagged":
        return WeaklyTaggedLoss()
    if recipe.loss == "label-weighted":
        return LabelWeightedLoss()
    if recipe.loss == "joint":
        return JointLoss(num_classes, recipe.tag_weight)
    if recipe.loss == "live-teacher":
        return LiveTeacherLoss()
    if recipe.loss == "single-label":
        return SingleLabelLoss(recipe.smoothing)
    loss = SemanticSoftmaxLoss(
        tree,
        recipe.smoothing,
        recipe.weight_clamp,
        balance=recipe.balance,
        class_counts=class_counts,
        **shared,
    )
    if recipe.distill == "none":
        return loss
    return DistilledLoss(loss, SemanticKDLoss(tree, recipe.distill, **shared), recipe.distill_weight)


def count_images(recipe: Recipe, loader: Loader) -> np.ndarray | None:
    """Images of each class that an epoch has, int64 [C], where the recipe's loss counts them; else None."""
    if recipe.balance != "images":
        return None
    return loader.count_classes()


def target_of(recipe: Recipe, batch: Batch) -> Target:
    """The part of a batch that the recipe's loss wants: tensors whose first axis is the batch's."""
    if recipe.loss in TREE_LOSSES:
        target = batch.levels
    elif recipe.loss == "joint":
        assert batch.targets is not None  # as below
        assert batch.more_targets is not None
        return batch.targets, batch.more_targets["tags"]
    elif recipe.loss in TARGET_LOSSES:
        target = batch.targets
    else:
        target = batch.classes
    assert target is not None  # check_data and the loader have seen to it
    return target
