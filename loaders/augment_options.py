"""What may be done to pixels beside crop and flip, as frozen options. No torch in here.

Wrong values are refused when an option is built, not when a batch is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..shards.errors import UsageError, check_share

# torchvision's list, which is the paper's (Cubuk et al. 2020, RandAugment).
RANDAUGMENT_OPS = (
    "identity",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
INTERPOLATIONS = ("nearest", "bilinear")
ERASING_FILLS = ("noise", "color", "mean")


@dataclass(frozen=True)
class RandAugment:
    """A few operations drawn from a list for every image (Cubuk et al. 2020), as torchvision defines them.

    Attributes:
        num_ops: operations that follow each other; the same one may come twice.
        magnitude: their strength, 0 to `bins` - 1.
        bins: steps of the strength, from nothing to the strongest.
        prob: probability of each operation that was drawn.
        uniform: draw each operation's magnitude, 1 to `magnitude`.
        ops: the list they are drawn from; `invert` may be added.
        interpolation: of shears, translations and rotations: `nearest` or `bilinear`.
        fill: red, green, blue, 0 to 255: what they bring in from outside.
    """

    num_ops: int = 2
    magnitude: int = 9
    bins: int = 31
    prob: float = 1.0
    uniform: bool = False
    ops: tuple[str, ...] = RANDAUGMENT_OPS
    interpolation: str = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        where = "augment: RandAugment"
        if self.num_ops < 1 or self.bins < 2 or not 0 <= self.magnitude < self.bins:
            raise UsageError(
                f"{where}: expected num_ops from 1, bins from 2 and a magnitude from 0 to bins - 1, found "
                f"{self.num_ops}, {self.bins} and {self.magnitude}"
            )
        if self.uniform and self.magnitude < 1:
            raise UsageError(
                f"{where}: expected a magnitude from 1 where it is drawn, found {self.magnitude}"
            )
        check_share(f"{where}: prob", self.prob)
        known = (*RANDAUGMENT_OPS, "invert")
        if not self.ops or not set(self.ops) <= set(known):
            raise UsageError(f"{where}: expected ops of {', '.join(known)}, found {self.ops}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"{where}: expected interpolation of {', '.join(INTERPOLATIONS)}, found {self.interpolation!r}"
            )
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UsageError(f"{where}: expected a fill of three values from 0 to 255, found {self.fill}")


RANDAUGMENT_21K = RandAugment(2, 9, bins=10, prob=0.5, uniform=True, ops=(*RANDAUGMENT_OPS[1:], "invert"))
"""The PyPI package `randaugment` 1.0.2, which ImageNet-21K-P's code calls: two operations, each of them with
probability 1/2 and a strength of its own. Its list has a second Cutout, too, which is left out here."""


@dataclass(frozen=True)
class Erasing:
    """A rectangle of some images is overwritten (Zhong et al. 2020), as in torchvision's RandomErasing.

    Attributes:
        prob: share of the images.
        scale: (smallest, largest) area of the rectangle, as a share of the image.
        ratio: (smallest, largest) height / width, drawn log-uniformly.
        fill: `noise` (normal, in normalised values; one field of noise for a seed, moved about for every image),
            `color` (one drawn for every image) or `mean` (the mean that images are normalised with).
    """

    prob: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str = "noise"

    def __post_init__(self) -> None:
        check_share("augment: Erasing: prob", self.prob)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(
                f"augment: Erasing: expected a scale (low, high) within (0, 1], found {self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise UsageError(f"augment: Erasing: expected a ratio (low, high) above 0, found {self.ratio}")
        if self.fill not in ERASING_FILLS:
            raise UsageError(
                f"augment: Erasing: expected fill of {', '.join(ERASING_FILLS)}, found {self.fill!r}"
            )


@dataclass(frozen=True)
class Mixup:
    """Two images and their targets are blended (Zhang et al. 2018).

    Attributes:
        alpha: of Beta(alpha, alpha), which an image's own share is drawn from.
        prob: share of the pairs that are blended.
    """

    alpha: float = 0.2
    prob: float = 1.0

    def __post_init__(self) -> None:
        _check_mix("Mixup", self.alpha, self.prob)


@dataclass(frozen=True)
class CutMix:
    """A rectangle of one image is pasted into another (Yun et al. 2019).

    Attributes:
        alpha: of Beta(alpha, alpha), which the share of the area that stays is drawn from.
        prob: share of the pairs that are cut.
        visible: targets that are pooled from label maps: pool what is left of the one crop and what is pasted of
            the other, each by itself; False blends the targets of the two whole crops.
    """

    alpha: float = 1.0
    prob: float = 1.0
    visible: bool = False

    def __post_init__(self) -> None:
        _check_mix("CutMix", self.alpha, self.prob)


def _check_mix(name: str, alpha: float, prob: float) -> None:
    if not 0 < alpha < math.inf:
        raise UsageError(f"augment: {name}: expected an alpha above 0, found {alpha}")
    check_share(f"augment: {name}: prob", prob)
