"""The keys of a data set's samples, from its shards' indexes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .errors import DataError
from .files import join_url, read_limited, sha256_hex
from .index import index_name
from .manifest import Manifest
from .parallel import in_threads, num_workers
from .schema import MAX_RECEIPT_BYTES
from .storage import public_name

_THREADS_A_CORE = 4  # of a bucket most of the time is waiting


def each_shards_keys(dataset: str | Path, manifest: Manifest) -> Iterator[list[bytes]]:
    """The keys of every shard, in the manifest's order; several are read at a time, about a second for a million samples.

    Raises:
        DataError: an index is missing or is not the manifest's.
    """
    threads = min(len(manifest.shards), _THREADS_A_CORE * num_workers(None))
    return in_threads(partial(shard_keys, dataset, manifest), range(len(manifest.shards)), threads)


def shard_keys(dataset: str | Path, manifest: Manifest, number: int) -> list[bytes]:
    """The keys of one shard, from the last name of each line of its index.

    Raises:
        DataError: the index is missing or is not the manifest's.
    """
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
    lines = text.splitlines()[1:]
    # The hash is right; the maker of a data set may mean harm, or have another idea of an index.
    if len(lines) != record.samples or not all(b" " in line for line in lines):
        raise DataError(
            f"{public_name(url)}: expected a line of components for each of {record.samples} samples, found {len(lines)} "
            f"lines, or others. {run}"
        )
    return [line[line.rindex(b" ") + 1 : -cut] for line in lines]
