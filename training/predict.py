"""`softshard predict`: what a trained model says of images, level by level.

An image goes the way it would have gone through a data set: stored as the training set's images were, decoded
and cut as in evaluation. So an image file and the sample it was packed as give the same prediction.

Shape letters: N batch, C classes, L hierarchy levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..loaders.service_address import is_service
from ..shards.errors import DataError, ImageError, UsageError
from ..shards.schema import MANIFEST_NAME
from ..shards.tree import LabelTree
from .ancestors import ancestor_table
from .asked_model import Answer, AskedModel
from .checkpoint import Checkpoint
from .down_the_tree import DownTheTree
from .ensemble import MeanProbability, load_members
from .recipe_targets import SIGMOID_LOSSES, TREE_LOSSES

if TYPE_CHECKING:
    from ..loaders.service_client import Connection

# A sigmoid says yes or no of its class by itself: where no child reaches this, a path ends.
YES = 0.5


@dataclass(frozen=True)
class Guess:
    """A class and how probable the model holds it.

    Attributes:
        level: of the class in the label tree, None without a tree.
        index: class index.
        name: as in the class list, such as a wnid.
        shown: the name for people.
        probability: among the classes of its level; read down the tree (see DownTheTree), that of the class and
            everything below it; of a multi-label model, that the class is right, whatever the others are; where the
            model has one softmax over all classes, among those, and in a path that of the class and everything below
            it.
    """

    level: int | None
    index: int
    name: str
    shown: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image: the file, or the sample's key.
        path: from a root of the label tree down to a class: a leaf, or with a multi-label model the last class that
            is more probable than not; the best class alone without a tree. In a tree of all paths, along the most
            probable one.
        best: the most probable classes, most probable first: a list for each level where the model was trained
            level by level, else one list over all classes.
    """

    image: str
    path: list[Guess]
    best: list[list[Guess]]

    def to_json(self) -> dict[str, Any]:
        """`image`, `path` and `best`; a class is its `level`, `index`, `name`, `shown` and `probability`."""
        return {
            "image": self.image,
            "path": [vars(guess) for guess in self.path],
            "best": [[vars(guess) for guess in guesses] for guesses in self.best],
        }


class Predictor:
    """A checkpoint's model, or an ensemble of several, ready to be asked.

    Args:
        checkpoint: a file that `train` wrote; averaged weights are used where it has them.
        ensemble: more checkpoints for the same classes: probabilities are the mean of all (see ensemble.py).
        top: classes listed of each level, or of all classes.
        device: where the models run.
        num_threads: that decode.
        down_the_tree: compare classes over all levels, as DownTheTree does, instead of within each: the path is then
            that of the most probable leaf.

    Raises:
        DataError: a checkpoint is damaged, or is none; or they are for other classes.
        UsageError: down the tree, a model that was not trained with a softmax for each level; or a number below 1.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        ensemble: Sequence[str | Path] = (),
        top: int = 3,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        down_the_tree: bool = False,
    ) -> None:
        if top < 1:
            raise UsageError(f"top: expected at least 1, found {top}")
        if num_threads is not None and num_threads < 1:
            raise UsageError(f"threads: expected at least 1, found {num_threads}")
        paths = [Path(checkpoint), *map(Path, ensemble)]
        members = load_members(paths)
        self.saved = members[0]
        if down_the_tree and (self.saved.recipe.loss != "semantic-softmax" or self.saved.tree is None):
            raise UsageError(
                f"{paths[0]}: expected a model of one softmax per level to read down the tree, as the recipes "
                f"semantic-softmax and semantic-kd train, found one of the recipe {self.saved.recipe.name!r}. "
                "Run without --down-the-tree"
            )
        self._members = [
            AskedModel(path, saved, device=device, num_threads=num_threads)
            for path, saved in zip(paths, members, strict=True)
        ]
        self._average = MeanProbability(self.saved)
        self._read_off = _Reader(self.saved, top, down_the_tree=down_the_tree)

    def data_set(
        self,
        dataset: str,
        *,
        batch_size: int = 64,
        other_classes: bool = False,
        connection: Connection | None = None,
    ) -> Iterator[Prediction]:
        """Predict the images of a data set in its order; their own labels are not looked at.

        So a data set of another tree, or of more or fewer classes, may be predicted, in the checkpoint's: a UserWarning
        names both. As many classes of other names are most likely a mistake (fall11 and winter21, another order).

        Args:
            dataset: its folder or URL; or addresses of servers, as a RemoteLoader takes them.
            batch_size: images a step.
            other_classes: predict also where there are as many classes of other names.
            connection: how to speak to servers.

        Raises:
            DataError: the data set is damaged, or has as many classes of other names.
        """
        yield from self._read(
            [
                member.data_set(dataset, batch_size, other_classes=other_classes, connection=connection)
                for member in self._members
            ]
        )

    def files(
        self, paths: Sequence[str], bad: Callable[[ImageError], None], *, batch_size: int = 64
    ) -> Iterator[Prediction]:
        """Predict image files.

        Args:
            paths: local paths or fsspec URLs of JPEGs, PNGs and what else `softshard pack` reads.
            bad: gets the error of each file that cannot be used, in its turn; the others are predicted.
            batch_size: images a step.
        """
        # Each error once, not for every member.
        told = [bad, *[_ignore] * (len(self._members) - 1)]
        answers = [
            member.files(paths, tell, batch_size) for member, tell in zip(self._members, told, strict=True)
        ]
        yield from self._read(answers)

    def _read(self, answers: Sequence[Iterator[Answer]]) -> Iterator[Prediction]:
        for of_members in zip(*answers, strict=True):
            names = of_members[0].names
            if any(each.names != names for each in of_members):
                raise DataError(
                    f"ensemble: expected images that all members can read, found {names[0]!r} and others that "
                    "one of them cannot; leave these out"
                )
            logits = [each.logits.double().cpu() for each in of_members]
            rows = logits[0] if len(logits) == 1 else self._average(logits)
            yield from (self._read_off(name, row) for name, row in zip(names, rows, strict=True))


def _ignore(_error: ImageError) -> None:
    """What all members but the first do with a bad image."""


class _Reader:
    """Reads predictions off logits."""

    def __init__(self, saved: Checkpoint, top: int, *, down_the_tree: bool = False) -> None:
        self.tree: LabelTree | None = saved.tree
        self.names = saved.class_names or saved.tag_names  # of a model of keywords alone
        self.shown = self.names if self.tree is None else self.tree.names
        self.top = top
        # These losses compare classes within a level, or none at all: a softmax over all would mean nothing.
        self.by_level = saved.recipe.loss in TREE_LOSSES and self.tree is not None
        self.sigmoids = self.by_level and saved.recipe.loss in SIGMOID_LOSSES
        self.down_the_tree: DownTheTree | None = None
        self.groups = [torch.arange(len(self.names))]
        if self.by_level and self.tree is not None:
            groups = [torch.tensor(members) for members in self.tree.level_classes]
            self.groups = groups[: saved.recipe.levels]  # those below were never trained
            self.children: dict[int, list[int]] = {}
            for child, parents in enumerate(self.tree.all_parents):
                for parent in parents or (-1,):
                    self.children.setdefault(parent, []).append(child)
            if down_the_tree:
                self.down_the_tree = DownTheTree(self.tree, saved.recipe.levels)
                read = set(torch.cat(self.groups).tolist())
                self.leaves = [
                    index for index in sorted(read) if read.isdisjoint(self.children.get(index, ()))
                ]
        self.ancestors = None if self.tree is None else ancestor_table(self.tree).classes

    def __call__(self, image: str, logits: Tensor) -> Prediction:
        """Logits float64 [C] of one image."""
        if self.down_the_tree is not None:
            logits = self.down_the_tree(logits[None])[0]
        probabilities = torch.full_like(logits, torch.nan)  # of classes of no group
        best = []
        for group in self.groups:
            probabilities[group] = self._probabilities(logits, group)
            order = probabilities[group].argsort(descending=True, stable=True)[: self.top]
            best.append([self._guess(index, probabilities) for index in group[order].tolist()])
        if self.down_the_tree is not None:
            best_leaf = max(self.leaves, key=lambda index: probabilities[index].item())
            path, shares = self._ancestry(best_leaf, probabilities), probabilities
        elif self.by_level:
            path, shares = self._descent(probabilities), probabilities
        else:
            shares = self._with_what_is_below(probabilities)
            path = self._ancestry(best[0][0].index, shares)
        return Prediction(image, [self._guess(index, shares) for index in path], best)

    def _probabilities(self, logits: Tensor, group: Tensor) -> Tensor:
        if self.down_the_tree is not None:  # then these are logarithms
            return logits[group].exp()
        return logits[group].sigmoid() if self.sigmoids else logits[group].softmax(0)

    def _descent(self, probabilities: Tensor) -> list[int]:
        """From the most probable root to its most probable child and on, down to a class that has none.

        A softmax over a level says nothing of whether the label reaches that level, so there is no place to stop:
        where the probabilities fall, the image says no more. A sigmoid says it: the path ends where no child is
        more probable than not.
        """
        path, below = [], self.children.get(-1, [])
        while below := [index for index in below if not torch.isnan(probabilities[index])]:
            best = max(below, key=lambda index: probabilities[index].item())
            if self.sigmoids and path and probabilities[best] < YES:
                break
            path.append(best)
            below = self.children.get(path[-1], [])
        return path

    def _ancestry(self, index: int, shares: Tensor) -> list[int]:
        """From a root down to a class; of several parents each time the one with the largest share."""
        path = [index]
        while self.tree is not None and self.tree.all_parents[path[0]]:
            path.insert(0, max(self.tree.all_parents[path[0]], key=lambda parent: shares[parent].item()))
        return path

    def _with_what_is_below(self, probabilities: Tensor) -> Tensor:
        """For every class its own probability plus those of its descendants, each of them once."""
        if self.ancestors is None:
            return probabilities
        # One place more, for the node above all roots and for rows that are shorter.
        sums = probabilities.new_zeros(len(probabilities) + 1)
        places = self.ancestors.masked_fill(self.ancestors < 0, len(probabilities))
        sums.index_add_(0, places.flatten(), probabilities[:, None].expand(places.shape).flatten())
        return sums[:-1]

    def _guess(self, index: int, probabilities: Tensor) -> Guess:
        level = None if self.tree is None else int(self.tree.levels[index])
        return Guess(level, index, self.names[index], self.shown[index], probabilities[index].item())


def is_data_set(path: str) -> bool:
    """Whether a path is a data set's folder, or stands for servers of one, and not an image."""
    return is_service(path) or (Path(path) / MANIFEST_NAME).is_file()
