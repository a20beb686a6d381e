"""M images of each class: at random, as many of each fine class, or as many of each difficulty (Gao 2021).

Pure. Every sample has a random key that follows from (seed, its place in the data set) alone; of what is allowed the
smallest keys are taken. So a smaller random choice is part of a larger one.

N samples of the data set, B bins (fine classes, or whole percents of the right label's probability).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import DataError, UsageError
from .philox import PURPOSE_CHOOSE_IMAGES, PURPOSE_SPREAD, permutation, random_keys
from .text_limits import some

_WHOLE_SET = 2**32 - 1  # in place of a class's index: whose remainder is spread


def bin_cap(counts: Sequence[int] | np.ndarray, wanted: int) -> tuple[int, int]:
    """The cap t at which bins give M images: the largest with sum_b min(n_b, t) <= M.

    n = [10, 5, 1, 0, 4] and M = 12 give t = 3, which takes 3 + 3 + 1 + 0 + 3 = 10, and 2 to spread.

    Args:
        counts: integer [B], n_b, from 0.
        wanted: M, from 0 to their sum.

    Returns:
        t, at most the largest n_b; and how many are left to spread, one each over bins with more than t.

    Raises:
        UsageError: M is more than there are, or negative.
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    if not 0 <= wanted <= total:
        raise UsageError(f"images: expected 0 to {total:,}, as many as there are, found {wanted:,}")
    low, high = 0, int(counts.max(initial=0))  # the sum at `low` is at most M
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= wanted:
            low = middle
        else:
            high = middle - 1
    return low, wanted - int(np.minimum(counts, low).sum())


def capped_counts(counts: np.ndarray, wanted: int, seed: int, of: int = 0) -> np.ndarray:
    """How many each bin gives: what the cap lets through, and the remainder spread over fuller bins at random.

    Args:
        counts: int64 [B].
        wanted: M.
        seed: of the spreading.
        of: class index, so that classes do not all favour the same bins.

    Returns:
        int64 [B], M in all; min(n_b, t) each, or one more.
    """
    cap, left = bin_cap(counts, wanted)
    taken = np.minimum(counts, cap)
    fuller = np.flatnonzero(counts > cap)
    taken[fuller[permutation(seed, PURPOSE_SPREAD, of, 0, len(fuller))[:left]]] += 1
    return taken


def choose_in_bins(bins: np.ndarray, keys: np.ndarray, wanted: int, seed: int, of: int = 0) -> np.ndarray:
    """Samples of some bins, as many of each as the cap lets through, those with the smallest keys.

    Args:
        bins: integer [n], each sample's bin, from 0.
        keys: uint64 [n], each sample's random key.
        wanted: M.
        seed: of the remainder.
        of: see `capped_counts`.

    Returns:
        int64 [M], ascending places.
    """
    order = np.lexsort((keys, bins))
    counts = np.bincount(bins)
    taken = capped_counts(counts, wanted, seed, of)
    starts = np.cumsum(counts) - counts
    place_in_bin = np.arange(len(bins)) - np.repeat(starts, counts)
    return np.sort(order[place_in_bin < np.repeat(taken, counts)])


def choose_images(
    groups: np.ndarray,
    names: Sequence[str],
    wanted: int,
    seed: int,
    *,
    bins: np.ndarray | None = None,
    whole_set: bool = False,
    allow_fewer: bool = False,
) -> np.ndarray:
    """M samples of each class.

    Args:
        groups: integer [N], the class of each sample in the subset, -1 where it may not be taken.
        names: of the classes.
        wanted: M.
        seed: of everything that is drawn.
        bins: integer [N], the fine class or the percents of each sample, which are capped; None for a random choice.
        whole_set: one cap for the bins of all classes together, so that M holds on average: a class whose images are
            spread over more bins gives more.
        allow_fewer: take all of a class that has fewer than M.

    Returns:
        int64 [n], ascending sample numbers.

    Raises:
        DataError: classes with fewer than M images, where these are not allowed; they are named.
        UsageError: M is below 1.
    """
    if wanted < 1:
        raise UsageError(f"images: expected 1 or more a class, found {wanted}")
    allowed = np.flatnonzero(groups >= 0)
    counts = np.bincount(groups[allowed], minlength=len(names))
    total = wanted * len(names)
    if whole_set and not allow_fewer and len(allowed) < total:
        raise DataError(
            f"subset: expected {total:,} images, {wanted:,} of each of {len(names):,} classes on average, found "
            f"{len(allowed):,}. Take fewer images"
        )
    if not whole_set and not allow_fewer and (problem := too_few(counts, names, wanted)):
        raise DataError(problem)
    keys = random_keys(seed, PURPOSE_CHOOSE_IMAGES, 0, 0, len(groups))[allowed]
    group, bin_of = groups[allowed].astype(np.int64), np.zeros(len(allowed), np.int64)
    if bins is not None:
        bin_of = bins[allowed].astype(np.int64)
    if whole_set:
        cells = group * (int(bin_of.max(initial=0)) + 1) + bin_of
        _, cells = np.unique(cells, return_inverse=True)
        return allowed[choose_in_bins(cells, keys, min(total, len(allowed)), seed, _WHOLE_SET)]
    by_group = np.argsort(group, kind="stable")
    chosen = []
    for i, members in enumerate(np.split(by_group, np.cumsum(counts)[:-1])):
        if len(members):
            _, cells = np.unique(bin_of[members], return_inverse=True)
            num = min(wanted, len(members))
            chosen.append(members[choose_in_bins(cells, keys[members], num, seed, i)])
    return allowed[np.sort(np.concatenate(chosen))] if chosen else allowed


def percents(probabilities: np.ndarray) -> np.ndarray:
    """int64 [N]: probabilities in [0, 1] rounded to whole percents, halves up."""
    return np.floor(np.asarray(probabilities, np.float64) * 100 + 0.5).astype(np.int64)


def too_few(counts: np.ndarray, names: Sequence[str], wanted: int) -> str:
    """What is wrong where classes have fewer than M images, and what helps; empty where none has."""
    few = np.flatnonzero(counts < wanted).tolist()
    if not few:
        return ""
    shown = some([f"{names[i]} {counts[i]:,}" for i in few], show=str)
    return (
        f"subset: expected {wanted:,} images of each of {len(names):,} classes, found fewer of {len(few):,} "
        f"({shown}). Take groups of classes, which have more "
        "(softshard subset classes --method groups, siblings, confusion or coarse), fewer images, or all that there are "
        "(--allow-fewer)"
    )
