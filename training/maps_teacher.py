"""The models that label maps come from: built, with weights, checked against the data set's classes."""

from __future__ import annotations

import hashlib
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ..loaders.decode import MEAN, STD
from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from ..shards.wordnet import WNID_PATTERN
from .checkpoint import Checkpoint, load_checkpoint
from .label_space import LabelSpace
from .models import create_model, load_trained_model


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
    """

    model: nn.Module
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str | None
    weights: str | None = None

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "model": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images [N, 3, H, W] as the model wants them, float32 on their device."""
        std = torch.tensor(self.std, device=images.device).reshape(1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).reshape(1, 3, 1, 1)
        return images.float().mul_(1 / (255 * std)).sub_(mean / std)


def load_teacher(
    name: str, manifest: Manifest, *, size: int | None = None, checkpoint: str | Path | None = None
) -> Teacher:
    """Build a teacher for a data set's classes.

    Args:
        name: timm's name of the architecture.
        manifest: of the data set; the teacher's classes must be its classes.
        size: pixels of both sides of the teacher's images; by default those that it was trained on. Position
            embeddings are resampled where it was trained on others.
        checkpoint: what `softshard train` wrote (its class list is compared with the data set's); without it
            timm's own weights are used, whose classes are compared where timm has their list of wnids. Where it
            has none, a UserWarning says that the order could not be checked.

    Raises:
        DataError: the checkpoint is of another architecture, class list or image size; or timm's weights are
            for other classes or for another order of them.
        UsageError: timm's weights have another number of classes, or cannot be had.
    """
    if size is not None and size < 1:
        raise UsageError(f"teacher {name}: expected a size from 1 pixel, found {size}")
    config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if checkpoint is None:
        if config is not None:
            _check_own_classes(name, config.num_classes, manifest)
        own_size = config.input_size[-1] if config is not None else 224
        model = create_model(name, manifest.num_classes, size or own_size, pretrained=True).eval()
        mean, std = (config.mean, config.std) if config is not None else (MEAN, STD)
        tag = getattr(config, "tag", None)
        return Teacher(model, name, mean, std, state_sha256(model), tag or "timm's own")
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    if saved.model_name != name:
        raise DataError(f"{path}: expected a checkpoint of {name}, found one of {saved.model_name}")
    saved.check_data(path, manifest.name, LabelSpace.of(manifest))
    model = _trained_model(path, saved, size or saved.recipe.image_size).eval()
    mean, std = (MEAN, STD) if saved.recipe.normalise else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with open(path, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return Teacher(model, name, mean, std, weights, "checkpoint")


def load_teachers(
    names: list[str], checkpoints: list[str], manifest: Manifest, *, size: int | None
) -> list[Teacher]:
    """Teachers by name, each with the checkpoint of the same place in its list, or all with timm's own weights.

    Raises:
        UsageError: the lists differ in length; or see `load_teacher`.
        DataError: see `load_teacher`.
    """
    if checkpoints and len(checkpoints) != len(names):
        raise UsageError(
            f"teachers: expected a --checkpoint for each of {len(names)} teachers, in their order, or none at all (timm's "
            f"own weights), found {len(checkpoints)}"
        )
    files: list[str | None] = [*checkpoints] if checkpoints else [None] * len(names)
    return [
        load_teacher(name, manifest, size=size, checkpoint=file)
        for name, file in zip(names, files, strict=True)
    ]


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's weights and buffers, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _trained_model(path: Path, saved: Checkpoint, size: int) -> nn.Module:
    """The model of a checkpoint for another image size: what is laid out for one size is resampled by timm."""
    if size == saved.recipe.image_size:
        return load_trained_model(path, saved, size)
    model = create_model(saved.model_name, len(saved.class_names), size)
    # timm's own weights go through the same function when they are loaded at another size.
    resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if resample is not None:
        saved = replace(saved, model=resample(dict(saved.model), model))
    return load_trained_model(path, saved, size)


def _check_own_classes(name: str, num_classes: int, manifest: Manifest) -> None:
    """Refuse weights of timm's whose outputs are not the data set's classes in the data set's order."""
    if num_classes != manifest.num_classes:
        raise UsageError(
            f"teacher {name}: expected weights for the data set's {manifest.num_classes} classes, found "
            f"{num_classes}. Give the teacher you trained on them with --checkpoint"
        )
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        warnings.warn(
            f"teacher {name}: timm has no class list for its {num_classes} outputs, so that they are the classes of "
            f"{manifest.name!r} in the same order could not be checked",
            stacklevel=3,
        )
        return
    for index, (output, found) in enumerate(
        zip(ImageNetInfo(subset).label_names(), manifest.class_names, strict=True)
    ):
        if output == found:
            continue
        where = f"teacher {name}: its outputs are the wnids of {subset}; class {index}"
        if WNID_PATTERN.fullmatch(found):
            cause = "it is another class list, or another order"
        else:
            cause = "only classes that are named by wnid can be compared; pack with --classes and folders named by wnid"
        raise DataError(
            f"{where}: expected {output!r}, found {found!r} in the data set; {cause}. "
            "Or give the teacher you trained on these classes with --checkpoint"
        )
