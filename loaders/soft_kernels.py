"""Soft labels of a batch by compiled loops: MessagePack in, targets out. Needs numba: `soft_compiled` imports this.

M entries of all samples, N slots, K kept of each, W the width of a target.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INT, FLOAT, TEXT, BYTES, ARRAY, MAP, PLAIN, BAD = range(8)  # PLAIN: nil, true, false

# What the bytes 0xc0 to 0xdf of MessagePack begin: a kind, the first byte of it, and of how many bytes the number is that
# follows each. Extension types are BAD: softshard writes none.
_ROWS = (
    (PLAIN, 0xC0, (0,)),
    (PLAIN, 0xC2, (0, 0)),
    (BYTES, 0xC4, (1, 2, 4)),
    (FLOAT, 0xCA, (4, 8)),
    (INT, 0xCC, (1, 2, 4, 8)),
    (INT, 0xD0, (1, 2, 4, 8)),
    (TEXT, 0xD9, (1, 2, 4)),
    (ARRAY, 0xDC, (2, 4)),
    (MAP, 0xDE, (2, 4)),
)
_FOLLOWED = {first + i: (kind, num) for kind, first, sizes in _ROWS for i, num in enumerate(sizes)}
_KINDS = np.array([_FOLLOWED.get(code, (BAD, 0))[0] for code in range(0xC0, 0xE0)])
_MOST_LISTS = 500  # of one value, in each other or not, that _behind follows
_NUM_BYTES = np.array([_FOLLOWED.get(code, (BAD, 0))[1] for code in range(0xC0, 0xE0)])


@njit(nogil=True)
def find_labels(raw, starts, field, weighted, num_ids, rows, ids, weights):
    """What `decode_soft_labels` finds in N samples, where all of it is as softshard writes it.

    Args:
        raw: uint8, the components behind each other.
        starts: int64 [N + 1], where they begin, and the end.
        field: uint8, the name of the field; empty where a component is the value itself.
        weighted: whether the value is a list of ids and one of weights, or ids alone, whose weights are 1.
        num_ids: ids are below it.
        rows: int64, at least as many as there are bytes, to be filled; the sample of each entry.
        ids: int64, the same.
        weights: float32, the same.

    Returns:
        M; or -1 where something is wrong, or only unusual: `decode_soft_labels` looks again.
    """
    largest = np.float64(np.finfo(np.float32).max)
    bits = np.empty(1, np.int64)
    count = 0
    for i in range(len(starts) - 1):
        at, end = starts[i], starts[i + 1]
        if len(field):
            at = _field_value(raw, at, end, field)
        elif _behind(raw, at, end) != end:
            at = -1
        if at < 0:
            return -1
        first = count
        if weighted:
            kind, size, at = _head(raw, at, end)
            if kind != ARRAY or size != 2:
                return -1
        kind, size, at = _head(raw, at, end)
        if kind != ARRAY:
            return -1
        last = np.int64(-1)
        for _ in range(size):
            kind, value, at = _head(raw, at, end)
            if kind != INT or value <= last or value >= num_ids:
                return -1
            rows[count], ids[count], weights[count] = i, value, 1
            last = value
            count += 1
        if weighted:
            kind, size, at = _head(raw, at, end)
            if kind != ARRAY or size != count - first:
                return -1
            for j in range(first, count):
                width = 4 if at < end and raw[at] == 0xCA else 8
                kind, value, at = _head(raw, at, end)
                if kind == INT:
                    weight = np.float64(value)
                elif kind == FLOAT:
                    bits[0] = value
                    weight = np.float64(bits.view(np.float32)[0]) if width == 4 else bits.view(np.float64)[0]
                else:
                    return -1
                if not 0 <= weight <= largest:  # nor NaN
                    return -1
                weights[j] = np.float32(weight)
    return count


@njit(nogil=True)
def fill_dense(dense, slots, ids, weights):
    """Write M entries into targets [N, W], zeros elsewhere."""
    flat = dense.reshape(-1)
    for j in range(len(flat)):
        flat[j] = 0
    for j in range(len(slots)):
        dense[slots[j], ids[j]] = weights[j]


@njit(nogil=True)
def fill_largest(values, classes, counts, slots, ids, weights):
    """Keep the largest entries of each slot, the largest first; of equal ones those that come first here.

    Args:
        values: float32 [N, K], zeros.
        classes: int64 [N, K], zeros.
        counts: int64 [N], zeros.
        slots: int64 [M].
        ids: int64 [M], ascending within a slot.
        weights: float32 [M].
    """
    keep = values.shape[1]
    for j in range(len(slots)):
        n, weight = slots[j], weights[j]
        at = counts[n]
        while at and weight > values[n, at - 1]:
            at -= 1
        if at == keep:
            continue
        counts[n] = min(counts[n] + 1, keep)
        for k in range(counts[n] - 1, at, -1):
            values[n, k], classes[n, k] = values[n, k - 1], classes[n, k - 1]
        values[n, at], classes[n, at] = weight, ids[j]


@njit(nogil=True)
def _field_value(raw, at, end, field):
    """Where the value of a map's field begins; -1 where it misses, stands twice, or the bytes are no such map."""
    kind, size, at = _head(raw, at, end)
    if kind != MAP:
        return -1
    found = np.int64(-1)
    for _ in range(size):
        kind, length, start = _head(raw, at, end)
        if kind != TEXT:
            return -1
        at = _behind(raw, at, end)
        if at < 0:
            return -1
        if length == len(field):
            same = True
            for j in range(length):
                same &= raw[start + j] == field[j]
            if same:
                if found >= 0:
                    return -1
                found = at
        at = _behind(raw, at, end)
        if at < 0:
            return -1
    return found if at == end else -1


@njit(nogil=True)
def _behind(raw, at, end):
    """Where the value ends that begins here; -1 where it is none, or holds a map, which needs a look at its keys.

    Also -1 of more lists than _MOST_LISTS: msgpack refuses more than 1,024 in each other, and softshard writes three.
    """
    waiting, lists = np.int64(1), 0
    while waiting:
        kind, size, at = _head(raw, at, end)
        waiting -= 1
        if kind == ARRAY:
            waiting += size
            lists += 1
            if lists > _MOST_LISTS:
                return -1
        elif kind in (TEXT, BYTES):
            if size > end - at or (kind == TEXT and not _is_utf8(raw, at, at + size)):
                return -1
            at += size
        elif kind in (MAP, BAD):
            return -1
    return at


@njit(nogil=True)
def _head(raw, at, end):
    """Kind, size or value (of a float its bits), and where the contents begin."""
    if at >= end:
        return BAD, np.int64(0), at
    code = np.int64(raw[at])
    at += 1
    if code < 0x80:
        return INT, code, at
    if code < 0x90:
        return MAP, code & 0x0F, at
    if code < 0xA0:
        return ARRAY, code & 0x0F, at
    if code < 0xC0:
        return TEXT, code & 0x1F, at
    if code >= 0xE0:
        return INT, code - 256, at
    kind, num = _KINDS[code - 0xC0], _NUM_BYTES[code - 0xC0]
    if num > end - at:
        return BAD, np.int64(0), at
    value = np.int64(0)
    for j in range(num):
        value = value << 8 | np.int64(raw[at + j])
    if code == 0xCF and value < 0:  # from 2^63 up
        return BAD, np.int64(0), at
    if 0xD0 <= code <= 0xD2 and value >> (8 * num - 1):
        value -= np.int64(1) << (8 * num)
    return kind, value, at + num


@njit(nogil=True)
def _is_utf8(raw, at, end):
    """Whether bytes are UTF-8 as Python takes it: the shortest form, no surrogates."""
    while at < end:
        first = raw[at]
        if first < 0x80:
            at += 1
            continue
        if first < 0xC2 or first > 0xF4:
            return False
        num = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        if num > end - at:
            return False
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if raw[at + 1] < low or raw[at + 1] > high:
            return False
        for j in range(2, num):
            if raw[at + j] & 0xC0 != 0x80:
                return False
        at += num
    return True
