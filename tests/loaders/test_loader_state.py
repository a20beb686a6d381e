"""State: whatever the step it is taken at, what comes after it is exactly what would have come."""

import numpy as np
import pytest
from restoring import assert_same_samples, check_state_before_every_batch, make, per_sample

from softshard.loaders import Mixture, Subset
from softshard.shards import UsageError


def test_restore_at_any_step_yields_the_remaining_batches(packed):
    for number, expected, found in check_state_before_every_batch(packed, [{}]):
        assert [batch.keys for batch in found] == [batch.keys for batch in expected], number
        assert [batch.valid.tolist() for batch in found] == [batch.valid.tolist() for batch in expected]
        assert_same_samples(found, expected)


def test_restore_without_lanes_and_with_drop(packed):
    options = {"lanes": 1, "last_batch": "drop", "batch_size": 10}
    for _, expected, found in check_state_before_every_batch(packed, [options], **options):
        assert_same_samples(found, expected)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(
    "part",
    [
        {"labels": ["oak", "bird", "gull", "dog", "cat"]},
        {"labels": ["oak", "bird", "gull", "dog", "cat"], "subset": Subset(fraction=0.9, seed=1)},
    ],
    ids=["labels", "labels and subset"],
)
def test_restore_with_other_labels_yields_the_remaining_kept_samples(packed, world_size, part):
    ranks = [
        {"batch_size": 12 // world_size, "rank": rank, "world_size": world_size, **part}
        for rank in range(world_size)
    ]
    for _, expected, found in check_state_before_every_batch(packed, ranks, **part):
        assert_same_samples(found, expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_another_world_size_continues_with_the_same_global_batches(packed, world_size):
    ranks = [
        {"batch_size": 12 // world_size, "rank": rank, "world_size": world_size} for rank in range(world_size)
    ]
    for _, expected, found in check_state_before_every_batch(packed, ranks):
        assert_same_samples(found, expected)


def test_another_global_batch_threads_and_prefetch_continue_with_the_remaining_samples(packed):
    ranks = [
        {"batch_size": 9, "rank": rank, "world_size": 2, "num_threads": 1 + rank, "prefetch": 3}
        for rank in range(2)
    ]
    for _, expected, found in check_state_before_every_batch(packed, ranks):
        assert_same_samples(found, expected, ordered=False)


WAYS = {
    "plain": {},
    "no shuffle": {"shuffle": False},
    "balanced": {"balance": 1.0, "subset": Subset(fraction=0.6, seed=1)},
    "subset": {"subset": Subset(classes=["cat", "gull", "oak", "dog"])},
}
CONTINUED = {
    "alone": [{}],
    "three ranks": [{"batch_size": 4, "rank": rank, "world_size": 3} for rank in range(3)],
    "one thread": [{"num_threads": 1, "prefetch": 1}],
}


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("continued", CONTINUED)
@pytest.mark.parametrize("way", WAYS)
def test_however_samples_are_chosen_the_remaining_batches_follow(packed, way, continued, last_batch):
    options = {**WAYS[way], "last_batch": last_batch, "targets": "none", "batch_size": 12}
    ranks = [{**options, **rank} for rank in CONTINUED[continued]]
    for _, expected, found in check_state_before_every_batch(packed, ranks, **options):
        assert_same_samples(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_however_samples_are_chosen_another_global_batch_serves_the_remaining_ones(packed, way):
    options = {**WAYS[way], "targets": "none"}
    ranks = [{**options, "batch_size": 7, "rank": rank, "world_size": 2} for rank in range(2)]
    for _, expected, found in check_state_before_every_batch(packed, ranks, **options):
        assert_same_samples(found, expected, ordered=False)


@pytest.mark.parametrize("balance", [None, 0.7])
@pytest.mark.parametrize("continued", CONTINUED)
def test_a_mixture_continues_with_the_remaining_batches(packed, continued, balance):
    mixture = Mixture({packed: 2, f"{packed}/": 1}, epoch_samples=70)
    options = {"balance": balance, "lanes": 3, "targets": "none"}
    ranks = [{**options, **rank} for rank in CONTINUED[continued]]
    for _, expected, found in check_state_before_every_batch(mixture, ranks, **options):
        assert_same_samples(found, expected)


def test_after_the_last_batch_the_epoch_has_nothing_left_and_the_next_one_follows(packed):
    with make(packed) as loader:
        for _ in loader:
            state = loader.state_dict()
        after_the_loop = loader.state_dict()
        following = list(loader)
    assert (state["epoch"], after_the_loop["epoch"], after_the_loop["taken"]) == (0, 1, 0)
    with make(packed) as other:
        other.load_state_dict(state)
        assert list(other) == []
        assert_same_samples(list(other), following)
    with make(packed) as other:
        other.load_state_dict(after_the_loop)
        assert_same_samples(list(other), following)


def test_a_state_taken_after_breaking_off_continues_there(packed):
    with make(packed) as loader:
        expected = list(loader)
        loader.set_epoch(0)
        for number, _ in enumerate(loader):
            if number == 2:
                break
        state = loader.state_dict()
    with make(packed) as other:
        other.load_state_dict(state)
        assert other.step == 3
        assert_same_samples(list(other), expected[3:])


def test_set_epoch_keeps_a_state_of_that_epoch_and_drops_that_of_another(packed):
    with make(packed) as loader:
        loader.set_epoch(2)
        whole = list(loader)
        loader.set_epoch(3)
        other_epoch = list(loader)
        loader.set_epoch(2)
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)
        loader.set_epoch(2)
        assert_same_samples(list(loader), whole[1:])
        loader.load_state_dict(state)
        loader.set_epoch(3)
        assert_same_samples(list(loader), other_epoch)


def test_a_state_is_a_handful_of_plain_numbers(packed):
    with make(packed) as loader:
        loader.set_epoch(2**32 - 1)
        next(iter(loader))
        state = loader.state_dict()
        assert state == {
            "version": 1,
            "fingerprint": loader.manifest.fingerprint,
            "seed": 4,
            "epoch": 2**32 - 1,
            "taken": 6,
            "global_batch": 12,
            "lanes": 2,
            "window": 30,
            "shuffle": True,
            "labels": None,
            "subset": None,
            "balance": None,
            "balance_rule": None,
            "mixture": None,
            "bad": [],
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 5}, "expected seed 5 of this loader, found 4; the rest of the epoch"),
        ({"lanes": 1}, "expected lanes 1 of this loader, found 2; the rest of the epoch"),
        ({"window": 31}, "expected window 31 of this loader, found 30; the rest of the epoch"),
        ({"shuffle": False}, "expected shuffle False of this loader, found True; the rest of the epoch"),
        (
            {"labels": ["cat", "dog"]},
            "expected labels '[0-9a-f]{64}' of this loader, found None; the rest of the epoch",
        ),
        ({"balance": 0.5}, "expected balance 0.5 of this loader, found None; the rest"),
        (
            {"subset": Subset(fraction=0.5)},
            r"expected subset \{'classes': None, 'keys': None, 'fraction': 0.5, 'seed': 0\} of this loader, found None;",
        ),
    ],
)
def test_a_state_of_another_order_is_refused_with_both_values(packed, options, message):
    with make(packed) as loader:
        state = loader.state_dict()
    with make(packed, **options) as other, pytest.raises(UsageError, match=message):
        other.load_state_dict(state)


def test_a_state_of_other_labels_is_refused_with_both_fingerprints(packed):
    with make(packed, labels=["cat", "dog"]) as loader:
        state = loader.state_dict()
    with make(packed, labels=["dog", "cat"]) as other:
        mine = other.state_dict()["labels"]
        with pytest.raises(UsageError, match=f"expected labels '{mine}' .* found '{state['labels']}'"):
            other.load_state_dict(state)


def test_a_state_of_another_data_set_is_refused_with_both_fingerprints(packed, packed_plain):
    with make(packed) as loader:
        state = loader.state_dict()
    with make(packed_plain, targets="none") as other:
        mine = other.fingerprint
        with pytest.raises(
            UsageError, match=f"expected fingerprint '{mine}' .* found '{state['fingerprint']}'"
        ):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected version 1, found 2"),
        ({"taken": 54}, "expected an epoch from 0 and 0 to 53 samples taken, found 0 and 54"),
        ({"taken": -1}, "found 0 and -1"),
        ({"taken": 1.0}, "found 0 and 1.0"),
        ({"taken": None}, "found 0 and None"),
        ({"epoch": None}, "found None and 0"),
        ({"epoch": -1}, "found -1 and 0"),
    ],
)
def test_a_state_that_cannot_be_is_refused(packed, change, message):
    with make(packed) as loader:
        state = loader.state_dict() | change
        with pytest.raises(UsageError, match=message):
            loader.load_state_dict(state)
        assert len(per_sample(list(loader))) == 105  # and the loader is as it was


def test_ranks_see_the_same_global_batches_for_every_world_size(packed):
    def epoch(world_size):
        parts = []
        for rank in range(world_size):
            options = {"batch_size": 12 // world_size, "rank": rank, "world_size": world_size}
            with make(packed, **options) as loader:
                parts.append(list(loader))
        return [np.concatenate([batch.keys for batch in step]).tolist() for step in zip(*parts, strict=True)]

    alone = epoch(1)
    for world_size in (2, 3, 6, 12):
        assert epoch(world_size) == alone
