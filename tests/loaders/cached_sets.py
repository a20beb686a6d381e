"""Epochs of data sets behind URLs, and what their cache holds."""

import os
import threading

from softshard.loaders import Augment, Loader
from softshard.shards import Manifest

OPTIONS = {"batch_size": 8, "augment": Augment(size=16), "dtype": "uint8", "num_threads": 2, "window": 16}


def epoch(dataset, number=0, **options):
    """All batches of an epoch."""
    with Loader(dataset, **{**OPTIONS, **options}) as loader:
        loader.set_epoch(number)
        return list(loader)


def keys_of(batches):
    return [batch.keys for batch in batches]


def shard_bytes(dataset):
    return [shard.bytes for shard in Manifest.load(dataset).shards]


def cached(cache, pattern="*.tar"):
    return sorted((cache.path / "shards").glob(pattern))


def open_files(cache):
    """Files of the cache that this process has open or mapped."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(str(cache.path)):
            found.append(target)
    return found


def fetching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("softshard-fetch")]


def change_byte(path, at=5000):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
