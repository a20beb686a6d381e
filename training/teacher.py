"""The teacher of a distillation: a trained model that is asked about the very images its student sees, or what it
said of the stored ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..loaders.decode import MEAN, STD
from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError
from ..shards.text_limits import counted
from .checkpoint import checkpoint_sha256, load_checkpoint
from .label_space import LabelSpace
from .models import load_trained_model
from .preparation import timm_name
from .recipe_targets import TREE_LOSSES
from .recipes import Recipe
from .teacher_timm import TimmTeacher


class CheckpointTeacher:
    """A checkpoint's model in evaluation mode, without gradients; averaged weights where it has them.

    It sees the pixels that the student sees, scaled as it was trained: normalised or not, and at its own size.

    Not a module, and none of the student's: so it is in no checkpoint, no optimizer and no average.

    Args:
        checkpoint: a file that `train` wrote.
        recipe: the student's. Without one, images come in [0, 1], and all that the teacher knows is asked of it.
        labels: what the student's outputs stand for.
        dataset: where these are from, for messages.
        device: of the student.

    Attributes:
        name: timm's, of its architecture.
        sha256: of the file, which a run that continues must have again.
        levels: how many levels of the tree it was trained on, from the root; None for all.
        image_size: pixels of both sides of the images that it was trained on.
        one_softmax: whether its outputs are compared with each other, all at once.

    Raises:
        DataError: the checkpoint is damaged, or for another class list or label tree.
        UsageError: the teacher was not trained on all of the levels that the student learns.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        recipe: Recipe | None = None,
        *,
        labels: LabelSpace,
        dataset: str,
        device: str | torch.device = "cpu",
    ) -> None:
        path = Path(checkpoint)
        saved = load_checkpoint(path)
        problems = saved.label_space.differences(labels)
        if problems:
            raise DataError(
                f"teacher {path} and data set {dataset!r} do not belong together: {'; '.join(problems)}; the "
                "teacher's outputs stand for other classes. Train a teacher on this class list and tree"
            )
        self.levels = saved.recipe.levels
        if recipe is not None:
            _check_levels(f"teacher {path}", self.levels, recipe)
        self.sha256 = checkpoint_sha256(path)
        self.name = saved.model_name
        self.image_size = saved.recipe.image_size
        self.normalise = saved.recipe.normalise
        self.one_softmax = saved.recipe.loss not in TREE_LOSSES
        self._student_normalises = recipe is not None and recipe.normalise
        self._model: nn.Module = load_trained_model(path, saved, self.image_size)
        self._model.to(device).eval().requires_grad_(False)
        self._model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [N, C], in class order, for the student's inputs, floating [N, 3, H, W].

        Runs under the autocast of the caller.
        """
        if self.normalise and not self._student_normalises:
            inputs = (inputs - self._mean) / self._std
        elif self._student_normalises and not self.normalise:
            inputs = inputs * self._std + self._mean
        if inputs.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True)
        return self._model(inputs)


@dataclass(frozen=True)
class ChosenTeacher:
    """Whom a run distils from.

    Attributes:
        live: is asked in every step; None where the batches bring what was stored, or without distillation.
        facts: what checkpoint and summary say of it: `model`, `sha256` and `checkpoint` (the path, None where it is
            not known) of its file, and whether it is `stored`; None without distillation.
    """

    live: CheckpointTeacher | TimmTeacher | None
    facts: dict[str, Any] | None

    def line(self) -> str:
        """For the person who reads along."""
        assert self.facts is not None
        if not self.facts["stored"]:
            return f"teacher: {self.facts['model']} of {self.facts['checkpoint']}, asked about every crop"
        sha256 = self.facts["sha256"]
        who = "of unknown origin" if sha256 is None else f"{self.facts['model']}, checkpoint {sha256[:12]}"
        return f"teacher: stored in the shards, {who}; it was asked about whole images"


def choose_teacher(
    checkpoint: str | Path | None,
    recipe: Recipe,
    loader: Loader,
    *,
    labels: LabelSpace,
    dataset: str,
    device: str | torch.device,
) -> ChosenTeacher:
    """The checkpoint that was named, or what the data set has stored.

    Args:
        checkpoint: of a live teacher, or `timm:` and a name, or None.
        recipe: the student's.
        loader: of the student; where the teacher is stored, it brings it (`teacher=True`).
        labels: what the student's outputs stand for.
        dataset: for messages.
        device: of the student.

    Raises:
        DataError: see CheckpointTeacher.
        UsageError: the teacher was not trained on all of the levels that the student learns.
    """
    if not recipe.wants_teacher:
        return ChosenTeacher(None, None)
    if checkpoint is None:
        info = loader.manifest.teacher
        if info is not None:
            known = None if info.levels == loader.manifest.num_levels else info.levels
            _check_levels(f"{dataset}: stored teacher", known, recipe)
        facts = {
            "model": None if info is None else info.model,
            "sha256": None if info is None else info.checkpoint_sha256,
        }
        return ChosenTeacher(None, {**facts, "checkpoint": None, "stored": True})
    kind = CheckpointTeacher if timm_name(checkpoint) is None else TimmTeacher
    live = kind(str(checkpoint), recipe, labels=labels, dataset=dataset, device=device)
    facts = {"model": live.name, "sha256": live.sha256, "checkpoint": str(checkpoint), "stored": False}
    return ChosenTeacher(live, facts)


def _check_levels(who: str, theirs: int | None, student: Recipe) -> None:
    """Refuse a teacher that says nothing of a level; None is all of them.

    Raises:
        UsageError: naming both.
    """
    ours = student.levels
    if theirs is not None and (ours is None or ours > theirs):
        raise UsageError(
            f"{who}: expected one trained on {'all levels' if ours is None else counted(ours, 'level')}, "
            f"as the student is, found one trained on {theirs}. Run with --set levels={theirs}, or train another teacher"
        )
