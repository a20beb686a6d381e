"""Class-balanced sampling: how often each class and each sample is drawn, and that nothing else changes."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_batches import make

from softshard.loaders import Subset
from softshard.loaders import balance as balance_module
from softshard.loaders.balance import Balance, class_draws
from softshard.loaders.order import EpochOrder, count_drawn, num_steps, rank_slots
from softshard.shards import UsageError
from softshard.shards.philox import PURPOSE_BALANCE, uniforms

COUNTS = st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any)


@given(COUNTS, st.floats(0, 1))
@settings(max_examples=200)
def test_draws_are_within_one_of_the_share_and_sum_to_the_samples(counts, exponent):
    draws = class_draws(np.array(counts), exponent)
    weights = [count ** (1 - exponent) if count else 0 for count in counts]
    exact = np.array(weights) / sum(weights) * sum(counts)
    assert draws.sum() == sum(counts)
    assert (draws[np.array(counts) == 0] == 0).all()
    assert (np.abs(draws - exact) < 1 + 1e-3).all()


@pytest.mark.parametrize(
    ("counts", "exponent", "expected"),
    [
        ([3, 50, 0, 7], 0, [3, 50, 0, 7]),
        ([3, 50, 0, 7], 1, [20, 20, 0, 20]),
        ([1, 4, 25], 0.5, [4, 7, 19]),  # shares of 1, 2 and 5 eighths of 30: 3.75, 7.5, 18.75
        ([5, 5, 1], 1, [4, 4, 3]),  # 11 thirds each: what is left goes to the lower classes
        ([10**9, 1], 1, [500_000_001, 500_000_000]),
    ],
)
def test_draws_of_a_few_classes(counts, exponent, expected):
    assert class_draws(np.array(counts), exponent).tolist() == expected


@given(COUNTS, st.floats(0, 1))
@settings(max_examples=100)
def test_the_largest_remainders_get_what_is_left(counts, exponent):
    draws = class_draws(np.array(counts), exponent).tolist()
    weights = [round(count ** (1 - exponent) * 2**20) if count else 0 for count in counts]
    exact = [Fraction(sum(counts) * weight, sum(weights)) for weight in weights]
    rounded_up = [share % 1 for draw, share in zip(draws, exact, strict=True) if draw > share]
    rounded_down = [share % 1 for draw, share in zip(draws, exact, strict=True) if draw <= share]
    assert all(draw in (int(share), int(share) + 1) for draw, share in zip(draws, exact, strict=True))
    assert min(rounded_up, default=1) >= max(rounded_down, default=0)


@pytest.fixture(params=["compiled", "numpy"])
def each_way(request, monkeypatch):
    """The draws by a compiled loop, and in numpy."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert balance_module.load_kernel() is not None
    else:
        monkeypatch.setattr(balance_module, "load_kernel", lambda: None)


def draws_of(balance, seed, number):
    return np.diff(balance.ends(seed, number), prepend=0)


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=300),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 + 2**16),
)
@settings(max_examples=100)
def test_a_classes_samples_are_drawn_as_often_as_one_another_give_or_take_one(
    each_way, classes, exponent, seed, number
):
    balance = Balance(np.int32(classes), 9, exponent)
    passes = [draws_of(balance, seed, number + i) for i in range(5)]
    for draws in passes:
        assert np.bincount(classes, draws, minlength=9).tolist() == balance.class_draws.tolist()
        assert draws.max() == balance.most_draws
    # In one pass, and in any number of passes that follow each other.
    for so_far in np.cumsum(passes, axis=0):
        for c in set(classes):
            of_class = so_far[np.array(classes) == c]
            assert of_class.max() - of_class.min() <= 1
    assert passes[0].tolist() == draws_of(balance, seed, number).tolist()


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=300),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 + 2**16),
)
@settings(max_examples=100)
def test_the_compiled_loop_and_numpy_agree_with_the_rule_sample_by_sample(classes, exponent, seed, number):
    balance = Balance(np.int32(classes), 8, exponent)
    found = balance.ends(seed, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance_module, "load_kernel", lambda: None)
        assert found.tolist() == balance.ends(seed, number).tolist()
    counts = Counter(classes)
    shares = uniforms(seed, PURPOSE_BALANCE, 0, np.arange(8), 1)[:, 0]
    seen, total = Counter(), 0
    for c, end in zip(classes, found.tolist(), strict=True):
        each, extra = divmod(int(balance.class_draws[c]), counts[c])
        place = (int(shares[c] * counts[c]) + (seen[c] + number) * extra) % counts[c]
        total += each + (place >= counts[c] - extra)
        seen[c] += 1
        assert end == total


def test_who_gets_one_draw_more_changes_with_the_epoch_and_is_everybody_in_turn():
    # 100 samples of class 0, 10 of class 1, 55 draws each: 55 of the 100 are drawn in an epoch.
    classes = np.repeat(np.int32([0, 1]), [100, 10])
    balance = Balance(classes, 2, 1.0)
    draws = np.array([draws_of(balance, 3, epoch) for epoch in range(400)])
    assert (draws.sum(axis=1) == 110).all()
    assert (draws[:-1] != draws[1:]).any(axis=1).all()
    assert (draws[:20, :100].sum(axis=0) == 11).all()  # 20 times 55 draws of 100 samples
    assert (draws[:, :100].sum(axis=0) == 220).all()
    other = draws_of(balance, 4, 0)
    assert (other != draws[0]).any()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.floats(0, 1), st.data())
@settings(max_examples=80)
def test_every_world_serves_exactly_the_draws_each_with_its_own_occurrence(classes, exponent, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(classes)), max_size=4)))
    stored = np.diff([0, *cuts, len(classes)])
    num_lanes = data.draw(st.integers(1, 3))
    global_batch = num_lanes * data.draw(st.integers(1, 9))
    world_size = data.draw(st.sampled_from([r for r in range(1, global_batch + 1) if global_batch % r == 0]))
    ends = Balance(np.int32(classes), 5, exponent).ends(5, 2)
    draws = np.diff(ends, prepend=0)
    counts = count_drawn(ends, stored)
    borders = np.cumsum([0, *stored])
    assert counts.tolist() == [draws[a:b].sum() for a, b in itertools.pairwise(borders)]
    order = EpochOrder(counts, 5, 2, num_lanes, 17, True, ends=ends)
    per_lane = global_batch // num_lanes
    served = [
        rank_slots(order, global_batch, step * per_lane, rank, world_size)
        for step in range(num_steps(len(classes), num_lanes, global_batch, 0, "pad"))
        for rank in range(world_size)
    ]
    found = [
        pair for part in served for pair in zip(part.samples.tolist(), part.occurrences.tolist(), strict=True)
    ]
    expected = [
        (sample, occurrence) for sample, num in enumerate(draws.tolist()) for occurrence in range(num)
    ]
    assert sorted(pair for pair in found if pair[0] >= 0) == expected
    assert len(served) * global_batch // world_size - len(expected) == sum(sample < 0 for sample, _ in found)


def test_a_state_of_the_draws_of_an_earlier_version_is_refused(packed):
    with make(packed, balance=0.5) as loader:
        state = loader.state_dict()
        loader.load_state_dict(state)
        del state["balance_rule"]  # as it was when they were chosen by sorting random numbers
        with pytest.raises(UsageError, match="expected balance_rule 'in turn' of this loader, found None"):
            loader.load_state_dict(state)


def epoch_of(dataset, epoch=0, **options):
    """(class of every slot that is served, key to its crops)."""
    classes, crops = [], {}
    with make(dataset, **options) as loader:
        loader.set_epoch(epoch)
        for batch in loader:
            for slot in np.flatnonzero(batch.valid.numpy()).tolist():
                classes.append(int(batch.classes[slot]))
                crops.setdefault(batch.keys[slot], []).append(
                    (*batch.crops[slot].tolist(), bool(batch.flips[slot]))
                )
    return classes, crops


def test_a_balanced_loader_serves_each_class_its_draws_and_repeats_with_other_crops(packed):
    # Classes after relabelling, of what the subset leaves.
    options = {"labels": ["oak", "gull", "cat"], "subset": Subset(fraction=0.5, seed=5)}
    with make(packed, balance=1.0, **options) as loader:
        counts, num = loader.count_classes(), loader.num_samples
    classes, crops = epoch_of(packed, balance=1.0, **options)
    assert np.bincount(classes, minlength=3).tolist() == counts.tolist()
    assert counts.sum() == num == len(classes) == 22
    assert counts.tolist() == [8, 7, 7]
    assert [len(found) for found in crops.values() if len(found) > 1]
    # The first draw of a sample has the crop that it has without balance, the next one another.
    _, plain = epoch_of(packed, **options)
    for key, found in crops.items():
        assert plain[key][0] in found
        assert len(set(found)) == len(found)


def test_other_epochs_draw_others_of_a_large_class(packed):
    subset = Subset(fraction=0.4, seed=1)
    with make(packed, subset=subset, balance=1.0) as loader, make(packed, subset=subset) as plain:
        counts, draws = plain.count_classes(), loader.count_classes()
    assert counts.sum() == draws.sum() == 42
    assert set(draws[counts > 0].tolist()) == {6}
    assert counts.max() > 6 > counts[counts > 0].min()
    epochs = [epoch_of(packed, epoch, subset=subset, balance=1.0) for epoch in range(3)]
    for classes, crops in epochs:
        assert np.bincount(classes, minlength=9).tolist() == draws.tolist()
        assert any(len(set(found)) > 1 for found in crops.values())  # (a thin image has one crop only)
    assert len({tuple(sorted(crops)) for _, crops in epochs}) == 3


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan")])
def test_an_exponent_outside_its_range_is_refused(packed, balance):
    with pytest.raises(UsageError, match=r"expected balance from 0 .as stored. to 1 .* found"):
        make(packed, balance=balance)


def test_a_balance_that_repeats_one_sample_too_often_is_refused():
    classes = np.repeat(np.int32([0, 1]), [2**18, 1])
    with pytest.raises(
        UsageError,
        match=r"at most 65,536 times .* found 1.0, with which class 1, which has 1 sample, gets 131,072",
    ):
        Balance(classes, 2, 1.0)
