"""Do two sets rank the same models alike, and from when on does a set's ranking stay? No torch in here.

Shape letters: M models, E epochs, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, spearmanr

from .bootstrap import middle

# Two sides of a normal distribution beyond 95 %.
Z = 1.96
DRAWS = 2000


@dataclass(frozen=True)
class Agreement:
    """How alike two rankings of the same models are.

    Attributes:
        kendall_tau_b: in [-1, 1], ties taken into account; None where a ranking has no order at all.
        spearman: in [-1, 1], of mean ranks where there are ties; None likewise.
        kendall_interval: 95 % bootstrap interval over models, (low, high); None where it is not defined.
        spearman_interval: the same.
    """

    kendall_tau_b: float | None
    spearman: float | None
    kendall_interval: tuple[float, float] | None
    spearman_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Inversion:
    """Two models that the sets order differently: `better` is so on the full set, `worse` on the subset.

    Attributes:
        better: place of the model that is better on the full set.
        worse: place of the one that is better on the subset.
        full_gap: their difference on the full set, above 0.
        subset_gap: their difference on the subset, above 0.
        beyond_noise: both gaps are larger than their noise; None where that is not known.
    """

    better: int
    worse: int
    full_gap: float
    subset_gap: float
    beyond_noise: bool | None


def agreement(full: np.ndarray, subset: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> Agreement:
    """Kendall's tau-b and Spearman's rho of two lists of accuracies, by SciPy.

    Args:
        full: float [M], accuracies.
        subset: float [M], of the same models.
        seed: of the bootstrap.
        draws: times that M models are drawn again, with replacement; draws without any order are left out.
    """
    tau, rho = tau_b(full, subset), _spearman(full, subset)
    picks = np.random.default_rng(seed).integers(len(full), size=(draws, len(full)))
    taus = [tau_b(full[pick], subset[pick]) for pick in picks]
    rhos = [_spearman(full[pick], subset[pick]) for pick in picks]
    return Agreement(tau, rho, _interval(taus), _interval(rhos))


def tau_b(x: np.ndarray, y: np.ndarray) -> float | None:
    """Kendall's tau-b of two float [M]; None where one of them has no order at all."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(kendalltau(x, y, variant="b").statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _interval(values: Sequence[float | None]) -> tuple[float, float] | None:
    found = [value for value in values if value is not None]
    return middle(found) if found else None


def noise(accuracy: np.ndarray, num_images: int | None) -> np.ndarray | None:
    """What a difference of two accuracies must exceed: 1.96 standard errors of it.

    The two are taken for independent counts of right answers among `num_images`, so the error is
    sqrt((p(1-p) + q(1-q)) / num_images). Two models on the same images are right on much the same ones: their difference
    is in truth less noisy, and the rule errs on the side of "noise".

    Args:
        accuracy: float [M], shares.
        num_images: that they were measured on; None where that is not known.

    Returns:
        float64 [M, M], or None.
    """
    if num_images is None:
        return None
    variance = accuracy * (1 - accuracy) / num_images
    return Z * np.sqrt(variance[:, None] + variance[None, :])


def inversions(
    full: np.ndarray, subset: np.ndarray, full_noise: np.ndarray | None, subset_noise: np.ndarray | None
) -> list[Inversion]:
    """Pairs that the sets order differently; a pair that is equal on one of them is none.

    Args:
        full: float [M], accuracies.
        subset: float [M].
        full_noise: float [M, M] (see `noise`), or None.
        subset_noise: the same for the subset.

    Returns:
        Those with the largest smaller gap first.
    """
    gaps, subset_gaps = full[:, None] - full[None, :], subset[:, None] - subset[None, :]
    pairs = np.argwhere((gaps > 0) & (subset_gaps < 0))
    found = []
    for a, b in pairs.tolist():
        beyond = None
        if full_noise is not None and subset_noise is not None:
            beyond = bool(gaps[a, b] > full_noise[a, b] and -subset_gaps[a, b] > subset_noise[a, b])
        found.append(Inversion(a, b, float(gaps[a, b]), float(-subset_gaps[a, b]), beyond))
    return sorted(found, key=lambda pair: (-min(pair.full_gap, pair.subset_gap), pair.better, pair.worse))


def stable_from(accuracy: np.ndarray, least_gap: np.ndarray | None = None) -> int:
    """The earliest epoch whose ranking already is the final one, and stays it.

    Args:
        accuracy: float [M, E].
        least_gap: None to look at all pairs, ties included: the ranking must be the same to the last place. Else float
            [M, M]: only pairs whose final gap is larger count, and none of them may be in the other order or equal.

    Returns:
        A place in [0, E).
    """
    final = accuracy[:, -1]
    order = np.sign(final[:, None] - final[None, :])
    counted = None if least_gap is None else np.abs(final[:, None] - final[None, :]) > least_gap
    for place in reversed(range(accuracy.shape[1] - 1)):
        now = np.sign(accuracy[:, place, None] - accuracy[None, :, place])
        other = now != order
        if (other if counted is None else other & counted).any():
            return place + 1
    return 0
