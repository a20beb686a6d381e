"""The models that label maps come from: built, with weights, checked against the data set's classes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ..loaders.decode import MEAN, STD
from ..shards.classes import class_list_sha256, load_class_list
from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from .checkpoint import Checkpoint, checkpoint_sha256, load_checkpoint, state_sha256
from .label_space import LabelSpace
from .models import check_model_name, create_model, load_trained_model
from .teacher_outputs import Outputs, match_outputs


@dataclass(frozen=True)
class Teacher:
    """A trained classifier and how it wants its images.

    Attributes:
        model: in eval mode.
        name: timm's name of the architecture.
        mean: channel means of its images (values 0 to 1).
        std: channel standard deviations.
        weights_sha256: of the checkpoint's file, or of timm's own weights (see `state_sha256`).
        weights: `checkpoint`, or timm's tag of its own weights, such as `a1_in1k`.
        outputs: which of its outputs are which classes of the data set; None where they are these, in their order.
    """

    model: nn.Module
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str | None
    weights: str | None = None
    outputs: Outputs | None = None

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "model": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.outputs is None else {"outputs": self.outputs.facts()}),
        }

    def to_classes(self, logits: Tensor) -> Tensor:
        """The model's logits [N, outputs, ...] as those of the data set's classes, [N, C, ...]."""
        return logits if self.outputs is None else self.outputs.to_classes(logits)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images [N, 3, H, W] as the model wants them, float32 on their device."""
        std = torch.tensor(self.std, device=images.device).reshape(1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).reshape(1, 3, 1, 1)
        return images.float().mul_(1 / (255 * std)).sub_(mean / std)


def load_teacher(
    name: str,
    manifest: Manifest,
    *,
    size: int | None = None,
    checkpoint: str | Path | None = None,
    labels: str | Path | Sequence[str] | None = None,
) -> Teacher:
    """Build a teacher for a data set's classes.

    Args:
        name: timm's name of the architecture.
        manifest: of the data set; the teacher's outputs are matched with its classes.
        size: pixels of both sides of the teacher's images; by default those that it was trained on. Position
            embeddings are resampled where it was trained on others.
        checkpoint: what `softshard train` wrote (its class list is compared with the data set's); without it
            timm's own weights are used, whose outputs are the classes of timm's list of wnids. Where it has no list for
            their number, they must be as many as the data set's classes, and a UserWarning says that the order could not
            be checked.
        labels: what the outputs mean, in their order: class names, or what `load_class_list` reads them from. Needed where
            timm has no list, or one of other names; for a checkpoint of another class list it must be that list, and
            classes of one name then count as the same. Outputs that are no class of the data set are left out.

    Raises:
        DataError: the checkpoint is of another architecture, class list or image size; or the outputs have no class in
            common with the data set.
        UsageError: `labels` is not as long as there are outputs, or timm's weights cannot be had.
    """
    if isinstance(labels, str | Path):
        source, labels = str(labels), load_class_list(labels)
    else:
        source = "the given list"
    if size is not None and size < 1:
        raise UsageError(f"teacher {name}: expected a size from 1 pixel, found {size}")
    if checkpoint is None:
        check_model_name(name, pretrained=True)
        config: Any = timm.get_pretrained_cfg(name)
        outputs = _own_outputs(name, config.num_classes, labels, source, manifest)
        model = create_model(name, config.num_classes, size or config.input_size[-1], pretrained=True).eval()
        weights = config.tag or "timm's own"
        return Teacher(model, name, config.mean, config.std, state_sha256(model), weights, outputs)
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    if saved.model_name != name:
        raise DataError(f"{path}: expected a checkpoint of {name}, found one of {saved.model_name}")
    outputs = _trained_outputs(path, saved, labels, source, manifest)
    model = _trained_model(path, saved, size or saved.recipe.image_size).eval()
    mean, std = (MEAN, STD) if saved.recipe.normalise else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Teacher(model, name, mean, std, checkpoint_sha256(path), "checkpoint", outputs)


def load_teachers(
    names: list[str],
    checkpoints: list[str],
    manifest: Manifest,
    *,
    size: int | None,
    labels: Sequence[str] = (),
) -> list[Teacher]:
    """Teachers by name, each with the checkpoint of the same place in its list, or all with timm's own weights.

    So with `labels`, what their outputs mean: a list for each teacher, or none at all.

    Raises:
        UsageError: the lists differ in length; or see `load_teacher`.
        DataError: see `load_teacher`.
    """
    if checkpoints and len(checkpoints) != len(names):
        raise UsageError(
            f"teachers: expected a --checkpoint for each of {len(names)} teachers, in their order, or none at all (timm's "
            f"own weights), found {len(checkpoints)}"
        )
    if labels and len(labels) != len(names):
        raise UsageError(
            f"teachers: expected --labels for each of {len(names)} teachers, in their order, or none at all, found "
            f"{len(labels)}"
        )
    files: list[str | None] = [*checkpoints] if checkpoints else [None] * len(names)
    lists: list[str | None] = [*labels] if labels else [None] * len(names)
    return [
        load_teacher(name, manifest, size=size, checkpoint=file, labels=own)
        for name, file, own in zip(names, files, lists, strict=True)
    ]


def _trained_model(path: Path, saved: Checkpoint, size: int) -> nn.Module:
    """The model of a checkpoint for another image size: what is laid out for one size is resampled by timm."""
    if size == saved.recipe.image_size:
        return load_trained_model(path, saved, size)
    model = create_model(saved.model_name, saved.label_space.num_outputs, size)
    # timm's own weights go through the same function when they are loaded at another size.
    resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if resample is not None:
        saved = replace(saved, model=resample(dict(saved.best_model), model), model_ema=None)
    return load_trained_model(path, saved, size)


def _own_outputs(
    name: str, number: int, labels: Sequence[str] | None, source: str, manifest: Manifest
) -> Outputs | None:
    """The outputs of timm's own weights, by the user's list, else by timm's."""
    if labels is None:
        subset = infer_imagenet_subset({"num_classes": number})
        if subset is not None:
            return match_outputs(name, ImageNetInfo(subset).label_names(), f"timm's {subset}", manifest)
        if number != manifest.num_classes:
            raise UsageError(
                f"teacher {name}: expected weights for the data set's {manifest.num_classes} classes, found {number} "
                "outputs that timm has no class list for. Say what they mean with --labels, or give the teacher you "
                "trained on these classes with --checkpoint"
            )
        warnings.warn(
            f"teacher {name}: timm has no class list for its {number} outputs, so that they are the classes of "
            f"{manifest.name!r} in the same order could not be checked; --labels says what they mean",
            stacklevel=4,
        )
        return None
    if len(labels) != number:
        raise UsageError(
            f"teacher {name}: expected --labels with a name for each of its {number} outputs, found {len(labels)} names in "
            f"{source}"
        )
    return match_outputs(name, labels, source, manifest)


def _trained_outputs(
    path: Path, saved: Checkpoint, labels: Sequence[str] | None, source: str, manifest: Manifest
) -> Outputs | None:
    """The outputs of a checkpoint: the data set's classes, unless the checkpoint's own list was named."""
    if labels is not None:
        found = class_list_sha256(labels)
        if found != saved.classes_sha256:
            raise DataError(
                f"{path}: expected --labels to be the class list {saved.classes_sha256} of this checkpoint, found {found} "
                f"in {source}. Give the data set that it was trained on: --labels DATASET"
            )
        return match_outputs(str(path), labels, source, manifest)
    problems = saved.label_space.differences(LabelSpace.of(manifest))
    if problems:
        raise DataError(
            f"{path} and data set {manifest.name!r} do not belong together: {'; '.join(problems)}; the teacher's outputs "
            "stand for other classes. To take classes of one name for the same, name the teacher's class list: --labels, "
            "such as the data set that it was trained on"
        )
    return None
