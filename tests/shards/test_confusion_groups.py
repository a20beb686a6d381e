"""Groups of confused classes, compared with every set that there is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards.confusion_groups import confusion_groups, group_sizes
from softshard.shards.errors import DataError, UsageError

# What a group may lose against the best set of its classes.
SHARE_OF_BEST = 0.98


def best_value(confusion, classes, size):
    """The oracle: the largest sum of pairwise confusion of any `size` of these classes."""
    pairs = confusion + confusion.T
    return max(sum(pairs[i, j] for i, j in combinations(chosen, 2)) for chosen in combinations(classes, size))


def assert_each_group_is_nearly_the_best_that_was_left(confusion, num_groups):
    found = confusion_groups(confusion, num_groups)
    left = set(range(len(confusion)))
    for group, value in zip(found.groups, found.values, strict=True):
        assert value >= SHARE_OF_BEST * best_value(confusion, sorted(left), len(group)) - 1e-9
        left -= set(group)
    assert not left


def random_matrix(rng, num_classes):
    return rng.random((num_classes, num_classes))


def heavy_tailed(rng, num_classes):
    return rng.random((num_classes, num_classes)) ** 8


def graph(rng, num_classes):
    return (rng.random((num_classes, num_classes)) > 0.7).astype(float)


def blocks(rng, num_classes):
    """Dense families of classes, of which one is too large for a group, in a little noise."""
    family = np.sort(rng.integers(0, 3, num_classes))
    return (family[:, None] == family) * rng.random() + 0.2 * rng.random((num_classes, num_classes))


def star_beside_a_clique(rng, num_classes):
    """One class that all are taken for, which draws greedy in, beside classes that are confused among themselves."""
    matrix = np.zeros((num_classes, num_classes))
    matrix[0, 1:] = 2.0
    clique = num_classes // 2
    matrix[clique:, clique:] = 1.2
    order = rng.permutation(num_classes)
    return matrix[np.ix_(order, order)]


def one_way(rng, num_classes):
    return np.triu(rng.integers(0, 100, (num_classes, num_classes)), 1)


@pytest.mark.parametrize(
    "make",
    [random_matrix, heavy_tailed, graph, blocks, star_beside_a_clique, one_way],
    ids=lambda f: f.__name__,
)
def test_groups_are_within_two_percent_of_every_set_there_is(make):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        num_classes = int(rng.integers(4, 13))
        num_groups = int(rng.integers(1, num_classes // 2 + 1))
        assert_each_group_is_nearly_the_best_that_was_left(make(rng, num_classes), num_groups)


@given(
    st.integers(3, 9).flatmap(
        lambda num: st.tuples(
            st.lists(st.sampled_from([0, 1, 2, 7]), min_size=num * num, max_size=num * num),
            st.integers(1, num),
        )
    )
)
@settings(max_examples=60)
def test_groups_are_within_two_percent_on_any_small_case(case):
    cells, num_groups = case
    num_classes = round(len(cells) ** 0.5)
    assert_each_group_is_nearly_the_best_that_was_left(
        np.array(cells, float).reshape(num_classes, num_classes), num_groups
    )


@given(st.integers(1, 80), st.data())
@settings(max_examples=30)
def test_groups_partition_the_classes_with_the_sizes_and_values_they_state(num_classes, data):
    num_groups = data.draw(st.integers(1, num_classes))
    confusion = np.random.default_rng(num_classes).random((num_classes, num_classes))
    found = confusion_groups(confusion, num_groups)
    assert sorted(i for group in found.groups for i in group) == list(range(num_classes))
    assert tuple(map(len, found.groups)) == group_sizes(num_classes, num_groups)
    for group, value in zip(found.groups, found.values, strict=True):
        assert list(group) == sorted(group)
        assert value == pytest.approx(sum(confusion[i, j] for i in group for j in group if i != j))
    assert found.total == pytest.approx(sum(found.values))


def test_a_thousand_classes_into_67_are_62_of_15_and_5_of_14():
    sizes = group_sizes(1000, 67)
    assert sizes == (15,) * 62 + (14,) * 5


def test_families_hidden_among_many_classes_are_found():
    rng = np.random.default_rng(0)
    order = rng.permutation(120)
    confusion = 0.01 * rng.random((120, 120))
    families = [tuple(sorted(order[first : first + 10].tolist())) for first in range(0, 120, 10)]
    for number, family in enumerate(families):
        confusion[np.ix_(family, family)] += 1 - number / 100  # taken in this order
    assert confusion_groups(confusion, 12).groups == tuple(families)


def test_a_seed_gives_its_groups_again_and_the_diagonal_and_direction_do_not_matter():
    confusion = np.random.default_rng(5).random((70, 70))
    found = confusion_groups(confusion, 9, seed=3)
    assert confusion_groups(confusion, 9, seed=3) == found
    assert confusion_groups(confusion + 50 * np.eye(70), 9, seed=3).groups == found.groups
    assert confusion_groups(confusion.T.copy(), 9, seed=3) == found


def test_counts_and_an_empty_matrix_are_taken():
    assert confusion_groups(np.array([[5, 0, 3], [0, 5, 0], [1, 0, 5]], np.int64), 2).groups == ((0, 2), (1,))
    assert confusion_groups(np.zeros((5, 5)), 2).values == (0.0, 0.0)


@pytest.mark.parametrize(
    ("confusion", "num_groups", "error", "message"),
    [
        (np.zeros((2, 3)), 1, DataError, r"expected a square matrix \[C, C\], found shape \[2, 3\]"),
        (np.zeros((0, 0)), 1, DataError, r"found shape \[0, 0\]"),
        (np.array([["a"]]), 1, DataError, "expected numbers, found <U1"),
        (np.array([[0, np.nan], [-1, 0]]), 1, DataError, "not negative, found 2 of 4 that are not"),
        (np.zeros((3, 3)), 4, UsageError, "expected 1 to 3 for as many classes, found 4"),
        (np.zeros((3, 3)), 0, UsageError, "expected 1 to 3 for as many classes, found 0"),
    ],
)
def test_what_cannot_be_grouped_is_refused(confusion, num_groups, error, message):
    with pytest.raises(error, match=message):
        confusion_groups(confusion, num_groups)
