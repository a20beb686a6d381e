"""The data of a run: what it trains on, and what it is evaluated on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..loaders.either_loader import open_loader
from ..loaders.faults import Faults
from ..loaders.labels import LabelSource, load_labels
from ..loaders.loader import Loader
from ..loaders.subset import Subset
from ..shards.subset_file import SubsetFile, load_subset
from .checks import check_data, check_same_classes
from .evaluate import evaluation_loader
from .recipes import Recipe

if TYPE_CHECKING:
    from ..loaders.service_client import Connection


def open_loaders(
    recipe: Recipe,
    dataset: str,
    val: str | None,
    *,
    labels: str | Path | LabelSource | None,
    subset: str | Path | SubsetFile | Subset | None,
    connection: Connection | None,
    side: str | Path | None,
    stored_teacher: bool,
    seed: int,
    device: str,
    rank: int,
    world_size: int,
    num_threads: int | None,
    faults: Faults,
    opened: ExitStack,
) -> tuple[Loader, Loader | None]:
    """Open the training set and, where there is one, the validation set; arguments as those of `train`.

    Args:
        recipe: what decides the result.
        dataset: trained on.
        val: evaluated on.
        labels: read both with these.
        subset: part of the training set; a file's classes are both sets'.
        connection: how to speak to servers.
        side: label maps of the training set.
        stored_teacher: whether the training set's stored teacher is read.
        seed: of the order, and all else that is drawn.
        device: of the batches.
        rank: this process.
        world_size: processes.
        num_threads: of each loader.
        faults: how much bad training data is put up with.
        opened: closes both loaders.

    Raises:
        UsageError: options that contradict each other or the data sets.
        DataError: a data set is bad, or the two do not have the same classes.
    """
    chosen_part = subset if subset is None or isinstance(subset, Subset) else load_subset(subset)
    read_with = load_labels(labels)
    batch_size = recipe.global_batch // world_size
    loader = open_loader(
        dataset,
        connection=connection,
        labels=read_with,
        subset=chosen_part,
        batch_size=batch_size,
        device=device,
        targets=recipe.loader_targets,
        keep_targets=recipe.keep_targets,
        balance=recipe.class_balance or None,
        side=side,
        teacher=stored_teacher,
        augment=recipe.train_augment(),
        dtype=recipe.loader_dtype,
        shuffle=True,
        last_batch="drop",
        seed=seed,
        rank=rank,
        world_size=world_size,
        lanes=recipe.lanes,
        num_threads=num_threads,
        num_epochs=recipe.epochs,
        faults=faults,
    )
    opened.enter_context(loader)
    check_data(recipe, dataset, loader)
    if val is None:
        return loader, None
    val_loader = evaluation_loader(
        recipe,
        val,
        connection=connection,
        labels=chosen_part.without_keys() if isinstance(chosen_part, SubsetFile) else read_with,
        batch_size=batch_size,
        device=device,
        rank=rank,
        world_size=world_size,
        num_threads=num_threads,
    )
    opened.enter_context(val_loader)
    check_same_classes(dataset, loader, val, val_loader, recipe.loss)
    return loader, val_loader
