"""Mixtures of data sets: their shares at every step, exact passes, and what a batch of several sources says."""

import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.loaders import Augment, Loader, Mixture, Subset
from softshard.loaders.mixture import MixedOrder, MixedPart, check_passes, interleave
from softshard.loaders.order import EpochOrder, num_steps, rank_slots
from softshard.shards import LabelTree, PackOptions, UsageError, pack

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=7)


def make(dataset, **options):
    defaults = {"batch_size": 12, "augment": Augment(size=16), "dtype": "uint8", "last_batch": "pad"}
    return Loader(dataset, **{**defaults, "num_threads": 2, **options})


def plain_interleave(shares, num):
    """Sort the times of more draws than are needed."""
    times = [((j + 0.5) / share, i, j) for i, share in enumerate(shares) for j in range(num)]
    return [(i, j) for _, i, j in sorted(times)[:num]]


@given(WEIGHTS, st.integers(0, 150), st.integers(0, 80))
@settings(max_examples=200)
def test_any_part_of_the_sequence_is_the_same_part_of_the_whole(weights, start, length):
    shares = [weight / sum(weights) for weight in weights]
    sources, numbers = interleave(shares, start, start + length)
    expected = plain_interleave(shares, start + length)[start:]
    assert list(zip(sources.tolist(), numbers.tolist(), strict=True)) == expected


@given(WEIGHTS)
@settings(max_examples=200)
def test_every_prefix_gives_each_source_its_share_within_the_stated_bound(weights):
    shares = np.array(weights) / sum(weights)
    sources, _ = interleave(shares, 0, 3000)
    given_so_far = np.cumsum(sources[:, None] == np.arange(len(shares)), axis=0)
    error = np.abs(given_so_far - np.arange(1, 3001)[:, None] * shares).max(axis=0)
    assert (error <= 0.5 + shares * max(0, len(shares) - 2) / 2 + 1e-9).all()
    if len(shares) <= 3:
        assert error.max() < 1


def test_largest_remainders_would_take_back_what_they_gave():
    # The Alabama paradox, which is why the shares are not apportioned step by step: of 10 draws the third source
    # gets 2, of 11 it gets 1.
    shares = np.array([6, 6, 2]) / 14

    def largest_remainder(num):
        exact = shares * num
        draws = np.floor(exact).astype(int)
        draws[np.argsort(draws - exact, kind="stable")[: num - draws.sum()]] += 1
        return draws.tolist()

    assert (largest_remainder(10), largest_remainder(11)) == ([4, 4, 2], [5, 5, 1])
    sources, _ = interleave(shares, 0, 11)
    assert [np.bincount(sources[:num], minlength=3).tolist() for num in (10, 11)] == [[5, 4, 1], [5, 5, 1]]


def test_a_far_position_is_found_without_walking_there():
    shares = [0.7, 0.2, 0.1]
    start = 10**12
    sources, numbers = interleave(shares, start, start + 1000)
    assert np.bincount(sources).tolist() == [700, 200, 100]
    for i, share in enumerate(shares):
        its = numbers[sources == i]
        assert its.tolist() == list(range(int(its[0]), int(its[0]) + len(its)))
        assert abs(int(its[0]) - start * share) <= 1.5


@st.composite
def mixtures(draw):
    """(sizes, weights, epoch's draws, K, G, R)."""
    num_lanes = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(num_lanes, 40), min_size=1, max_size=4))
    weights = draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    global_batch = num_lanes * draw(st.integers(1, 8))
    world_size = draw(st.sampled_from([r for r in range(1, global_batch + 1) if global_batch % r == 0]))
    return sizes, weights, draw(st.integers(num_lanes, 150)), num_lanes, global_batch, world_size


def mixed_order(sizes, weights, num_samples, num_lanes):
    parts, first = [], 0
    for size, weight in zip(sizes, weights, strict=True):

        def make_order(turn, size=size, first=first):
            counts = np.diff([0, size // 3, size])
            return EpochOrder(counts, 5, 1, num_lanes, 7, True, None, turn, 2 * len(parts), first)

        parts.append(MixedPart(weight / sum(weights), first, 1, make_order))
        first += size
    return MixedOrder(parts, num_samples, num_lanes)


def served(setup, world_size, taken=0, max_steps=None):
    sizes, weights, num_samples, num_lanes, global_batch, _ = setup
    order = mixed_order(sizes, weights, num_samples, num_lanes)
    steps = num_steps(num_samples, num_lanes, global_batch, taken, "pad")
    batches = []
    for step in range(steps if max_steps is None else min(steps, max_steps)):
        at = taken + step * global_batch // num_lanes
        parts = [rank_slots(order, global_batch, at, rank, world_size) for rank in range(world_size)]
        pairs = np.concatenate([np.stack(part, axis=1) for part in parts])
        batches.append([tuple(pair) for pair in pairs.tolist()])
    return batches


@given(mixtures())
@settings(max_examples=150)
def test_passes_are_exact_and_every_world_size_sees_the_same_batches(setup):
    sizes, weights, num_samples, num_lanes, _, world_size = setup
    batches = served(setup, world_size)
    assert batches == served(setup, 1)
    pairs = [pair for batch in batches for pair in batch if pair[0] >= 0]
    assert len(pairs) == len(set(pairs)) == num_samples
    firsts = np.cumsum([0, *sizes])
    shares = np.array(weights) / sum(weights)
    for i, size in enumerate(sizes):
        drawn = [(sample - firsts[i], turn) for sample, turn in pairs if firsts[i] <= sample < firsts[i + 1]]
        bound = num_lanes * (0.5 + shares[i] * max(0, len(sizes) - 2) / 2)  # each lane keeps to the share
        assert abs(len(drawn) - num_samples * shares[i]) <= bound + 1e-9
        # Whatever pass all lanes have ended served every sample once.
        ended = []
        for lane in range(num_lanes):
            length, of_source = (
                (lane + 1) * num // num_lanes - lane * num // num_lanes for num in (num_samples, size)
            )
            ended.append(int((interleave(shares, 0, length)[0] == i).sum()) // of_source)
        for turn in range(min(ended)):
            assert sorted(sample for sample, other in drawn if other == turn) == list(range(size))


@given(mixtures(), st.integers(0, 4), st.integers(1, 9))
@settings(max_examples=100)
def test_another_global_batch_continues_with_exactly_the_remaining_draws(setup, steps, factor):
    sizes, weights, num_samples, num_lanes, global_batch, world_size = setup
    before = served(setup, world_size, max_steps=steps)
    taken = min(len(before) * global_batch // num_lanes, -(-num_samples // num_lanes))
    after = served((sizes, weights, num_samples, num_lanes, num_lanes * factor, 1), 1, taken=taken)
    pairs = [pair for batch in before + after for pair in batch if pair[0] >= 0]
    everything = [pair for batch in served(setup, 1) for pair in batch if pair[0] >= 0]
    assert sorted(pairs) == sorted(everything)


def test_one_pass_serves_every_sample_once_and_the_next_in_another_order():
    order = mixed_order([30, 60], [1, 1], 120, 1)
    draws = order.lane_draws(0, 0, 120)
    short = draws.samples < 30
    passes = [draws.samples[short & (draws.occurrences == turn)].tolist() for turn in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(30))
    assert passes[0] != passes[1]
    assert sorted(draws.samples[~short].tolist()) == list(range(30, 90))


@pytest.fixture(scope="session")
def packed_more(tmp_path_factory, packed):
    """Folder of a second data set over the classes of the first: 24 images, no label maps, no msgpack order of its own."""
    folder = tmp_path_factory.mktemp("more")
    rng = np.random.default_rng(11)
    for name in ("cat", "gull", "oak"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / name / f"more{i}.jpg"), pixels)
    tree = LabelTree.load(packed / "tree.json")
    pack(folder / "images", folder / "shards", PackOptions(shard_samples=9), tree=tree, workers=1)
    return folder / "shards" / "train"


def batches_of(dataset, epoch=0, **options):
    with make(dataset, **options) as loader:
        loader.set_epoch(epoch)
        return list(loader)


def by_key(batches):
    found = {}
    for batch in batches:
        for slot in np.flatnonzero(batch.valid.numpy()).tolist():
            levels = None if batch.levels is None else batch.levels[slot].tolist()
            found.setdefault(batch.keys[slot], []).append((int(batch.classes[slot]), levels))
    return found


def test_a_mixed_epoch_has_the_shares_and_each_samples_own_labels(packed, packed_more):
    batches = batches_of(Mixture({packed: 0.7, packed_more: 0.3}, epoch_samples=80), balance=None)
    found = by_key(batches)
    alone = by_key(batches_of(packed)), by_key(batches_of(packed_more))
    assert [sum(len(found.get(key, [])) for key in part) for part in alone] == [56, 24]
    assert all(
        len(set(map(str, seen))) == 1 and seen[0] == (alone[0] | alone[1])[key][0]
        for key, seen in found.items()
    )
    assert {key: len(found[key]) for key in alone[1]} == dict.fromkeys(alone[1], 1)


def test_without_epoch_samples_an_epoch_is_as_long_as_all_data_sets(packed, packed_more):
    with make(Mixture({packed: 1, packed_more: 1})) as loader:
        assert (loader.num_samples, len(loader)) == (129, 11)
        found = by_key(loader)
        counts = loader.count_classes()
    # 64 or 65 draws of 24 samples: two passes, and part of a third.
    times = sorted(len(found[key]) for key in found if "more" in key)
    assert times == [2] * 7 + [3] * 17 or times == [2] * 8 + [3] * 16
    assert abs(int(counts.sum()) - 129) <= len(counts) / 2


def test_samples_that_come_again_have_other_crops(packed, packed_more):
    crops = {}
    for batch in batches_of(Mixture({packed: 1, packed_more: 3})):
        for slot in np.flatnonzero(batch.valid.numpy()).tolist():
            crops.setdefault(batch.keys[slot], []).append(
                (*batch.crops[slot].tolist(), bool(batch.flips[slot]))
            )
    assert max(map(len, crops.values())) == 5
    assert all(len(set(found)) == len(found) for key, found in crops.items() if "more" in key)


def test_the_first_data_set_keeps_its_crops_and_a_mixture_of_one_is_that_data_set(packed):
    alone, mixed = batches_of(packed, 2, seed=3), batches_of(Mixture({packed: 5.0}), 2, seed=3)
    for one, other in zip(alone, mixed, strict=True):
        assert one.keys == other.keys
        assert (one.images == other.images).all()
        assert (one.crops == other.crops).all()


def test_label_maps_of_each_source_are_pooled_into_the_classes_it_is_read_with(packed):
    # The same set twice, once with its classes in another order: `labels` makes one label space of both.
    labels = ["oak", "gull", "cat"]
    alone = {}
    for batch in batches_of(packed, targets="relabel", labels=labels):
        for slot in np.flatnonzero(batch.valid.numpy()).tolist():
            alone[batch.keys[slot]] = int(batch.classes[slot])
    mixed = batches_of(Mixture({packed: 1, f"{packed}/": 1}), targets="relabel", labels=labels)
    assert all(
        alone[batch.keys[slot]] == int(batch.classes[slot])
        and abs(float(batch.targets[slot].sum()) - 1) < 1e-5
        for batch in mixed
        for slot in np.flatnonzero(batch.valid.numpy()).tolist()
    )


def test_label_maps_that_only_some_data_sets_have_are_refused_by_name(packed, packed_more):
    with pytest.raises(UsageError, match=f"{packed_more}: expected label maps for targets that pool them"):
        make(Mixture({packed: 1, packed_more: 1}), targets="relabel")


@pytest.mark.parametrize("balance", [None, 1.0])
def test_a_state_continues_a_mixture_with_another_world_size(packed, packed_more, balance):
    mixture = Mixture({packed: 0.4, packed_more: 0.6}, epoch_samples=90)
    options = {"lanes": 2, "window": 20, "seed": 6, "balance": balance}
    with make(mixture, **options) as loader:
        states, batches = [loader.state_dict()], []
        for batch in loader:
            batches.append(batch.keys)
            states.append(loader.state_dict())
    for number, state in enumerate(states):
        ranks = []
        for rank in range(2):
            with make(mixture, **options, batch_size=6, rank=rank, world_size=2) as other:
                other.load_state_dict(state)
                ranks.append([batch.keys for batch in other])
        assert [one + two for one, two in zip(*ranks, strict=True)] == batches[number:]


def test_a_state_of_other_shares_or_another_length_is_refused_with_both(packed, packed_more):
    with make(Mixture({packed: 1, packed_more: 3})) as loader:
        state = loader.state_dict()
    for mixture, found in (
        (Mixture({packed: 1, packed_more: 1}), r"0.5, 0.5\], 'epoch_samples': 129"),
        (Mixture({packed: 1, packed_more: 3}, epoch_samples=90), "'epoch_samples': 90"),
    ):
        with make(mixture) as other, pytest.raises(UsageError, match=f"{found}.* found .*0.25, 0.75.*129"):
            other.load_state_dict(state)
    with make(Mixture({packed: 10, packed_more: 30})) as same:
        same.load_state_dict(state)
    with make(packed) as alone, pytest.raises(UsageError, match="expected fingerprint"):
        alone.load_state_dict(state)


def test_data_sets_of_other_classes_or_trees_are_refused_by_name(packed, packed_plain, packed_more, tmp_path):
    with pytest.raises(
        UsageError, match=f"same classes in {packed} and {packed_plain}, found class 0 '.*' and 'a'"
    ):
        make(Mixture({packed: 1, packed_plain: 1}))
    other = tmp_path / "no-tree"
    (tmp_path / "images" / "cat").mkdir(parents=True)
    image = next((packed_more.parent.parent / "images" / "cat").iterdir())
    for i in range(4):
        shutil.copy(image, tmp_path / "images" / "cat" / f"{i}.jpg")
    pack(tmp_path / "images", other, PackOptions(), workers=1)
    with pytest.raises(
        UsageError, match=f"same label tree in {packed} and {other}/train, found [0-9a-f]+ and none"
    ):
        make(Mixture({packed: 1, other / "train": 1}), labels=["cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, "expected folders with a weight above 0 each, found {}"),
        (
            {"weights": {"a": 1, "b": 0}},
            "expected folders with a weight above 0 each, found {'a': 1, 'b': 0}",
        ),
        ({"weights": {"a": float("inf")}}, "expected folders with a weight above 0 each"),
        ({"weights": {"a": "1"}}, "expected folders with a weight above 0 each"),
        ({"weights": {"a": 1}, "epoch_samples": 0}, "expected epoch_samples from 1, found 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Mixture(**options)


def test_a_source_that_is_too_short_is_refused_by_name(packed, packed_more):
    with pytest.raises(
        UsageError, match=f"{packed_more}: expected at least a sample for each of 30 lanes, found 24"
    ):
        make(Mixture({packed: 1, packed_more: 1}), lanes=30, batch_size=30)
    with pytest.raises(
        UsageError, match="b: expected each of its 3 samples at most 65,536 times in an epoch, found"
    ):
        check_passes({"a": 0.5, "b": 0.5}, [10**6, 3], [1, 1], 10**6, 1)


def test_a_subset_holds_for_every_data_set(packed, packed_more):
    mixture = Mixture({packed: 1, packed_more: 1}, epoch_samples=60)
    found = by_key(batches_of(mixture, subset=Subset(classes=["cat", "gull"])))
    assert len({classes for seen in found.values() for classes, _ in seen}) == 2
    with pytest.raises(UsageError, match=r"expected a subset by classes or fraction, .* found keys"):
        make(mixture, subset=Subset(keys=["cat_00"]))
