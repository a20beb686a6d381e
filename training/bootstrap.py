"""Bootstrap intervals: between which numbers a mean would lie, had other values been drawn. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_EDGES = (0.025, 0.975)


def middle(values: Sequence[float]) -> tuple[float, float]:
    """The edges (low, high) between which 95 % of some values lie."""
    low, high = np.quantile(values, _EDGES).tolist()
    return low, high


def mean_interval(
    values: Sequence[float] | np.ndarray, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of the mean of values, float [N], by drawing N of them again, with replacement, `draws` times."""
    values = np.asarray(values, np.float64)
    return middle([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
