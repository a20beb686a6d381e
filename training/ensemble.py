"""Several checkpoints as one model: the mean of their probabilities, each of images prepared as it was trained on.

    checkpoints -> a loader for each way of preparing images -> logits of each -> mean probability -> its logarithm

What comes out is read like one model's logits: their softmax (within a level, for models of one softmax per level), or
their sigmoid, is the mean of the members' probabilities.

Shape letters: N batch, C outputs, M members.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from ..loaders.batch import Batch
from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError
from ..shards.progress import progress_bar
from ..shards.storage import public_name
from .checkpoint import Checkpoint, load_checkpoint
from .evaluate import PassOptions, check_pass, evaluation_loader, measure, named_batches, sharing_samples
from .label_sets import LabelSets
from .label_space import LabelSpace
from .models import load_trained_model
from .recipe_targets import SIGMOID_LOSSES
from .recipes import Recipe
from .step import model_input

if TYPE_CHECKING:
    from ..loaders.service_client import Connection


class MeanProbability:
    """Averages what several models of one kind say.

    Args:
        saved: a checkpoint of one of them; the others agree (`check_members`).
        with_tags: the logits are those of classes and keywords, of a model that has both.
    """

    def __init__(self, saved: Checkpoint, *, with_tags: bool = False) -> None:
        recipe, tree = saved.recipe, saved.tree
        self._groups: list[Tensor] | None = None
        self._sigmoids = recipe.loss in SIGMOID_LOSSES
        if recipe.loss == "semantic-softmax" and tree is not None:
            self._groups = [torch.tensor(ids) for ids in tree.level_classes][: recipe.levels]
        elif recipe.loss == "joint" and with_tags:
            both = torch.arange(saved.label_space.num_outputs)
            self._groups = list(both.tensor_split([len(saved.class_names)]))

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """The ensemble's logits.

        Args:
            logits: floating [N, C] of each of M members.

        Returns:
            float64 [N, C]. Outputs that no softmax was trained over, those of levels below a cut, are the mean of the
            members' logits.
        """
        stacked = torch.stack([each.double() for each in logits])
        if self._sigmoids:
            return _log_mean(F.logsigmoid(stacked)) - _log_mean(F.logsigmoid(-stacked))
        if self._groups is None:
            return _log_mean(stacked.log_softmax(dim=-1))
        result = stacked.mean(dim=0)
        for group in self._groups:
            ids = group.to(stacked.device)
            result[:, ids] = _log_mean(stacked[:, :, ids].log_softmax(dim=-1))
        return result


def _log_mean(log_probabilities: Tensor) -> Tensor:
    """Logarithm of the mean over the first axis of what these are the logarithms of."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))


def load_members(checkpoints: Sequence[str | Path]) -> list[Checkpoint]:
    """Read the checkpoints of an ensemble.

    Raises:
        DataError: one is damaged, or they have other outputs: another class list, label tree or vocabulary, other
            levels of it, or outputs that are read another way.
        UsageError: there is none.
    """
    if not checkpoints:
        raise UsageError("ensemble: expected at least one checkpoint, found none")
    paths = [Path(path) for path in checkpoints]
    members = [load_checkpoint(path) for path in paths]
    first = members[0]
    for path, saved in zip(paths[1:], members[1:], strict=True):
        problems = first.label_space.differences(saved.label_space)
        if first.tree_sha256 != saved.tree_sha256 and not problems:
            problems.append(f"label tree: expected {first.tree_sha256}, found {saved.tree_sha256}")
        for field, expected, found in (
            ("probabilities", _kind(first.recipe), _kind(saved.recipe)),
            ("levels", first.recipe.levels, saved.recipe.levels),
        ):
            if expected != found:
                problems.append(f"{field}: expected {expected}, found {found}")
        if problems:
            raise DataError(
                f"{path} and {paths[0]} do not make an ensemble: {'; '.join(problems)}; their outputs mean something else. "
                "Give checkpoints that were trained on the same classes with losses of one kind"
            )
    return members


def _kind(recipe: Recipe) -> str:
    """How a model's outputs become probabilities."""
    if recipe.loss == "semantic-softmax":
        return "a softmax per level"
    if recipe.loss in SIGMOID_LOSSES:
        return "a sigmoid per class"
    return "one softmax"


def evaluate_ensemble(
    checkpoints: Sequence[str | Path],
    dataset: str,
    *,
    label_sets: str | Path | None = None,
    progress: bool = False,
    connection: Connection | None = None,
    **how: Unpack[PassOptions],
) -> dict[str, Any]:
    """Evaluate the mean of several checkpoints' probabilities on a whole data set, every sample once.

    Args:
        checkpoints: files that `train` wrote, for the same classes (and tree); architectures, image sizes and
            recipes may differ, and each member sees images as it would alone. Of models with outputs for keywords, too,
            the classes alone count, unless all have them.
        dataset, label_sets, progress, connection, how: as in `evaluate`.

    Returns:
        The numbers of `evaluate_model`, and lists of `model`, `recipe`, `step` and `weights`, one for each member;
        `dataset`.

    Raises:
        DataError: a checkpoint or the data set is damaged, or they do not belong together.
    """
    check_pass(how)
    paths = [Path(path) for path in checkpoints]
    members = load_members(paths)
    first = members[0]
    # Where some have outputs for classes alone, it is these that all are asked about.
    with_tags = all(saved.tag_names == first.tag_names for saved in members)
    loss = first.recipe.loss if with_tags or first.recipe.loss != "joint" else "label-weighted"
    models = [
        load_trained_model(path, saved, saved.recipe.image_size, with_tags=with_tags)
        for path, saved in zip(paths, members, strict=True)
    ]
    average = MeanProbability(first, with_tags=with_tags)
    with ExitStack() as stack:
        stack.enter_context(sharing_samples(how))
        loaders: dict[tuple[object, ...], Loader] = {}
        for saved in members:
            key = preparation(saved.recipe)
            if key not in loaders:
                loader = evaluation_loader(
                    saved.recipe, dataset, with_tags=with_tags, connection=connection, **how
                )
                loaders[key] = stack.enter_context(loader)
        main = loaders[preparation(first.recipe)]
        first.check_data(paths[0], dataset, LabelSpace.of_loader(main, loss))
        for model in models:
            model.to(main.device).eval()

        def answers() -> Iterator[tuple[Batch, Tensor]]:
            of_loaders = zip(*map(named_batches, loaders.values()), strict=True)
            with (
                progress_bar(len(main), "evaluate", "step", leave=False) if progress else nullcontext() as bar
            ):
                for batches in of_loaders:
                    of = dict(zip(loaders, batches, strict=True))
                    logits = []
                    with torch.inference_mode():
                        for saved, model in zip(members, models, strict=True):
                            images = of[preparation(saved.recipe)].images
                            logits.append(model(model_input(images, saved.recipe.normalise)))
                        together = average(logits)
                    yield of[preparation(first.recipe)], together
                    if bar is not None:
                        bar.update(1)

        numbers = measure(
            answers(),
            main,
            loss=loss,
            levels=first.recipe.levels,
            label_sets=None if label_sets is None else LabelSets.of_loader(label_sets, main),
        )
    return {
        "model": [saved.model_name for saved in members],
        "recipe": [saved.recipe.name for saved in members],
        "step": [saved.step for saved in members],
        "dataset": public_name(str(dataset)),
        "weights": [saved.best_weights for saved in members],
        **numbers,
    }


def preparation(recipe: Recipe) -> tuple[object, ...]:
    """What decides how evaluation prepares images: recipes with the same one can share a loader."""
    return recipe.image_size, recipe.eval_centre, recipe.normalise
