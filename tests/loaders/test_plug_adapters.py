"""Batches as tuples, as dicts, on a device: the loader's own batches, its epochs, its state."""

import gc
import threading
import weakref

import pytest
import torch

from softshard.loaders import Augment, Loader, as_dicts, as_tuples, on_device
from softshard.loaders.adapters import one_ahead
from softshard.loaders.batch import TeacherLevels, map_tensors
from softshard.shards import UsageError

STEPS = 9  # of 105 samples in batches of 12, the last one of 9


@pytest.fixture
def make(packed):
    """A function that builds a small loader; all are closed in the end."""
    loaders = []

    def build(dataset=packed, **options):
        defaults = {
            "batch_size": 12,
            "augment": Augment(size=16),
            "last_batch": "pad",
            "seed": 4,
            "num_threads": 1,
        }
        loaders.append(Loader(dataset, **{**defaults, **options}))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("targets", ["classes", "targets", "levels"])
def test_tuples_are_the_valid_rows_of_the_batches(make, targets):
    batches = list(make(targets="relabel"))
    pairs = list(as_tuples(make(targets="relabel"), targets))
    assert [len(images) for images, _ in pairs] == [12] * 8 + [9]
    for batch, (images, labels) in zip(batches, pairs, strict=True):
        assert torch.equal(images, batch.images[batch.valid])
        assert torch.equal(labels, getattr(batch, targets)[batch.valid])
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_dicts_hold_every_part_of_a_batch_and_padding_too(make):
    for batch, found in zip(make(), as_dicts(make()), strict=True):
        assert found.keys() == batch.to_dict().keys()
        assert torch.equal(found["valid"], batch.valid)
        assert found["keys"] == batch.keys


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({}, "labels", "expected targets of classes, targets, levels, found 'labels'"),
        ({}, "targets", "expected a loader with soft targets .*found one with targets='none'. Build it with"),
        (
            {"world_size": 2},
            "classes",
            "expected last_batch='drop' with several processes, found 'pad' and world",
        ),
    ],
)
def test_tuples_that_cannot_be_are_refused_when_built(make, options, targets, message):
    with pytest.raises(UsageError, match=f"as_tuples: {message}"):
        as_tuples(make(**options), targets)


def test_levels_without_a_tree_are_refused(make, packed_plain):
    with pytest.raises(UsageError, match="as_tuples: expected a data set with a label tree"):
        as_tuples(make(packed_plain), "levels")


def test_a_device_that_is_not_there_is_refused(make):
    with pytest.raises(UsageError, match="expected device 'cpu' or 'cuda', found 'meta'"):
        on_device(make(), "meta")


FORMS = {
    "tuples": lambda loader: as_tuples(loader),
    "dicts": lambda loader: as_dicts(loader, device="cpu"),
    "on the device": lambda loader: on_device(loader, "cpu"),
}


def images_of(item):
    return item[0] if isinstance(item, tuple) else item["images"] if isinstance(item, dict) else item.images


@pytest.mark.parametrize("form", FORMS)
def test_a_state_taken_after_any_batch_continues_with_the_next_one(make, form):
    wrap = FORMS[form]
    batches = wrap(make())
    batches.set_epoch(1)
    states, expected = [batches.state_dict()], []
    for item in batches:
        expected.append(images_of(item))
        states.append(batches.state_dict())
    assert len(expected) == len(batches) == STEPS
    assert [state["taken"] for state in states] == [*range(0, 105, 12), 105]
    for done, state in enumerate(states):
        resumed = wrap(make())
        resumed.load_state_dict(state)
        assert resumed.epoch == 1
        resumed.set_epoch(1)  # as loops do: the state stays in force
        found = [images_of(item) for item in resumed]
        assert len(found) == STEPS - done
        assert all(torch.equal(one, other) for one, other in zip(found, expected[done:], strict=True))
        assert resumed.epoch == resumed.state_dict()["epoch"] == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_loop_that_stops_at_the_length_gets_the_next_epoch_through_the_sampler(make, form):
    # Lightning and timm's train.py call sampler.set_epoch; Lightning never asks for the batch after the last.
    batches, plain, seen = FORMS[form](make()), make(), []
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        plain.sampler.set_epoch(epoch)
        items = iter(batches)
        for expected in plain:
            found = images_of(next(items))
            assert torch.equal(found, expected.images[: len(found)])
        seen.append(found)
    assert not torch.equal(*seen)


def test_an_epoch_chosen_again_after_its_last_batch_begins_anew(make):
    batches = on_device(make(), "cpu")
    items = iter(batches)
    first = next(items).keys
    for _ in range(STEPS - 1):
        next(items)
    assert batches.epoch == 0  # the loader is an epoch ahead
    batches.set_epoch(0)
    assert batches.state_dict()["taken"] == 0
    assert next(iter(batches)).keys == first


def test_the_next_item_is_taken_before_one_is_given():
    taken = []
    ahead = one_ahead(iter(lambda: taken.append(len(taken)) or taken[-1], 3))
    seen = [(item, len(taken)) for item in ahead]
    assert seen == [(0, 2), (1, 3), (2, 4)]


def test_an_error_comes_after_the_items_before_it_and_keeps_nothing_alive():
    class Held:
        pass

    def items(held):
        yield 1
        yield 2
        raise OSError(f"gone with {held}")

    held = Held()
    reference = weakref.ref(held)
    ahead = one_ahead(items(held))
    del held
    assert [next(ahead), next(ahead)] == [1, 2]
    gc.disable()  # what is checked is that there is no cycle to collect
    try:
        with pytest.raises(OSError, match="gone with"):
            next(ahead)
        del ahead
        assert reference() is None
    finally:
        gc.enable()


def test_a_loop_that_is_left_stops_the_loader(make):
    loader = make()
    for _ in on_device(loader, "cpu"):
        break
    assert "softshard-loader" not in [thread.name for thread in threading.enumerate()]


def test_a_batch_moves_with_everything_in_it(make):
    batch = next(iter(make(targets="relabel")))
    batch.teacher = TeacherLevels(
        torch.zeros(12, 2, dtype=torch.int64), torch.zeros(12, 2, dtype=torch.float16)
    )
    moved = batch.to("meta", non_blocking=True)
    assert moved.keys == batch.keys
    for name, value in batch.to_dict().items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta", name
            assert getattr(moved, name).stride() == value.stride(), name
    assert isinstance(moved.teacher, TeacherLevels)
    assert {part.device.type for part in moved.teacher} == {"meta"}
    assert batch.images.device.type == "cpu"


def test_tensors_are_found_in_lists_dicts_and_tuples_and_the_rest_stays():
    item = {"a": [torch.ones(1), "x"], "b": (torch.ones(2), None, 3)}
    found = map_tensors(item, torch.neg)
    assert found == {"a": [-torch.ones(1), "x"], "b": (found["b"][0], None, 3)}
    assert found["b"][0].tolist() == [-1, -1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_pinning_without_a_gpu_changes_nothing(make):
    loader = make(pin_memory=True)
    assert not loader.pin_memory
    for plain, batch in zip(make(), loader, strict=True):
        assert torch.equal(plain.images, batch.images)


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("pinned", [pytest.param(value, marks=gpu) for value in (False, True)])
def test_batches_copied_to_a_gpu_ahead_are_the_same(make, pinned):
    source = make(targets="relabel", pin_memory=pinned)
    kept = []
    for batch in on_device(source, "cuda"):
        # Work that is still running when the next copies begin, and reads the batch late.
        torch.cuda._sleep(20_000_000)
        kept.append((batch.images.clone(), batch.targets.clone(), batch.keys))
    for host, (images, targets, keys) in zip(make(targets="relabel", pin_memory=pinned), kept, strict=True):
        tensors = [value for value in host.to_dict().values() if isinstance(value, torch.Tensor)]
        assert all(tensor.is_pinned() == pinned for tensor in tensors)
        assert torch.equal(host.images, images.cpu())
        assert torch.equal(host.targets, targets.cpu())
        assert host.keys == keys
