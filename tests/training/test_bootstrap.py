"""Bootstrap intervals of a mean."""

import numpy as np

from softshard.training.bootstrap import mean_interval


def test_the_interval_covers_the_mean_of_what_it_was_drawn_from():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        low, high = mean_interval(rng.normal(3.0, 1.0, 60), rng)
        covered += low <= 3.0 <= high
    assert 33 <= covered <= 40  # 95 % of 40 is 38


def test_the_interval_lies_within_few_values_and_is_the_same_for_one_seed():
    low, high = mean_interval([0.0, 1.0, 2.0, 3.0], np.random.default_rng(0))
    assert 0 < low < 1.5 < high < 3
    assert (low, high) == mean_interval([0.0, 1.0, 2.0, 3.0], np.random.default_rng(0))
    assert mean_interval([1.0], np.random.default_rng(0)) == (1.0, 1.0)
