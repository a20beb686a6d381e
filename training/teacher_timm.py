"""A live teacher with timm's own weights, asked about the very images its student sees: `train --teacher timm:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..loaders.decode import MEAN, STD
from ..shards.errors import DataError, UsageError
from .checkpoint import state_sha256
from .label_space import LabelSpace
from .models import create_model
from .preparation import PREFIX, Preparation, own_classes, own_config
from .recipes import Recipe
from .teacher_outputs import find_outputs


class TimmTeacher:
    """A timm model in evaluation mode, without gradients; called as `CheckpointTeacher` is.

    It sees the student's pixels at its own size, mean and standard deviation. Its outputs are matched with the student's
    classes by name; others that it has are left out.

    Args:
        name: `timm:` and timm's name of model and weights, such as `timm:resnet50.a1_in1k`.
        recipe: the student's.
        labels: what the student's outputs stand for.
        dataset: where these are from, for messages.
        device: of the student.

    Attributes:
        name: without `timm:`.
        sha256: of the weights, which a run that continues must have again.

    Raises:
        UsageError: no such model, or its weights cannot be had; or the recipe learns levels of a tree, which such a
            teacher does not know.
        DataError: it does not know all of the student's classes.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        *,
        labels: LabelSpace,
        dataset: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = name.removeprefix(PREFIX)
        if recipe.distill != "none":
            raise UsageError(
                f"teacher {name}: expected a checkpoint of softshard train for the recipe {recipe.name!r}, which learns "
                "levels of the label tree, found a model of timm's, which knows leaves. Train live-distillation with it"
            )
        preparation = Preparation.of(self.name)
        num_classes = own_config(self.name).num_classes
        self._outputs = _outputs_of(name, num_classes, labels, dataset).to(device)
        self._model: nn.Module = create_model(self.name, num_classes, preparation.size, pretrained=True)
        self.sha256 = state_sha256(self._model)
        self.image_size = preparation.size
        self._student_normalises = recipe.normalise
        self._model.to(device).eval().requires_grad_(False)
        self._model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._student_mean, self._student_std, self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (MEAN, STD, preparation.mean, preparation.std)
        )

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [N, C], in class order, for the student's inputs, floating [N, 3, H, W]."""
        if self._student_normalises:
            inputs = inputs * self._student_std + self._student_mean
        inputs = (inputs - self._mean) / self._std
        if inputs.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True)
        return self._model(inputs)[:, self._outputs]


def _outputs_of(name: str, num_classes: int, labels: LabelSpace, dataset: str) -> Tensor:
    """int64 [C], the teacher's output of each of the student's classes."""
    known = own_classes(num_classes)
    if known is None:
        raise DataError(
            f"teacher {name}: expected outputs that timm has a class list for, found {num_classes} of unknown meaning. Give "
            "a checkpoint of softshard train"
        )
    outputs = find_outputs(known, labels.class_names)
    unknown = [wnid for wnid, output in zip(labels.class_names, outputs, strict=True) if output < 0]
    if unknown:
        raise DataError(
            f"teacher {name} and data set {dataset!r} do not belong together: expected classes among its {num_classes}, by "
            f"wnid, found {len(unknown)} others, such as {unknown[0]!r}. Read the data set with --labels, or give a "
            "checkpoint of softshard train"
        )
    return torch.tensor(outputs)
