"""Operations on pixels, in torch: each takes images and numbers of all of them, and waits for no device.

Images are float32 [N, 3, S, S], red, green, blue from 0 to 255. Values are not rounded between operations,
unlike Pillow's and torchvision's on uint8, but where an operation is about 256 levels: there they are first.

N images, S pixels a side, A numbers of an operation (see augment_program.OPS).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def brightness(images: Tensor, args: Tensor) -> Tensor:
    """Blend with black: [N, 3, S, S] and factors [N, A] -> [N, 3, S, S], as all of these."""
    return (images * _first(args)).clamp_(0, 255)


def contrast(images: Tensor, args: Tensor) -> Tensor:
    """Blend with the mean grey of the image."""
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), args)


def color(images: Tensor, args: Tensor) -> Tensor:
    """Blend with the image in grey."""
    return _blend(images, _grey(images), args)


def sharpness(images: Tensor, args: Tensor) -> Tensor:
    """Blend with the image blurred by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; pixels at the border stay."""
    if images.shape[-1] <= 2:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (
        rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + images[..., 1:-1, 1:-1] * 4
    ) / 13
    return _blend(images, blurred, args)


def lighting(images: Tensor, args: Tensor) -> Tensor:
    """Add a colour. What leaves 0 to 255 stays so for float images, as published; uint8 ones are clipped."""
    return images + args[:, :3, None, None]


def posterize(images: Tensor, args: Tensor) -> Tensor:
    """Keep the highest bits of each value."""
    step = torch.exp2(8 - _first(args))
    return (_levels(images) / step).floor_() * step


def solarize(images: Tensor, args: Tensor) -> Tensor:
    """Invert values from a threshold on."""
    return torch.where(images >= _first(args), 255 - images, images)


def invert(images: Tensor, args: Tensor) -> Tensor:
    """Invert all values; the numbers are not used."""
    return 255 - images


def autocontrast(images: Tensor, args: Tensor) -> Tensor:
    """Stretch each channel to 0 and 255; one of a single value stays. The numbers are not used."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = high <= low
    scale = 255 / (high - low).masked_fill(flat, 255)
    return ((images - low.masked_fill(flat, 0)) * scale).clamp_(0, 255)


def equalize(images: Tensor, args: Tensor) -> Tensor:
    """Flatten each channel's histogram, as Pillow does. The numbers are not used."""
    levels = _levels(images).long().flatten(2)
    histogram = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    largest = histogram.gather(2, levels.amax(dim=2, keepdim=True))
    step = (levels.shape[2] - largest) // 255
    below = histogram.cumsum(dim=2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, levels).to(images.dtype).view_as(images)


def affine(images: Tensor, args: Tensor, interpolation: str, fill: tuple[int, int, int]) -> Tensor:
    """Take pixels from elsewhere: shears, translations, rotations.

    Args:
        images: float32 [N, 3, S, S].
        args: [N, A], six numbers of a matrix.
        interpolation: `nearest` or `bilinear`.
        fill: what lies outside.
    """
    size = images.shape[-1]
    offsets = torch.arange(size, dtype=torch.float32, device=images.device) + (0.5 - size / 2)
    a, b, c, d, e, f = (args[:, i, None, None] for i in range(6))
    # Written out, not a matrix product: the same bits for every number of images.
    x = a * offsets + b * offsets[:, None] + c
    y = d * offsets + e * offsets[:, None] + f
    grid = torch.stack([x, y], dim=3) / (size / 2)
    if not any(fill):
        return F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    outside = _rgb(fill, images)
    moved = F.grid_sample(
        images - outside, grid, mode=interpolation, padding_mode="zeros", align_corners=False
    )
    return moved + outside


def box(images: Tensor, args: Tensor) -> Tensor:
    """Overwrite a rectangle with a colour."""
    return torch.where(inside(args[:, :4], images.shape[-1]), args[:, 4:7, None, None], images)


def noise(images: Tensor, args: Tensor, field: Tensor) -> Tensor:
    """Overwrite a rectangle with a field [3, S, S], from a row and a column of it on, around its edges."""
    size = images.shape[-1]
    along = torch.arange(size, device=images.device)
    rows, columns = ((along + args[:, i, None].long()) % size for i in (4, 5))
    moved = field[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
    return torch.where(inside(args[:, :4], size), moved, images)


def inside(boxes_tlhw_px: Tensor, size: int) -> Tensor:
    """Which pixels lie in rectangles: [N, 4] top, left, height, width -> bool [N, 1, S, S]."""
    along = torch.arange(size, device=boxes_tlhw_px.device)
    top, left, height, width = (boxes_tlhw_px[:, i, None] for i in range(4))
    rows = (along >= top) & (along < top + height)
    columns = (along >= left) & (along < left + width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


# Those that need nothing but images and numbers, by their name in a program.
PLAIN_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "color": color,
    "sharpness": sharpness,
    "lighting": lighting,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "box": box,
}


def _first(args: Tensor) -> Tensor:
    return args[:, 0, None, None, None]


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return red * 0.2989 + green * 0.587 + blue * 0.114


def _blend(images: Tensor, other: Tensor, args: Tensor) -> Tensor:
    factor = _first(args)
    return (images * factor).add_(other * (1 - factor)).clamp_(0, 255)


def _levels(images: Tensor) -> Tensor:
    """Whole values from 0 to 255."""
    return images.round().clamp_(0, 255)


def _rgb(values: tuple[int, int, int], like: Tensor) -> Tensor:
    """[1, 3, 1, 1] on the images' device, filled there: a copy from the host would wait for it."""
    return torch.stack([like.new_full((1, 1, 1), value) for value in values], dim=1)
