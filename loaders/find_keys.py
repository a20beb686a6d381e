"""Finds samples by their keys, and lists all keys, in the indexes of all shards."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.files import join_url, read_limited, sha256_hex
from ..shards.index import index_name
from ..shards.manifest import Manifest
from ..shards.parallel import in_threads, num_workers
from ..shards.schema import MAX_RECEIPT_BYTES
from ..shards.storage import public_name

_THREADS_A_CORE = 4  # of a bucket most of the time is waiting


def find_keys(dataset: str | Path, manifest: Manifest, keys: Collection[str]) -> np.ndarray:
    """The samples with these keys.

    Every shard's `.idx` is read and hashed once, several at a time: about a second for a million samples.

    Args:
        dataset: folder or fsspec URL of the data set.
        manifest: its manifest.
        keys: each of one sample or more (a foreign data set may use a key in several shards).

    Returns:
        int64 [N], ascending sample indices in the manifest's order.

    Raises:
        UsageError: keys of no sample; the first ten are named.
        DataError: an index is missing or is not the manifest's.
    """
    wanted = {key.encode("utf-8", "surrogateescape") for key in keys}

    def places(number: int) -> tuple[list[int], set[bytes]]:
        found = [(i, key) for i, key in enumerate(_keys(dataset, manifest, number)) if key in wanted]
        return [i for i, _ in found], {key for _, key in found}

    samples, first, missing = [], 0, set(wanted)
    threads = min(len(manifest.shards), _THREADS_A_CORE * num_workers(None))
    for shard, (inside, seen) in zip(
        manifest.shards, in_threads(places, range(len(manifest.shards)), threads), strict=True
    ):
        samples.append(np.array(inside, np.int64) + first)
        first += shard.samples
        missing -= seen
    if missing:
        named = sorted(key.decode("utf-8", "surrogateescape") for key in missing)
        raise UsageError(
            f"{dataset}: expected keys of its {manifest.num_samples:,} samples, found {len(missing):,} of {len(wanted):,} "
            f"that it does not have: {', '.join(map(repr, named[:10]))}{' and more' if len(named) > 10 else ''}. "
            "Keys stand in the shards' .idx files, and batches say theirs"
        )
    return np.concatenate(samples)


def every_key(dataset: str | Path, manifest: Manifest) -> list[str]:
    """The keys of all samples, in the manifest's order; reading as `find_keys` does.

    Raises:
        DataError: an index is missing or is not the manifest's.
    """
    threads = min(len(manifest.shards), _THREADS_A_CORE * num_workers(None))
    shards = in_threads(partial(_keys, dataset, manifest), range(len(manifest.shards)), threads)
    return [key.decode("utf-8", "surrogateescape") for keys in shards for key in keys]


def _keys(dataset: str | Path, manifest: Manifest, number: int) -> list[bytes]:
    """The keys of one shard, from the last name of each line of its index."""
    record = manifest.shards[number]
    url = join_url(dataset, index_name(record.name))
    run = f"Run: softshard verify {public_name(str(dataset))}"
    try:
        text = read_limited(url, MAX_RECEIPT_BYTES)
    except OSError as error:
        raise DataError(f"{public_name(url)}: expected the shard's index, found: {error}. {run}") from error
    if sha256_hex(text) != record.index_sha256:
        raise DataError(f"{public_name(url)}: expected the manifest's SHA-256, found another. {run}")
    cut = len(manifest.components[-1]) + 1
    return [line[line.rindex(b" ") + 1 : -cut] for line in text.splitlines()[1:]]
