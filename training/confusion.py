"""Which classes a model takes for which: a confusion matrix, counted in one pass over a data set.

    checkpoint or timm:NAME -> the same pass as `softshard evaluate` -> int64 [C, C] in the data set's class order

Shape letters: N batch, C classes of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from ..shards.errors import DataError, UsageError
from ..shards.tree import LabelTree
from .ancestors import leaf_classes
from .counted import Counted
from .down_the_tree import DownTheTree
from .evaluate import PassOptions, check_pass, model_outputs, open_checkpoint
from .evaluate_timm import open_timm
from .preparation import timm_name
from .recipe_targets import TREE_LOSSES


@dataclass(frozen=True)
class Confusion:
    """Which classes were taken for which.

    Attributes:
        class_names: C names; both axes are in this order.
        counts: int64 [C, C]: how many images of the row's class were taken for the column's.
    """

    class_names: tuple[str, ...]
    counts: np.ndarray

    @property
    def top1(self) -> float:
        """Share of the images that were taken for what they are."""
        return float(np.trace(self.counts) / self.counts.sum())


class ConfusionMatrix(Counted):
    """Counts (right class, answer) pairs.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, scores: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: scores floating [N, C], the largest is the answer; classes int64 [N], valid bool [N] or None."""
        valid = self._begin(scores, len(self.counts), valid)
        # A padded slot may hold any class index, so it must not be used to look anything up.
        cells = classes.masked_fill(~valid, 0) * len(self.counts) + scores.argmax(dim=1)
        self.counts.view(-1).scatter_add_(0, cells, valid.to(torch.int64))

    def compute(self) -> np.ndarray:
        """int64 [C, C]: row the right class, column the answer."""
        return self.counts.cpu().numpy()


def confusion_of_model(
    model: str | Path,
    dataset: str,
    *,
    weights: str | Path | None = None,
    progress: bool = False,
    **how: Unpack[PassOptions],
) -> Confusion:
    """Show a model every image of a data set once, in float32, and count what it takes them for.

    Args:
        model: a checkpoint of `train`, or `timm:` and timm's name of a model with its own weights. The data set may have
            some of the model's classes, matched by name: it then answers with one of these alone.
        dataset: a local folder or any fsspec URL.
        weights: with `timm:`, a file of weights for this architecture instead of timm's own.
        progress: show a progress bar on standard error.
        how: see PassOptions.

    Returns:
        The counts. A model that was trained over a label tree answers with a leaf class: read down the tree where it
        has a softmax for each level, else the most probable leaf.

    Raises:
        UsageError: there is no such model, or weights beside a checkpoint.
        DataError: the model or the data set is damaged, or they do not belong together.
    """
    check_pass(how)
    name = timm_name(model)
    if weights is not None and name is None:
        raise UsageError(f"--weights: expected timm:NAME, which they are for, found {model}")
    with ExitStack() as stack:
        if name is not None:
            _, network, loader = stack.enter_context(open_timm(name, dataset, weights=weights, **how))
            normalise, read = True, torch.Tensor.float
        else:
            saved, network, loader = stack.enter_context(open_checkpoint(model, dataset, **how))
            normalise = saved.recipe.normalise
            read = _reading(saved.recipe.loss, loader.tree, saved.recipe.levels, loader.device)
        # A timm model reads a data set of some of its classes as all of them: back to those there are.
        names = loader.class_names if how.get("labels") is not None else loader.manifest.class_names
        kept = _places(names, loader.class_names)
        place = torch.full((loader.num_classes,), -1)
        place[kept] = torch.arange(len(kept))
        kept, place = kept.to(loader.device), place.to(loader.device)
        matrix = ConfusionMatrix(len(names))
        for batch, logits in model_outputs(network, loader, normalise=normalise, progress=progress):
            valid = batch.valid.to(logits.device)
            classes = place[batch.classes.to(logits.device).masked_fill(~valid, 0)]
            matrix.update(read(logits)[:, kept], classes, valid)
        matrix.reduce()
    counts = matrix.compute()
    if not counts.sum():
        raise DataError(f"{dataset}: expected images to count, found none")
    return Confusion(tuple(names), counts)


def _places(names: Sequence[str], among: Sequence[str]) -> Tensor:
    """int64 [len(names)]: where names stand in another list that has them all."""
    index = {name: i for i, name in enumerate(among)}
    return torch.tensor([index[name] for name in names])


def _reading(
    loss: str, tree: LabelTree | None, levels: int | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """What makes of logits scores whose largest is the model's answer."""
    if tree is None or loss not in TREE_LOSSES:
        return torch.Tensor.float
    leaf = torch.zeros(len(tree.classes), dtype=torch.bool)
    leaf[torch.tensor(leaf_classes(tree))] = True
    leaf = leaf.to(device)
    down = DownTheTree(tree, levels).to(device) if loss == "semantic-softmax" else torch.Tensor.float
    return lambda logits: down(logits).masked_fill(~leaf, -torch.inf)
