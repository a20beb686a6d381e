"""What contradicts itself in a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..loaders.augment_text import parse_augment
from ..shards.errors import UsageError
from .precision import PRECISIONS
from .recipe_targets import (
    BALANCES,
    DISTILLATION_RULES,
    LOSSES,
    TARGET_LOSSES,
    TREE_LOSSES,
    target_problems,
)

if TYPE_CHECKING:
    from .recipes import Recipe

_CHOICES = {
    "loss": LOSSES,
    "schedule": ("one-cycle", "cosine", "step", "constant"),
    "precision": PRECISIONS,
    "balance": BALANCES,
    "distill": ("none", *DISTILLATION_RULES),
}

# Numbers that a recipe may do without.
_MAY_BE_NONE = ("levels", "ema_decay", "clip_norm", "weight_clamp")
# What numbers may be, where they are given.
_LIMITS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda number: number >= 1,
        ("epochs", "global_batch", "image_size", "accumulate", "step_epochs", "lanes"),
    ),
    ("at least 1, or none for all", lambda number: number >= 1, ("levels",)),
    (
        "a number in [0, 1)",
        lambda number: 0 <= number < 1,
        ("smoothing", "warmup", "ema_decay", "asl_clip", "momentum"),
    ),
    ("a number from 0 to 1", lambda number: 0 <= number <= 1, ("class_balance", "warmup_from")),
    ("0 or more", lambda number: number >= 0, ("gamma_neg", "gamma_pos", "weight_decay")),
    (
        "more than 0",
        lambda number: number > 0,
        ("lr", "clip_norm", "weight_clamp", "distill_weight", "tag_weight", "step_factor"),
    ),
)


def recipe_problems(recipe: Recipe) -> list[str]:
    """A line for each problem; none for a recipe that can run."""
    problems = []
    for field, choices in _CHOICES.items():
        if getattr(recipe, field) not in choices:
            problems.append(f"{field}: expected one of {choices}, found {getattr(recipe, field)!r}")
    problems += target_problems(recipe.loss, recipe.targets, recipe.keep_targets)
    problems += _options_of_other_losses(recipe)
    not_finite = {name: value for name, value in vars(recipe).items() if not _is_finite(value)}
    problems += [f"{name}: expected finite numbers, found {value}" for name, value in not_finite.items()]
    for expected, fits, names in _LIMITS:
        for field in names:
            number = getattr(recipe, field)
            if field in not_finite or (number is None and field in _MAY_BE_NONE):
                continue
            if not fits(number):
                problems.append(f"{field}: expected {expected}, found {number}")
    if recipe.crop_scale is not None and "crop_scale" not in not_finite:
        least, most = recipe.crop_scale
        if not 0.0 < least <= most <= 1.0:
            problems.append(f"crop_scale: expected 0 < least <= most <= 1, found {recipe.crop_scale}")
    if not problems:
        problems += _augment_problems(recipe)
    return problems


def _is_finite(value: object) -> bool:
    """Whether no number of a recipe's value, or of a tuple of them, is infinite or NaN."""
    numbers = value if isinstance(value, tuple) else (value,)
    return all(math.isfinite(number) for number in numbers if isinstance(number, float))


def _augment_problems(recipe: Recipe) -> list[str]:
    try:
        mixes = parse_augment(recipe.augment).mixes
    except UsageError as error:
        return [f"augment: {error}"]
    if mixes and recipe.loss not in TARGET_LOSSES:
        return [f"augment: expected no mixing with the loss {recipe.loss!r}, found {recipe.augment!r}"]
    if mixes and recipe.keep_targets is not None:
        return [
            f"augment: expected no mixing of sparse targets, found {recipe.augment!r}; --set keep_targets=none"
        ]
    if not 0 <= recipe.mix_off_epochs <= (recipe.epochs if mixes else 0):
        most = f"the number of epochs, {recipe.epochs}" if mixes else "0 without mixup and cutmix"
        cure = "; --set mix_off_epochs=0 mixes to the end" if mixes else ""
        return [f"mix_off_epochs: expected 0 to {most}, found {recipe.mix_off_epochs}{cure}"]
    if recipe.eval_centre is not None and not 0.0 < recipe.eval_centre <= 1.0:
        return [f"eval_centre: expected a share above 0, at most 1, found {recipe.eval_centre}"]
    return []


def _options_of_other_losses(recipe: Recipe) -> list[str]:
    """Options that this recipe's loss would not look at."""
    problems = []
    for field, plain, losses in (
        ("balance", "classes", ("semantic-softmax",)),
        ("distill", "none", ("semantic-softmax",)),
        ("levels", None, TREE_LOSSES),
        ("level_order", False, TREE_LOSSES),
        ("tag_weight", 1.0, ("joint",)),
    ):
        value = getattr(recipe, field)
        if value != plain and recipe.loss not in losses:
            problems.append(f"{field}: expected {plain!r} with the loss {recipe.loss!r}, found {value!r}")
    return problems
