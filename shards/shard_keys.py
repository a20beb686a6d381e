"""The keys of a data set's samples, from its shards' indexes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .errors import DataError
from .files import sha256_hex
from .index import index_name
from .manifest import Manifest
from .names import name_bytes
from .parallel import in_threads, num_workers
from .shard_files import dataset_name, inside, read_index
from .text_limits import counted
from .writer import ShardRecord

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
    text = _index_text(dataset, manifest, number)
    _check_index(dataset, record, text)
    cut = len(manifest.components[-1]) + 1
    lines = text.splitlines()[1:]
    # The hash is right; the maker of a data set may mean harm, or have another idea of an index.
    if len(lines) != record.samples or not all(b" " in line for line in lines):
        raise DataError(
            f"{_index_name(dataset, record)}: expected a line of components for each of "
            f"{counted(record.samples, 'sample')}, found {counted(len(lines), 'line')}, or others. {_run(dataset)}"
        )
    return [line[line.rindex(b" ") + 1 : -cut] for line in lines]


def _index_name(dataset: str | Path, record: ShardRecord) -> str:
    return dataset_name(inside(dataset, index_name(record.name)))


def _index_text(dataset: str | Path, manifest: Manifest, number: int) -> bytes:
    record = manifest.shards[number]
    try:
        return read_index(dataset, record, len(manifest.components))
    except OSError as error:
        raise DataError(
            f"{_index_name(dataset, record)}: expected the shard's index, found: {error}. {_run(dataset)}"
        ) from error


def _check_index(dataset: str | Path, record: ShardRecord, text: bytes) -> None:
    if sha256_hex(text) != record.index_sha256:
        raise DataError(
            f"{_index_name(dataset, record)}: expected the manifest's SHA-256, found another. {_run(dataset)}"
        )


def _run(dataset: str | Path) -> str:
    return f"Run: softshard verify {dataset_name(dataset)}"


def find_key(dataset: str | Path, manifest: Manifest, key: str) -> tuple[int, int] | None:
    """The shard and the place in it of the first sample with a key, or None.

    Indexes are searched as bytes, several at a time, and only the one that has it is hashed: at
    most 15 s for 14 million samples (1,400 local indexes, on two cores).

    Raises:
        DataError: an index is missing, or the one with the key is not the manifest's.
    """
    # A member's name follows a space and ends its line; a key with either in it is none.
    if not key or any(character.isspace() for character in key):
        return None
    end = name_bytes(f" {key}.{manifest.components[-1]}\n")
    threads = min(len(manifest.shards), _THREADS_A_CORE * num_workers(None))
    texts = in_threads(partial(_index_text, dataset, manifest), range(len(manifest.shards)), threads)
    for number, text in enumerate(texts):
        at = text.find(end)
        if at >= 0:
            _check_index(dataset, manifest.shards[number], text)
            return number, text.count(b"\n", 0, at) - 1
    return None
