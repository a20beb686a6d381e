"""A head in level order while it trains, in class order wherever its weights can be met.

Only a run's own memory and its optimizer's state know the level order. Checkpoints hold weights in class order, so
evaluate, predict, --init-from, maps and timm read them as any others.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..shards.errors import UsageError
from ..shards.tree import LabelTree
from .level_layout import LevelOrder
from .models import head_prefixes


class HeadOrder:
    """Takes a model's classifier to level order and back.

    Args:
        model: of timm's, in class order.
        name: its name, for messages.
        tree: over the model's outputs; None leaves everything as it is.

    Attributes:
        order: of the classes, or None.

    Raises:
        UsageError: timm does not say where the model's classifier is, or it has not a row for every class.
    """

    def __init__(self, model: nn.Module, name: str, tree: LabelTree | None) -> None:
        self.order = None if tree is None else LevelOrder(tree)
        self._heads = head_prefixes(model)
        if self.order is not None and not self._heads:
            raise UsageError(
                f"model {name}: expected a classifier to put into level order, found none that timm names. "
                "Train in class order: --set level_order=false"
            )

    def permute_(self, model: nn.Module) -> None:
        """Put the model's classifier into level order, in place; before optimizer and average are made."""
        if self.order is not None:
            for head in self._heads:
                self.order.permute_(model.get_submodule(head.removesuffix(".")))

    def to_level_order(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in class order, as a checkpoint has it, for the model that trains."""
        if self.order is None:
            return weights
        return {
            name: self.order.to_level_order(weight) if name.startswith(self._heads) else weight
            for name, weight in weights.items()
        }

    def to_class_order(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The opposite of `to_level_order`: what leaves the run."""
        if self.order is None:
            return weights
        return {
            name: self.order.to_class_order(weight) if name.startswith(self._heads) else weight
            for name, weight in weights.items()
        }
