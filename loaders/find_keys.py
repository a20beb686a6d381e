"""Finds samples by their keys, in the indexes of all shards."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.shard_keys import each_shards_keys


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
    wanted = {_stored(key) for key in keys}
    samples, first, missing = [], 0, set(wanted)
    for keys_of_shard in each_shards_keys(dataset, manifest):
        inside = [i for i, key in enumerate(keys_of_shard) if key in wanted]
        samples.append(np.array(inside, np.int64) + first)
        first += len(keys_of_shard)
        missing.difference_update(keys_of_shard)
    if missing:
        named = sorted(key.decode("utf-8", "surrogateescape") for key in missing)
        raise UsageError(
            f"{dataset}: expected keys of its {manifest.num_samples:,} samples, found {len(missing):,} of {len(wanted):,} "
            f"that it does not have: {', '.join(map(repr, named[:10]))}{' and more' if len(named) > 10 else ''}. "
            "Keys stand in the shards' .idx files, and batches say theirs"
        )
    return np.concatenate(samples)


def _stored(key: str) -> bytes:
    """A key as an index holds it."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold and no index does
        return key.encode("utf-8", "surrogatepass")
