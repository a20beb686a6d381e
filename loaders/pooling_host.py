"""Label pooling in numpy.

Groups of maps are small enough to stay in cache (labelmap.GROUP_ELEMENTS). Most maps name a few hundred classes
at most, through a table: their scores are added up by place in that table, and the softmax is taken over its
entries and, once, over all other classes together.

N maps, C classes, K classes kept per cell, P Q rows and columns of the map, G H of the output.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ..shards.labelmap import GROUP_ELEMENTS, MapGroup
from .pooling_job import PoolingJob

_DENSE_ELEMENTS = 1_000_000  # of dense targets that sparse ones are chosen from at a time, 4 MB


def pool_on_host(groups: Iterable[MapGroup], job: PoolingJob) -> list[torch.Tensor]:
    """Pool N maps, group by group.

    Returns:
        [float32 [N, G, H, C]], or with `keep` [float32 [N, G, H, m], int64 [N, G, H, m]].
    """
    # Used again for every group: fresh pages would take longer than the arithmetic.
    elements = max(GROUP_ELEMENTS, int(np.prod(job.map_shape)))
    work = np.empty(elements, np.int64), np.empty(elements, np.float64)
    if job.keep is not None:
        return _pool_sparse(groups, job, work)
    result = np.empty((*job.shape, job.num_classes), np.float32)
    for group in groups:
        first, last = int(group.members[0]), int(group.members[-1]) + 1  # in ascending order
        if last - first == len(group.members):
            _pool(group, job, work, result[first:last])  # into its place
        else:
            out = np.empty((len(group.members), *result.shape[1:]), np.float32)
            _pool(group, job, work, out)
            result[group.members] = out
    return [torch.from_numpy(result)]


def _pool_sparse(
    groups: Iterable[MapGroup], job: PoolingJob, work: tuple[np.ndarray, np.ndarray]
) -> list[torch.Tensor]:
    """Values and ids of the `keep` largest, from dense targets of a few maps at a time."""
    assert job.keep is not None
    values = torch.empty(*job.shape, job.keep)
    ids = torch.empty(*job.shape, job.keep, dtype=torch.int64)
    most = max(1, _DENSE_ELEMENTS // (job.num_classes * job.shape[1] * job.shape[2]))
    for group in groups:
        for part in group.parts(most):
            out = np.empty((len(part.members), *job.shape[1:], job.num_classes), np.float32)
            _pool(part, job, work, out)
            members = torch.from_numpy(part.members)
            values[members], ids[members] = torch.from_numpy(out).topk(job.keep)
    return [values, ids]


def _pool(
    group: MapGroup, job: PoolingJob, work: tuple[np.ndarray, np.ndarray], out_NGHC: np.ndarray
) -> None:
    """Pool a few maps."""
    scores, floor = group.scores, None
    if job.floor:
        floor = scores.min(axis=1)
        scores = scores - floor[:, None]
    rows, columns = job.rows[group.members], job.columns[group.members]
    if job.shape[1:] == (1, 1):
        weights = (
            rows[:, 0, :, None] * columns[:, 0, None, :] if job.cells is None else job.cells[group.members]
        )
        base = (
            np.zeros(len(scores)) if floor is None else (floor * weights).sum(axis=(1, 2), dtype=np.float64)
        )
        _one_cell(group, scores * weights[:, None], base, job, work, out_NGHC[:, 0, 0])
    else:
        for i in range(len(scores)):
            base = np.zeros(job.shape[1:])
            if floor is not None:
                base = rows[i] @ floor[i].astype(np.float64) @ columns[i].T
            out_GHC = out_NGHC[i]
            _grid(group, i, scores[i], (rows[i], columns[i]), base, job, out_GHC.reshape(-1, job.num_classes))
    if job.own is not None:
        _mix(out_NGHC, job.own[group.members], job.original)


def _one_cell(
    group: MapGroup,
    weighted: np.ndarray,
    base: np.ndarray,
    job: PoolingJob,
    work: tuple[np.ndarray, np.ndarray],
    out_NC: np.ndarray,
) -> None:
    num = len(weighted)
    # Without a table ids are the places; one more of them is that of dropped classes.
    places = group.tables.shape[1] if group.tables is not None else job.num_classes + 1
    starts = np.arange(num, dtype=np.int64)[:, None] * places
    flat, weights = (array[: weighted.size] for array in work)
    np.add(group.places.reshape(num, -1), starts, out=flat.reshape(num, -1), casting="unsafe")
    # In float64 before bincount, which would cast in small pieces, eight times as slowly. It adds in a fixed
    # order: the same bits whatever the number of threads.
    weights[...] = weighted.ravel()
    pooled = np.bincount(flat, weights, num * places).reshape(num, places)
    if group.tables is None:
        _spread_all(pooled[:, :-1], base, job.kind, out_NC)
        return
    used = np.arange(places) >= places - group.sizes[:, None]
    _spread(pooled[used], group.tables[used], group.sizes, base, job.kind, out_NC)


def _grid(
    group: MapGroup,
    i: int,
    scores_KPQ: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    base_GH: np.ndarray,
    job: PoolingJob,
    out_RC: np.ndarray,
) -> None:
    """One map over a grid: its classes alone become dense, [T, P, Q], and rows and columns are two products."""
    if group.tables is None:
        table, places = np.unique(group.places[i], return_inverse=True)
        places = places.reshape(scores_KPQ.shape)
    else:
        unused = group.tables.shape[1] - int(group.sizes[i])
        table, places = group.tables[i, unused:], group.places[i].astype(np.int64) - unused
    _, num_rows, num_columns = scores_KPQ.shape
    cells = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
    flat = places * cells.size + cells
    dense = np.bincount(flat.ravel(), scores_KPQ.ravel().astype(np.float64), len(table) * cells.size)
    if table[-1] == job.num_classes:  # dropped classes
        table, dense = table[:-1], dense[: -cells.size]
    rows_GP, columns_HQ = weights
    pooled_TGH = rows_GP @ dense.reshape(-1, num_rows, num_columns) @ columns_HQ.T
    num = base_GH.size
    values = pooled_TGH.reshape(len(table), num).T.ravel()
    _spread(values, np.tile(table, num), np.full(num, len(table)), base_GH.ravel(), job.kind, out_RC)


def _spread(
    values: np.ndarray,
    classes: np.ndarray,
    sizes: np.ndarray,
    base: np.ndarray,
    kind: str,
    out_RC: np.ndarray,
) -> None:
    """Fill targets from the pooled scores of the classes that occur; all others have 0.

    Args:
        values: float64 [M], target after target.
        classes: integer [M], distinct within a target.
        sizes: integer [R], how many each target has.
        base: float64 [R], what every class's score lies above.
        kind: see PoolingJob.
        out_RC: float32 [R, C], contiguous.
    """
    num, num_classes = out_RC.shape
    rows = np.repeat(np.arange(num), sizes)
    flat, index = out_RC.reshape(-1), rows * num_classes + classes
    if kind == "softmax" and sizes.all():
        starts = np.cumsum(sizes) - sizes
        others = num_classes - sizes
        top = np.maximum.reduceat(values, starts)
        top = np.where(others > 0, np.maximum(top, 0), top)
        powers = np.exp(values - top[rows])
        other = np.exp(-np.maximum(top, 0))  # below 0 only where there is no other class
        scale = 1 / (np.add.reduceat(powers, starts) + others * other)
        out_RC[...] = (other * scale).astype(np.float32)[:, None]  # casting once is faster than in every row
        flat[index] = (powers * scale[rows]).astype(np.float32)
        return
    out_RC[...] = base[:, None]
    flat[index] = values + base[rows]
    if kind != "logits":
        _spread_all(out_RC.astype(np.float64), np.zeros(num), kind, out_RC)


def _spread_all(pooled_RC: np.ndarray, base: np.ndarray, kind: str, out_RC: np.ndarray) -> None:
    """Fill targets from the pooled scores, above `base`, of all classes."""
    if kind == "softmax":
        # Not torch's: its threads would fight those that decode.
        powers = np.exp(pooled_RC - pooled_RC.max(axis=1, keepdims=True))
        np.divide(powers, powers.sum(axis=1, keepdims=True), out=out_RC, casting="same_kind")
    elif kind == "one-hot":
        best = pooled_RC.argmax(axis=1)
        out_RC[...] = 0
        out_RC[np.arange(len(out_RC)), best] = 1
    else:
        out_RC[...] = pooled_RC + base[:, None]


def _mix(out_NGHC: np.ndarray, own: np.ndarray, original: float) -> None:
    """Mix the images' own labels in; images without one keep their targets."""
    known = np.flatnonzero(own >= 0)
    out_NGHC[known] *= np.float32(1 - original)
    out_NGHC[known, :, :, own[known]] += np.float32(original)
