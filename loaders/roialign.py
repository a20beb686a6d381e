"""RoIAlign's weights along one axis of a label map.

RoIAlign is linear in the map, and the weights of one output cell are a row vector times a column vector. They
are computed here, on the host, for every device.
"""

from __future__ import annotations

import numpy as np


def axis_weights(start: np.ndarray, end: np.ndarray, num_cells: int, num_bins: int = 1) -> np.ndarray:
    """RoIAlign's weights along one axis: adaptive sampling, `aligned=False`.

    float32 in torchvision's order of operations: the number of sampling points is a ceiling, which the last
    bit of the box size can flip, and then the result is another one.

    Args:
        start: float32 [N], where the crop begins, as a fraction of the image.
        end: float32 [N], where it ends.
        num_cells: cells of the map along this axis.
        num_bins: G, output cells along this axis.

    Returns:
        float32 [N, G, num_cells], each bin summing to 1.
    """
    cells, half, one, bins = np.float32(num_cells), np.float32(0.5), np.float32(1), np.float32(num_bins)
    first = start * cells - half
    size = np.maximum(end * cells - half - first, one)
    bin_size, points = size / bins, np.ceil(size / bins)
    i = np.arange(int(points.max()), dtype=np.float32)
    bin_first = first[:, None] + np.arange(num_bins, dtype=np.float32) * bin_size[:, None]
    within = (i + half) * bin_size[:, None] / points[:, None]
    at = bin_first[:, :, None] + within[:, None, :]
    used = (i < points[:, None])[:, None, :] & (at >= -1) & (at <= cells)
    at = np.maximum(at, np.float32(0))
    low = np.minimum(at.astype(np.int64), num_cells - 1)
    high = np.minimum(low + 1, num_cells - 1)
    share = np.where(low >= num_cells - 1, np.float32(0), at - low.astype(np.float32))
    rows = np.arange(len(first) * num_bins).reshape(-1, num_bins, 1) * num_cells
    weights = np.bincount(
        np.concatenate([(rows + low).ravel(), (rows + high).ravel()]),
        np.concatenate([(used * (one - share)).ravel(), (used * share).ravel()]),
        minlength=len(first) * num_bins * num_cells,
    ).reshape(-1, num_bins, num_cells)
    return (weights / points[:, None, None]).astype(np.float32)
