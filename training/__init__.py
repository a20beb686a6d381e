"""Losses, metrics, recipes and one training script; everything is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .average_precision import MeanAveragePrecision
    from .balanced_accuracy import BalancedAccuracy
    from .distillation import SemanticKDLoss, TeacherLevels, teacher_levels
    from .down_the_tree import DownTheTree
    from .level_layout import LevelLayout, LevelOrder
    from .losses import SemanticSoftmaxLoss, SingleLabelLoss, SoftTargetLoss
    from .metrics import SemanticAccuracy, TopKAccuracy, TreeDistance
    from .multi_label import AsymmetricLoss, BinaryCrossEntropyLoss
    from .recipe_presets import paper_cutmix, small, visible_cutmix
    from .recipes import (
        Recipe,
        live_distillation,
        multi_label_asl,
        multi_label_bce,
        relabel,
        semantic_kd,
        semantic_softmax,
        single_label,
        transfer,
    )
    from .recipes_web import fine_tune, joint, label_weighted, larger_images, pseudo, weakly_tagged
    from .tag_accuracy import TagAccuracy
    from .weighted_softmax import JointLoss, LabelWeightedLoss, WeaklyTaggedLoss

__all__ = [
    "AsymmetricLoss",
    "BalancedAccuracy",
    "BinaryCrossEntropyLoss",
    "DownTheTree",
    "JointLoss",
    "LabelWeightedLoss",
    "LevelLayout",
    "LevelOrder",
    "MeanAveragePrecision",
    "Recipe",
    "SemanticAccuracy",
    "SemanticKDLoss",
    "SemanticSoftmaxLoss",
    "SingleLabelLoss",
    "SoftTargetLoss",
    "TagAccuracy",
    "TeacherLevels",
    "TopKAccuracy",
    "TreeDistance",
    "WeaklyTaggedLoss",
    "fine_tune",
    "joint",
    "label_weighted",
    "larger_images",
    "live_distillation",
    "multi_label_asl",
    "multi_label_bce",
    "paper_cutmix",
    "pseudo",
    "relabel",
    "semantic_kd",
    "semantic_softmax",
    "single_label",
    "small",
    "teacher_levels",
    "transfer",
    "visible_cutmix",
    "weakly_tagged",
]

_NAMES = {
    "average_precision": ("MeanAveragePrecision",),
    "balanced_accuracy": ("BalancedAccuracy",),
    "distillation": ("SemanticKDLoss", "TeacherLevels", "teacher_levels"),
    "down_the_tree": ("DownTheTree",),
    "level_layout": ("LevelLayout", "LevelOrder"),
    "losses": ("SemanticSoftmaxLoss", "SingleLabelLoss", "SoftTargetLoss"),
    "metrics": ("SemanticAccuracy", "TopKAccuracy", "TreeDistance"),
    "multi_label": ("AsymmetricLoss", "BinaryCrossEntropyLoss"),
    "recipe_presets": ("paper_cutmix", "small", "visible_cutmix"),
    "recipes": (
        "Recipe",
        "live_distillation",
        "multi_label_asl",
        "multi_label_bce",
        "relabel",
        "semantic_kd",
        "semantic_softmax",
        "single_label",
        "transfer",
    ),
    "recipes_web": ("fine_tune", "joint", "label_weighted", "larger_images", "pseudo", "weakly_tagged"),
    "tag_accuracy": ("TagAccuracy",),
    "weighted_softmax": ("JointLoss", "LabelWeightedLoss", "WeaklyTaggedLoss"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        from ..shards.errors import MissingExtraError

        if error.name is not None and error.name.startswith(__name__.partition(".")[0]):
            raise
        raise MissingExtraError(f"{__name__}.{name}", "training", error) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
