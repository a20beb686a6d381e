"""Groups of the classes that a model confuses most: METHODS' fourth way to fewer classes.

    for every group: from many starts, greedily to k classes -> the best of them, swaps while they help -> the best set

As many times as there are groups, of the classes that are left, the k with the largest sum of pairwise confusion are
taken. That set is the densest subgraph of k vertices, for which no fast exact way is known; on small cases this one is
compared with every set that there is. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import DataError, UsageError

# Numbers that an array may hold: 64 MB.
_MAX_ELEMENTS = 2**23
# Where there are at most so many pairs of classes, every pair is a start, else every class, but no more than take so
# many additions.
_MAX_PAIRS, _MAX_ADDITIONS = 2048, 2**27
# Sets that swaps are tried on, beside as many random ones: fewer where a set has more than so many swaps.
_MIN_KEPT, _MAX_KEPT, _MAX_SWAPS = 4, 32, 2**21
# A swap must gain more than rounding could: a share of the largest sum of a row.
_GAIN = 1e-12


@dataclass(frozen=True)
class ConfusionGroups:
    """Classes in groups, in the order in which the groups were taken.

    Attributes:
        groups: ascending class indices of each group; every class is in one of them.
        values: of each group the sum of `confusion[i, j]` over its ordered pairs i != j.
        total: sum of the values.
    """

    groups: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    total: float


def group_sizes(num_classes: int, num_groups: int) -> tuple[int, ...]:
    """Near-equal sizes, the larger ones first: 1000 classes into 67 are 62 groups of 15 and 5 of 14.

    Raises:
        UsageError: not 1 to `num_classes` groups.
    """
    if not 1 <= num_groups <= num_classes:
        raise UsageError(f"groups: expected 1 to {num_classes:,} for as many classes, found {num_groups:,}")
    size, larger = divmod(num_classes, num_groups)
    return (size + 1,) * larger + (size,) * (num_groups - larger)


def confusion_groups(confusion: np.ndarray, num_groups: int, seed: int = 0) -> ConfusionGroups:
    """Take, one after the other, the groups of classes that are confused most (Gao 2021; METHODS.md, way 4).

    Args:
        confusion: number [C, C], not negative. Row: what an image shows; column: what it was taken for. Only i != j
            counts, both ways together; counts and shares both do.
        num_groups: N, in [1, C]; sizes differ by at most one, the larger groups are taken first.
        seed: of the random starts among others; the same seed gives the same groups.

    Returns:
        The groups. 1000 classes take seconds: see benchmarks/confusion_groups.py.

    Raises:
        DataError: no square matrix of finite numbers that are not negative.
        UsageError: such a number of groups cannot be.
    """
    weights = _symmetric(confusion)
    sizes = group_sizes(len(weights), num_groups)
    rng = np.random.default_rng(seed)
    left = np.arange(len(weights))
    groups, values = [], []
    for size in sizes:
        among = weights[np.ix_(left, left)]
        chosen = _densest(among, size, rng)
        groups.append(tuple(left[chosen].tolist()))
        values.append(float(among[np.ix_(chosen, chosen)].sum() / 2))
        left = np.delete(left, chosen)
    return ConfusionGroups(tuple(groups), tuple(values), float(sum(values)))


def _symmetric(confusion: np.ndarray) -> np.ndarray:
    """float64 [C, C]: what is between two classes both ways; 0 on the diagonal."""
    matrix = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise DataError(f"confusion: expected a square matrix [C, C], found shape {list(matrix.shape)}")
    if matrix.dtype.kind not in "fiub":
        raise DataError(f"confusion: expected numbers, found {matrix.dtype}")
    matrix = matrix.astype(np.float64)
    if wrong := int((~(np.isfinite(matrix) & (matrix >= 0))).sum()):
        raise DataError(
            f"confusion: expected finite numbers that are not negative, found {wrong:,} of {matrix.size:,} that are not"
        )
    weights = matrix + matrix.T
    np.fill_diagonal(weights, 0)
    return weights


def _densest(weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending indices of `size` classes with a large sum of weights between them."""
    num = len(weights)
    if size == num:
        return np.arange(num)
    if size == 1:  # nothing is between one class and itself: leave those that are confused least to the end
        return np.array([weights.sum(axis=1).argmax()])
    kept = min(_MAX_KEPT, max(_MIN_KEPT, _MAX_SWAPS // (size * (num - size))))
    sets = [_best(weights, greedy, kept) for greedy in _greedy(weights, size, rng)]
    random = rng.random((kept, num)).argsort(axis=1)[:, :size]
    starts = np.concatenate([_best(weights, np.concatenate(sets), kept), random])
    return _best(weights, _swapped(weights, starts), 1)[0]


def _greedy(weights: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Ascending indices [R, size] in parts: from each start the class that adds most, again and again."""
    num = len(weights)
    if num * (num - 1) // 2 <= _MAX_PAIRS:
        starts = np.stack(np.triu_indices(num, 1), axis=1)
    else:
        starts = rng.permutation(num)[: max(1, _MAX_ADDITIONS // (num * size)), None]
    step = max(1, _MAX_ELEMENTS // num)
    for first in range(0, len(starts), step):
        sets = starts[first : first + step]
        rows = np.arange(len(sets))
        gains = weights[sets].sum(axis=1)
        np.put_along_axis(gains, sets, -np.inf, axis=1)
        while sets.shape[1] < size:
            best = gains.argmax(axis=1)
            sets = np.concatenate([sets, best[:, None]], axis=1)
            gains += weights[best]
            gains[rows, best] = -np.inf
        yield np.sort(sets, axis=1)


def _best(weights: np.ndarray, sets: np.ndarray, num: int) -> np.ndarray:
    """The `num` best of some sets [R, size], each once, in lexical order where they are equally good."""
    sets = np.unique(sets, axis=0)
    values = np.array([weights[np.ix_(chosen, chosen)].sum() for chosen in sets])
    largest = max(float(values.max()), np.finfo(float).tiny)
    # Sums of the same numbers in another order differ by rounding: they are no better.
    return sets[np.argsort(-np.round(values / largest, 12), kind="stable")[:num]]


def _swapped(weights: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Ascending indices [R, size]: of each set one class is exchanged for another, the best such, while that gains."""
    num, size = len(weights), sets.shape[1]
    step = max(1, _MAX_ELEMENTS // (size * (num - size)))
    least = _GAIN * max(float(weights.sum(axis=1).max()), np.finfo(float).tiny)
    found = []
    for first in range(0, len(sets), step):
        inside = sets[first : first + step].copy()
        active = np.arange(len(inside))
        while len(active):
            ins = inside[active]
            outside = np.ones((len(ins), num), bool)
            np.put_along_axis(outside, ins, False, axis=1)
            outs = outside.nonzero()[1].reshape(len(ins), num - size)
            gains = weights[ins].sum(axis=1)  # of every class with the set
            entering = np.take_along_axis(gains, outs, axis=1)
            leaving = np.take_along_axis(gains, ins, axis=1)
            change = entering[:, None, :] - leaving[:, :, None] - weights[ins[:, :, None], outs[:, None, :]]
            best = change.reshape(len(ins), -1).argmax(axis=1)
            out, new = np.divmod(best, num - size)
            rows = np.arange(len(ins))
            better = change[rows, out, new] > least
            inside[active[better], out[better]] = outs[rows[better], new[better]]
            active = active[better]
        found.append(inside)
    return np.sort(np.concatenate(found), axis=1)
