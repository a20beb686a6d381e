"""Where the classes of each level stand among the logits, and how a head is put into that order.

*Class order* is the order of the class list. *Level order* has the classes of level 0 first, then those of
level 1 and so on, ascending within a level, and last the classes that are on none of the levels (those below a
cut). In level order the classes of a level are a slice of the logits; in class order one gather brings them
there, and one brings the gradient back.

In a tree of all paths (`--parents all-paths`) a label has a row for each of its A paths, and several classes may stand on
one level. What a sample is right about on a level is then the *set* of the distinct classes there: a class on two rows
counts once. Losses and metrics say what they make of such a set. With one path, as in Ridnik et al. 2021 (sec. 3.2), a
set has one class at most, and everything is as published.

Shape letters: N batch, C classes, L levels used, N_k classes of level k, M classes on these levels, A paths to a class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..shards.errors import UsageError
from ..shards.tree import LabelTree

LevelClasses = Sequence[np.ndarray | Sequence[int]]


class LevelLayout(nn.Module):
    """The levels of a label tree as slices of the logits.

    Args:
        tree: a LabelTree, or its `level_classes`: for each level the class indices, ascending. None, which
            `loader.tree` may be, is refused.
        levels: how many levels are used, from the root; None for all.
        level_order: the logits come in level order (see `LevelOrder`), not in class order.
        owner: who speaks in error texts.

    Attributes:
        level_sizes: tuple of int, N_k of the L levels used.
        num_columns: M, their sum.
        num_classes: C; None where only `level_classes` are known, and the logits may be wider.

    Raises:
        UsageError: no tree, levels that it does not have, or a class on two levels.
    """

    order: Tensor
    position: Tensor
    starts: Tensor
    vectors: Tensor

    def __init__(
        self,
        tree: LabelTree | LevelClasses | None,
        *,
        levels: int | None = None,
        level_order: bool = False,
        owner: str = "LevelLayout",
    ) -> None:
        super().__init__()
        if tree is None:  # what `loader.tree` is then
            raise UsageError(
                f"{owner}: expected a label tree, found None; the data set has none. "
                "Run: softshard tree build, then softshard pack --tree"
            )
        level_classes = tree.level_classes if isinstance(tree, LabelTree) else tree
        num_levels = len(level_classes) if levels is None else levels
        if not 1 <= num_levels <= len(level_classes):
            raise UsageError(
                f"{owner}: expected levels between 1 and {len(level_classes)} (the depth of the tree), "
                f"found {num_levels}"
            )
        self.owner = owner
        self.is_level_order = level_order
        self.num_classes = len(tree.classes) if isinstance(tree, LabelTree) else None
        self.level_sizes = tuple(len(ids) for ids in level_classes[:num_levels])
        self.num_levels = num_levels
        self.num_columns = sum(self.level_sizes)
        order = torch.tensor(_order(level_classes, self.num_classes, owner))
        # Buffers follow .to(device); they come from the tree, so a checkpoint need not hold them.
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("position", order.argsort(), persistent=False)
        starts = torch.tensor([0, *self.level_sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        vectors = (
            tree.vectors()[..., :num_levels] if isinstance(tree, LabelTree) else np.empty((0, 0), np.int16)
        )
        self.register_buffer("vectors", distinct_targets(torch.tensor(vectors)), persistent=False)

    def arrange(self, logits: Tensor) -> Tensor:
        """The logits of the levels, in level order: [N, C] to [N, M], same dtype, differentiable.

        Raises:
            UsageError: another number of classes than the tree's.
        """
        width = logits.shape[1] if logits.ndim == 2 else -1
        if width != (self.num_classes or max(width, len(self.order))):
            raise UsageError(
                f"{self.owner}: expected logits [N, {len(self.order)}], found {tuple(logits.shape)}; "
                "the model was built for another class list"
            )
        if self.is_level_order:
            return logits[:, : self.num_columns]
        arranged: Tensor = _ArrangeColumns.apply(
            logits[:, : len(self.order)], self.order[: self.num_columns], self.position
        )  # pyright: ignore[reportAssignmentType]
        return arranged

    def split(self, arranged: Tensor) -> tuple[Tensor, ...]:
        """What `arrange` gives, level by level: L views [N, N_k]."""
        return arranged.split(self.level_sizes, dim=1)

    def targets(self, labels: Tensor) -> Tensor:
        """Place of every label and its ancestors within their levels: one table look-up.

        Args:
            labels: int64 [N, L] or wider: a batch's `levels`, taken as they are; int64 [N, A, L] or wider: those
                of a tree of all paths; or int64 [N]: class indices, -1 for none.

        Returns:
            int64 [N, L], -1 where a label has no such level. With several paths int64 [N, A, L], whose classes of a
            level are distinct: see `distinct_targets`.

        Raises:
            UsageError: too few levels, or class indices where the tree is not known, only its levels.
        """
        if labels.ndim == 1 and self.num_classes is not None:
            levels = self.vectors[labels.clamp(min=0)].to(torch.int64)
            return levels.masked_fill((labels < 0).view(-1, *[1] * (levels.ndim - 1)), -1)
        if labels.ndim == 1:
            raise UsageError(
                f"{self.owner}: expected levels [N, {self.num_levels}], found classes {tuple(labels.shape)}; "
                "classes need a LabelTree, which knows their ancestors, not its level_classes"
            )
        if labels.ndim not in (2, 3) or labels.shape[-1] < self.num_levels:
            raise UsageError(
                f"{self.owner}: expected levels [N, {self.num_levels}] or [N, paths, {self.num_levels}] or wider, "
                f"found {tuple(labels.shape)}; the data set was packed with another tree"
            )
        return distinct_targets(labels[..., : self.num_levels])

    def columns(self, targets: Tensor) -> Tensor:
        """Columns of `arrange`'s result at which targets stand, as [N, L] or [N, A * L]; some column of the level for
        -1."""
        return (targets.clamp(min=0) + self.starts).flatten(1)


def distinct_targets(targets: Tensor) -> Tensor:
    """Targets without repetition: a class that stands on several paths stays on one of them.

    Args:
        targets: integer [N, A, L]: on each level of each path a class's place within the level, -1 for none. Or
            [N, L], which comes back as it is.

    Returns:
        The same shape and sets; the rows of a level are put into another order, -1 for every repetition.
    """
    if targets.ndim < 3 or targets.shape[1] < 2:
        return targets
    targets = targets.sort(dim=1, descending=True).values
    repeated = targets[:, 1:] == targets[:, :-1]
    return torch.cat([targets[:, :1], targets[:, 1:].masked_fill(repeated, -1)], dim=1)


def reached_levels(targets: Tensor) -> Tensor:
    """Which levels a label reaches on any of its paths: targets [N, L] or [N, A, L] to bool [N, L]."""
    has_target = targets >= 0
    return has_target if targets.ndim == 2 else has_target.any(dim=1)


class LevelOrder:
    """Puts the rows of a model's head into level order, and back.

    A loss with `level_order=True` then takes each level as a slice. Permute the head before the optimizer and the
    EMA copy are made, whose state would stay in class order; restore what is exported or evaluated:

        order = LevelOrder(tree)
        order.permute_(model.get_classifier())
        loss = SemanticSoftmaxLoss(tree, level_order=True)
        ...
        weights = model.state_dict()
        weights["fc.weight"] = order.to_class_order(weights["fc.weight"])
        classes = order.to_class_order(logits, dim=1).argmax(dim=1)

    Args:
        tree: a LabelTree.

    Attributes:
        order: int64 [C], the class index at each place of level order.
        position: int64 [C], the place of each class in level order.
    """

    def __init__(self, tree: LabelTree) -> None:
        self.order = torch.tensor(_order(tree.level_classes, len(tree.classes), "LevelOrder"))
        self.position = self.order.argsort()

    def to_level_order(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A copy of a tensor whose dimension `dim`, of C classes, goes from class order to level order."""
        return self._select(tensor, self.order, dim)

    def to_class_order(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The opposite of `to_level_order`."""
        return self._select(tensor, self.position, dim)

    def permute_(self, head: nn.Module) -> None:
        """Put a head (a linear layer, a 1 x 1 convolution) into level order, in place.

        Raises:
            UsageError: a parameter has another number of rows than there are classes.
        """
        self._select_rows_(head, self.order)

    def restore_(self, head: nn.Module) -> None:
        """Put a head back into class order, in place."""
        self._select_rows_(head, self.position)

    def _select_rows_(self, head: nn.Module, places: Tensor) -> None:
        parameters = dict(head.named_parameters())
        rows = {name: parameter.shape[:1] for name, parameter in parameters.items()}
        if not rows or any(found != (len(places),) for found in rows.values()):
            found = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters.items())
            raise UsageError(
                f"LevelOrder: expected a head whose parameters have {len(places)} rows, found {found or 'none'}; "
                "give the classifier alone, built for the tree's classes"
            )
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.copy_(self._select(parameter, places, 0))

    def _select(self, tensor: Tensor, places: Tensor, dim: int) -> Tensor:
        if tensor.shape[dim] != len(places):
            raise UsageError(
                f"LevelOrder: expected {len(places)} classes in dimension {dim}, found {tuple(tensor.shape)}; "
                "the tree is another one"
            )
        return tensor.index_select(dim, places.to(tensor.device))


class _ArrangeColumns(torch.autograd.Function):
    """logits[:, chosen], with a gradient that is gathered too.

    Autograd's own would add it up column by column; no column is chosen twice here.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, chosen: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(position)
        # On CPU three times as fast as indexing with `chosen` (1.8 against 6.9 ms, 256 x 11,221, two cores).
        return logits.gather(1, chosen.expand(len(logits), -1))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (position,) = ctx.saved_tensors
        # Zeros for the classes that were not chosen, which stand last in level order.
        missing = len(position) - gradients[0].shape[1]
        gradient = nn.functional.pad(gradients[0], (0, missing)) if missing else gradients[0]
        return gradient.gather(1, position.expand(len(gradient), -1)), None, None


def _order(level_classes: LevelClasses, num_classes: int | None, owner: str) -> np.ndarray:
    """int64 [C], the class index at each place of level order."""
    on_levels = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in level_classes])
    if len(np.unique(on_levels)) != len(on_levels):
        raise UsageError(f"{owner}: expected every class on one level, found a class on two; this is no tree")
    highest = int(on_levels.max()) + 1 if num_classes is None else num_classes
    return np.concatenate([on_levels, np.setdiff1d(np.arange(highest), on_levels)])
