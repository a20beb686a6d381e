"""Pixels normalised by a compiled loop. Needs numba: `normalize` imports this, nobody else."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def normalize_rows(rows, scale, shift, out):
    """rows * scale + shift, each product and each sum rounded to float32, as numpy does.

    Args:
        rows: uint8 [H, W].
        scale: float32 [W].
        shift: float32 [W].
        out: float32 [H, W], to be filled.
    """
    for y in range(rows.shape[0]):
        source, target = rows[y], out[y]
        for x in range(rows.shape[1]):
            target[x] = np.float32(source[x]) * scale[x] + shift[x]
