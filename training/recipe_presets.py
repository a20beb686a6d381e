"""What a command line changes of a recipe: presets, and single fields by their names."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable

from ..shards.errors import UsageError
from .recipes import Recipe


def small(recipe: Recipe) -> Recipe:
    """The same for one small machine and an afternoon: 128 pixels, at most 64 images a step and 20 epochs; nothing is
    done to images beside crop and flip, and whole ones are evaluated.

    SGD's learning rate shrinks with the batch (Goyal et al. 2017); Adam's stays, being small already. Not the
    papers' numbers, so not their results.
    """
    global_batch = min(64, recipe.global_batch)
    linear = recipe.optimizer in ("sgd", "momentum")
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}-small",
        epochs=min(20, recipe.epochs),
        global_batch=global_batch,
        image_size=min(128, recipe.image_size),
        augment="none",
        mix_off_epochs=0,
        eval_centre=None,
        lr=recipe.lr * global_batch / recipe.global_batch if linear else recipe.lr,
    )


def paper_cutmix(recipe: Recipe) -> Recipe:
    """The same with CutMix, Beta(1, 1), off for the last 5 epochs (Yun et al. 2021); for soft targets."""
    return _with_part(recipe, "cutmix")


def visible_cutmix(recipe: Recipe) -> Recipe:
    """paper_cutmix with targets that are pooled from what is visible of both images; ours, not the paper's."""
    return _with_part(recipe, "visible-cutmix")


def _with_part(recipe: Recipe, part: str) -> Recipe:
    parts = [text for text in (recipe.augment, f"{part}:1") if text != "none"]
    name = f"{recipe.name}-{part}"
    return dataclasses.replace(recipe, name=name, augment="+".join(parts), mix_off_epochs=5)


PRESETS: dict[str, Callable[[Recipe], Recipe]] = {
    "paper": lambda recipe: recipe,
    "paper-cutmix": paper_cutmix,
    "visible-cutmix": visible_cutmix,
    "small": small,
}


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with some fields changed, as the command line gives them.

    Args:
        recipe: to begin with.
        settings: `field=value` each: `ema_decay=0.999`, `crop_scale=0.25,1`, `levels=none`, `flip=true`.

    Raises:
        UsageError: no such field, or a value that does not fit it; every problem is named.
    """
    types = typing.get_type_hints(Recipe)
    del types["name"]
    changes, problems = {}, []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in types:
            problems.append(f"{setting!r}: expected FIELD=VALUE with a field of {', '.join(sorted(types))}")
            continue
        try:
            changes[name] = _parse(text, types[name])
        except ValueError:
            problems.append(f"{setting!r}: expected {_shown(types[name])}, found {text!r}")
    if problems:
        raise UsageError("recipe: " + "; ".join(problems))
    return dataclasses.replace(recipe, **changes)


def _parse(text: str, kind: typing.Any) -> object:
    """A field's value from its text; ValueError where it does not fit."""
    kinds = typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)
    if text == "none" and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no(text)
    if typing.get_origin(kind) is tuple:
        numbers = tuple(float(part) for part in text.split(","))
        return numbers if len(numbers) == len(typing.get_args(kind)) else _no(text)
    return kind(text)


def _no(text: str) -> typing.NoReturn:
    raise ValueError(text)


def _shown(kind: typing.Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
        type(None): "none",
    }
    kinds = typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)
    return " or ".join(names.get(kind, "two numbers with a comma") for kind in kinds)
