"""Label maps decoded and pooled by compiled loops. Needs numba: `pooling_compiled` imports this, nobody else.

What numpy does in a dozen passes over a group of maps, these do in one. They check no index, so that whoever calls
them has compared sizes with the bytes that are there, and ids with the number of classes.

n maps of a group, C classes, K classes kept per cell, P Q rows and columns of the map, G H of the output.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..shards.labelmap_header import (
    IDS_PALETTE_DIFFERENCES,
    IDS_UINT16,
    MAX_PALETTE,
    RANK_DIFFERENCES,
    SCORES_UINT8,
)

LOGITS, SOFTMAX, ONE_HOT = 0, 1, 2


@njit(nogil=True)
def decode_maps(raw, starts, score_code, id_code, sizes, limits, halves, scores, places, tables):
    """Decode payloads of one encoding, as `labelmap.decode_group` does.

    Args:
        raw: uint8, the payloads behind each other; each has the size that its header's fields give.
        starts: int64 [n], where they begin.
        score_code: of their scores.
        id_code: of their ids.
        sizes: int64 [n], entries of their palettes.
        limits: int64 [n], their ids are below it.
        halves: float32 [65536], what the bits of a float16 stand for.
        scores: float32 [n, K, P, Q], to be filled.
        places: uint32 [n, K, P, Q], to be filled.
        tables: uint16 [n, 256], to be filled; [0, 0] for ids without a palette.

    Returns:
        False where one of them is damaged: `labelmap.decode_group` says which, and how.
    """
    num, top, num_rows, num_columns = scores.shape
    cells = num_rows * num_columns
    size = top * cells
    affine = np.empty(2, np.uint32)
    fine = True
    for i in range(num):
        at = starts[i]
        flat_places, flat_scores = places[i].reshape(-1), scores[i].reshape(-1)
        if id_code == IDS_UINT16:
            for j in range(size):
                flat_places[j] = _uint16(raw, at + 2 * j)
                fine &= flat_places[j] < limits[i]
            at += 2 * size
        else:
            unused = MAX_PALETTE - sizes[i]
            entry = np.int64(0)
            for j in range(unused):
                tables[i, j] = 0
            for j in range(sizes[i]):
                value = _uint16(raw, at + 2 * j)
                if id_code == IDS_PALETTE_DIFFERENCES:
                    value = (entry + value) & 0xFFFF
                fine &= j == 0 or value > entry
                tables[i, unused + j] = entry = value
            fine &= entry < limits[i]
            at += 2 * sizes[i]
            # Slices and plain reductions: loops that LLVM turns into vector code.
            codes, largest, shift = raw[at : at + size], np.uint8(0), np.uint32(unused)
            for j in range(size):
                flat_places[j] = codes[j] + shift
                largest = max(largest, codes[j])
            fine &= largest < sizes[i]
            at += size
        differences = score_code & RANK_DIFFERENCES != 0
        if score_code & SCORES_UINT8:
            for j in range(2):
                affine[j] = _uint16(raw, at) | _uint16(raw, at + 2) << 16
                at += 4
            low, step = affine.view(np.float32)[0], affine.view(np.float32)[1]
            levels = raw[at : at + size].copy()
            if differences:
                for k in range(1, top):
                    above, below = levels[(k - 1) * cells : k * cells], levels[k * cells : (k + 1) * cells]
                    for j in range(cells):
                        below[j] = above[j] - below[j]
            for j in range(size):
                flat_scores[j] = np.float32(levels[j]) * step + low
        else:
            halfs = np.empty(size, np.uint16)
            for j in range(size):
                halfs[j] = raw[at + j] | np.uint16(raw[at + size + j]) << 8
                if differences and j >= cells:
                    halfs[j] = halfs[j - cells] - halfs[j]
                flat_scores[j] = halves[halfs[j]]
        bits, worst = flat_scores.view(np.int32), np.int32(0)
        for j in range(size):
            worst = max(worst, bits[j] & np.int32(0x7FFFFFFF))
        fine &= worst < 0x7F800000  # the bits of infinity; those of NaN are above
    return fine


@njit(nogil=True)
def decode_and_pool(
    raw, starts, score_code, id_code, limits, halves, members, scores, places, tables, sizes, *targets
):
    """`decode_maps` and `pool_maps`, a few maps at a time, so that what lies between them stays in cache.

    Args:
        scores, places, tables: room for those few.
        targets: of `pool_maps`, as everything else.

    Returns:
        False where one of the maps is damaged.
    """
    for first in range(0, len(members), len(scores)):
        num = min(len(scores), len(members) - first)
        part, few = slice(first, first + num), slice(0, num)
        codes, arrays = (score_code, id_code), (scores[few], places[few], tables[few])
        if not decode_maps(raw, starts[part], *codes, sizes[part], limits[part], halves, *arrays):
            return False
        pool_maps(members[part], *arrays, sizes[part], *targets)
    return True


@njit(nogil=True)
def _uint16(raw, at):
    return np.int64(raw[at]) | np.int64(raw[at + 1]) << 8


@njit(nogil=True)
def pool_maps(
    members,
    scores,
    places,
    tables,
    sizes,
    rows,
    columns,
    num_classes,
    kind,
    floor,
    original,
    own,
    dense,
    values,
    ids,
):
    """Pool a group's maps, as `pooling_host` does, into their places in the batch's result.

    A cell of the output names the classes that its part of the map names, a few hundred at most, and gives all others
    one value.

    Args:
        members: int64 [n], the maps' numbers in the batch.
        scores: float32 [n, K, P, Q].
        places: uint32 [n, K, P, Q], classes, or with tables places in them; C is that of dropped classes.
        tables: uint16 [n, 256], each map's classes at the end of its row, or [0, 0] for none.
        sizes: int64 [n], entries of each table.
        rows: float32 [N, G, P], see PoolingJob.
        columns: float32 [N, H, Q].
        num_classes: C.
        kind: LOGITS, SOFTMAX or ONE_HOT.
        floor: whether classes that a cell did not keep count as its smallest kept value.
        original: share of the images' own classes.
        own: int64 [N], those classes, -1 for none; [0] where `original` is 0.
        dense: float32 [N, G, H, C], to be filled; [0, 0, 0, 0] for sparse targets.
        values: float32 [N, G, H, m], to be filled, or [0, 0, 0, 0] for dense targets.
        ids: int64 [N, G, H, m], to be filled, or [0, 0, 0, 0].
    """
    num, top, num_rows, num_columns = scores.shape
    tabled = len(tables) > 0
    most = MAX_PALETTE if tabled else min(num_classes, top * num_rows * num_columns)
    pooled = np.empty(most + 1, np.float64)  # the last one is that of dropped classes
    made_table, made_places = np.empty(most, np.uint16), np.empty(places.shape[1:], np.uint32)
    class_places = np.empty(0 if tabled else num_classes + 1, np.uint32)
    marks, mark = np.zeros(num_classes, np.int64), 0  # the classes that the current output cell names
    named = np.empty(most, np.int64)
    classes, found = np.empty(most + 1, np.int64), np.empty(most + 1, np.float32)
    floors = np.zeros((num_rows, num_columns), np.float32)
    best = np.empty(values.shape[3], np.int64)
    for i in range(num):
        n = members[i]
        if tabled:
            table, where, first, end = tables[i], places[i], MAX_PALETTE - sizes[i], MAX_PALETTE
        else:
            table, where, first = made_table, made_places, 0
            end = _make_table(places[i], class_places, made_table, made_places)
        if floor:
            _smallest(scores[i], floors)
        for g in range(rows.shape[1]):
            for h in range(columns.shape[1]):
                for place in range(first, end):
                    pooled[place] = 0
                base = _add_up(scores[i], where, rows[n, g], columns[n, h], floors, pooled)
                count = 0
                for place in range(first, end):  # a class whose scores add up to 0 is like those not named
                    named[count] = place
                    count += pooled[place] != 0
                for j in range(count):
                    classes[j] = table[named[j]]
                if kind == SOFTMAX:
                    others = _softmax(pooled, named, count, num_classes, found)
                else:
                    others = np.float32(base)
                    for j in range(count):
                        found[j] = np.float32(pooled[named[j]] + base)
                if kind == ONE_HOT:
                    mark += 1
                    _name(classes, count, marks, mark)
                    classes[0] = _argmax(classes, found, count, others, marks, mark)
                    found[0], others, count = np.float32(1), np.float32(0), 1
                if original > 0 and own[n] >= 0:
                    count, others = _mix(classes, found, count, others, own[n], original)
                if dense.size:
                    target = dense[n, g, h]
                    for c in range(num_classes):
                        target[c] = others
                    for j in range(count):
                        target[classes[j]] = found[j]
                else:
                    mark += 1
                    _name(classes, count, marks, mark)
                    _largest(classes, found, count, others, marks, mark, best, values[n, g, h], ids[n, g, h])


@njit(nogil=True)
def _make_table(ids, class_places, table, places):
    """The classes of a map in ascending order, and its places in them; that of dropped classes is the one behind them.

    Returns:
        How many there are.
    """
    unnamed = np.uint32(0xFFFFFFFF)
    for c in range(len(class_places)):
        class_places[c] = unnamed
    flat_ids, flat_places = ids.reshape(-1), places.reshape(-1)
    for j in range(len(flat_ids)):
        class_places[flat_ids[j]] = 0
    count = 0
    for c in range(len(class_places) - 1):
        if class_places[c] != unnamed:
            table[count] = c
            class_places[c] = count
            count += 1
    class_places[-1] = count
    for j in range(len(flat_ids)):
        flat_places[j] = class_places[flat_ids[j]]
    return count


@njit(nogil=True)
def _smallest(scores, floors):
    """Each cell's smallest score, [P, Q]."""
    for p in range(floors.shape[0]):
        for q in range(floors.shape[1]):
            floors[p, q] = scores[0, p, q]
            for k in range(1, len(scores)):
                floors[p, q] = min(floors[p, q], scores[k, p, q])


@njit(nogil=True)
def _add_up(scores, places, row, column, floors, pooled):
    """Add up the weighted scores of one output cell by place, in float64.

    A cell's classes follow each other: neighbouring cells name the same ones, and an addition to the same place would
    wait for the one before.

    Returns:
        What every class's score lies above.
    """
    base = 0.0
    p0, p1 = _span(row)
    q0, q1 = _span(column)
    for p in range(p0, p1):
        for q in range(q0, q1):
            weight = row[p] * column[q]
            base += floors[p, q] * weight
            for k in range(len(scores)):
                pooled[places[k, p, q]] += (scores[k, p, q] - floors[p, q]) * weight
    return base


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
def _softmax(pooled, named, count, num_classes, found):
    """Probabilities of the named classes; returns that of every other."""
    largest = 0.0 if count < num_classes else -np.inf
    for j in range(count):
        largest = max(largest, pooled[named[j]])
    other = math.exp(-max(largest, 0.0))  # below 0 only where there is no other class
    total = (num_classes - count) * other
    for j in range(count):
        pooled[named[j]] = math.exp(pooled[named[j]] - largest)
        total += pooled[named[j]]
    scale = 1 / total
    for j in range(count):
        found[j] = np.float32(pooled[named[j]] * scale)
    return np.float32(other * scale)


@njit(nogil=True)
def _name(classes, count, marks, mark):
    for j in range(count):
        marks[classes[j]] = mark


@njit(nogil=True)
def _argmax(classes, found, count, others, marks, mark):
    """The class with the largest value, of equal ones the lowest."""
    first = 0  # of the others
    while first < len(marks) and marks[first] == mark:
        first += 1
    best, value = first, others if first < len(marks) else np.float32(-np.inf)
    for j in range(count):
        if found[j] > value or (found[j] == value and classes[j] < best):
            best, value = classes[j], found[j]
    return best


@njit(nogil=True)
def _mix(classes, found, count, others, own, original):
    """Mix an image's own class in; returns how many classes are named now, and the value of the others."""
    keep, at = np.float32(1 - original), count
    for j in range(count):
        found[j] *= keep
        if classes[j] == own:
            at = j
    others *= keep
    if at == count:
        classes[count], found[count] = own, others
        count += 1
    found[at] += np.float32(original)
    return count, others


@njit(nogil=True)
def _largest(classes, found, count, others, marks, mark, best, values, ids):
    """The m largest values and their classes, the largest first; of equal ones named classes, the lowest first."""
    kept = 0  # `best` holds the largest of the named classes so far, in order
    for j in range(count):
        at = kept
        while at and (
            found[j] > found[best[at - 1]]
            or (found[j] == found[best[at - 1]] and classes[j] < classes[best[at - 1]])
        ):
            at -= 1
        if at == len(best):
            continue
        kept = min(kept + 1, len(best))
        for other in range(kept - 1, at, -1):
            best[other] = best[other - 1]
        best[at] = j
    taken, next_class = 0, 0
    for m in range(len(values)):
        while next_class < len(marks) and marks[next_class] == mark:
            next_class += 1
        if taken < kept and (next_class == len(marks) or found[best[taken]] >= others):
            values[m], ids[m] = found[best[taken]], classes[best[taken]]
            taken += 1
        else:
            values[m], ids[m] = others, next_class
            next_class += 1
