"""What is done to the pixels of each image: drawn on the host, as operations and their numbers.

A pure function of (augment, seed, epoch, sample, occurrence): the same on every device, in every batch, for
every number of ranks. `augment_batch.py` runs it.

N images, T operations one after the other, A numbers of an operation, S pixels a side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..shards.philox import (
    PURPOSE_CUTOUT,
    PURPOSE_ERASING,
    PURPOSE_JITTER,
    PURPOSE_LIGHTING,
    PURPOSE_RANDAUGMENT,
    uniforms,
)
from .augment_options import Erasing, RandAugment
from .crops import Augment

# The numbers of each operation; all are applied to red, green and blue from 0 to 255.
OPS = (
    "identity",
    "brightness",  # factor
    "contrast",  # factor
    "color",  # factor
    "sharpness",  # factor
    "lighting",  # added to red, green, blue
    "posterize",  # bits that are kept
    "solarize",  # lowest value that is inverted
    "autocontrast",
    "equalize",
    "invert",
    "affine",  # (a, b, c, d, e, f): the pixel at (x, y) from the centre comes from (ax + by + c, dx + ey + f)
    "box",  # top, left, height, width; red, green, blue
    "noise",  # top, left, height, width; row and column where the field of noise begins
)
NUMBER = {name: i for i, name in enumerate(OPS)}
NUM_ARGS = 7
_JITTER_ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
_JITTER_OPS = np.array([NUMBER["brightness"], NUMBER["contrast"], NUMBER["color"]])
_ERASING_ATTEMPTS = 10  # as torchvision's RandomErasing

# Principal components of ImageNet's colours, values 0 to 1: rows are red, green, blue (as in fb.resnet.torch).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Program(NamedTuple):
    """Operations of N images.

    Attributes:
        ops: int64 [N, T], numbers of OPS.
        args: float64 [N, T, A].
    """

    ops: np.ndarray
    args: np.ndarray


def draw_program(
    augment: Augment,
    samples: np.ndarray,
    *,
    mean: tuple[float, ...],
    seed: int,
    epoch: int,
    occurrence: int | np.ndarray = 0,
) -> Program:
    """Draw what is done to the pixels of N images.

    Args:
        augment: what to draw.
        samples: integer [N], sample indices in the manifest's order.
        mean: channel means, in units of 0 to 1, for erasing with the mean.
        seed: of the loader.
        epoch: number of the epoch.
        occurrence: which draw of a sample in this epoch.

    Returns:
        The operations; T is the same for every batch.
    """

    def numbers(purpose: int, num: int) -> np.ndarray:
        return uniforms(seed, purpose, epoch, samples, num, occurrence)

    parts = []
    if augment.color_jitter != 0:
        parts.append(_jitter(augment.color_jitter, numbers(PURPOSE_JITTER, 4)))
    if augment.lighting:
        parts.append(_lighting(augment.lighting, numbers(PURPOSE_LIGHTING, 4)))
    if augment.cutout:
        parts.append(_cutout(augment.cutout, augment.size, numbers(PURPOSE_CUTOUT, 5)))
    if augment.randaugment is not None:
        drawn = numbers(PURPOSE_RANDAUGMENT, 4 * augment.randaugment.num_ops)
        parts.append(_randaugment(augment.randaugment, augment.size, drawn))
    if augment.erasing is not None:
        drawn = numbers(PURPOSE_ERASING, 6 + 2 * _ERASING_ATTEMPTS)
        parts.append(_erasing(augment.erasing, augment.size, mean, drawn))
    if not parts:
        parts.append(_empty(len(samples), 0))
    return Program(*(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))


def _empty(num: int, length: int) -> Program:
    return Program(np.zeros((num, length), np.int64), np.zeros((num, length, NUM_ARGS)))


def _jitter(strength: float | tuple[float, float, float], numbers: np.ndarray) -> Program:
    """Three factors around 1 in one of six orders."""
    program = _empty(len(numbers), 3)
    spread = np.broadcast_to(np.asarray(strength, np.float64), 3)
    low = np.maximum(1 - spread, 0)
    factors = low + (1 + spread - low) * numbers[:, 1:]
    orders = _JITTER_ORDERS[(6 * numbers[:, 0]).astype(np.int64)]
    program.ops[...] = _JITTER_OPS[orders]
    program.args[..., 0] = np.take_along_axis(factors, orders, axis=1)
    return program


def _lighting(strength: float, numbers: np.ndarray) -> Program:
    program = _empty(len(numbers), 1)
    weights = strength * normals(numbers)[:, :3] * _EIGENVALUES
    program.ops[...] = NUMBER["lighting"]
    # Written out, not a matrix product: the same bits for every number of images.
    program.args[:, 0, :3] = 255 * (weights[:, None, :] * _EIGENVECTORS).sum(axis=2)
    return program


def _cutout(share: float, size: int, numbers: np.ndarray) -> Program:
    program = _empty(len(numbers), 1)
    half = int(share * size + 0.5) // 2
    centres = (numbers[:, :2] * size).astype(np.int64)
    first, last = np.clip(centres - half, 0, size), np.clip(centres + half, 0, size)
    program.ops[...] = NUMBER["box"]
    program.args[:, 0, :2], program.args[:, 0, 2:4] = first, last - first
    program.args[:, 0, 4:7] = np.floor(256 * numbers[:, 2:])
    return program


def _randaugment(options: RandAugment, size: int, numbers: np.ndarray) -> Program:
    """torchvision's table of magnitudes, at one place of it or, drawn, at several."""
    num, length = len(numbers), options.num_ops
    program = _empty(num, length)
    chosen, signs, magnitudes, used = np.moveaxis(numbers.reshape(num, length, 4), 2, 0)
    names = (chosen * len(options.ops)).astype(np.int64)
    level = np.full((num, length), options.magnitude)
    if options.uniform:
        level = 1 + (magnitudes * options.magnitude).astype(np.int64)
    strength = level / (options.bins - 1)
    sign = np.where(signs < 0.5, 1.0, -1.0)
    for i, name in enumerate(options.ops):
        here = (names == i) & (used < options.prob)
        if name == "identity" or not here.any():
            continue
        op, args = _randaugment_op(name, strength[here], sign[here], size)
        program.ops[here] = NUMBER[op]
        program.args[here, : args.shape[1]] = args
    return program


def _randaugment_op(name: str, strength: np.ndarray, sign: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """An operation and its numbers, float64 [M, up to A]; strength from 0 to 1."""
    zero, one = np.zeros_like(strength), np.ones_like(strength)

    def affine(*matrix: np.ndarray) -> tuple[str, np.ndarray]:
        return "affine", np.stack(matrix, axis=1)

    if name == "shear-x":  # about the upper left corner
        shear = 0.3 * strength * sign
        return affine(one, shear, shear * size / 2, zero, one, zero)
    if name == "shear-y":
        shear = 0.3 * strength * sign
        return affine(one, zero, zero, shear, one, shear * size / 2)
    if name in ("translate-x", "translate-y"):
        pixels = -np.trunc(150 / 331 * size * strength) * sign
        return (
            affine(one, zero, pixels, zero, one, zero)
            if name[-1] == "x"
            else affine(one, zero, zero, zero, one, pixels)
        )
    if name == "rotate":
        angle = math.radians(30) * strength * sign
        return affine(np.cos(angle), -np.sin(angle), zero, np.sin(angle), np.cos(angle), zero)
    if name in ("brightness", "color", "contrast", "sharpness"):
        return name, (1 + 0.9 * strength * sign)[:, None]
    if name == "posterize":
        return name, (8 - np.rint(4 * strength))[:, None]
    if name == "solarize":
        return name, (255 * (1 - strength))[:, None]
    return name, zero[:, None]


def _erasing(options: Erasing, size: int, mean: tuple[float, ...], numbers: np.ndarray) -> Program:
    """The first of ten rectangles that fits; none, where none of them does."""
    num = len(numbers)
    program = _empty(num, 1)
    tries = numbers[:, 6:].reshape(num, _ERASING_ATTEMPTS, 2)
    (low, high), log_ratio = options.scale, np.log(options.ratio)
    area = size * size * (low + (high - low) * tries[..., 0])
    ratio = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * tries[..., 1])
    heights, widths = (np.rint(np.sqrt(value)).astype(np.int64) for value in (area * ratio, area / ratio))
    fits = (heights >= 1) & (widths >= 1) & (heights < size) & (widths < size)
    rows, chosen = np.arange(num), fits.argmax(axis=1)
    height, width = heights[rows, chosen], widths[rows, chosen]
    erased = (numbers[:, 0] < options.prob) & fits.any(axis=1)
    program.ops[erased, 0] = NUMBER["noise" if options.fill == "noise" else "box"]
    program.args[:, 0, 0] = np.floor(numbers[:, 1] * (size - height + 1))
    program.args[:, 0, 1] = np.floor(numbers[:, 2] * (size - width + 1))
    program.args[:, 0, 2], program.args[:, 0, 3] = height, width
    if options.fill == "noise":
        program.args[:, 0, 4:6] = np.floor(size * numbers[:, 3:5])
    elif options.fill == "color":
        program.args[:, 0, 4:7] = np.floor(256 * numbers[:, 3:6])
    else:
        program.args[:, 0, 4:7] = 255 * np.asarray(mean)
    program.args[~erased] = 0
    return program


def normals(numbers: np.ndarray) -> np.ndarray:
    """Normal numbers (Box and Muller) from uniform ones: [N, 2m] -> float64 [N, 2m]."""
    radius = np.sqrt(-2 * np.log1p(-numbers[:, 0::2]))
    angle = 2 * np.pi * numbers[:, 1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
