"""Recipes: everything about a training run that decides its result and is not a file, a model or a machine.

A recipe is a small frozen dataclass returned by a function; its defaults are the papers' numbers. Change it
with `dataclasses.replace(semantic_softmax(), epochs=10)`: a misspelt name is a TypeError.

Every field is applied by `train`. What the papers also do and `train` does not do yet has no field here:
Cutout and RandAugment (Ridnik et al. 2021); colour jitter, lighting and CutMix (Yun et al. 2021); mixed
precision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from ..shards.errors import UsageError

LOSSES = ("single-label", "semantic-softmax", "soft-target")
TARGETS = ("none", "relabel")
SCHEDULES = ("one-cycle", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: as the command line calls it.
        loss: `single-label`, `semantic-softmax` (needs a label tree) or `soft-target` (needs `targets`).
        targets: what the loader brings as soft targets: `none` or `relabel`.
        smoothing: label smoothing in [0, 1); `soft-target` has none.
        levels: `semantic-softmax` only: levels trained, from the root; None for all.
        weight_clamp: `semantic-softmax` only: largest weight of a level; None for no limit.
        optimizer: a name of timm.optim: `adam`, `sgd` (which is Nesterov there), `momentum`, `adamw`, ...
        lr: the highest learning rate, for `global_batch`; it is not scaled when that changes.
        weight_decay: left out for biases and other 1-d weights.
        momentum: for optimizers that have one.
        schedule: `one-cycle` (cosine up, cosine down to lr * warmup_from / 10,000) or `cosine` (linear up,
            cosine down to 0); both change the learning rate at every step.
        warmup: share of all steps in which the learning rate rises.
        warmup_from: learning rate of the first step, as a share of `lr`.
        epochs: passes over the data set.
        global_batch: samples per step over all ranks, not per device.
        image_size: pixels of both sides.
        crop_scale: (least, most) area of the random crop as a share of the image; None: no crop, the whole
            image is squished.
        flip: mirror half of the images.
        normalise: subtract ImageNet's mean and divide by its standard deviation; else pixels are in [0, 1].
    """

    name: str
    loss: str
    targets: str
    smoothing: float
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    warmup: float
    warmup_from: float
    epochs: int
    global_batch: int
    crop_scale: tuple[float, float] | None
    flip: bool
    normalise: bool
    image_size: int = 224
    momentum: float = 0.9
    levels: int | None = None
    weight_clamp: float | None = 20.0

    def __post_init__(self) -> None:
        problems = []
        if self.loss not in LOSSES:
            problems.append(f"loss: expected one of {LOSSES}, found {self.loss!r}")
        if self.targets not in TARGETS:
            problems.append(f"targets: expected one of {TARGETS}, found {self.targets!r}")
        if self.loss == "soft-target" and self.targets == "none":
            problems.append("targets: expected soft targets for the loss 'soft-target', found 'none'")
        if self.schedule not in SCHEDULES:
            problems.append(f"schedule: expected one of {SCHEDULES}, found {self.schedule!r}")
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                problems.append(f"{name}: expected finite numbers, found {value}")
        for field in ("epochs", "global_batch", "image_size"):
            if getattr(self, field) < 1:
                problems.append(f"{field}: expected at least 1, found {getattr(self, field)}")
        for field in ("smoothing", "warmup"):
            if not 0.0 <= getattr(self, field) < 1.0:
                problems.append(f"{field}: expected a number in [0, 1), found {getattr(self, field)}")
        if self.lr <= 0.0:
            problems.append(f"lr: expected more than 0, found {self.lr}")
        if self.crop_scale is not None and not 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0:
            problems.append(f"crop_scale: expected 0 < least <= most <= 1, found {self.crop_scale}")
        if problems:
            raise UsageError(f"recipe {self.name!r}: " + "; ".join(problems))

    def differences(self, other: Recipe) -> list[str]:
        """One line for each field that differs: `lr: 0.1, not 0.2` (this recipe's value first)."""
        return [
            f"{field.name}: {getattr(self, field.name)!r}, not {getattr(other, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def single_label() -> Recipe:
    """Plain cross-entropy, otherwise as semantic_softmax (Ridnik et al. 2021, the single-label baseline)."""
    return dataclasses.replace(semantic_softmax(), name="single-label", loss="single-label")


def semantic_softmax() -> Recipe:
    """ImageNet-21K-P's recipe (Ridnik et al. 2021): start it from ImageNet-1K weights.

    Global batch: the published commands, 64 on each of eight GPUs. Without their Cutout and RandAugment.
    """
    return Recipe(
        name="semantic-softmax",
        loss="semantic-softmax",
        targets="none",
        smoothing=0.2,
        optimizer="adam",
        lr=3e-4,
        weight_decay=1e-4,
        schedule="one-cycle",
        warmup=0.1,
        warmup_from=1 / 20,
        epochs=80,
        global_batch=512,
        crop_scale=None,
        flip=False,
        normalise=False,
    )


def relabel() -> Recipe:
    """ReLabel on ImageNet-1K (Yun et al. 2021), trained from scratch: 5 of the 300 epochs are warm-up.

    Without their colour jitter, lighting and CutMix.
    """
    return Recipe(
        name="relabel",
        loss="soft-target",
        targets="relabel",
        smoothing=0.0,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="cosine",
        warmup=5 / 300,
        warmup_from=0.0,
        epochs=300,
        global_batch=1024,
        crop_scale=(0.08, 1.0),
        flip=True,
        normalise=True,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "single-label": single_label,
    "semantic-softmax": semantic_softmax,
    "relabel": relabel,
}
