"""What a recipe minimises: its loss module, and what of a batch the loss compares the logits with.

A new loss is a name in `recipes.LOSSES` and a case in each of the two functions here.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..loaders.batch import Batch
from ..shards.tree import LabelTree
from .losses import SemanticSoftmaxLoss, SingleLabelLoss, SoftTargetLoss
from .recipes import Recipe


def create_loss(recipe: Recipe, tree: LabelTree | None) -> nn.Module:
    """The recipe's loss: called with logits, target, `valid` and `num_valid` (see losses.py)."""
    if recipe.loss == "semantic-softmax":
        return SemanticSoftmaxLoss(tree, recipe.smoothing, recipe.weight_clamp, recipe.levels)
    if recipe.loss == "soft-target":
        return SoftTargetLoss()
    return SingleLabelLoss(recipe.smoothing)


def target_of(recipe: Recipe, batch: Batch) -> Tensor:
    """The part of a batch that the recipe's loss wants; its first axis is the batch's."""
    target = {"semantic-softmax": batch.levels, "soft-target": batch.targets, "single-label": batch.classes}[
        recipe.loss
    ]
    assert target is not None  # check_data and the loader have seen to it
    return target
