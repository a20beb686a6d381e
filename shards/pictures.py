"""Pictures for pages and reports: boxes on images, label maps over images, data URIs.

Images are uint8 [H, W], [H, W, 1] or [H, W, 3] in RGB order; results are RGB. Shape letters: H W pixels,
P Q label-map rows and columns.
"""

from __future__ import annotations

import base64

import cv2
import numpy as np

# Nine evenly spaced colours of matplotlib's viridis (CC0): perceptually uniform, readable without hue.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    np.float32,
)
JPEG_QUALITY = 90
# Below this side a picture is likely a map of cells, whose edges JPEG would blur.
LOSSLESS_SIDE_PX = 64


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An RGB copy of a grey or RGB image.

    Raises:
        ValueError: the array is not a uint8 image, or is empty.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"image: expected dtype uint8, found {image.dtype}")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image: expected shape [H, W], [H, W, 1] or [H, W, 3], found {list(image.shape)}")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))).copy()


def apply_colormap(values: np.ndarray) -> np.ndarray:
    """Colour numbers by viridis.

    Args:
        values: any shape; clipped to [0, 1], and not-a-number counts as 0.

    Returns:
        uint8 [..., 3], RGB.
    """
    position = np.clip(np.nan_to_num(values), 0.0, 1.0) * (len(VIRIDIS) - 1)
    anchors = np.arange(len(VIRIDIS))
    channels = [np.interp(position, anchors, VIRIDIS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay_map(image: np.ndarray, map_PQ: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """Lay a map of cells over an image; P runs along the height, Q along the width.

    Args:
        image: the picture underneath.
        map_PQ: float [P, Q] in [0, 1]; each cell becomes one flat rectangle, NaN none.
        alpha: weight of the map, 0 shows only the image and 1 only the map.

    Returns:
        uint8 [H, W, 3].
    """
    if map_PQ.ndim != 2 or 0 in map_PQ.shape:
        raise ValueError(f"map: expected shape [P, Q], found {list(map_PQ.shape)}")
    rgb = as_rgb(image)
    height, width = rgb.shape[:2]
    # The cell under each pixel's centre; exact for any ratio, unlike a nearest-neighbour resize.
    rows = (np.arange(height) * 2 + 1) * map_PQ.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * map_PQ.shape[1] // (2 * width)
    cells = map_PQ[rows[:, None], columns[None, :]]
    weights = np.where(np.isnan(cells), 0.0, alpha)[..., None]
    return np.rint(rgb * (1.0 - weights) + apply_colormap(cells) * weights).astype(np.uint8)


def draw_box(
    image: np.ndarray,
    xyxy_fraction: tuple[float, float, float, float],
    color: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Outline a box, with a dark rim so that it shows on any background.

    Args:
        image: the picture; it is not changed.
        xyxy_fraction: (x0, y0, x1, y1) as fractions of the width and height.
        color: RGB.

    Returns:
        uint8 [H, W, 3].
    """
    rgb = as_rgb(image)
    height, width = rgb.shape[:2]
    x0, y0, x1, y1 = xyxy_fraction
    corners = [
        (min(max(round(x * width), 0), width - 1), min(max(round(y * height), 0), height - 1))
        for x, y in ((x0, y0), (x1, y1))
    ]
    line_px = max(1, round(min(height, width) / 100))
    cv2.rectangle(rgb, corners[0], corners[1], (0, 0, 0), 3 * line_px)
    cv2.rectangle(rgb, corners[0], corners[1], color, line_px)
    return rgb


def image_data_uri(image: np.ndarray) -> str:
    """The image inside a `data:` address: PNG when it is small, else JPEG."""
    rgb = as_rgb(image)
    if min(rgb.shape[:2]) <= LOSSLESS_SIDE_PX:
        kind, extension, options = "png", ".png", []
    else:
        kind, extension = "jpeg", ".jpg"
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded, data = cv2.imencode(extension, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise ValueError(f"image: {kind} encoding of shape {list(rgb.shape)} failed")
    return data_uri(kind, data.tobytes())


def data_uri(kind: str, data: bytes) -> str:
    """The bytes of a `jpeg` or `png` file as they are, inside a `data:` address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
