"""Samples without any soft label of a kind that a recipe learns from: they add nothing to its loss, and are counted.

An image whose text gave no tag, that no class has weight for, or that no model was sure enough of stays in the epoch. How
many there are is said after every epoch, so that none is passed over in silence. Where images are mixed, a pair counts only
where both have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..loaders.batch import Batch
from ..loaders.pooling import SparseTargets
from ..loaders.target_modes import SOFT_KINDS
from .recipes import Recipe

# What an epoch's numbers call them.
WITHOUT_NAMES = {kind: f"without_{kind}" for kind in SOFT_KINDS}


def count_without(recipe: Recipe, batch: Batch) -> Tensor | None:
    """How many valid samples of a batch have no label of a kind.

    Args:
        recipe: says which kinds there are.
        batch: with the recipe's targets. Where images are mixed, a sample has its partner's labels, too, and counts where
            neither has any.

    Returns:
        int64 [kinds] on the batch's device, in the order of the recipe's targets; None without soft labels.
    """
    names = recipe.targets.split("+")
    counts = []
    for kind in filter(WITHOUT_NAMES.get, names):
        target = batch.targets if kind == names[0] else (batch.more_targets or {})[kind]
        values = target.values if isinstance(target, SparseTargets) else target
        assert values is not None  # the loader was asked for it
        counts.append((batch.valid & ~values.any(dim=1)).sum())
    return torch.stack(counts) if counts else None


def without_entry(recipe: Recipe, counts: Sequence[int]) -> dict[str, int]:
    """An epoch's counts by name, `without_tags` and so on; empty where none were taken."""
    kinds = [kind for kind in recipe.targets.split("+") if kind in WITHOUT_NAMES]
    return {WITHOUT_NAMES[kind]: count for kind, count in zip(kinds, counts, strict=False)}
