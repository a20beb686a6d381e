"""Label pooling: the part of a label map that a crop covers, as one vector over the classes (ReLabel).

RoIAlign with one output cell is linear in the map, and its weights are a row vector times a column vector; so
the pooled vector is a scatter-add of K*P*Q weighted scores, and the dense map [N, C, P, Q] (230 MB for 256
maps of 1000 classes) is never built.

N maps, C classes, K classes kept per cell, P Q rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..shards.labelmap import decode_label_maps

# Maps are pooled a few at a time: temporaries of this many float64 stay in cache and in memory that the
# allocator keeps (fresh pages for a whole batch took longer than the arithmetic: five times as long in all).
_CHUNK_ELEMENTS = 32_000


def axis_weights(start: np.ndarray, end: np.ndarray, num_cells: int) -> np.ndarray:
    """RoIAlign's weights along one axis: one output cell, adaptive sampling, `aligned=False`.

    float32 in torchvision's order of operations: the number of sampling points is a ceiling, which the last
    bit of the box size can flip, and then the result is another one.

    Args:
        start: float32 [N], where the crop begins, as a fraction of the image.
        end: float32 [N], where it ends.
        num_cells: cells of the map along this axis.

    Returns:
        float32 [N, num_cells], summing to 1.
    """
    cells, half, one = np.float32(num_cells), np.float32(0.5), np.float32(1)
    first = start * cells - half
    size = np.maximum(end * cells - half - first, one)
    points = np.ceil(size)
    i = np.arange(int(points.max()), dtype=np.float32)
    at = first[:, None] + (i + half) * size[:, None] / points[:, None]
    used = (i < points[:, None]) & (at >= -1) & (at <= cells)
    at = np.maximum(at, np.float32(0))
    low = np.minimum(at.astype(np.int64), num_cells - 1)
    high = np.minimum(low + 1, num_cells - 1)
    share = np.where(low >= num_cells - 1, np.float32(0), at - low.astype(np.float32))
    rows = np.arange(len(first))[:, None] * num_cells
    weights = np.bincount(
        np.concatenate([(rows + low).ravel(), (rows + high).ravel()]),
        np.concatenate([(used * (one - share)).ravel(), (used * share).ravel()]),
        minlength=len(first) * num_cells,
    ).reshape(-1, num_cells)
    return (weights / points[:, None]).astype(np.float32)


def pool_label_maps(
    maps: Sequence[bytes | memoryview] | tuple[np.ndarray, np.ndarray],
    crops: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    softmax: bool = True,
    device: str | torch.device = "cpu",
    wheres: Sequence[str] | None = None,
) -> torch.Tensor:
    """Pool N label maps over N crops.

    Equal to torchvision's `roi_align` of the dense map (boxes = fractions * (Q, P) - 0.5, output (1, 1),
    `sampling_ratio=-1`, `aligned=False`) to 1e-5; classes that a cell did not keep count as 0.

    Args:
        maps: N encoded `lmap` values of one shape, or (scores, ids): float [N, K, P, Q] logits and integer
            [N, K, P, Q] class ids below `num_classes`.
        crops: float32 [N, 4], (x0, y0, x1, y1) as fractions of the stored image; x runs along Q, y along P. A
            horizontal flip of the crop changes nothing.
        num_classes: C.
        softmax: False returns the pooled logits.
        device: where to pool; the maps are decoded, and the weights computed, on the host either way.
        wheres: N names for messages about encoded maps.

    Returns:
        float32 [N, C]: class probabilities, or pooled logits.

    Raises:
        ValueError: a crop is empty or leaves the image, or shapes do not fit.
        DataError: an encoded map is damaged, or has ids from `num_classes` up.
    """
    if isinstance(maps, tuple) and len(maps) == 2 and not isinstance(maps[0], bytes | bytearray | memoryview):
        scores, ids = np.asarray(maps[0], np.float32), np.asarray(maps[1])
    else:
        scores, ids = decode_label_maps(maps, wheres)  # pyright: ignore[reportArgumentType]
    if isinstance(crops, torch.Tensor):
        crops = crops.detach().cpu().numpy()
    crops = np.ascontiguousarray(crops, np.float32)
    _check(scores, ids, crops, num_classes)
    num, _, num_rows, num_columns = scores.shape
    rows = axis_weights(crops[:, 1], crops[:, 3], num_rows)
    columns = axis_weights(crops[:, 0], crops[:, 2], num_columns)
    target = torch.device(device)
    if target.type != "cpu":
        parts = (scores, ids.astype(np.int32), rows, columns)
        on_device = [torch.from_numpy(part).to(target, non_blocking=True) for part in parts]
        return _pool_on_device(on_device, num_classes, softmax)
    result = np.empty((num, num_classes), np.float32)
    step = max(1, _CHUNK_ELEMENTS // max(scores[0].size, num_classes))
    for first in range(0, num, step):
        part = slice(first, first + step)
        _pool_on_host(scores[part], ids[part], rows[part], columns[part], softmax, result[part])
    return torch.from_numpy(result)


def _pool_on_host(
    scores: np.ndarray, ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, softmax: bool, out: np.ndarray
) -> None:
    """Pool a few maps into `out` (float32 [n, C])."""
    num, num_classes = out.shape
    # In float64 before bincount, which would cast in small pieces, eight times as slowly. It adds in a fixed
    # order: the same bits whatever the number of threads.
    weighted = (scores * (rows[:, None, :, None] * columns[:, None, None, :])).astype(np.float64)
    starts = np.arange(num, dtype=np.int64)[:, None] * num_classes
    flat = np.add(ids.reshape(num, -1), starts, dtype=np.int64, casting="unsafe")  # ids of any integer type
    pooled = np.bincount(flat.ravel(), weighted.ravel(), num * num_classes).reshape(num, num_classes)
    if softmax:
        # Not torch's: its threads would fight those that decode.
        pooled -= pooled.max(axis=1, keepdims=True)
        np.exp(pooled, out=pooled)
        pooled /= pooled.sum(axis=1, keepdims=True)
    out[...] = pooled


def _pool_on_device(parts: Sequence[torch.Tensor], num_classes: int, softmax: bool) -> torch.Tensor:
    """The same on the device that scores, ids, row and column weights are on."""
    scores, ids, rows, columns = parts
    weighted = scores * (rows[:, None, :, None] * columns[:, None, None, :])
    pooled = scores.new_zeros(scores.shape[0], num_classes)
    pooled.scatter_add_(1, ids.reshape(len(ids), -1).long(), weighted.reshape(len(ids), -1))
    return torch.softmax(pooled, dim=1) if softmax else pooled


def _check(scores: np.ndarray, ids: np.ndarray, crops: np.ndarray, num_classes: int) -> None:
    if scores.ndim != 4 or scores.shape != ids.shape or crops.shape != (len(scores), 4) or not len(scores):
        raise ValueError(
            f"label pooling: expected scores and ids [N, K, P, Q] and crops [N, 4], found "
            f"{list(scores.shape)}, {list(ids.shape)} and {list(crops.shape)}"
        )
    x0, y0, x1, y1 = crops.T
    if ids.dtype.kind not in "iu":
        raise ValueError(f"label pooling: expected integer class ids, found {ids.dtype}")
    fine = (x0 >= 0) & (y0 >= 0) & (x1 <= 1) & (y1 <= 1) & (x0 < x1) & (y0 < y1)  # False for NaN
    if not fine.all():
        i = int(np.flatnonzero(~fine)[0])
        raise ValueError(
            f"label pooling: crop {i}: expected 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, "
            f"found {crops[i].tolist()}"
        )
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= num_classes):
        raise ValueError(
            f"label pooling: expected class ids from 0 to {num_classes - 1}, found {ids.min()} to "
            f"{ids.max()}; the maps are over another class list"
        )
