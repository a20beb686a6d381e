"""Rank agreement: SciPy against counting pairs by hand, on small cases and on timm's published accuracies."""

import csv
from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.training.rank_agreement import agreement, inversions, noise, stable_from, tau_b

FEW_VALUES = st.lists(st.integers(0, 4), min_size=2, max_size=9)


def tau_b_by_pairs(x, y):
    """Kendall (1945): concordant minus discordant pairs over the geometric mean of the untied ones."""
    score = untied_x = untied_y = 0
    for i, j in combinations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        score, untied_x, untied_y = score + a * b, untied_x + abs(a), untied_y + abs(b)
    return None if untied_x == 0 or untied_y == 0 else score / sqrt(untied_x * untied_y)


def tau_b_by_signs(x, y):
    """The same for many models at once."""
    a, b = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    return (a * b).sum() / sqrt((a * a).sum() * (b * b).sum())


def mean_ranks(x):
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


def spearman_by_ranks(x, y):
    """Pearson's correlation of mean ranks."""
    a, b = (ranks - ranks.mean() for ranks in map(mean_ranks, (x, y)))
    return None if not a.any() or not b.any() else (a @ b) / sqrt((a @ a) * (b @ b))


@given(
    FEW_VALUES.flatmap(
        lambda x: st.tuples(st.just(x), st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x)))
    )
)
def test_both_coefficients_are_those_of_counting_by_hand(pair):
    x, y = (np.array(values, float) for values in pair)
    found = agreement(x, y, draws=1)
    expected = tau_b_by_pairs(x, y), spearman_by_ranks(x, y)
    for value, right in zip((found.kendall_tau_b, found.spearman), expected, strict=True):
        assert value == (None if right is None else pytest.approx(right, abs=1e-12))


@pytest.mark.shared
def test_timms_accuracies_on_imagenet_and_real(shared_data):
    found = {}
    for name in ("imagenet", "imagenet-real"):
        with open(shared_data / "timm_results" / f"results-{name}.csv", newline="") as file:
            rows = csv.DictReader(file)
            found[name] = {(row["model"], row["img_size"]): float(row["top1"]) for row in rows}
    models = list(found["imagenet"])
    assert len(models) == 1556
    assert models != list(found["imagenet-real"])  # the files are in other orders
    x, y = (np.array([found[name][model] for model in models]) for name in found)
    result = agreement(x, y, draws=20)
    assert result.kendall_tau_b == pytest.approx(tau_b_by_signs(x, y), abs=1e-12)
    assert result.spearman == pytest.approx(spearman_by_ranks(x, y), abs=1e-12)
    for value, interval in (
        (result.kendall_tau_b, result.kendall_interval),
        (result.spearman, result.spearman_interval),
    ):
        assert 0.8 < interval[0] < value < interval[1] < 1
    # As many of the pairs are inverted as the two counts say, ties aside.
    discordant = (np.sign(x[:, None] - x[None, :]) * np.sign(y[:, None] - y[None, :]) < 0).sum() / 2
    assert len(inversions(x, y, None, None)) == discordant


def test_an_interval_is_of_its_seed_and_narrows_with_more_models():
    rng = np.random.default_rng(0)
    x = rng.random(200)
    y = x + rng.normal(0, 0.3, 200)
    first, again, other = (agreement(x, y, seed=seed, draws=300) for seed in (0, 0, 1))
    assert first == again
    assert first.kendall_interval != other.kendall_interval
    few = agreement(x[:20], y[:20], draws=300)
    assert np.ptp(few.kendall_interval) > 2 * np.ptp(first.kendall_interval)


def test_models_that_are_all_alike_have_no_ranking():
    found = agreement(np.ones(3), np.arange(3.0), draws=10)
    assert found.kendall_tau_b is None
    assert found.spearman_interval is None
    assert tau_b(np.arange(3.0), np.arange(3.0)[::-1]) == -1


def test_noise_is_1_96_standard_errors_of_a_difference():
    found = noise(np.array([0.5, 0.9, 1.0]), 400)
    assert found[0, 1] == pytest.approx(1.96 * sqrt((0.25 + 0.09) / 400))
    assert found[2, 2] == 0
    assert noise(np.array([0.5]), None) is None


def test_inversions_count_beyond_noise_only_where_both_gaps_are():
    full = np.array([0.80, 0.70, 0.60, 0.60])
    subset = np.array([0.50, 0.70, 0.69, 0.69])
    small = np.full((4, 4), 0.05)
    found = inversions(full, subset, small, small)
    assert [(pair.better, pair.worse, pair.beyond_noise) for pair in found] == [
        (0, 2, True), (0, 3, True), (0, 1, True),
    ]  # fmt: skip
    assert found[0].full_gap == pytest.approx(0.2)
    assert found[0].subset_gap == pytest.approx(0.19)
    large = np.full((4, 4), 0.15)
    assert [pair.beyond_noise for pair in inversions(full, subset, large, small)] == [True, True, False]
    assert [pair.beyond_noise for pair in inversions(full, subset, small, large)] == [True, True, True]
    assert [pair.beyond_noise for pair in inversions(full, subset, None, small)] == [None] * 3


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([[1, 2, 3], [0, 1, 2]], 0),  # never another one
        ([[0, 2, 3], [1, 1, 2]], 1),
        ([[2, 0, 3], [1, 1, 2]], 2),  # it was there before, and went away
        ([[1, 2, 3], [1, 1, 2]], 1),  # a tie is another ranking
        ([[1, 2, 2], [0, 1, 2]], 2),
        ([[5], [4]], 0),
    ],
)
def test_the_earliest_epoch_whose_ranking_stays(curves, expected):
    assert stable_from(np.array(curves, float)) == expected


@given(st.integers(2, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_the_stable_epoch_is_the_first_of_a_tail_of_equal_rankings(num_models, num_epochs, seed):
    curves = np.random.default_rng(seed).integers(0, 3, (num_models, num_epochs)).astype(float)
    rankings = [mean_ranks(column).tolist() for column in curves.T]
    first = min(
        start for start in range(num_epochs) if all(ranking == rankings[-1] for ranking in rankings[start:])
    )
    assert stable_from(curves) == first
    assert stable_from(curves, np.full((num_models, num_models), 9.0)) == 0  # all of it is noise
    assert stable_from(curves, np.zeros((num_models, num_models))) <= first


def test_pairs_within_noise_do_not_move_the_stable_epoch():
    curves = np.array([[0.1, 0.50, 0.71], [0.2, 0.51, 0.70], [0.3, 0.20, 0.20]])
    assert stable_from(curves) == 2
    assert stable_from(curves, np.full((3, 3), 0.05)) == 1
