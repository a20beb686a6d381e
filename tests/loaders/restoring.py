"""Saves a loader's state before every batch, restores each, and compares everything after it, as Grain's tests do."""

import json

import torch

from softshard.loaders import Augment, Loader


def make(dataset, **options):
    defaults = {
        "batch_size": 12,
        "augment": Augment(size=16),
        "targets": "relabel",
        "dtype": "uint8",
        "last_batch": "pad",
        "seed": 4,
        "window": 30,
        "lanes": 2,
        "num_threads": 2,
    }
    return Loader(dataset, **{**defaults, **options})


def per_sample(batches):
    """Key and crop to everything the batches say of that draw; a thin image may be drawn twice with one crop."""
    found = {}
    for batch in batches:
        for slot in range(len(batch)):
            if batch.valid[slot]:
                crop = (*batch.crops[slot].tolist(), bool(batch.flips[slot]))
                parts = (batch.images, batch.classes, batch.levels, batch.targets, batch.crops, batch.flips)
                values = [part[slot] for part in parts if part is not None]
                found.setdefault((batch.keys[slot], crop), []).append(values)
    return found


def assert_same_samples(found, expected, ordered=True):
    """The same samples with the same pixels, labels and crops, in the same order unless told otherwise."""
    one, other = per_sample(found), per_sample(expected)
    assert (list(one) if ordered else sorted(one)) == (list(other) if ordered else sorted(other))
    for key, draws in other.items():
        for mine, values in zip(one[key], draws, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, values, strict=True)), key


def joined(parts):
    """The batches of several ranks as global batches, slot after slot."""
    steps = zip(*parts, strict=True)  # strict: every rank has the same number of steps
    return [batch for step in steps for batch in step]


def check_state_before_every_batch(dataset, restored, *, epoch=1, **options):
    """Save a state before every batch, restore each, and compare everything after it.

    Args:
        dataset: folder of the data set.
        restored: option sets, one a rank, of the loaders that continue.
        epoch: epoch to iterate.
        options: of the loader that is interrupted.
    """
    with make(dataset, **options) as loader:
        loader.set_epoch(epoch)
        states, batches = [loader.state_dict()], []
        for batch in loader:
            batches.append(batch)
            states.append(loader.state_dict())
    assert len(states) == len(batches) + 1 > 5
    for number, state in enumerate(states):
        parts = []
        for rank_options in restored:
            with make(dataset, **rank_options) as other:
                other.load_state_dict(json.loads(json.dumps(state)))
                assert other.state_dict() | {"global_batch": 0} == state | {"global_batch": 0}
                parts.append(list(other))
        yield number, batches[number:], joined(parts)
