"""Where the samples of existing data sets lie, and reading any of them by number.

Samples are numbered through: the first data set's in shard order, then the next one's. A sample's members are
neighbours in its tar, so an offset and a length say where it lies (20 bytes a sample in memory, whatever its
size), and the tar headers in between say what its members are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from .components import decode_meta
from .errors import DataError
from .files import sha256_hex
from .index import ShardIndex, index_name, padded, parse_index
from .manifest import Manifest
from .names import Names, name_bytes
from .parallel import in_threads
from .reader import Sample
from .schema import META, TAR_BLOCK_BYTES, split_member_name
from .shard_files import RANGE_BYTES, dataset_name, hash_shard, inside, open_shard, read_index, read_range
from .storage import Storage, open_storage
from .writer import ShardRecord

_READERS = 8  # requests to a server at a time
# Bytes between two samples that are rather read than left out: a request costs about as much time.
_MOST_GAP_BYTES = 128 * 1024


class SourceShard(NamedTuple):
    """A shard of a data set that is read.

    Attributes:
        dataset: its folder or URL.
        name: the tar.
    """

    dataset: str | Path
    name: str

    @property
    def where(self) -> str:
        """How messages name it."""
        return dataset_name(inside(self.dataset, self.name))


class _Span(NamedTuple):
    """Bytes of a shard that are read at once."""

    shard: SourceShard
    start: int
    stop: int
    numbers: list[int]  # of the samples in it, ascending


@dataclass(frozen=True)
class SampleTable:
    """Every sample of some data sets, by number; N samples in all.

    Attributes:
        shards: the tars, in order.
        starts: int64 [shards + 1], number of each shard's first sample.
        offsets: int64 [N], byte offset of a sample's first tar header.
        lengths: int64 [N], bytes of its members with their headers and padding.
        kept_bytes: int64 [N], the same without the components that are left out.
        key_hashes: uint64 [N], 64 bits of each key's SHA-256.
        paths: for each shard its samples' original paths; empty where they were not asked for.
    """

    shards: tuple[SourceShard, ...]
    starts: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    kept_bytes: np.ndarray
    key_hashes: np.ndarray
    paths: tuple[Names, ...] = ()

    def shard_of(self, number: int) -> int:
        """Which of `shards` a sample is in."""
        return int(np.searchsorted(self.starts, number, side="right")) - 1

    def path(self, number: int) -> str:
        """A sample's original path."""
        shard = self.shard_of(number)
        return self.paths[shard][number - int(self.starts[shard])]

    def read(self, numbers: np.ndarray, drop: Sequence[str]) -> list[Sample]:
        """Read samples, each shard front to back; they come in the order asked for.

        Samples that are neighbours are read at once; behind a URL also those that nearly are, and a few
        requests run at a time.

        Args:
            numbers: int64 [n], which samples, each once.
            drop: component suffixes to leave out.

        Raises:
            DataError: a sample is not where the index says, or the server is away.
        """
        found: dict[int, Sample] = {}
        spans = groupby(self._spans(np.sort(numbers)), lambda span: span.shard.dataset)
        for dataset, of_dataset in spans:
            storage = open_storage(dataset)
            read = partial(self._read_span, storage, drop)
            for samples in in_threads(read, of_dataset, _READERS if storage.remote else 1):
                found.update(samples)
        return [found[number] for number in numbers.tolist()]

    def _spans(self, ascending: np.ndarray) -> Iterator[_Span]:
        owners = np.searchsorted(self.starts, ascending, side="right") - 1
        starts = self.offsets[ascending]
        stops = starts + self.lengths[ascending]
        span: _Span | None = None
        rows = zip(ascending.tolist(), owners.tolist(), starts.tolist(), stops.tolist(), strict=True)
        for number, owner, start, stop in rows:
            shard = self.shards[owner]
            if span is not None and span.shard is shard and stop - span.start <= RANGE_BYTES:
                most_gap = 0 if isinstance(shard.dataset, Path) else _MOST_GAP_BYTES
                if start - span.stop <= most_gap:
                    span.numbers.append(number)
                    span = span._replace(stop=stop)
                    continue
            if span is not None:
                yield span
            span = _Span(shard, start, stop, [number])
        if span is not None:
            yield span

    def _read_span(self, storage: Storage, drop: Sequence[str], span: _Span) -> list[tuple[int, Sample]]:
        name = span.shard.name
        try:
            data = memoryview(read_range(storage, name, span.start, span.stop - span.start))
        except FileNotFoundError as error:
            raise DataError(
                f"{span.shard.where}: expected a shard, found none; the data set has changed meanwhile"
            ) from error
        samples = []
        for number in span.numbers:
            start, length = int(self.offsets[number]) - span.start, int(self.lengths[number])
            samples.append((number, _parse_sample(data[start : start + length], length, drop, name)))
        return samples


class _ShardRows(NamedTuple):
    """A shard's part of a SampleTable."""

    shard: SourceShard
    offsets: np.ndarray
    lengths: np.ndarray
    kept_bytes: np.ndarray
    key_hashes: np.ndarray
    paths: Names


def index_samples(
    sources: Sequence[tuple[str | Path, Manifest]],
    drop: Sequence[str],
    progress: Callable[[int], object],
    *,
    workers: int = 1,
    with_paths: bool = False,
) -> SampleTable:
    """Index data sets, and make sure that every shard is still what its manifest says.

    A bit that flipped in a source would be given a new and valid hash in the result: so the sources are
    hashed first, which reads them once more.

    Args:
        sources: (folder or URL, manifest) of each data set.
        drop: component suffixes to leave out.
        progress: told of the bytes looked at, by several threads.
        workers: threads; each reads a shard at a time.
        with_paths: keep the samples' original paths (some 30 bytes each); of a shard behind a URL a copy lies
            in the folder for temporary files meanwhile.

    Raises:
        DataError: a shard or an index is missing, damaged or of other bytes, or a server is away; every problem
            is named.
    """

    def look(source: tuple[str | Path, Manifest, ShardRecord]) -> _ShardRows | DataError:
        try:
            return _checked_shard(*source, drop, progress, with_paths)
        except DataError as error:
            return error

    shards = [(dataset, manifest, record) for dataset, manifest in sources for record in manifest.shards]
    results = list(in_threads(look, shards, workers))
    problems = [str(result) for result in results if isinstance(result, DataError)]
    if problems:
        raise DataError("\n".join([*problems, "Run: softshard verify DATASET"]))
    rows = [result for result in results if not isinstance(result, DataError)]
    return SampleTable(
        shards=tuple(row.shard for row in rows),
        starts=np.cumsum([0, *(len(row.offsets) for row in rows)]),
        offsets=np.concatenate([row.offsets for row in rows]),
        lengths=np.concatenate([row.lengths for row in rows]),
        kept_bytes=np.concatenate([row.kept_bytes for row in rows]),
        key_hashes=np.concatenate([row.key_hashes for row in rows]),
        paths=tuple(row.paths for row in rows) if with_paths else (),
    )


def _checked_shard(
    dataset: str | Path,
    manifest: Manifest,
    record: ShardRecord,
    drop: Sequence[str],
    progress: Callable[[int], object],
    with_paths: bool,
) -> _ShardRows:
    shard = SourceShard(dataset, record.name)
    missing = shard.where
    try:
        if with_paths:
            with open_shard(dataset, record, progress) as opened:
                _check_bytes(shard, record, opened.size, opened.sha256)
                missing = dataset_name(inside(dataset, index_name(record.name)))
                index = _checked_index(dataset, manifest, record, missing)
                paths = Names(_original_paths(opened.file, index, record.name))
        else:
            _check_bytes(shard, record, *hash_shard(dataset, record, progress))
            missing = dataset_name(inside(dataset, index_name(record.name)))
            index = _checked_index(dataset, manifest, record, missing)
            paths = Names()
    except OSError as error:
        found = "none" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise DataError(
            f"{missing}: expected a file of the data set, found {found}. Run: softshard verify {dataset_name(dataset)}"
        ) from error
    offsets, lengths, kept_bytes = _extents(index, drop, record.name)
    return _ShardRows(shard, offsets, lengths, kept_bytes, key_hashes(index.keys), paths)


def _check_bytes(shard: SourceShard, record: ShardRecord, size: int, sha256: str) -> None:
    if size != record.bytes or sha256 != record.sha256:
        found = f"{size} of {sha256[:12]}; bytes have changed" if size <= record.bytes else "more"
        raise DataError(
            f"{shard.where}: expected {record.bytes} bytes of SHA-256 {record.sha256[:12]}, found {found}"
        )


def _checked_index(dataset: str | Path, manifest: Manifest, record: ShardRecord, where: str) -> ShardIndex:
    text = read_index(dataset, record, len(manifest.components))
    if sha256_hex(text) != record.index_sha256:
        raise DataError(
            f"{where}: expected SHA-256 {record.index_sha256[:12]}, found {sha256_hex(text)[:12]}; bytes have changed"
        )
    return parse_index(text.decode("ascii", "replace"), index_name(record.name), record.bytes)


def _original_paths(file: BinaryIO, index: ShardIndex, where: str) -> Iterator[str]:
    column = index.column(META.suffix)
    rows = zip(index.keys, index.offsets[:, column].tolist(), index.sizes[:, column].tolist(), strict=True)
    for key, offset, size in rows:
        file.seek(offset)
        path = decode_meta(file.read(size), f"{where}: sample {key!r}").get("path")
        if not isinstance(path, str):
            raise DataError(f"{where}: sample {key!r}: expected its original path, found {path!r:.40}")
        yield path


def _extents(index: ShardIndex, drop: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, lengths and kept bytes of one shard's samples."""
    members = TAR_BLOCK_BYTES + padded(index.sizes)
    starts = index.offsets.min(axis=1) - TAR_BLOCK_BYTES
    lengths = (index.offsets - TAR_BLOCK_BYTES + members).max(axis=1) - starts
    if (lengths != members.sum(axis=1)).any():
        raise DataError(f"{where}: expected the members of each sample side by side, found gaps")
    kept = [column for column, suffix in enumerate(index.suffixes) if suffix not in drop]
    return starts, lengths, members[:, kept].sum(axis=1)


def key_hashes(keys: Sequence[str]) -> np.ndarray:
    """uint64 [keys]: 64 bits of each key's SHA-256."""
    hashes = [hashlib.sha256(name_bytes(key)).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


def alike(hashes: np.ndarray) -> np.ndarray:
    """int64: places of the hashes that another place has too, those of one hash side by side, in order."""
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    shared = np.zeros(len(hashes), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    return order[shared]


def _parse_sample(block: memoryview, length: int, drop: Sequence[str], where: str) -> Sample:
    """Take a sample's members out of its bytes in the tar."""
    key, parts, at = "", {}, 0
    try:
        if len(block) != length:
            raise ValueError(f"{len(block)} bytes")
        while at < len(block):
            header = bytes(block[at : at + TAR_BLOCK_BYTES])
            name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
            member_key, suffix = split_member_name(name)
            if key and member_key != key:
                raise ValueError(f"member {name!r}")
            key, at = member_key, at + TAR_BLOCK_BYTES
            if suffix not in drop:
                parts[suffix] = bytes(block[at : at + size])
            at += padded(size)
    except ValueError as error:
        raise DataError(
            f"{where}: expected a sample of {length} bytes, found {error}; the shard has changed meanwhile"
        ) from error
    return Sample(key, parts)
