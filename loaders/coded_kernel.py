"""Label maps pooled from their bytes, without arrays between. Needs numba: `pooling_compiled` imports this, nobody else.

What most data sets store (uint8 scores and ids through a palette, both as differences) and most training asks for (one
softmax a crop): the loops of pooling_kernels.py in one, and of the cells only those that the crop covers. Everything
else takes those.

n maps of a group, C classes, K classes kept per cell, P Q rows and columns of the map.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..shards.labelmap_header import MAX_PALETTE

LANES = 8  # numbers that sums and maxima take at once, in an order that is the same on every processor
# exp(x) = 2**n * exp(r): log 2 in two parts, the first short enough for n times it to be exact.
_LOG2_E, _LOG2_HIGH, _LOG2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
_LEAST = -700.0  # what is further below the largest counts as this, nothing


@njit(nogil=True)
def pool_coded(raw, starts, sizes, limits, members, top, rows, columns, dense):
    """Pool maps, whose payloads are a palette as differences, places in it, and uint8 scores as rank differences.

    Args:
        raw: uint8, the payloads behind each other; each has the size that its header's fields give.
        starts: int64 [n], where they begin.
        sizes: int64 [n], entries of their palettes.
        limits: int64 [n], their ids are below it; C at most.
        members: int64 [n], the maps' numbers in the batch.
        top: K.
        rows: float32 [N, 1, P], see PoolingJob.
        columns: float32 [N, 1, Q].
        dense: float32 [N, 1, 1, C], to be filled.

    Returns:
        False where a map is damaged, or its largest score might overflow: `decode_maps` says which it is.
    """
    num_rows, num_columns = rows.shape[2], columns.shape[2]
    cells = num_rows * num_columns
    table, pooled = np.empty(MAX_PALETTE, np.uint16), np.empty(MAX_PALETTE, np.float64)
    exponents, lanes = np.empty(MAX_PALETTE, np.int64), np.empty(LANES, np.float64)
    levels, weights = np.empty(cells, np.uint8), np.empty(cells, np.float32)
    scores, affine = np.empty((top, cells), np.float64), np.empty(2, np.uint32)
    for i in range(len(members)):
        at, size = starts[i], sizes[i]
        entry, fine = np.int64(0), True
        for j in range(size):
            step_up = np.int64(raw[at + 2 * j]) | np.int64(raw[at + 2 * j + 1]) << 8
            fine &= j == 0 or step_up > 0
            entry += step_up
            table[j] = entry
        at += 2 * size
        places = raw[at : at + top * cells].reshape(top, cells)
        largest = np.uint8(0)
        for place in places.reshape(-1):
            largest = max(largest, place)
        at += top * cells
        for j in range(2):
            affine[j] = 0
            for byte in range(4):
                affine[j] |= np.uint32(raw[at + byte]) << np.uint32(8 * byte)
            at += 4
        low, step = affine.view(np.float32)[0], affine.view(np.float32)[1]
        # Scores lie between those of levels 0 and 255: rounding keeps the order.
        fine &= math.isfinite(low) and math.isfinite(np.float32(255) * step + low)
        if not (fine and entry < limits[i] and largest < size):
            return False
        below = raw[at : at + top * cells].reshape(top, cells)
        row, column = rows[members[i], 0], columns[members[i], 0]
        p0, p1 = _span(row)
        q0, q1 = _span(column)
        first, end = p0 * num_columns, p1 * num_columns
        for p in range(p0, p1):
            line = weights[p * num_columns : (p + 1) * num_columns]
            for q in range(num_columns):
                line[q] = row[p] * column[q]
        # Slices of one row each: loops that LLVM turns into vector code.
        level, weight = levels[first:end], weights[first:end]
        for k in range(top):
            difference, score = below[k, first:end], scores[k, first:end]
            for j in range(end - first):
                level[j] = level[j] - difference[j] if k else difference[j]
                score[j] = (np.float32(level[j]) * step + low) * weight[j]
        pooled[:] = 0
        for p in range(p0, p1):
            for cell in range(np.uint64(p * num_columns + q0), np.uint64(p * num_columns + q1)):
                for k in range(top):  # a cell's classes are distinct: no addition waits for the one before
                    pooled[places[k, cell]] += scores[k, cell]
        _softmax(pooled, table, size, exponents, lanes, dense[members[i], 0, 0])
    return True


# As in pooling_kernels.py, and again here: numba's cache of a module does not notice that another one changed.
@njit(nogil=True)
def _span(weights):
    """The first weight that is not zero, and the one after the last."""
    first, last = 0, len(weights)
    while first < last and weights[first] == 0:
        first += 1
    while first < last and weights[last - 1] == 0:
        last -= 1
    return first, last


@njit(nogil=True)
def _softmax(pooled, classes, num, exponents, lanes, target):
    """Probabilities over all classes, of which the palette's have these scores and all others 0.

    Args:
        pooled: float64 [256], scores of the palette's classes and zeros; overwritten.
        classes: uint16 [256], the palette.
        num: its entries.
        exponents: int64 [256], room.
        lanes: float64 [LANES], room.
        target: float32 [C], to be filled.
    """
    others = len(target) - num
    end = -(-num // LANES) * LANES
    if num < end and not others:
        pooled[num:end] = pooled[0]
    lanes[:] = pooled[:LANES]
    for j in range(0, end, LANES):
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], pooled[j + lane])
    largest = 0.0 if others else lanes[0]
    for lane in range(LANES):
        largest = max(largest, lanes[lane])
    for j in range(end):
        x = max(pooled[j] - largest, _LEAST)
        n = np.int32(x * _LOG2_E - 0.5)
        exponents[j] = np.int64(n + 1023) << 52  # as a float64: 2**n
        pooled[j] = _exp(x - n * _LOG2_HIGH - n * _LOG2_LOW)
    powers = exponents.view(np.float64)
    for j in range(end):
        pooled[j] *= powers[j]
    pooled[num:end] = 0
    lanes[:] = 0
    for j in range(0, end, LANES):
        for lane in range(LANES):
            lanes[lane] += pooled[j + lane]
    other = math.exp(-max(largest, 0.0))  # below 0 only where there is no other class
    total = others * other
    for lane in range(LANES):
        total += lanes[lane]
    scale = 1 / total
    target[:] = np.float32(other * scale)
    for j in range(num):
        target[classes[j]] = np.float32(pooled[j] * scale)


@njit(nogil=True, inline="always")
def _exp(r):
    """exp(r) for |r| <= log(2) / 2, to 1e-10 of it."""
    found = 1 / 40320
    for factor in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        found = found * r + factor
    return found
