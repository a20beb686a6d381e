import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards.philox import (
    PURPOSE_CROP,
    PURPOSE_PLAN,
    index_bits,
    permutation,
    philox4x32,
    random_keys,
    uniforms,
)

SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_known_answers_of_random123(counter, key, expected):
    words = [int(word, 16) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    found = philox4x32(np.array(words, np.uint64), low | high << 32)
    assert found.dtype == np.uint32
    assert " ".join(f"{word:08x}" for word in found.tolist()) == expected


def test_many_counters_give_what_each_gives_alone():
    counters = np.random.default_rng(0).integers(0, 2**32, (3, 5, 4), np.uint64)
    together = philox4x32(counters, 7)
    assert together.shape == (3, 5, 4)
    for i in range(3):
        for j in range(5):
            assert philox4x32(counters[i, j], 7).tolist() == together[i, j].tolist()


@given(SEEDS, st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_a_permutation_holds_every_item_once(seed, epoch, num):
    order = permutation(seed, PURPOSE_PLAN, epoch, 0, num)
    assert sorted(order.tolist()) == list(range(num))


def test_a_permutation_depends_on_seed_purpose_epoch_and_first_item():
    orders = [
        permutation(*arguments, 50).tolist()
        for arguments in (
            (0, PURPOSE_PLAN, 0, 0),
            (1, PURPOSE_PLAN, 0, 0),
            (0, PURPOSE_CROP, 0, 0),
            (0, PURPOSE_PLAN, 1, 0),
            (0, PURPOSE_PLAN, 0, 50),
        )
    ]
    assert len(set(map(tuple, orders))) == 5
    assert permutation(0, PURPOSE_PLAN, 0, 0, 50).tolist() == orders[0]


def test_a_permutation_never_changes():
    assert permutation(0, PURPOSE_PLAN, 0, 0, 8).tolist() == [5, 3, 4, 6, 2, 7, 1, 0]


def test_uniforms_do_not_depend_on_the_items_around_them():
    items = np.array([5, 2**40 + 5, 7])
    together = uniforms(3, PURPOSE_CROP, 2, items, 6)
    assert together.shape == (3, 6)
    assert ((together >= 0) & (together < 1)).all()
    for item, row in zip(items, together, strict=True):
        assert uniforms(3, PURPOSE_CROP, 2, np.array([item]), 6)[0].tolist() == row.tolist()
    assert len(np.unique(together)) == 18
    # Fewer numbers are the first of more.
    assert uniforms(3, PURPOSE_CROP, 2, items, 2).tolist() == together[:, :2].tolist()


def test_occurrences_draw_apart():
    first, second = (uniforms(0, PURPOSE_CROP, 0, np.arange(4), 4, occurrence) for occurrence in (0, 1))
    assert not np.intersect1d(first, second).size


def test_uniforms_are_uniform():
    numbers = uniforms(11, PURPOSE_CROP, 0, np.arange(4096), 4).reshape(-1)
    counts = np.bincount((numbers * 16).astype(int), minlength=16)
    # Chi-squared with 15 degrees of freedom; 37.7 is the 99.9th percentile, and the numbers never change.
    assert ((counts - 1024) ** 2 / 1024).sum() < 37.7


@given(SEEDS, st.integers(0, 2**48), st.integers(1, 70_000), st.integers(0, 2**16 - 1))
@settings(max_examples=20)
def test_random_keys_are_the_words_of_philox_above_the_items_index(seed, first, num, occurrence):
    keys = random_keys(seed, PURPOSE_PLAN, 9, first, num, occurrence)
    bits = index_bits(num)
    assert (keys & np.uint64(2**bits - 1)).tolist() == list(range(num))
    for i in {0, num // 2, num - 1}:
        item = first + i
        counter = [item & 0xFFFFFFFF, 9, item >> 32 | occurrence << 16, PURPOSE_PLAN << 16]
        high, low = philox4x32(np.array(counter, np.uint64), seed)[:2].tolist()
        assert int(keys[i]) >> bits == (high << 32 | low) >> bits


@pytest.mark.parametrize(("num", "bits"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (2**40, 40)])
def test_index_bits_hold_every_index(num, bits):
    assert index_bits(num) == bits
