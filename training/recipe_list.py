"""All recipes by the names that the command line calls them."""

from __future__ import annotations

from collections.abc import Callable

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

RECIPES: dict[str, Callable[[], Recipe]] = {
    "single-label": single_label,
    "multi-label": multi_label_bce,
    "asl": multi_label_asl,
    "semantic-softmax": semantic_softmax,
    "semantic-kd": semantic_kd,
    "relabel": relabel,
    "live-distillation": live_distillation,
    "transfer": transfer,
    "weakly-tagged": weakly_tagged,
    "label-weighted": label_weighted,
    "joint": joint,
    "fine-tune": fine_tune,
    "larger-images": larger_images,
    "pseudo": pseudo,
}
