"""What must agree before a run begins: the call, the data sets, and the checkpoint that is continued."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from timm.optim import list_optimizers  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError, first_line
from .checkpoint import Checkpoint
from .label_space import LabelSpace
from .recipe_targets import TREE_LOSSES
from .recipes import Recipe
from .schedule import create_optimizer, first_other_rate


def check_call(
    recipe: Recipe,
    checkpoint_path: Path,
    *,
    resume: bool,
    starts_from_weights: bool,
    teacher: str | Path | None,
    device: str,
    rank: int,
    world_size: int,
    log_steps: int,
    checkpoint_steps: int | None,
) -> None:
    """Refuse options that contradict each other; every problem is named.

    Raises:
        UsageError: naming each of them.
    """
    problems = []
    if not 0 <= rank < world_size:
        problems.append(f"rank: expected a number in [0, {world_size}), found {rank}")
    if recipe.global_batch % world_size:
        problems.append(
            f"global batch: expected a multiple of the {world_size} processes, found {recipe.global_batch}"
        )
    elif recipe.global_batch // world_size % recipe.accumulate:
        problems.append(
            f"accumulate: expected a divisor of the {recipe.global_batch // world_size} samples of each process, "
            f"found {recipe.accumulate}. Give another --global-batch or --accumulate"
        )
    if recipe.precision == "float16" and not device.startswith("cuda"):
        problems.append(
            "precision: expected float32 or bfloat16 on a CPU, which has no fast float16, found float16. "
            "Run with --precision bfloat16 or --device cuda"
        )
    continues = resume and checkpoint_path.exists()
    if (recipe.freeze or recipe.new_head) and not starts_from_weights and not continues:
        problems.append(
            f"recipe {recipe.name!r}: expected trained weights to begin with, since it "
            + ("freezes all but the head" if recipe.freeze else "keeps all but their head")
            + ", found none. Give --init-from or --pretrained"
        )
    if teacher is not None and not recipe.wants_teacher:
        problems.append(
            f"recipe {recipe.name!r}: expected no teacher, since it does not distil, found {teacher}. Train the recipe "
            "semantic-kd or live-distillation, or leave out --teacher"
        )
    if teacher is None and recipe.loss == "live-teacher":
        problems.append(
            f"recipe {recipe.name!r}: expected a teacher, since it distils, found none. Give --teacher"
        )
    problems += _optimizer_problems(recipe)
    if recipe.global_batch % recipe.lanes:
        problems.append(
            f"lanes: expected a divisor of the global batch {recipe.global_batch}, found {recipe.lanes}. Give --lanes the "
            "number of machines, or another --global-batch"
        )
    if log_steps < 1:
        problems.append(f"log_steps: expected at least 1, found {log_steps}")
    if checkpoint_steps is not None and checkpoint_steps < 1:
        problems.append(f"checkpoint_steps: expected at least 1, found {checkpoint_steps}")
    if checkpoint_path.exists() and not resume:
        problems.append(
            f"{checkpoint_path}: expected a folder without a checkpoint, found one of an earlier run; "
            "continue it with --resume or name another --out"
        )
    if problems:
        raise UsageError("\n".join(problems))


def _optimizer_problems(recipe: Recipe) -> list[str]:
    """Why timm cannot make the recipe's optimizer, found by making it for a layer of one weight."""
    # Before the name may stand `lookahead_`.
    if recipe.optimizer.lower().rpartition("_")[2] not in list_optimizers():
        return [
            f"optimizer: expected a name that timm.optim knows, such as adam or sgd, found {recipe.optimizer!r}"
        ]
    try:
        create_optimizer(recipe, nn.Linear(1, 1))
    except Exception as error:  # each optimizer refuses its own way: ValueError, AssertionError, ImportError
        reason = first_line(error)
        return [
            f"optimizer: expected one that can be made here with the recipe's numbers, found {recipe.optimizer!r} "
            f"({reason}); choose another with --set optimizer=NAME"
        ]
    return []


def check_data(recipe: Recipe, dataset: str, loader: Loader) -> None:
    """Refuse a data set that the recipe cannot train on.

    Raises:
        UsageError: no label tree for a loss over one.
    """
    if recipe.loss in TREE_LOSSES and loader.tree is None:
        raise UsageError(
            f"{dataset}: expected a label tree for the recipe {recipe.name!r}, found none. "
            "Run: softshard tree build, then softshard train --labels, or softshard pack --tree"
        )


def check_same_classes(dataset: str, loader: Loader, val: str, val_loader: Loader, loss: str) -> None:
    """Refuse a validation set with another class list, tree or vocabulary, as far as the loss has outputs for them.

    Raises:
        DataError: with both fingerprints.
    """
    spaces = [LabelSpace.of_loader(each, loss) for each in (loader, val_loader)]
    problems = spaces[0].differences(spaces[1])
    if (spaces[0].tree is None) != (spaces[1].tree is None):
        shown = ["a label tree" if each.tree else "no label tree" for each in spaces]
        problems.append(f"expected {shown[0]}, found {shown[1]}")
    if problems:
        raise DataError(
            f"{val} does not belong to {dataset}: {'; '.join(problems)}; pack both in one run, "
            "or read both with the same --labels"
        )


def check_resume(
    saved: Checkpoint,
    path: Path,
    dataset: str,
    recipe: Recipe,
    model: str,
    loader: Loader,
    teacher: dict[str, Any] | None,
) -> None:
    """Refuse to continue a run with another data set, recipe, model or teacher.

    More epochs than it began with are fine where the steps that were taken had the learning rates they would have
    had with more.

    Raises:
        DataError: another class list or tree.
        UsageError: other options; every one is named.
    """
    saved.check_data(path, dataset, LabelSpace.of_loader(loader, recipe.loss))
    as_long = dataclasses.replace(recipe, epochs=saved.recipe.epochs)
    problems = saved.recipe.differences(as_long)
    if recipe.epochs != saved.recipe.epochs:
        reason = None if problems else _why_not_as_long(saved, recipe, len(loader))
        if problems or reason:
            problems.append(f"epochs: {saved.recipe.epochs}, not {recipe.epochs}{reason or ''}")
    if saved.model_name != model:
        problems.append(f"model: {saved.model_name!r}, not {model!r}")
    if _shown_teacher(saved.teacher) != _shown_teacher(teacher):
        problems.append(f"teacher: {_shown_teacher(saved.teacher)}, not {_shown_teacher(teacher)}")
    if problems:
        raise UsageError(
            f"{path}: expected the call that began this run, found other options: {'; '.join(problems)}. "
            "Repeat the first call with --resume, or begin a new run in another --out"
        )


def _shown_teacher(facts: dict[str, Any] | None) -> str:
    """What must be the same of a teacher: its file, wherever it lies, and whether it is asked or was."""
    if facts is None:
        return "none"
    return f"{'a stored' if facts['stored'] else 'a live'} one with SHA-256 {facts['sha256']}"


def _why_not_as_long(saved: Checkpoint, recipe: Recipe, steps_per_epoch: int) -> str | None:
    """Why a run cannot have the recipe's number of epochs instead of its own, or None where it can."""
    if recipe.epochs < saved.recipe.epochs:
        return " (a run can be given more epochs, not fewer)"
    if saved.step > (saved.recipe.epochs - recipe.mix_off_epochs) * steps_per_epoch:
        return f" (images were no longer mixed: mix_off_epochs is {recipe.mix_off_epochs})"
    parting = first_other_rate(saved.recipe, recipe, steps_per_epoch, saved.step)
    if parting is None:
        return None
    step, rate, other_rate = parting
    return (
        f" (the schedule {recipe.schedule!r} spreads over all epochs: step {step} was taken with the learning rate "
        f"{rate:.3g}, in {recipe.epochs} epochs it would have been {other_rate:.3g}; only a constant rate can go on. "
        "To train longer, begin a new run with --init-from)"
    )
