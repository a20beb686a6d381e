"""The exactness table: worlds x shard counts x batch sizes, drop and pad; plain, balanced and mixed.

For every cell, over all ranks together: the multiset of what is served, the number of steps of each rank, and the
order, which is the same for every world size. No image is decoded.
"""

import numpy as np
import pytest

from softshard.loaders.balance import Balance
from softshard.loaders.mixture import MixedOrder, MixedPart
from softshard.loaders.order import EpochOrder, count_drawn, num_steps, rank_slots

WORLDS = (1, 2, 3, 4, 6, 8, 12)
SHARDS = (1, 3, 7, 64)
GLOBAL_BATCHES = (24, 120)  # what every world divides: 2 to 120 samples a rank
LANES = (1, 3, 8)
SEED, EPOCH, WINDOW = 3, 1, 50


def shard_counts(num_shards):
    """Uneven shards of 3 to 16 samples; the same for every call."""
    return 3 + np.arange(num_shards) * 17 % 14 if num_shards > 1 else np.array([211])


def plain(num_shards, lanes):
    counts = shard_counts(num_shards)
    expected = [(sample, 0) for sample in range(counts.sum())]
    return EpochOrder(counts, SEED, EPOCH, lanes, WINDOW), expected


def balanced(num_shards, lanes):
    counts = shard_counts(num_shards)
    classes = np.minimum(np.arange(counts.sum()) % 7, 3).astype(np.int32)
    ends = Balance(classes, 4, 1.0).ends(SEED, EPOCH)
    draws = np.diff(ends, prepend=0)
    expected = [(sample, turn) for sample, times in enumerate(draws.tolist()) for turn in range(times)]
    return EpochOrder(count_drawn(ends, counts), SEED, EPOCH, lanes, WINDOW, ends=ends), expected


def mixed(num_shards, lanes):
    """Half of the draws from each of two data sets, one three times as long as the other: three passes over that."""
    counts = [shard_counts(num_shards), np.array([shard_counts(num_shards).sum() * 3])]
    first = int(counts[0].sum())

    def part(i):
        return lambda turn: EpochOrder(
            counts[i], SEED, EPOCH, lanes, WINDOW, True, None, turn, i * num_shards, i * first
        )

    num = 6 * first
    order = MixedOrder([MixedPart(0.5, i * first, 1, part(i)) for i in range(2)], num, lanes)
    expected = [(sample, turn) for sample in range(first) for turn in range(3)]
    return order, expected + [(sample, 0) for sample in range(first, 4 * first)]


def served(order, global_batch, world, last_batch):
    """(global batches as lists of (sample, occurrence), slots of every rank's step)."""
    per_lane = global_batch // order.num_lanes
    batches, sizes = [], set()
    for step in range(num_steps(order.num_samples, order.num_lanes, global_batch, 0, last_batch)):
        parts = [rank_slots(order, global_batch, step * per_lane, rank, world) for rank in range(world)]
        sizes |= {len(part.samples) for part in parts}
        batches.append([pair for part in parts for pair in zip(*map(np.ndarray.tolist, part), strict=True)])
    return batches, sizes


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("num_shards", SHARDS)
@pytest.mark.parametrize("make", [plain, balanced, mixed])
def test_every_world_serves_each_draw_once_in_the_same_global_batches(make, num_shards, last_batch):
    for global_batch in GLOBAL_BATCHES:
        for lanes in LANES:
            order, expected = make(num_shards, lanes)
            alone, _ = served(order, global_batch, 1, last_batch)
            found = [pair for batch in alone for pair in batch if pair[0] >= 0]
            per_lane = global_batch // lanes
            if last_batch == "pad":
                assert len(found) == len(expected)
                # A lane of odd length has one draw more of either source.
                if make is not mixed or lanes == 1:
                    assert sorted(found) == sorted(expected)
                longest = -(-len(expected) // lanes)
                assert len(alone) == -(-longest // per_lane)
            else:
                assert len(found) == len(alone) * global_batch
                assert len(alone) == len(expected) // lanes // per_lane
                assert len(expected) - len(found) < global_batch + lanes
            assert len(set(found)) == len(found)
            for world in WORLDS:
                batches, sizes = served(order, global_batch, world, last_batch)
                assert batches == alone
                assert sizes <= {global_batch // world}
