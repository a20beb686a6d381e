"""The teacher of a distillation: a trained model that is asked about the very images its student sees."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..loaders.decode import MEAN, STD
from ..shards.errors import DataError, UsageError
from .checkpoint import load_checkpoint
from .label_space import LabelSpace
from .models import load_trained_model
from .recipes import Recipe


class Teacher:
    """A checkpoint's model in evaluation mode, without gradients; averaged weights where it has them.

    It sees the pixels that the student sees, scaled as it was trained: normalised or not, and at its own size.

    Not a module, and none of the student's: so it is in no checkpoint, no optimizer and no average.

    Args:
        checkpoint: a file that `train` wrote.
        recipe: the student's.
        labels: what the student's outputs stand for.
        dataset: where these are from, for messages.
        device: of the student.

    Attributes:
        sha256: of the file, which a run that continues must have again.

    Raises:
        DataError: the checkpoint is damaged, or for another class list or label tree.
        UsageError: the teacher was not trained on all of the levels that the student learns.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        recipe: Recipe,
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
        theirs, ours = saved.recipe.levels, recipe.levels
        if theirs is not None and (ours is None or ours > theirs):
            raise UsageError(
                f"teacher {path}: expected one trained on {'all levels' if ours is None else f'{ours} levels'}, "
                f"as the student is, found {theirs} levels. Run with --set levels={theirs}, or train another teacher"
            )
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.name = saved.model_name
        self.image_size = saved.recipe.image_size
        self.normalise = saved.recipe.normalise
        self._student_normalises = recipe.normalise
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
