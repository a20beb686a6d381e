"""Where the samples of existing data sets lie, and reading any of them by number.

Samples are numbered through: the first data set's in shard order, then the next one's. A sample's members are
neighbours in its tar, so an offset and a length say where it lies (20 bytes a sample in memory, whatever its
size), and the tar headers in between say what its members are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DataError
from .files import sha256_hex
from .index import ShardIndex, padded, parse_index
from .manifest import Manifest
from .reader import Sample
from .schema import TAR_BLOCK_BYTES, split_member_name
from .writer import ShardRecord

_READ_BYTES = 1 << 20


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
    """

    shards: tuple[Path, ...]
    starts: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    kept_bytes: np.ndarray
    key_hashes: np.ndarray

    def read(self, numbers: np.ndarray, drop: Sequence[str]) -> list[Sample]:
        """Read samples, each shard once and front to back; they come in the order asked for.

        Args:
            numbers: int64 [n], which samples.
            drop: component suffixes to leave out.

        Raises:
            DataError: a sample is not where the index says.
        """
        found: dict[int, Sample] = {}
        ascending = np.sort(numbers)
        owners = np.searchsorted(self.starts, ascending, side="right") - 1
        for owner in np.unique(owners).tolist():
            path = self.shards[owner]
            with open(path, "rb") as file:
                for number in ascending[owners == owner].tolist():
                    file.seek(int(self.offsets[number]))
                    block = file.read(int(self.lengths[number]))
                    found[number] = _parse_sample(block, int(self.lengths[number]), drop, path.name)
        return [found[number] for number in numbers.tolist()]


def index_samples(
    sources: Sequence[tuple[Path, Manifest]], drop: Sequence[str], progress: Callable[[int], object]
) -> SampleTable:
    """Index data sets, and make sure that every shard is still what its manifest says.

    A bit that flipped in a source would be given a new and valid hash in the result: so the sources are
    hashed first, which reads them once more.

    Args:
        sources: (folder, manifest) of each data set.
        drop: component suffixes to leave out.
        progress: told of the bytes looked at.

    Raises:
        DataError: a shard or an index is missing, damaged or of other bytes; every problem is named.
    """
    problems: list[str] = []
    parts: list[tuple[np.ndarray, ...]] = []
    paths: list[Path] = []
    starts = [0]
    for folder, manifest in sources:
        for record in manifest.shards:
            try:
                index = _checked_index(folder, record, progress)
                parts.append(_extents(index, drop, record.name))
            except DataError as error:
                problems.append(str(error))
                continue
            paths.append(folder / record.name)
            starts.append(starts[-1] + record.samples)
    if problems:
        raise DataError("\n".join([*problems, "Run: softshard verify DATASET"]))
    offsets, lengths, kept_bytes, hashes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return SampleTable(tuple(paths), np.array(starts), offsets, lengths, kept_bytes, hashes)


def _checked_index(folder: Path, record: ShardRecord, progress: Callable[[int], object]) -> ShardIndex:
    path = folder / record.name
    digest = hashlib.sha256()
    size = 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
                progress(len(chunk))
        text = path.with_suffix(".idx").read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: expected a file of the data set, found none") from error
    if size != record.bytes or digest.hexdigest() != record.sha256:
        raise DataError(
            f"{path}: expected {record.bytes} bytes of SHA-256 {record.sha256[:12]}, found {size} of "
            f"{digest.hexdigest()[:12]}; bytes have changed"
        )
    if sha256_hex(text) != record.index_sha256:
        raise DataError(
            f"{path.with_suffix('.idx')}: expected SHA-256 {record.index_sha256[:12]}, found "
            f"{sha256_hex(text)[:12]}; bytes have changed"
        )
    return parse_index(text.decode("ascii", "replace"), path.with_suffix(".idx").name, record.bytes)


def _extents(index: ShardIndex, drop: Sequence[str], where: str) -> tuple[np.ndarray, ...]:
    """Columns of a SampleTable for one shard."""
    members = TAR_BLOCK_BYTES + -(-index.sizes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    starts = index.offsets.min(axis=1) - TAR_BLOCK_BYTES
    lengths = (index.offsets - TAR_BLOCK_BYTES + members).max(axis=1) - starts
    if (lengths != members.sum(axis=1)).any():
        raise DataError(f"{where}: expected the members of each sample side by side, found gaps")
    kept = [column for column, suffix in enumerate(index.suffixes) if suffix not in drop]
    hashes = [hashlib.sha256(key.encode()).digest()[:8] for key in index.keys]
    return starts, lengths, members[:, kept].sum(axis=1), np.frombuffer(b"".join(hashes), ">u8")


def _parse_sample(block: bytes, length: int, drop: Sequence[str], where: str) -> Sample:
    """Take a sample's members out of its bytes in the tar."""
    key, parts, at = "", {}, 0
    try:
        if len(block) != length:
            raise ValueError(f"{len(block)} bytes")
        while at < len(block):
            header = block[at : at + TAR_BLOCK_BYTES]
            name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
            member_key, suffix = split_member_name(name)
            if key and member_key != key:
                raise ValueError(f"member {name!r}")
            key, at = member_key, at + TAR_BLOCK_BYTES
            if suffix not in drop:
                parts[suffix] = block[at : at + size]
            at += padded(size)
    except ValueError as error:
        raise DataError(
            f"{where}: expected a sample of {length} bytes, found {error}; the shard has changed meanwhile"
        ) from error
    return Sample(key, parts)
