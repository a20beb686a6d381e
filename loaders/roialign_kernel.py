"""RoIAlign's weights by a compiled loop. Needs numba: `pooling_compiled` imports this, nobody else."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def weigh_axis(start, end, weights):
    """RoIAlign's weights along one axis, bit for bit as `roialign.axis_weights` has them.

    Args:
        start: float32 [N], where the crop begins, as a fraction of the image.
        end: float32 [N], where it ends.
        weights: float32 [N, G, cells], to be filled.
    """
    num, num_bins, num_cells = weights.shape
    cells, half, one, zero = np.float32(num_cells), np.float32(0.5), np.float32(1), np.float32(0)
    sums = np.empty(num_cells, np.float64)
    for n in range(num):
        first = start[n] * cells - half
        size = max(end[n] * cells - half - first, one)
        bin_size = size / np.float32(num_bins)
        points = np.ceil(bin_size)
        for g in range(num_bins):
            for c in range(num_cells):
                sums[c] = 0
            bin_first = first + np.float32(g) * bin_size
            for i in range(int(points)):
                at = bin_first + (np.float32(i) + half) * bin_size / points
                if at < -one or at > cells:
                    continue
                at = max(at, zero)
                low = min(int(at), num_cells - 1)
                share = zero if low == num_cells - 1 else at - np.float32(low)
                sums[low] += one - share
                sums[min(low + 1, num_cells - 1)] += share
            for c in range(num_cells):
                weights[n, g, c] = np.float32(sums[c] / np.float64(points))
