"""Label pooling: the part of a label map that a crop covers, as one vector over the classes (ReLabel).

RoIAlign is linear in the map, so that the pooled vector is a scatter-add of K*P*Q weighted scores, and the
dense map [N, C, P, Q] (230 MB for 256 maps of 1000 classes) is never built.

    target_modes.py     what is asked for
    roialign.py         crops -> weights of rows and columns
    pooling_job.py      the weights and what to make of them
    pooling_host.py     maps and job -> targets, in numpy
    pooling_compiled.py    the same by compiled loops (pooling_kernels.py), where numba is installed
    pooling_device.py   the same in torch, for GPUs

N maps, C classes, K classes kept per cell, P Q rows and columns of the map, G H of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from ..shards.errors import UsageError
from ..shards.labelmap import GROUP_ELEMENTS, DecodeSteps, MapGroup, decode_map_groups
from .pooling_compiled import (
    EncodedGroup,
    compiled_axis_weights,
    compiled_decode,
    compiled_steps,
    load_kernels,
    num_shares,
    pool_compiled,
)
from .pooling_device import pool_on_device
from .pooling_host import pool_on_host
from .pooling_job import PoolingJob, check_ids
from .roialign import axis_weights
from .target_modes import LABEL_POOLING, LabelPooling

WHOLE_IMAGE = np.array([0, 0, 1, 1], np.float32)

Maps = Sequence[bytes | memoryview] | tuple[np.ndarray, np.ndarray]
Names = Sequence[str] | Callable[[int], str] | None


class SparseTargets(NamedTuple):
    """The m largest values of each target, largest first.

    Attributes:
        values: float32 [N, m], or [N, G, H, m]: probabilities, which sum to less than 1 now.
        ids: int64, the same shape: their classes.
    """

    values: torch.Tensor
    ids: torch.Tensor


def pool_label_maps(
    maps: Maps,
    crops: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    softmax: bool = True,
    device: str | torch.device = "cpu",
    wheres: Names = None,
    pooling: LabelPooling = LABEL_POOLING,
    flips: np.ndarray | torch.Tensor | None = None,
    classes: np.ndarray | torch.Tensor | None = None,
    num_threads: int | None = None,
) -> torch.Tensor:
    """Pool N label maps over N crops.

    Equal to torchvision's `roi_align` of the dense map (boxes = fractions * (Q, P) - 0.5, output (1, 1) or the
    grid, `sampling_ratio=-1`, `aligned=False`) to 1e-5.

    Args:
        maps: N encoded `lmap` values of one shape, or (scores, ids): float [N, K, P, Q] logits and integer
            [N, K, P, Q] class ids below `num_classes` (below the class map's length, where there is one).
        crops: float32 [N, 4], (x0, y0, x1, y1) as fractions of the stored image; x runs along Q, y along P. A
            horizontal flip of the crop changes nothing but the order of a grid's columns. Or [N, R, 4]: R
            rectangles of each image that are pooled one by one and averaged by their areas (not with a grid);
            empty ones count for nothing.
        num_classes: C.
        softmax: False returns the pooled logits.
        device: where to pool; the maps are decoded, and the weights computed, on the host either way.
        wheres: N names for messages about encoded maps, or a function from a map's number to its name.
        pooling: the target mode and its options.
        flips: bool [N], crops that are mirrored left to right; only a grid needs them.
        classes: int64 [N], the images' own classes, -1 for none; only `pooling.original` needs them.
        num_threads: the most that are used on the processor, where numba is installed; by default torch's number.
            The result does not depend on it.

    Returns:
        float32 [N, C], with a grid [N, G, H, C]: class probabilities, or pooled logits.

    Raises:
        ValueError: a crop is empty or leaves the image, or shapes do not fit.
        UsageError: options that contradict each other or C.
        DataError: an encoded map is damaged.
    """
    kind = "logits" if not softmax else "softmax" if pooling.multi else "one-hot"
    path = _path(device, maps, crops, num_threads, pooling)
    groups, job = _prepare(maps, crops, num_classes, kind, None, wheres, pooling, flips, classes, path)
    (result,) = path.pool(groups, job)
    return result if pooling.grid is not None else result[:, 0, 0]


def pool_top_classes(
    maps: Maps,
    crops: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    keep: int,
    device: str | torch.device = "cpu",
    wheres: Names = None,
    pooling: LabelPooling = LABEL_POOLING,
    flips: np.ndarray | torch.Tensor | None = None,
    classes: np.ndarray | torch.Tensor | None = None,
    num_threads: int | None = None,
) -> SparseTargets:
    """`pool_label_maps`, of which only the m largest probabilities are kept, for large C and for grids.

    Args:
        keep: m, at most C. All else is as in `pool_label_maps`.

    Raises:
        UsageError: m is not between 1 and C; and what `pool_label_maps` raises.
    """
    if not 1 <= keep <= num_classes:
        raise UsageError(f"label pooling: expected to keep 1 to {num_classes} classes, found {keep}")
    kind = "softmax" if pooling.multi else "one-hot"
    path = _path(device, maps, crops, num_threads, pooling)
    groups, job = _prepare(maps, crops, num_classes, kind, keep, wheres, pooling, flips, classes, path)
    values, ids = path.pool(groups, job)
    return (
        SparseTargets(values, ids)
        if pooling.grid is not None
        else SparseTargets(values[:, 0, 0], ids[:, 0, 0])
    )


class _Path(NamedTuple):
    """How maps are decoded and pooled: by which functions, in how many threads."""

    pool: Callable[[Sequence[Iterable[MapGroup]], PoolingJob], list[torch.Tensor]]
    steps: DecodeSteps = DecodeSteps()
    weigh: Callable[..., np.ndarray] = axis_weights
    shares: int = 1
    crops_fit: Callable[[np.ndarray], bool] = lambda _: False


def _path(
    device: str | torch.device,
    maps: Maps,
    crops: np.ndarray | torch.Tensor,
    num_threads: int | None,
    pooling: LabelPooling,
) -> _Path:
    device = torch.device(device)
    if device.type != "cpu":
        return _Path(lambda shares, job: pool_on_device(chain.from_iterable(shares), job, device))
    # Compiled loops weigh rows and columns; what is seen of several regions is no product of the two.
    kernels = load_kernels() if np.ndim(crops) == 2 or np.shape(crops)[1] == 1 else None
    if kernels is None:
        return _Path(lambda shares, job: pool_on_host(chain.from_iterable(shares), job))
    num = len(maps[0]) if _are_arrays(maps) else len(maps)
    threads = torch.get_num_threads() if num_threads is None else num_threads
    decode = compiled_decode(kernels) if pooling.swap_xy or pooling.class_map is not None else EncodedGroup
    return _Path(
        partial(pool_compiled, kernels=kernels, num_threads=threads),
        compiled_steps(kernels, decode),
        compiled_axis_weights(kernels),
        num_shares(num, threads),
        kernels.crops_fit,
    )


def _are_arrays(maps: Maps) -> bool:
    return (
        isinstance(maps, tuple) and len(maps) == 2 and not isinstance(maps[0], bytes | bytearray | memoryview)
    )


def _prepare(
    maps: Maps,
    crops: np.ndarray | torch.Tensor,
    num_classes: int,
    kind: str,
    keep: int | None,
    wheres: Names,
    pooling: LabelPooling,
    flips: np.ndarray | torch.Tensor | None,
    classes: np.ndarray | torch.Tensor | None,
    path: _Path,
) -> tuple[list[Iterator[Any]], PoolingJob]:
    """Check, compute the weights, and begin to decode."""
    if _are_arrays(maps):
        scores, ids = np.asarray(maps[0], np.float32), np.asarray(maps[1])
        _check_arrays(scores, ids)
        num, shape, shares = len(scores), scores.shape[1:], _as_groups(scores, ids, path.shares)
    else:
        where = wheres if wheres is None or callable(wheres) else wheres.__getitem__
        shape, shares = decode_map_groups(
            maps,  # pyright: ignore[reportArgumentType]
            where,
            shares=path.shares,
            steps=path.steps,
        )
        num = len(maps)
    regions = _checked_crops(crops, (num, *shape), path.crops_fit)
    if not pooling.local:
        regions = np.tile(WHOLE_IMAGE, (num, 1, 1))
    if regions.shape[1] > 1 and pooling.grid is not None:
        raise UsageError(
            f"label pooling: expected one crop an image for the grid {pooling.grid}, found {regions.shape[1]}"
        )
    boxes = regions[:, 0]
    top, num_rows, num_columns = (shape[0], shape[2], shape[1]) if pooling.swap_xy else shape
    bins = pooling.grid or (1, 1)
    rows = path.weigh(boxes[:, 1], boxes[:, 3], num_rows, bins[0])
    columns = path.weigh(boxes[:, 0], boxes[:, 2], num_columns, bins[1])
    cells = None if regions.shape[1] == 1 else _region_weights(regions, num_rows, num_columns)
    if pooling.grid is not None and flips is not None:
        mirrored = np.asarray(flips, bool)
        if mirrored.shape != (num,):
            raise ValueError(f"label pooling: expected {num} flips, found {list(mirrored.shape)}")
        columns[mirrored] = columns[mirrored, ::-1]
    own = _own_classes(pooling, kind, classes, num, num_classes)
    floor = pooling.fill == "floor"
    job = PoolingJob(top, rows, columns, num_classes, kind, floor, pooling.original, own, keep, cells)
    return [_adapted(groups, pooling, num_classes) for groups in shares], job


def _adapted(groups: Iterable[Any], pooling: LabelPooling, num_classes: int) -> Iterator[Any]:
    """The maps with the image's axes and over the targets' classes."""
    class_map = None if pooling.class_map is None else np.asarray(pooling.class_map)
    if class_map is not None and class_map.max() >= num_classes:
        raise UsageError(
            f"label pooling: expected a class map to classes below {num_classes}, found {class_map.max()}"
        )
    for group in groups:
        if isinstance(group, EncodedGroup):  # checked as it is decoded
            yield group
            continue
        check_ids(group, num_classes if class_map is None else len(class_map))
        if pooling.swap_xy:
            scores, places = group.scores.swapaxes(2, 3), group.places.swapaxes(2, 3)
            group = group._replace(scores=scores, places=places)
        yield group if class_map is None else _renamed(group, class_map, num_classes)


def _check_arrays(scores: np.ndarray, ids: np.ndarray) -> None:
    if scores.ndim != 4 or scores.shape != ids.shape or not scores.size:
        raise ValueError(
            f"label pooling: expected scores and ids of one shape [N, K, P, Q], found {list(scores.shape)} "
            f"and {list(ids.shape)}"
        )
    if ids.dtype.kind not in "iu":
        raise ValueError(f"label pooling: expected integer class ids, found {ids.dtype}")


def _as_groups(scores: np.ndarray, ids: np.ndarray, shares: int) -> list[Iterator[MapGroup]]:
    step = max(1, GROUP_ELEMENTS // scores[0].size)

    def groups(start: int, stop: int) -> Iterator[MapGroup]:
        for first in range(start, stop, step):
            members = np.arange(first, min(first + step, stop))
            part = slice(first, first + len(members))
            yield MapGroup(members, scores[part], ids[part], None, np.zeros_like(members))

    ends = [len(scores) * share // shares for share in range(shares + 1)]
    return [groups(start, stop) for start, stop in pairwise(ends)]


def _checked_crops(
    crops: np.ndarray | torch.Tensor, shape: Sequence[int], fit: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Crops for maps [N, K, P, Q] as float32 [N, R, 4]; `fit` may know of [N, 4] that nothing is wrong with them."""
    if isinstance(crops, torch.Tensor):
        crops = crops.detach().cpu().numpy()
    crops = np.ascontiguousarray(crops, np.float32)
    regions = crops[:, None] if crops.ndim == 2 else crops
    if regions.ndim != 3 or len(regions) != shape[0] or regions.shape[1] < 1 or regions.shape[2] != 4:
        raise ValueError(
            f"label pooling: expected crops [{shape[0]}, 4] for maps {list(shape)}, found {list(crops.shape)}"
        )
    if regions.shape[1] == 1 and fit(regions[:, 0]):
        return regions
    x0, y0, x1, y1 = np.moveaxis(regions, 2, 0)
    within = (x0 >= 0) & (y0 >= 0) & (x1 <= 1) & (y1 <= 1) & (x0 <= x1) & (y0 <= y1)  # False for NaN
    fine = within.all(axis=1) & ((x0 < x1) & (y0 < y1)).any(axis=1)
    if not fine.all():
        i = int(np.flatnonzero(~fine)[0])
        raise ValueError(
            f"label pooling: crop {i}: expected 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, "
            f"found {crops[i].tolist()}"
        )
    return regions


def _region_weights(regions: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """float32 [N, P, Q], each summing to 1: RoIAlign's weights of R rectangles, averaged by area."""
    x0, y0, x1, y1 = np.moveaxis(regions.astype(np.float64), 2, 0)
    areas = (x1 - x0) * (y1 - y0)
    shares = (areas / areas.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((len(regions), num_rows, num_columns), np.float32)
    for r in range(regions.shape[1]):
        some = np.flatnonzero(areas[:, r] > 0)
        if len(some):
            box = regions[some, r]
            rows = axis_weights(box[:, 1], box[:, 3], num_rows)[:, 0] * shares[some, r, None]
            columns = axis_weights(box[:, 0], box[:, 2], num_columns)[:, 0]
            weights[some] += rows[:, :, None] * columns[:, None, :]
    return weights


def _own_classes(
    pooling: LabelPooling,
    kind: str,
    classes: np.ndarray | torch.Tensor | None,
    num: int,
    num_classes: int,
) -> np.ndarray | None:
    """The classes that are to be mixed in, int64 [N], or None."""
    if not pooling.original:
        return None
    if kind == "logits":
        raise UsageError(
            "label pooling: expected softmax=True where the original label is mixed in, found False"
        )
    if classes is None:
        raise UsageError(
            f"label pooling: expected the images' classes for original={pooling.original}, found None"
        )
    own = classes.detach().cpu().numpy() if isinstance(classes, torch.Tensor) else np.asarray(classes)
    if own.shape != (num,) or own.dtype.kind not in "iu" or own.max() >= num_classes:
        raise ValueError(
            f"label pooling: expected {num} classes below {num_classes}, found {own.dtype} {list(own.shape)} "
            f"up to {own.max(initial=0)}"
        )
    return own.astype(np.int64)


def _renamed(group: MapGroup, class_map: np.ndarray, num_classes: int) -> MapGroup:
    """The same maps over other classes; entries of dropped classes get the id C and count for nothing.

    Where entries of a cell become one class, the first takes log(sum(exp)) of them, the others are dropped.
    """
    ids = class_map[group.ids()]
    ids[ids < 0] = num_classes
    scores = group.scores
    kept = class_map[class_map >= 0]
    if len(np.unique(kept)) < len(kept):
        scores = scores.copy()
        for k in range(1, ids.shape[1]):
            for before in range(k):
                same = (ids[:, k] == ids[:, before]) & (ids[:, k] < num_classes)
                one, other = scores[:, before][same], scores[:, k][same]
                scores[:, before][same] = np.logaddexp(one, other)
                scores[:, k][same] = np.minimum(one, other)  # the cell's smallest value stays what it was
                ids[:, k][same] = num_classes
    return MapGroup(group.members, scores, ids, None, np.zeros_like(group.sizes))
