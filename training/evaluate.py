"""How good a model is on a data set, beside chance and the share of the commonest class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..loaders.batch import Batch
from ..loaders.crops import Augment
from ..loaders.labels import LabelSource, load_labels
from ..loaders.loader import Loader
from ..shards.errors import DataError
from .checkpoint import load_checkpoint
from .label_space import LabelSpace
from .level_layout import LevelOrder
from .metrics import SemanticAccuracy, TopKAccuracy, TreeDistance, leaf_classes
from .models import load_trained_model
from .recipes import Recipe
from .step import model_input


def evaluate(
    checkpoint: str | Path,
    dataset: str,
    *,
    labels: str | Path | LabelSource | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a whole data set, every sample once, in float32.

    Args:
        checkpoint: a file that `train` wrote.
        dataset: a local folder, with the class list (and tree) of the checkpoint.
        labels: read the data set with these instead of its own, as in `train`; they must then be the checkpoint's.
        batch_size: samples per step; it does not change the result.
        device: where the model runs.
        num_threads: the loader's.
        progress: show a progress bar on standard error.

    Returns:
        The numbers of `evaluate_model`, and `model`, `step`, `recipe`, `dataset`, and `weights`: `ema` where the
        recipe averages them, else `model`.

    Raises:
        DataError: the checkpoint or the data set is damaged, or they do not belong together.
    """
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    model = load_trained_model(path, saved, saved.recipe.image_size)
    with evaluation_loader(
        saved.recipe,
        dataset,
        labels=load_labels(labels),
        batch_size=batch_size,
        device=device,
        num_threads=num_threads,
    ) as loader:
        saved.check_data(path, dataset, LabelSpace.of_loader(loader))
        numbers = evaluate_model(
            model.to(device), loader, normalise=saved.recipe.normalise, progress=progress
        )
    return {
        "model": saved.model_name,
        "recipe": saved.recipe.name,
        "step": saved.step,
        "dataset": dataset,
        "weights": saved.best_weights,
        **numbers,
    }


def evaluate_model(
    model: nn.Module,
    loader: Loader,
    *,
    normalise: bool,
    order: LevelOrder | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on one pass over a loader; under torch.distributed, on all ranks' samples together.

    Args:
        model: maps float32 images [N, 3, H, W] to logits [N, C]; left in the mode it came in.
        loader: padded and in order: see `evaluation_loader`.
        normalise: False where the loader brings uint8 pixels that the model wants in [0, 1].
        order: the model gives its logits in level order, which is this; None for class order.
        progress: show a progress bar on standard error.

    Returns:
        What TopKAccuracy computes and, where the data set has a label tree, SemanticAccuracy and TreeDistance. All
        of them look at which logit is the largest, within a level or among leaves or all classes; a model of
        sigmoids is read alike. Only models of one softmax compare a class with its ancestors when they train: read
        the others within levels and among leaves.
    """
    tree = loader.tree
    accuracy = TopKAccuracy(loader.num_classes, None if tree is None else leaf_classes(tree))
    semantic = None if tree is None else SemanticAccuracy(tree)
    distance = None if tree is None else TreeDistance(tree)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in tqdm(
            named_batches(loader),
            total=len(loader),
            desc="evaluate",
            unit="step",
            leave=False,
            disable=not progress,
        ):
            logits = model(model_input(batch.images, normalise)).float()
            if order is not None:
                logits = order.to_class_order(logits, dim=1)
            accuracy.update(logits, batch.classes, batch.valid)
            if distance is not None:
                distance.update(logits, batch.classes, batch.valid)
            if semantic is not None:
                assert batch.levels is not None  # a data set with a tree has them
                semantic.update(logits, batch.levels, batch.valid)
    model.train(was_training)
    numbers: dict[str, Any] = {}
    for metric in (semantic, accuracy, distance):
        if metric is not None:
            metric.reduce()
            numbers.update(metric.compute())
    return numbers


def evaluation_loader(
    recipe: Recipe,
    dataset: str,
    *,
    labels: LabelSource | None = None,
    batch_size: int,
    device: str | torch.device,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int | None = None,
) -> Loader:
    """A loader of whole images, squished to the recipe's size, in order, the last batch padded."""
    return Loader(
        dataset,
        labels=labels,
        batch_size=batch_size,
        device=str(device),
        augment=Augment.evaluation(size=recipe.image_size),
        dtype="float32" if recipe.normalise else "uint8",
        shuffle=False,
        last_batch="pad",
        rank=rank,
        world_size=world_size,
        num_threads=num_threads,
    )


def named_batches(loader: Loader) -> Iterator[Batch]:
    """The loader's batches; its errors, which name a shard, say in which data set it lies."""
    try:
        yield from loader
    except DataError as error:
        if str(error).startswith(loader.dataset):
            raise
        raise DataError(f"{loader.dataset}: {error}") from error
