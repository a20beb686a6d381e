"""The order of an epoch, against a slow and plain re-implementation of its definition."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.loaders.order import EpochOrder, check_geometry, count_kept, num_steps, rank_slots
from softshard.shards import UsageError
from softshard.shards.philox import PURPOSE_SHARD_ORDER, PURPOSE_SHUFFLE, check_seed, philox4x32


def plain_shuffle(items, seed, purpose, epoch, first):
    """Sort by the 64-bit random key of each item's counter."""

    def key(i):
        counter = first + i
        low, high = philox4x32(
            np.array([counter & 0xFFFFFFFF, epoch, counter >> 32, purpose << 16], np.uint64), seed
        )[:2].tolist()
        return low << 32 | high

    return [items[i] for i in sorted(range(len(items)), key=key)]


def plain_lanes(counts, seed, epoch, num_lanes, window, shuffle=True, kept=None):
    """The lanes of an epoch, each a list of samples in the order in which it gives them."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    shards = list(range(len(counts)))
    if shuffle:
        shards = plain_shuffle(shards, seed, PURPOSE_SHARD_ORDER, epoch, 0)
    laid = [starts[shard] + i for shard in shards for i in range(counts[shard])]
    laid = laid if kept is None else [sample for sample in laid if sample in kept]
    lanes = []
    for k in range(num_lanes):
        first, last = k * len(laid) // num_lanes, (k + 1) * len(laid) // num_lanes
        lane = laid[first:last]
        if shuffle:
            for at in range(0, len(lane), window):
                part = lane[at : at + window]
                lane[at : at + window] = plain_shuffle(part, seed, PURPOSE_SHUFFLE, epoch, first + at)
        lanes.append(lane)
    return lanes


def plain_batches(lanes, global_batch, last_batch, taken=0):
    """Global batches: the next G/K samples of every lane, lane by lane; -1 in slots that stay empty."""
    per_lane = global_batch // len(lanes)
    batches = []
    while True:
        parts = [lane[taken : taken + per_lane] for lane in lanes]
        if last_batch == "drop" and any(len(part) < per_lane for part in parts):
            return batches
        if not any(parts):
            return batches
        batches.append([item for part in parts for item in part + [-1] * (per_lane - len(part))])
        taken += per_lane


def served(order, global_batch, world_size, last_batch, taken=0, max_steps=None):
    """What all ranks get together: a list of global batches, and each rank's number of steps."""
    steps = num_steps(order.num_samples, order.num_lanes, global_batch, taken, last_batch)
    per_lane = global_batch // order.num_lanes
    batches = []
    for step in range(steps if max_steps is None else min(steps, max_steps)):
        at = taken + step * per_lane
        parts = [rank_slots(order, global_batch, at, rank, world_size).samples for rank in range(world_size)]
        assert {len(part) for part in parts} == {global_batch // world_size}
        batches.append(np.concatenate(parts).tolist())
    return batches


@st.composite
def epochs(draw):
    """(counts, G, K, R, window, seed, epoch): K and R divide G, and need not divide each other."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    num_lanes = draw(st.integers(1, 4))
    global_batch = num_lanes * draw(st.integers(1, 12))
    world_size = draw(st.sampled_from([r for r in range(1, global_batch + 1) if global_batch % r == 0]))
    window = draw(st.integers(1, 60))
    seed, epoch = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**32 - 1))
    return counts, global_batch, num_lanes, world_size, window, seed, epoch


def flat(batches):
    return [sample for batch in batches for sample in batch if sample >= 0]


@given(epochs(), st.sampled_from(["drop", "pad"]), st.booleans())
@settings(max_examples=150)
def test_every_world_size_sees_the_plain_definitions_global_batches(setup, last_batch, shuffle):
    counts, global_batch, num_lanes, world_size, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window, shuffle)
    lanes = plain_lanes(counts, seed, epoch, num_lanes, window, shuffle)
    expected = plain_batches(lanes, global_batch, last_batch)
    assert served(order, global_batch, world_size, last_batch) == expected
    assert served(order, global_batch, 1, last_batch) == expected


@given(epochs())
@settings(max_examples=100)
def test_pad_serves_every_sample_exactly_once_over_all_ranks(setup):
    counts, global_batch, num_lanes, world_size, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    assert sorted(flat(served(order, global_batch, world_size, "pad"))) == list(range(sum(counts)))


@given(epochs())
@settings(max_examples=100)
def test_drop_serves_full_batches_and_leaves_out_less_than_one(setup):
    counts, global_batch, num_lanes, world_size, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    batches = served(order, global_batch, world_size, "drop")
    samples = flat(batches)
    assert len(samples) == len(batches) * global_batch == len(set(samples))
    assert 0 <= sum(counts) - len(samples) < global_batch


@given(epochs(), st.integers(0, 5), st.integers(1, 12), st.sampled_from(["drop", "pad"]))
@settings(max_examples=100)
def test_another_global_batch_continues_with_exactly_the_remaining_samples(setup, steps, factor, last_batch):
    counts, global_batch, num_lanes, world_size, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    before = flat(served(order, global_batch, world_size, last_batch, max_steps=steps))
    taken = min(steps, num_steps(order.num_samples, num_lanes, global_batch, 0, last_batch)) * (
        global_batch // num_lanes
    )
    other_batch = num_lanes * factor
    after = flat(served(order, other_batch, 1, "pad", taken=taken))
    assert sorted(before + after) == list(range(sum(counts)))
    rest = flat(served(order, other_batch, 1, "drop", taken=taken))
    assert set(rest) <= set(after)
    assert len(after) - len(rest) < other_batch


@given(epochs(), st.sampled_from(["drop", "pad"]), st.booleans(), st.data())
@settings(max_examples=150)
def test_an_order_over_kept_samples_leaves_out_the_others_before_anything_else(
    setup, last_batch, shuffle, data
):
    counts, global_batch, num_lanes, world_size, window, seed, epoch = setup
    everything = range(sum(counts))
    kept = sorted(data.draw(st.sets(st.sampled_from(everything), min_size=1)))
    num_in_shard = count_kept(np.array(kept), np.array(counts))
    assert num_in_shard.sum() == len(kept)
    order = EpochOrder(num_in_shard, seed, epoch, num_lanes, window, shuffle, np.array(kept))
    lanes = plain_lanes(counts, seed, epoch, num_lanes, window, shuffle, set(kept))
    expected = plain_batches(lanes, global_batch, last_batch)
    assert served(order, global_batch, world_size, last_batch) == expected
    if last_batch == "pad":
        assert sorted(flat(expected)) == kept
    whole = EpochOrder(np.array(counts), seed, epoch, num_lanes, window, shuffle)
    same = EpochOrder(np.array(counts), seed, epoch, num_lanes, window, shuffle, np.array(everything))
    for lane in range(num_lanes):
        size = len(everything)
        assert (
            same.lane_draws(lane, 0, size).samples.tolist()
            == whole.lane_draws(lane, 0, size).samples.tolist()
        )


@given(epochs())
@settings(max_examples=100)
def test_lanes_own_contiguous_ranges_that_differ_by_one_at_most(setup):
    counts, _, num_lanes, _, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    bounds = [order.lane_bounds(lane) for lane in range(num_lanes)]
    assert [first for first, _ in bounds[1:]] == [last for _, last in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (0, sum(counts))
    sizes = [last - first for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1
    # Whatever the shuffle, a lane's samples are those of its own range: only its own shards are read.
    unshuffled = plain_lanes(counts, seed, epoch, 1, 1)[0]
    for lane, (first, last) in enumerate(bounds):
        assert sorted(order.lane_draws(lane, 0, last - first).samples) == sorted(unshuffled[first:last])


@given(epochs())
@settings(max_examples=100)
def test_a_sample_moves_less_than_a_window_within_its_lane(setup):
    counts, _, num_lanes, _, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    laid = plain_lanes(counts, seed, epoch, 1, 1)[0]
    position = {sample: at for at, sample in enumerate(laid)}
    for lane in range(num_lanes):
        first, last = order.lane_bounds(lane)
        samples = order.lane_draws(lane, 0, last - first).samples.tolist()
        moved = [abs(position[sample] - first - at) for at, sample in enumerate(samples)]
        assert max(moved, default=0) < window


@given(epochs(), st.data())
@settings(max_examples=60)
def test_any_part_of_a_lane_is_the_same_part_of_the_whole(setup, data):
    counts, _, num_lanes, _, window, seed, epoch = setup
    order = EpochOrder(np.array(counts), seed, epoch, num_lanes, window)
    lane = data.draw(st.integers(0, num_lanes - 1))
    first, last = order.lane_bounds(lane)
    start = data.draw(st.integers(0, last - first))
    stop = data.draw(st.integers(start, last - first + 3))
    whole = (
        EpochOrder(np.array(counts), seed, epoch, num_lanes, window).lane_draws(lane, 0, last - first).samples
    )
    assert order.lane_draws(lane, start, stop).samples.tolist() == whole[start:stop].tolist()


def test_ranks_read_only_their_own_lanes_where_the_world_size_divides_the_lanes():
    counts = [10] * 12
    order = EpochOrder(np.array(counts), 5, 0, 4, 8)
    lanes = plain_lanes(counts, 5, 0, 4, 8)
    for rank in range(2):
        mine = {sample for lane in lanes[2 * rank : 2 * rank + 2] for sample in lane}
        for step in range(num_steps(120, 4, 8, 0, "pad")):
            slots = rank_slots(order, 8, 2 * step, rank, 2).samples
            assert set(slots[slots >= 0].tolist()) <= mine


# N = 5 over two lanes: positions 0 1 | 2 3 4.
@pytest.mark.parametrize(
    ("last_batch", "world_size", "expected"),
    [
        ("pad", 1, [[[0, 1, 2, 3], [-1, -1, 4, -1]]]),
        ("pad", 2, [[[0, 1], [-1, -1]], [[2, 3], [4, -1]]]),
        ("pad", 4, [[[0], [-1]], [[1], [-1]], [[2], [4]], [[3], [-1]]]),
        ("drop", 2, [[[0, 1]], [[2, 3]]]),
    ],
)
def test_uneven_lanes_pad_their_own_slots_and_no_others(last_batch, world_size, expected):
    order = EpochOrder(np.array([3, 2]), 0, 0, num_lanes=2, window=4, shuffle=False)
    steps = num_steps(5, 2, 4, 0, last_batch)
    found = [
        [rank_slots(order, 4, 2 * step, rank, world_size).samples.tolist() for step in range(steps)]
        for rank in range(world_size)
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("num_samples", "num_lanes", "global_batch", "taken", "drop", "pad"),
    [
        (10, 1, 4, 0, 2, 3),
        (12, 1, 4, 0, 3, 3),
        (3, 1, 4, 0, 0, 1),
        (11, 2, 4, 0, 2, 3),  # lanes of 5 and 6
        (11, 2, 4, 4, 0, 1),
        (11, 2, 4, 6, 0, 0),
        (5, 4, 8, 0, 0, 1),  # lanes of 1, 1, 1 and 2
        (12, 1, 4, 12, 0, 0),
        (10**15, 1, 10**3, 10**15 - 1, 0, 1),
    ],
)
def test_steps_left_in_an_epoch(num_samples, num_lanes, global_batch, taken, drop, pad):
    assert num_steps(num_samples, num_lanes, global_batch, taken, "drop") == drop
    assert num_steps(num_samples, num_lanes, global_batch, taken, "pad") == pad


def test_without_shuffle_the_order_is_the_manifests():
    order = EpochOrder(np.array([4, 1, 7]), 3, 2, num_lanes=1, window=5, shuffle=False)
    assert order.lane_draws(0, 0, 99).samples.tolist() == list(range(12))


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_seed_and_epoch_change_both_shuffles(change):
    one_shard = EpochOrder(np.array([500]), 1, 1, window=500)
    shards_only = EpochOrder(np.full(64, 3), 1, 1, window=1)
    for order in (one_shard, shards_only):
        other = EpochOrder(order.counts, 1 + (change == "seed"), 1 + (change == "epoch"), 1, order.window)
        length = order.num_samples
        same = order.lane_draws(0, 0, length).samples == other.lane_draws(0, 0, length).samples
        assert same.mean() < 0.1


def test_the_shuffle_inside_a_window_is_uniform():
    # 4 samples: 24 orders, each about 1 in 24 epochs (2,400 epochs: 100 +- 10).
    seen = {}
    for epoch in range(2400):
        order = tuple(EpochOrder(np.array([4]), 0, epoch, window=4).lane_draws(0, 0, 4).samples.tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == math.factorial(4)
    assert min(seen.values()) > 50
    assert max(seen.values()) < 160


def test_a_thousand_million_samples_are_ordered_without_listing_them():
    counts = np.full(100_000, 10_000)
    tracemalloc.start()
    try:
        order = EpochOrder(counts, 0, 0, num_lanes=8, window=32_768)
        slots = rank_slots(order, 2048, 100_000_000, 3, 8).samples
        assert tracemalloc.get_traced_memory()[1] < 100e6  # listing them would take 8 GB
    finally:
        tracemalloc.stop()
    assert len(np.unique(slots)) == 256
    assert slots.min() >= 0
    assert slots.max() < 10**9


def test_counts_beyond_32_bits_stay_exact():
    order = EpochOrder(np.array([2**40, 7]), 0, 0, num_lanes=1, window=16, shuffle=False)
    assert order.lane_draws(0, 2**40 - 1, 2**40 + 9).samples.tolist() == list(range(2**40 - 1, 2**40 + 7))
    shuffled = EpochOrder(np.array([2**40]), 0, 0, num_lanes=1, window=16)
    window = shuffled.lane_draws(0, 2**39, 2**39 + 16).samples
    assert sorted(window.tolist()) == list(range(2**39, 2**39 + 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_geometry(8, 1, 2, 2), "expected a rank from 0 to 1, found 2 of world size 2"),
        (lambda: check_geometry(8, 1, 0, 3), "expected a global batch that world size 3 divides, found 8"),
        (
            lambda: check_geometry(8, 3, 0, 2),
            r"expected lanes that divide the global batch 8 \(batch size x world size\), found 3",
        ),
        (lambda: check_geometry(8, 0, 0, 1), "expected lanes that divide the global batch 8 .* found 0"),
        (lambda: num_steps(8, 1, 2, 0, "keep"), "expected last_batch of drop, pad, found 'keep'"),
        (lambda: check_seed(-1, 0), r"expected seed as an int from 0 to 2\*\*64 - 1, found -1"),
        (lambda: check_seed(0, 2**32), r"expected epoch as an int from 0 to 2\*\*32 - 1, found 4294967296"),
        (lambda: check_seed(0, 1.5), r"expected epoch as an int from 0 to 2\*\*32 - 1, found 1.5"),
        (
            lambda: EpochOrder(np.array([3]), 0, 0, 1, 0),
            "expected lanes and window from 1, found 1 and 0",
        ),
        (
            lambda: EpochOrder(np.array([3]), 0, 0, kept=np.array([0, 2])),
            "expected counts of the 2 draws of kept samples, found 3 in all",
        ),
    ],
)
def test_what_cannot_be_ordered_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
