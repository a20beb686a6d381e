"""`softshard evaluate timm:NAME`: anybody's timm model on a data set, as the model's own configuration prepares images.

Its window in the middle of the image, its size, mean and standard deviation; what is not the same is said in `differs`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..loaders.loader import Loader
from ..shards.classes import class_list_sha256
from ..shards.errors import DataError
from ..shards.manifest import Manifest
from ..shards.relabel import Relabelling, relabel
from ..shards.storage import public_name
from .evaluate import PassOptions, evaluate_model, sharing_samples, whole_data_set
from .label_sets import LabelSets
from .label_space import LabelSpace
from .models import create_model
from .preparation import Preparation, own_classes, own_config
from .start import load_start


def evaluate_timm(
    name: str,
    dataset: str,
    *,
    weights: str | Path | None = None,
    label_sets: str | Path | None = None,
    progress: bool = False,
    **how: Unpack[PassOptions],
) -> dict[str, Any]:
    """Evaluate a timm model on a whole data set, every sample once, in float32.

    Args:
        name: timm's name of a model and its weights, such as `resnet50.a1_in1k`.
        dataset: a local folder or any fsspec URL. Its classes are the model's, or some of them, in any order: they are
            matched by name.
        weights: a file of weights for this architecture instead of timm's own, which are downloaded once.
        label_sets: several right classes for an image, in addition: `real` or a file (see LabelSets).
        progress: show a progress bar on standard error.
        how: see PassOptions; `labels` must be the model's, in its order.

    Returns:
        The numbers of `evaluate_model`, and `model`, `dataset`, `weights`, `preparation` (see Preparation) and
        `differs`, what timm's own validation does otherwise.

    Raises:
        UsageError: no such model or weights, or images that the loader cannot make.
        DataError: the data set has other classes, or it or the file of weights is damaged.
    """
    with open_timm(name, dataset, weights=weights, **how) as (preparation, model, loader):
        numbers = evaluate_model(
            model,
            loader,
            normalise=True,
            label_sets=None if label_sets is None else LabelSets.of_loader(label_sets, loader),
            progress=progress,
        )
        return {
            "model": name,
            "dataset": public_name(dataset),
            "weights": "timm's own" if weights is None else str(weights),
            "preparation": vars(preparation),
            "differs": preparation.differences(loader.manifest),
            **numbers,
        }


@contextmanager
def open_timm(
    name: str, dataset: str, *, weights: str | Path | None = None, **how: Unpack[PassOptions]
) -> Iterator[tuple[Preparation, nn.Module, Loader]]:
    """A timm model beside a loader of a data set as it wants it, for one pass; see `evaluate_timm`.

    Yields:
        How images are prepared, the model on the device, and the loader, whose classes are the model's.

    Raises:
        As `evaluate_timm`.
    """
    preparation = Preparation.of(name)
    num_classes = own_config(name).num_classes
    options: dict[str, Any] = {**how}
    if how.get("labels") is None:
        options["labels"] = _matched(num_classes, Manifest.load(dataset))
    images = {"augment": preparation.augment, "mean": preparation.mean, "std": preparation.std}
    with sharing_samples(how), whole_data_set(dataset, dtype="float32", **images, **options) as loader:
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
        yield preparation, model.to(loader.device), loader


def _matched(num_classes: int, manifest: Manifest) -> Relabelling | None:
    """The model's class list to read a data set with that has only some of the classes, or another order of them."""
    names = own_classes(num_classes)
    if names is None or manifest.class_names == names or not set(manifest.class_names) <= set(names):
        return None
    return relabel(manifest.class_names, names, allow_missing=True)


def _check_classes(name: str, num_classes: int, loader: Loader) -> None:
    """Refuse a data set whose classes are not the model's, in the model's order.

    Raises:
        DataError: another number of classes, others, or another order.
    """
    cure = "Pack with class folders named as the model's classes (wnids), or read only these: --labels imagenet-1k"
    names = own_classes(num_classes)
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
            stacklevel=5,
        )
