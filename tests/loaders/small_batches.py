"""Loaders of small batches, the last of them padded."""

from softshard.loaders import Augment, Loader


def make(dataset, **options):
    defaults = {"batch_size": 6, "augment": Augment(size=16), "dtype": "uint8", "last_batch": "pad"}
    return Loader(dataset, **{**defaults, "num_threads": 2, **options})
