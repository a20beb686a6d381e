"""Choosing images: the cap of METHODS' example, tight for all small cases, exact numbers, seeds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import DataError, UsageError
from softshard.shards.choose_images import bin_cap, capped_counts, choose_images, percents, too_few
from softshard.shards.subset_configs import (
    CONFIGURATIONS,
    configuration,
    imagenet_shortage,
    shortage,
    small_validation,
)

NAMES = ("a", "b", "c")


def test_the_published_example_has_the_cap_3_and_2_to_spread():
    assert bin_cap([10, 5, 1, 0, 4], 12) == (3, 2)
    taken = capped_counts(np.array([10, 5, 1, 0, 4]), 12, seed=0)
    assert taken.sum() == 12
    assert (taken - [3, 3, 1, 0, 3]).tolist() in ([1, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 0, 1])
    spread = {tuple(capped_counts(np.array([10, 5, 1, 0, 4]), 12, seed).tolist()) for seed in range(30)}
    assert len(spread) == 3


def test_the_cap_is_tight_for_every_small_case():
    for counts in itertools.product(range(5), repeat=3):
        for wanted in range(sum(counts) + 1):
            cap, left = bin_cap(counts, wanted)
            fits = [t for t in range(max(counts) + 1) if sum(min(n, t) for n in counts) <= wanted]
            assert cap == max(fits)
            assert left == wanted - sum(min(n, cap) for n in counts)
            assert left < max(1, sum(n > cap for n in counts))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.data(), st.integers(0, 2**64 - 1))
def test_capped_counts_add_up_and_none_is_more_than_one_above_the_cap(counts, data, seed):
    counts = np.array(counts)
    wanted = data.draw(st.integers(0, int(counts.sum())))
    cap, _ = bin_cap(counts, wanted)
    taken = capped_counts(counts, wanted, seed)
    assert taken.sum() == wanted
    assert (taken <= counts).all()
    assert ((taken == np.minimum(counts, cap)) | (taken == cap + 1)).all()
    np.testing.assert_array_equal(taken, capped_counts(counts, wanted, seed))


@pytest.mark.parametrize("wanted", [-1, 21])
def test_more_images_than_there_are_cannot_be_capped(wanted):
    with pytest.raises(UsageError, match="expected 0 to 20, as many as there are"):
        bin_cap([10, 5, 1, 0, 4], wanted)


samples = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 4)), min_size=1, max_size=120)


@given(samples, st.integers(1, 20), st.integers(0, 2**64 - 1), st.booleans())
def test_every_class_gets_exactly_its_images_from_bins_as_even_as_they_can_be(found, wanted, seed, binned):
    groups, bins = np.array(found).T
    counts = np.bincount(groups[groups >= 0], minlength=3)
    options = {"bins": bins if binned else None}
    if (counts < wanted).any():
        with pytest.raises(DataError, match=f"expected {wanted} images of each of 3 classes, found fewer of"):
            choose_images(groups, NAMES, wanted, seed, **options)
    chosen = choose_images(groups, NAMES, wanted, seed, allow_fewer=True, **options)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(groups[chosen], minlength=3).tolist() == np.minimum(counts, wanted).tolist()
    assert chosen.tolist() == choose_images(groups, NAMES, wanted, seed, allow_fewer=True, **options).tolist()
    if binned:
        for group in range(3):
            there = np.bincount(bins[groups == group], minlength=5)
            taken = np.bincount(bins[chosen[groups[chosen] == group]], minlength=5)
            cap, _ = bin_cap(there, int(taken.sum()))
            assert ((taken == np.minimum(there, cap)) | (taken == cap + 1)).all()


@given(samples, st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_a_smaller_random_choice_is_part_of_a_larger_one(found, wanted, seed):
    groups = np.array(found)[:, 0]
    few, more = (choose_images(groups, NAMES, num, seed, allow_fewer=True) for num in (wanted, wanted + 1))
    assert set(few.tolist()) <= set(more.tolist())


@given(samples, st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_one_cap_for_the_whole_set_holds_for_all_its_bins_together(found, wanted, seed):
    groups, bins = np.array(found).T
    num = int((groups >= 0).sum())
    chosen = choose_images(groups, NAMES, wanted, seed, bins=bins, whole_set=True, allow_fewer=True)
    assert len(chosen) == min(3 * wanted, num)
    cells = groups * 5 + bins
    there = np.bincount(cells[groups >= 0], minlength=15)
    taken = np.bincount(cells[chosen], minlength=15)
    cap, _ = bin_cap(there, len(chosen))
    assert ((taken == np.minimum(there, cap)) | (taken == cap + 1)).all()
    if num < 3 * wanted:
        with pytest.raises(DataError, match=r"of 3 classes on average, found"):
            choose_images(groups, NAMES, wanted, seed, bins=bins, whole_set=True)


def test_which_images_are_chosen_is_random_and_every_one_as_likely():
    groups = np.zeros(20, int)
    chosen = np.concatenate([choose_images(groups, "a", 10, seed) for seed in range(400)])
    counts = np.bincount(chosen, minlength=20)  # 200 +- 10 each
    assert 150 < counts.min() <= counts.max() < 250


def test_probabilities_are_rounded_to_whole_percents():
    found = percents(np.array([0, 0.004, 0.005, 0.014, 0.5, 0.995, 1.0]))
    assert found.tolist() == [0, 0, 1, 1, 50, 100, 100]


def test_no_images_is_a_wrong_call():
    with pytest.raises(UsageError, match="expected 1 or more a class, found 0"):
        choose_images(np.zeros(3, int), "a", 0, 0)


def test_too_few_images_are_told_with_what_helps():
    assert too_few(np.array([5, 6]), "ab", 5) == ""
    assert "fewer of 1 (a 4). Take groups of classes" in too_few(np.array([4, 6]), "ab", 5)
    assert shortage(np.array([5, 6]), 5) == ""
    assert shortage(np.array([1300, 732]), 5000).startswith(
        "2 of 2 classes have fewer than 5,000 images (the smallest 732, the largest 1,300): group classes"
    )


def test_what_imagenets_classes_lack_is_known_without_its_images():
    assert imagenet_shortage([1] * 200, 500) == ""
    assert imagenet_shortage([7] * 20, 5000) == ""
    assert "0 of 100 classes have fewer than 1,000, maybe 100 more" in imagenet_shortage([1] * 100, 1000)
    assert "1 of 3 classes have fewer than 5,000, maybe 1 more" in imagenet_shortage([1, 4, 7], 5000)


def test_the_named_configurations_are_those_of_the_study():
    assert set(CONFIGURATIONS.values()) == {
        (200, 500), (100, 1000), (20, 5000), (20, 2500), (10, 5000), (100, 500),
    }  # fmt: skip
    assert all(configuration(f"{n}x{m}") == (n, m) for n, m in CONFIGURATIONS.values())
    with pytest.raises(UsageError, match=r"expected one of 200x500, .*, found '7x7'"):
        configuration("7x7")


def test_a_small_validation_set_is_warned_of():
    assert small_validation(10_000, 200) == ""
    assert "9,999 images of 200 classes, fewer than 10,000" in small_validation(9_999, 200)
