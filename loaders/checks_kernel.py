"""Whether all is well with a batch of label maps and crops. Needs numba: `pooling_compiled` imports this, nobody else.

A dozen passes of numpy over 256 headers cost more than reading them. Where the answer is no, those passes say what is wrong.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..shards.labelmap_header import IDS_UINT16, MAX_PALETTE, SCORES_UINT8, VERSION
from ..shards.schema import MAX_CLASS_ID, MAX_MAP_ELEMENTS


@njit(nogil=True)
def headers_fit(raw, starts, magic, heads):
    """Read headers; whether `labelmap_header.read_headers` takes them all.

    Args:
        raw: uint8, the maps.
        starts: int64 [N], where they begin; there is room for a header.
        magic: uint8 [4], the first bytes of each.
        heads: uint8 [N, bytes of a header], to be filled.
    """
    for i in range(len(heads)):
        at = starts[i]
        for byte in range(heads.shape[1]):
            heads[i, byte] = raw[at + byte]
        for byte in range(4):
            if raw[at + byte] != magic[byte]:
                return False
        scores, ids, compression = raw[at + 5], raw[at + 6], raw[at + 7]
        if raw[at + 4] != VERSION or scores > 3 or ids > 2 or compression > 2:
            return False
        elements = _field(raw, at + 8, 2) * _field(raw, at + 10, 2) * _field(raw, at + 12, 2)
        palette, classes = _field(raw, at + 14, 2), _field(raw, at + 16, 4)
        if ids == IDS_UINT16:
            expected, fits = 2 * elements, palette == 0
        else:
            expected, fits = 2 * palette + elements, 0 < palette <= MAX_PALETTE
        expected += elements + 8 if scores & SCORES_UINT8 else 2 * elements
        if not (fits and 0 < elements <= MAX_MAP_ELEMENTS and 0 < classes <= MAX_CLASS_ID + 1):
            return False
        if _field(raw, at + 20, 4) != expected:
            return False
    return True


@njit(nogil=True)
def _field(raw, at, num_bytes):
    value = np.int64(0)
    for byte in range(num_bytes):
        value |= np.int64(raw[at + byte]) << (8 * byte)
    return value


@njit(nogil=True)
def crops_fit(crops):
    """Whether each crop, float32 [N, 4], is (x0, y0, x1, y1) of an area within the image; NaN is none."""
    for n in range(len(crops)):
        x0, y0, x1, y1 = crops[n, 0], crops[n, 1], crops[n, 2], crops[n, 3]
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            return False
    return True
