"""Crop windows and flips: pure functions of (seed, epoch, sample, occurrence) and the stored size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..shards.errors import UsageError
from ..shards.philox import PURPOSE_CROP, uniforms
from .augment_options import CutMix, Erasing, Mixup, RandAugment

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augment:
    """What is cut from a stored image, how large it becomes, and what is done to its pixels.

    In this order: crop, size, flip; colour jitter, lighting, Cutout, RandAugment, erasing; normalising; Mixup or
    CutMix. Everything after the flip runs on the batch's own device.

    Attributes:
        size: pixels, both sides of the batch's images.
        scale: (smallest, largest) share of the area that a crop keeps; None takes the whole image, squished.
        ratio: (smallest, largest) width / height of a crop, drawn log-uniformly.
        flip: mirror half of the images left to right.
        centre: None, or, instead of a `scale`, the side of a centred square as a share of the shorter side of
            the stored image.
        square: False keeps that share of both sides, which is then squished.
        color_jitter: j, or (brightness, contrast, saturation): three factors, each drawn from 1 - j to 1 + j (not
            below 0), applied in an order that is drawn for every image. 0 is none.
        lighting: standard deviation of the noise along ImageNet's principal components of colour
            (Krizhevsky et al. 2012); 0 is none.
        cutout: side of a square, as a share of the image's, that gets one random colour. It may reach over the
            border (DeVries and Taylor 2017; coloured as in ImageNet-21K-P's code). 0 is none.
        randaugment: None, or how operations are drawn.
        erasing: None, or how a rectangle is overwritten.
        mixup: None, or how pairs are blended; with a `cutmix` each pair takes one of the two, evenly.
        cutmix: None, or how rectangles are pasted.
        mix_until_epoch: the first epoch without `mixup` and `cutmix`; None mixes in all.
    """

    size: int = 224
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    centre: float | None = None
    square: bool = True
    color_jitter: float | tuple[float, float, float] = 0.0
    lighting: float = 0.0
    cutout: float = 0.0
    randaugment: RandAugment | None = None
    erasing: Erasing | None = None
    mixup: Mixup | None = None
    cutmix: CutMix | None = None
    mix_until_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"augment: expected a size from 1 pixel, found {self.size}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"augment: expected a scale (low, high) within (0, 1], found {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"augment: expected a ratio (low, high) above 0, found {self.ratio}")
        if self.centre is not None and (not 0 < self.centre <= 1 or self.scale is not None):
            raise UsageError(
                f"augment: expected a centre within (0, 1] and scale=None, found {self.centre} and {self.scale}"
            )
        strengths = self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter,)
        if len(strengths) not in (1, 3) or not all(0 <= value < math.inf for value in strengths):
            raise UsageError(
                "augment: expected a color_jitter from 0, or three (brightness, contrast, saturation), found "
                f"{self.color_jitter}"
            )
        if not 0 <= self.lighting < math.inf:
            raise UsageError(f"augment: expected lighting from 0, found {self.lighting}")
        if not 0 <= self.cutout <= 2:
            raise UsageError(f"augment: expected cutout as a share of the side, 0 to 2, found {self.cutout}")
        for name, kind in (
            ("randaugment", RandAugment),
            ("erasing", Erasing),
            ("mixup", Mixup),
            ("cutmix", CutMix),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise UsageError(f"augment: expected {name} as {kind.__name__}(...), found {value!r}")
        if self.mix_until_epoch is not None and (self.mix_until_epoch < 0 or not self.mixes):
            raise UsageError(
                "augment: expected mix_until_epoch from 0, with mixup or cutmix, found "
                f"{self.mix_until_epoch}, {self.mixup} and {self.cutmix}"
            )

    @classmethod
    def evaluation(cls, size: int = 224, centre: float | None = None, square: bool = True) -> Augment:
        """One view of an image, never flipped.

        Args:
            size: pixels of both sides.
            centre: None squishes the whole image. A share c stands for the usual "resize the shorter side to
                size / c, cut the size x size in the middle" (0.875: 256 and 224), in one step: a square of
                floor(c * shorter side + 1/2) pixels is cut from the middle of the stored image (an odd pixel more
                is left at the right and the bottom) and resized. The two steps round to a pixel of the resized
                image, so that their window may lie that far off. Label maps are pooled over the window.
            square: False cuts that share of both sides instead, and squishes it.
        """
        return cls(size=size, scale=None, flip=False, centre=centre, square=square)

    @property
    def changes_pixels(self) -> bool:
        """Whether single images go through more than crop, resize and flip."""
        jitter = self.color_jitter != 0 and self.color_jitter != (0, 0, 0)
        options = (self.randaugment, self.erasing)
        return jitter or self.lighting > 0 or self.cutout > 0 or any(option is not None for option in options)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return self.mixup is not None or self.cutmix is not None


def draw_crops(
    augment: Augment,
    hw: np.ndarray,
    samples: np.ndarray,
    *,
    seed: int,
    epoch: int,
    occurrence: np.ndarray | int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Crop windows and flips of a batch (torchvision's RandomResizedCrop, vectorised, counter-based).

    Args:
        augment: what to draw.
        hw: integer [N, 2], stored height and width.
        samples: integer [N], sample indices in the manifest's order.
        seed: of the loader.
        epoch: number of the epoch.
        occurrence: integer or integer [N], which draw of each sample in this epoch, 0 to 65,535.

    Returns:
        (crop_tlhw_px, flips): int32 [N, 4] top, left, height, width in pixels, within the image; bool [N].
    """
    hw = np.asarray(hw, np.int64)
    num = len(hw)
    tlhw = np.zeros((num, 4), np.int32)
    tlhw[:, 2:] = hw
    if augment.centre is not None:
        sides = np.broadcast_to(hw.min(axis=1, keepdims=True), hw.shape) if augment.square else hw
        kept = np.clip(np.floor(augment.centre * sides + 0.5), 1, None).astype(np.int64)
        tlhw = np.concatenate([(hw - kept) // 2, kept], axis=1).astype(np.int32)
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
