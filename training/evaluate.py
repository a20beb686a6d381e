"""How good a model is on a data set, beside chance and the share of the commonest class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..loaders.batch import Batch
from ..loaders.either_loader import open_loader
from ..loaders.faults import Faults
from ..loaders.labels import LabelSource, load_labels
from ..loaders.loader import Loader
from ..loaders.subset import Subset
from ..shards.errors import DataError, UsageError
from ..shards.progress import progress_bar
from ..shards.storage import public_name
from ..shards.tree import LabelTree
from .ancestors import leaf_classes
from .average_precision import AncestorPrecision
from .balanced_accuracy import BalancedAccuracy
from .checkpoint import Checkpoint, load_checkpoint
from .down_the_tree import DownTheTree, LeavesDownTheTree
from .label_sets import AnyOfAccuracy, AnyOfPrecision, LabelSets
from .label_space import LabelSpace, tag_names
from .level_layout import LevelOrder
from .metrics import SemanticAccuracy, TopKAccuracy, TreeDistance
from .models import load_trained_model
from .processes import process_group
from .recipe_targets import SIGMOID_LOSSES, TAG_LOSSES
from .recipes import Recipe
from .step import model_input
from .tag_accuracy import TagAccuracy

if TYPE_CHECKING:
    from ..loaders.service_client import Connection


class PassOptions(TypedDict, total=False):
    """How a model sees a whole data set, every sample once.

    Attributes:
        labels: read the data set with these instead of its own, as in `train`; they must then be the model's.
        batch_size: samples per step of each process (256); it does not change the result.
        device: where the model runs; the CPU by default.
        rank: this process, in [0, world_size).
        world_size: how many processes share the samples, under torchrun as in `train`; every one gets the result.
        num_threads: the loader's.
    """

    labels: str | Path | LabelSource | None
    batch_size: int
    device: str | torch.device
    rank: int
    world_size: int
    num_threads: int | None


def check_pass(how: PassOptions) -> None:
    """Refuse keywords that are none of PassOptions: what opens the data set would take them for a Loader's.

    Raises:
        TypeError: naming them, as for any wrong keyword.
    """
    if unknown := how.keys() - PassOptions.__annotations__.keys():
        options = ", ".join(PassOptions.__annotations__)
        raise TypeError(f"expected options of a pass ({options}), found {', '.join(sorted(unknown))}")


def evaluate(
    checkpoint: str | Path,
    dataset: str,
    *,
    label_sets: str | Path | None = None,
    progress: bool = False,
    connection: Connection | None = None,
    **how: Unpack[PassOptions],
) -> dict[str, Any]:
    """Evaluate a checkpoint on a whole data set, every sample once, in float32.

    Args:
        checkpoint: a file that `train` wrote.
        dataset: a local folder or any fsspec URL, with the class list (and tree) of the checkpoint.
        label_sets: several right classes for an image, in addition: `real` or a file (see LabelSets).
        progress: show how far it is on standard error: a bar on a terminal, else a line a minute.
        connection: how to speak to servers, where the data set is theirs (`grpc://host:port/NAME`).
        how: see PassOptions.

    Returns:
        The numbers of `evaluate_model`, and `model`, `step`, `recipe`, `dataset`, and `weights`: `ema` where the
        recipe averages them, else `model`.

    Raises:
        DataError: the checkpoint or the data set is damaged, or they do not belong together.
    """
    check_pass(how)
    opened = open_checkpoint(checkpoint, dataset, with_tags=True, connection=connection, **how)
    with opened as (saved, model, loader):
        numbers = evaluate_model(
            model,
            loader,
            normalise=saved.recipe.normalise,
            loss=saved.recipe.loss,
            levels=saved.recipe.levels,
            label_sets=None if label_sets is None else LabelSets.of_loader(label_sets, loader),
            progress=progress,
        )
    return {
        "model": saved.model_name,
        "recipe": saved.recipe.name,
        "step": saved.step,
        "dataset": public_name(str(dataset)),
        "weights": saved.best_weights,
        **numbers,
    }


@contextmanager
def open_checkpoint(
    checkpoint: str | Path,
    dataset: str,
    *,
    with_tags: bool = False,
    subset: Subset | None = None,
    faults: Faults | None = None,
    connection: Connection | None = None,
    **how: Unpack[PassOptions],
) -> Iterator[tuple[Checkpoint, nn.Module, Loader]]:
    """A checkpoint's model beside a loader of a data set as it wants it, for one pass; see `evaluate`.

    Args:
        with_tags: of a model with outputs for classes and for keywords, keep both; else those of the classes, and a
            model of keywords alone is refused.
        subset: the part of the data set to look at; None for all of it.
        faults: what the loader puts up with; None for nothing.
        connection: as of `evaluate`.

    Yields:
        The checkpoint, its model on the device (averaged weights where it has them), and the loader.

    Raises:
        DataError: the checkpoint or the data set is damaged, or they do not belong together.
    """
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    model = load_trained_model(path, saved, saved.recipe.image_size, with_tags=with_tags)
    options: dict[str, Any] = {"with_tags": with_tags, "subset": subset, "faults": faults, **how}
    options["connection"] = connection
    with sharing_samples(how), evaluation_loader(saved.recipe, dataset, **options) as loader:
        saved.check_data(
            path, dataset, LabelSpace.of_loader(loader, saved.recipe.loss if with_tags else None)
        )
        yield saved, model.to(loader.device), loader


@contextmanager
def sharing_samples(how: PassOptions) -> Iterator[None]:
    """A process group, where there are several processes."""
    world_size = how.get("world_size", 1)
    if world_size == 1:
        yield
        return
    device = torch.device(how.get("device", "cpu"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with process_group("nccl" if device.type == "cuda" else "gloo", how.get("rank", 0), world_size):
        yield


def evaluate_model(
    model: nn.Module,
    loader: Loader,
    *,
    normalise: bool,
    loss: str | None = None,
    levels: int | None = None,
    order: LevelOrder | None = None,
    label_sets: LabelSets | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on one pass over a loader; under torch.distributed, on all ranks' samples together.

    Args:
        model: maps float32 images [N, 3, H, W] to logits [N, C]; left in the mode it came in.
        loader: padded and in order: see `evaluation_loader`.
        normalise: False where the loader brings uint8 pixels that the model wants in [0, 1].
        loss: what the model was trained with, one of `recipe_targets.LOSSES`, which adds what only such models have. One of
            keywords is judged by them (TagAccuracy), one of classes and keywords by both where the loader brings
            `tags`.
        levels: how many levels of the label tree it was trained on, from the root; None for all.
        order: the model gives its logits in level order, which is this; None for class order.
        label_sets: several right classes for a sample, any of which counts.
        progress: show how far it is on standard error: a bar on a terminal, else a line a minute.

    Returns:
        What TopKAccuracy and BalancedAccuracy compute, with label sets AnyOfAccuracy and AnyOfPrecision, and, where the
        data set has a label tree, SemanticAccuracy and TreeDistance. All accuracies look at which logit is the largest,
        within a level or among leaves or all classes; a model of sigmoids is read alike. Only models of one softmax
        compare a class with its ancestors when they train: read the others within levels and among leaves. A model of
        one softmax per level has its leaves read down the tree, too (LeavesDownTheTree), one of sigmoids the mean average
        precision over labels and ancestors (AncestorPrecision), one of keywords TagAccuracy.
    """
    answers = model_outputs(model, loader, normalise=normalise, order=order, progress=progress)
    return measure(answers, loader, loss=loss, levels=levels, label_sets=label_sets)


def measure(
    answers: Iterable[tuple[Batch, Tensor]],
    loader: Loader,
    *,
    loss: str | None = None,
    levels: int | None = None,
    label_sets: LabelSets | None = None,
) -> dict[str, Any]:
    """What `evaluate_model` returns, of answers that come from anywhere.

    Args:
        answers: each batch of one pass, and what is said of it: logits, floating [N, C] in class order.
        loader: of these batches.
        loss, levels, label_sets: as there.

    Raises:
        UsageError: label sets for a model without classes.
    """
    if label_sets is not None and loss == "weakly-tagged":
        raise UsageError(
            "label sets: expected a model with outputs for classes, found one for keywords alone"
        )
    tree = loader.tree
    by_class: list[Any] = []
    if loss != "weakly-tagged":
        leaves = None if tree is None else leaf_classes(tree)
        by_class += [TopKAccuracy(loader.num_classes, leaves), BalancedAccuracy(loader.num_classes)]
    by_tags: list[Any] = []
    if loss in TAG_LOSSES and loader.targets == "tags":
        by_tags.append(TagAccuracy(len(tag_names(loader))))
    by_levels: list[Any] = []
    if tree is not None and loss != "weakly-tagged":
        by_class.append(TreeDistance(tree))
        by_levels.append(SemanticAccuracy(tree))
        if loss == "semantic-softmax":
            by_class.append(LeavesDownTheTree(tree, levels))
        elif loss in SIGMOID_LOSSES:
            by_levels.append(AncestorPrecision(tree, loader.num_samples, levels))
    by_sets: list[Any] = []
    if label_sets is not None:
        comparable = _between_images(loss, tree, levels, loader.device)
        by_sets = [AnyOfAccuracy(), AnyOfPrecision(loader.num_classes, loader.num_samples, comparable)]
    with torch.inference_mode():
        for batch, logits in answers:
            for metric in by_tags:  # the outputs of keywords come last
                metric.update(logits[:, -metric.num_tags :], batch.targets, batch.valid)
            if loss == "joint":
                logits = logits[:, : loader.num_classes]
            for metric in by_class:
                metric.update(logits, batch.classes, batch.valid)
            if label_sets is not None:
                right = label_sets.table(batch.keys).to(logits.device)
                for metric in by_sets:
                    metric.update(logits, right, batch.valid)
            for metric in by_levels:  # a data set with a tree has levels
                metric.update(logits, batch.levels, batch.valid)
    numbers: dict[str, Any] = {}
    for metric in (*by_levels, *by_class, *by_sets, *by_tags):
        metric.reduce()
        numbers.update(metric.compute())
    return numbers


def model_outputs(
    model: nn.Module,
    loader: Loader,
    *,
    normalise: bool,
    order: LevelOrder | None = None,
    progress: bool = False,
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of one pass, and what the model says of it: float32 [N, C], in class order.

    Args: as of `evaluate_model`. The model is back in the mode it came in when the pass is over.
    """
    was_training = model.training
    model.eval()
    try:
        with progress_bar(len(loader), "evaluate", "step", leave=False) if progress else nullcontext() as bar:
            for batch in named_batches(loader):
                with torch.inference_mode():
                    logits = model(model_input(batch.images, normalise)).float()
                    if order is not None:
                        logits = order.to_class_order(logits, dim=1)
                yield batch, logits
                if bar is not None:
                    bar.update(1)
    finally:
        model.train(was_training)


def _between_images(
    loss: str | None, tree: LabelTree | None, levels: int | None, device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """What makes a model's logits of one class comparable between images (see AnyOfPrecision)."""
    if loss == "semantic-softmax" and tree is not None:
        return DownTheTree(tree, levels).to(device)
    return torch.Tensor.float if loss in SIGMOID_LOSSES else None  # sigmoids are as they are


def evaluation_loader(recipe: Recipe, dataset: str, *, with_tags: bool = True, **options: Any) -> Loader:
    """A loader of the recipe's evaluation view of every image: see `whole_data_set`, whose options these are.

    It brings the keywords of a data set that has some, for a model that has outputs for them; one that has no other
    outputs cannot do without; `with_tags=False` leaves them out, for predictions alone.
    """
    make = partial(
        whole_data_set,
        dataset,
        augment=recipe.evaluation_augment(),
        dtype=recipe.loader_dtype,
        **options,
    )
    if with_tags and recipe.loss == "weakly-tagged":
        return make(targets="tags", keep_targets=recipe.keep_targets)
    loader = make()
    if with_tags and recipe.loss == "joint" and loader.manifest.vocabulary_sha256 is not None:
        loader.close()
        return make(targets="tags", keep_targets=recipe.keep_targets)
    return loader


def whole_data_set(
    dataset: str,
    *,
    labels: str | Path | LabelSource | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    faults: Faults | None = None,
    **options: Any,
) -> Loader:
    """A loader of every image once, in order, the last batch padded; `options` are more of a Loader's."""
    return open_loader(
        dataset,
        labels=load_labels(labels),
        batch_size=batch_size,
        device=str(device),
        shuffle=False,
        last_batch="pad",
        faults=faults or Faults(max_bad=0),  # a number over other samples would be another number
        num_epochs=1,
        **options,
    )


def named_batches(loader: Loader) -> Iterator[Batch]:
    """The loader's batches; its errors, which name a shard, say in which data set it lies."""
    try:
        yield from loader
    except DataError as error:
        if str(error).startswith(loader.dataset):
            raise
        raise DataError(f"{loader.dataset}: {error}") from error
