"""The shapes of subsets that the study names (Gao 2021): N classes with M images each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import UsageError
from .text_limits import counted

# 10 x 5000 is CIFAR-10's shape, 100 x 500 CIFAR-100's.
CONFIGURATIONS = {
    "200x500": (200, 500),
    "100x1000": (100, 1000),
    "20x5000": (20, 5000),
    "20x2500": (20, 2500),
    "10x5000": (10, 5000),
    "100x500": (100, 500),
}
MIN_VALIDATION = 10_000
IMAGENET = "imagenet-1k"  # of the known class lists
IMAGENET_IMAGES = 732, 1300  # of its classes for training: the fewest, the most
_REMEDY = "group classes (--method groups, siblings, confusion or coarse), or take fewer images"


def configuration(name: str) -> tuple[int, int]:
    """N and M of a named configuration.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in CONFIGURATIONS:
        raise UsageError(
            f"config: expected one of {', '.join(CONFIGURATIONS)}, found {name!r}; give other numbers as --num-classes "
            "and --per-class"
        )
    return CONFIGURATIONS[name]


def shortage(counts: np.ndarray, wanted: int) -> str:
    """What to know where classes have fewer than M images; empty where none has.

    Args:
        counts: integer [N], images of each class of the subset.
        wanted: M.
    """
    few = int((counts < wanted).sum())
    if not few:
        return ""
    return (
        f"{few:,} of {counted(len(counts), 'class')} {'has' if few == 1 else 'have'} fewer than {wanted:,} images "
        f"(the smallest {int(counts.min()):,}, the largest {int(counts.max()):,}): {_REMEDY}"
    )


def imagenet_shortage(sizes: Sequence[int], wanted: int) -> str:
    """What to know of ImageNet's own classes, whose images are not at hand; empty where all have enough.

    Args:
        sizes: classes of ImageNet in each class of the subset.
        wanted: M.
    """
    fewest, most = IMAGENET_IMAGES
    surely = sum(size * most < wanted for size in sizes)
    maybe = sum(size * fewest < wanted for size in sizes)
    if not maybe:
        return ""
    return (
        f"ImageNet has {fewest:,} to {most:,} images a class for training: {surely:,} of "
        f"{counted(len(sizes), 'class')} have fewer than {wanted:,}, maybe {maybe - surely:,} more: {_REMEDY}"
    )


def small_validation(num_images: int, num_classes: int) -> str:
    """A warning where a validation set says little; empty where it is large enough."""
    if num_images >= MIN_VALIDATION:
        return ""
    return (
        f"the validation set has {counted(num_images, 'image')} of {counted(num_classes, 'class')}, fewer than "
        f"{MIN_VALIDATION:,}: differences between models drown in noise. Group classes rather than leaving most out, or "
        "hold more out"
    )
