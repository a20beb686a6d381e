"""What must agree before a run begins: the call, the data sets, and the checkpoint that is continued."""

from __future__ import annotations

from pathlib import Path

from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError
from .checkpoint import Checkpoint
from .recipes import Recipe


def check_call(
    recipe: Recipe,
    checkpoint_path: Path,
    resume: bool,
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


def check_data(recipe: Recipe, dataset: str, loader: Loader) -> None:
    """Refuse a data set that the recipe cannot train on.

    Raises:
        UsageError: no label tree for semantic softmax.
    """
    if recipe.loss == "semantic-softmax" and loader.tree is None:
        raise UsageError(
            f"{dataset}: expected a label tree for the recipe {recipe.name!r}, found none. "
            "Run: softshard tree build, then softshard pack --tree"
        )


def check_same_classes(dataset: str, loader: Loader, val: str, val_loader: Loader) -> None:
    """Refuse a validation set with another class list or tree.

    Raises:
        DataError: with both fingerprints.
    """
    problems = []
    for what, expected, found in (
        ("class list", loader.manifest.classes_sha256, val_loader.manifest.classes_sha256),
        ("label tree", loader.manifest.tree_sha256, val_loader.manifest.tree_sha256),
    ):
        if expected != found:
            problems.append(f"{what}: expected {expected}, found {found}")
    if problems:
        raise DataError(f"{val} does not belong to {dataset}: {'; '.join(problems)}; pack both in one run")


def check_resume(
    saved: Checkpoint, path: Path, dataset: str, recipe: Recipe, model: str, loader: Loader
) -> None:
    """Refuse to continue a run with another data set, recipe or model.

    Raises:
        DataError: another class list or tree.
        UsageError: other options; every one is named.
    """
    saved.check_data(path, dataset, loader.manifest.classes_sha256, loader.manifest.tree_sha256)
    problems = saved.recipe.differences(recipe)
    if saved.model_name != model:
        problems.append(f"model: {saved.model_name!r}, not {model!r}")
    if problems:
        raise UsageError(
            f"{path}: expected the call that began this run, found other options: {'; '.join(problems)}. "
            "Repeat the first call with --resume, or begin a new run in another --out"
        )
