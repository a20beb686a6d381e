"""The halves of a data set that score each other."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from softshard.training.subset_score import split_halves


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 2**64 - 1))
def test_halves_are_equal_within_every_class(classes, seed):
    keys = [f"k{i}" for i in range(len(classes))]
    halves = split_halves(keys, np.array(classes), seed)
    for label in set(classes):
        counts = Counter(half for half, own in zip(halves.tolist(), classes, strict=True) if own == label)
        assert abs(counts[0] - counts[1]) <= 1


def test_halves_depend_on_keys_and_seed_alone():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, 101)
    keys = [f"image_{i}" for i in range(101)]
    halves = split_halves(keys, classes, 7)
    order = rng.permutation(101)
    assert np.array_equal(split_halves([keys[i] for i in order], classes[order], 7), halves[order])
    assert np.array_equal(split_halves(keys, classes, 7), halves)
    assert not np.array_equal(split_halves(keys, classes, 8), halves)
    # One more image moves at most one other.
    more = split_halves([*keys, "another"], np.append(classes, 3), 7)
    assert (more[:-1] != halves).sum() <= 1


def test_halves_are_those_of_every_earlier_version():
    """Another hash would make other halves of scores that exist."""
    assert split_halves([f"cat_{i}" for i in range(6)], np.zeros(6, int), 0).tolist() == [0, 0, 1, 0, 1, 1]
