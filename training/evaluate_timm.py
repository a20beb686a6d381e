"""`softshard evaluate timm:NAME`: anybody's timm model on a data set, as the model's own configuration prepares images.

timm resizes and crops original images; here the stored image is what there is. The window is the same (the middle, by
`crop_pct` and `crop_mode`), and so are size, mean and standard deviation. What is not the same is said in `differs`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from ..loaders.crops import Augment
from ..loaders.labels import LabelSource
from ..loaders.loader import Loader
from ..shards.classes import class_list_sha256
from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from ..shards.relabel import Relabelling, relabel
from .evaluate import evaluate_model
from .label_sets import LabelSets
from .label_space import LabelSpace, load_labels
from .models import create_model
from .start import load_start

PREFIX = "timm:"


@dataclass(frozen=True)
class Preparation:
    """How a timm model wants its images (timm's `resolve_data_config`, test sizes where it has them).

    Attributes:
        size: pixels of both sides.
        crop_pct: size over the side that timm resizes to.
        crop_mode: `center`: the shorter side is resized, a square cut; `squash`: both sides are resized.
        interpolation: of timm's resize.
        mean: channel means, of values 0 to 1.
        std: channel standard deviations.
    """

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str) -> Preparation:
        """That of a model's own weights.

        Raises:
            UsageError: images that are not square, without three channels, or with another kind of crop.
        """
        config = resolve_data_config(pretrained_cfg=_own_config(name).to_dict(), use_test_size=True)
        channels, height, width = config["input_size"]
        if channels != 3 or height != width or config["crop_mode"] not in ("center", "squash"):
            raise UsageError(
                f"model {name}: expected square images of three channels, cut by 'center' or 'squash', found "
                f"{channels} x {height} x {width} by {config['crop_mode']!r}, which the loader cannot make"
            )
        return cls(
            size=height,
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    @property
    def augment(self) -> Augment:
        """The window of a stored image that timm would cut of an original."""
        resized = math.floor(self.size / self.crop_pct)
        return Augment.evaluation(
            self.size, centre=min(1.0, self.size / resized), square=self.crop_mode == "center"
        )

    def differences(self, manifest: Manifest) -> list[str]:
        """What timm's own validation does otherwise, a line each."""
        found = [
            f"window and size in one step, by area averages (linear where it grows), not {self.interpolation} filters"
        ]
        stored = manifest.recipe
        resize, size = stored.get("resize"), stored.get("size")
        if resize is None:
            found.append("how the images were stored is not known")
            return found
        if resize == "squish" and self.crop_mode == "center":
            found.append(
                "images were stored squished to a square, which timm does not do: pack with --resize short-edge"
            )
        wanted = math.floor(self.size / self.crop_pct)
        if resize != "none" and isinstance(size, int) and size < wanted:
            found.append(
                f"images were stored with {size} pixels, timm resizes originals to {wanted}: pack with --size {wanted}"
            )
        found.append(f"images were encoded again, JPEG quality {stored.get('quality')}")
        return found


def evaluate_timm(
    name: str,
    dataset: str,
    *,
    weights: str | Path | None = None,
    labels: str | Path | LabelSource | None = None,
    label_sets: str | Path | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a timm model on a whole data set, every sample once, in float32.

    Args:
        name: timm's name of a model and its weights, such as `resnet50.a1_in1k`.
        dataset: a local folder. Its classes are the model's, or some of them, in any order: they are matched by name.
        weights: a file of weights for this architecture instead of timm's own, which are downloaded once.
        labels: read the data set with these instead of its own; they must then be the model's, in its order.
        label_sets: several right classes for an image, in addition: `real` or a file (see LabelSets).
        batch_size: samples per step; it does not change the result.
        device: where the model runs.
        num_threads: the loader's.
        progress: show a progress bar on standard error.

    Returns:
        The numbers of `evaluate_model`, and `model`, `dataset`, `weights`, `preparation` (see Preparation) and
        `differs`, what timm's own validation does otherwise.

    Raises:
        UsageError: no such model or weights, or images that the loader cannot make.
        DataError: the data set has other classes, or it or the file of weights is damaged.
    """
    preparation = Preparation.of(name)
    num_classes = _own_config(name).num_classes
    with Loader(
        dataset,
        labels=load_labels(labels) if labels is not None else _matched(num_classes, Manifest.load(dataset)),
        batch_size=batch_size,
        device=str(device),
        augment=preparation.augment,
        dtype="float32",
        mean=preparation.mean,
        std=preparation.std,
        shuffle=False,
        last_batch="pad",
        num_threads=num_threads,
    ) as loader:
        _check_classes(name, num_classes, loader)
        model = create_model(name, num_classes, preparation.size, pretrained=weights is None)
        if weights is not None:
            report = load_start(
                model,
                name,
                weights,
                image_size=preparation.size,
                labels=LabelSpace.of_loader(loader),
                dataset=dataset,
            )
            if report.not_used:  # load_start leaves a head of another size out
                raise DataError(
                    f"{weights}: expected weights of {name} for {num_classes} classes, found a head of another size"
                )
        numbers = evaluate_model(
            model.to(device),
            loader,
            normalise=True,
            label_sets=None if label_sets is None else LabelSets.of_loader(label_sets, loader),
            progress=progress,
        )
        return {
            "model": name,
            "dataset": dataset,
            "weights": "timm's own" if weights is None else str(weights),
            "preparation": vars(preparation),
            "differs": preparation.differences(loader.manifest),
            **numbers,
        }


def _matched(num_classes: int, manifest: Manifest) -> Relabelling | None:
    """The model's class list to read a data set with that has only some of the classes, or another order of them."""
    names = _own_classes(num_classes)
    if names is None or manifest.class_names == names or not set(manifest.class_names) <= set(names):
        return None
    return relabel(manifest.class_names, names, allow_missing=True)


def _own_classes(num_classes: int) -> tuple[str, ...] | None:
    """What the outputs of timm's own weights stand for, by their number: wnids; None where timm has no list."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else tuple(ImageNetInfo(subset).label_names())


def _check_classes(name: str, num_classes: int, loader: Loader) -> None:
    """Refuse a data set whose classes are not the model's, in the model's order.

    Raises:
        DataError: another number of classes, others, or another order.
    """
    cure = "Pack with class folders named as the model's classes (wnids), or read only these: --labels imagenet-1k"
    names = _own_classes(num_classes)
    if names is not None:
        expected = LabelSpace(names, class_list_sha256(names), None)
        if problems := expected.differences(LabelSpace.of_loader(loader)):
            raise DataError(
                f"model {name} and data set {loader.dataset!r} do not belong together: {'; '.join(problems)}. {cure}"
            )
    elif num_classes != loader.num_classes:
        raise DataError(
            f"model {name} and data set {loader.dataset!r} do not belong together: expected {num_classes} classes, found "
            f"{loader.num_classes}. {cure}"
        )
    else:
        warnings.warn(
            f"model {name}: timm has no class list for its {num_classes} outputs, so that they are the classes of "
            f"{loader.dataset!r} in the same order could not be checked",
            stacklevel=3,
        )


def _own_config(name: str) -> Any:
    """timm's configuration of a model.

    Raises:
        UsageError: there is no such model.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        raise UsageError(f"model: expected a name that timm {timm.__version__} knows, found {name!r}")
    return config
