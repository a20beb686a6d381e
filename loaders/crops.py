"""Crop windows and flips: pure functions of (seed, epoch, sample, occurrence) and the stored size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..shards.errors import UsageError
from ..shards.philox import PURPOSE_CROP, uniforms

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augment:
    """What is cut from a stored image, and how large it becomes.

    Attributes:
        size: pixels, both sides of the batch's images.
        scale: (smallest, largest) share of the area that a crop keeps; None takes the whole image, squished.
        ratio: (smallest, largest) width / height of a crop, drawn log-uniformly.
        flip: mirror half of the images left to right.
        centre: with `scale` None: share of both sides that is kept, in the middle of the image.
        square: with `scale` None: what is kept is square, that share of the shorter side.
    """

    size: int = 224
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    centre: float = 1.0
    square: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"augment: expected a size from 1 pixel, found {self.size}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"augment: expected a scale (low, high) within (0, 1], found {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"augment: expected a ratio (low, high) above 0, found {self.ratio}")
        if not 0 < self.centre <= 1 or (self.scale is not None and (self.centre < 1 or self.square)):
            raise UsageError(
                "augment: expected a centre within (0, 1], and only with scale=None, found "
                f"{self.centre}{', square,' if self.square else ''} with scale={self.scale}"
            )

    @classmethod
    def evaluation(cls, size: int = 224, *, centre: float = 1.0, square: bool = False) -> Augment:
        """The whole image or a window in its middle, squished to `size`, never flipped."""
        return cls(size=size, scale=None, flip=False, centre=centre, square=square)


def draw_crops(
    augment: Augment, hw: np.ndarray, samples: np.ndarray, *, seed: int, epoch: int, occurrence: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Crop windows and flips of a batch (torchvision's RandomResizedCrop, vectorised, counter-based).

    Args:
        augment: what to draw.
        hw: integer [N, 2], stored height and width.
        samples: integer [N], sample indices in the manifest's order.
        seed: of the loader.
        epoch: number of the epoch.
        occurrence: which draw of a sample in this epoch.

    Returns:
        (crop_tlhw_px, flips): int32 [N, 4] top, left, height, width in pixels, within the image; bool [N].
    """
    hw = np.asarray(hw, np.int64)
    num = len(hw)
    tlhw = np.zeros((num, 4), np.int32)
    tlhw[:, 2:] = hw if augment.scale is not None else centred_window(augment, hw)
    tlhw[:, :2] = (hw - tlhw[:, 2:]) // 2
    if augment.scale is None and not augment.flip:
        return tlhw, np.zeros(num, bool)
    numbers = uniforms(seed, PURPOSE_CROP, epoch, samples, 3 + 2 * _ATTEMPTS, occurrence)
    flips = numbers[:, 0] < 0.5 if augment.flip else np.zeros(num, bool)
    if augment.scale is None:
        return tlhw, flips
    (scale_low, scale_high), log_ratio = augment.scale, np.log(augment.ratio)
    tries = numbers[:, 3:].reshape(num, _ATTEMPTS, 2)
    area = (hw[:, :1] * hw[:, 1:]) * (scale_low + (scale_high - scale_low) * tries[..., 0])
    ratio = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * tries[..., 1])
    widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (widths >= 1) & (heights >= 1) & (heights <= hw[:, :1]) & (widths <= hw[:, 1:])
    chosen = fits.argmax(axis=1)
    rows = np.arange(num)
    height, width = heights[rows, chosen], widths[rows, chosen]
    top = (numbers[:, 1] * (hw[:, 0] - height + 1)).astype(np.int64)
    left = (numbers[:, 2] * (hw[:, 1] - width + 1)).astype(np.int64)
    # No attempt fits a very long image: its largest centred crop within the ratio, as torchvision takes.
    none = ~fits.any(axis=1)
    if none.any():
        image_h, image_w = hw[none, 0], hw[none, 1]
        height[none] = np.clip(np.rint(image_w / augment.ratio[0]), 1, image_h)
        width[none] = np.clip(np.rint(image_h * augment.ratio[1]), 1, image_w)
        top[none] = (image_h - height[none]) // 2
        left[none] = (image_w - width[none]) // 2
    return np.stack([top, left, height, width], axis=1).astype(np.int32), flips


def centred_window(augment: Augment, hw: np.ndarray) -> np.ndarray:
    """Height and width, int64 [N, 2], of the windows that `centre` and `square` keep of images of int64 [N, 2]."""
    sides = np.broadcast_to(hw.min(axis=1, keepdims=True), hw.shape) if augment.square else hw
    return np.maximum(np.rint(augment.centre * sides).astype(np.int64), 1)


def crop_fractions(crop_tlhw_px: np.ndarray, hw: np.ndarray) -> np.ndarray:
    """Crop windows as fractions of the stored image.

    Args:
        crop_tlhw_px: integer [N, 4], top, left, height, width in pixels.
        hw: integer [N, 2], stored height and width.

    Returns:
        float32 [N, 4], (x0, y0, x1, y1) in [0, 1].
    """
    top, left, height, width = np.asarray(crop_tlhw_px, np.float64).T
    image_h, image_w = np.asarray(hw, np.float64).T
    corners = [left / image_w, top / image_h, (left + width) / image_w, (top + height) / image_h]
    return np.stack(corners, axis=1).astype(np.float32)
