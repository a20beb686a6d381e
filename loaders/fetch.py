"""Opens the shards of a data set: checks size and index, and reads samples out of the tar.

Those of a local folder are read in place; remote.py fetches the others.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..shards.errors import DataError, StorageError, UsageError
from ..shards.files import sha256_hex
from ..shards.index import ShardIndex, index_name, parse_index
from ..shards.manifest import Manifest
from ..shards.schema import MIB
from ..shards.shard_files import dataset_path
from ..shards.storage import is_remote, public_name
from ..shards.writer import ShardRecord
from .fetch_stats import FetchStats

_MAX_OPEN = 256
_HASHED_BYTES = 4 * MIB  # at a time


class ShardUrl(str):
    """Where a remote shard comes from, without passwords."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The tar's own name."""
        return self.rpartition("/")[2]


class ShardBytes:
    """The bytes of an open file, for several threads; closed with the last reference.

    They are read, not mapped: a page of a mapping that is gone, because somebody cut the file or its disk fails, ends the
    process with SIGBUS, where a read says so. That costs 9 us an image of 224 pixels (on an AMD EPYC), 3 % of a batch.

    Args:
        descriptor: of the file. A copy of it is kept, and with it the file's lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def read(self, start: int, size: int) -> memoryview:
        """`size` bytes from `start`; fewer where the file ends. Raises OSError where its disk fails."""
        data = os.pread(self._descriptor, size, start)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), start + len(data))):
            data += more  # network file systems may give less at a time
        return memoryview(data)

    def sha256(self, check: Callable[[], object] = lambda: None) -> str:
        """SHA-256 of all of them, hex.

        Args:
            check: called now and then; what it raises ends the hashing.
        """
        digest, at = hashlib.sha256(), 0
        while data := os.pread(self._descriptor, _HASHED_BYTES, at):
            check()
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # when the interpreter ends, os is gone first
        if hasattr(self, "_descriptor"):
            close(self._descriptor)


@dataclass(frozen=True)
class OpenShard:
    """A shard that is open for reading.

    Attributes:
        path: the tar, for messages.
        data: the tar's bytes.
        index: where its members lie.
        classes: int64 [samples], -1 for none, where they do not stand in members `cls`: in somebody else's tars.
    """

    path: Path | ShardUrl
    data: ShardBytes
    index: ShardIndex
    classes: np.ndarray | None = None

    def member(self, sample: int, column: int) -> memoryview:
        """The bytes of one component of one sample; the errors are those of `members`."""
        return self._read(
            sample, int(self.index.offsets[sample, column]), int(self.index.sizes[sample, column])
        )

    def members(self, sample: int) -> list[memoryview]:
        """The bytes of all components of one sample, in one read.

        Raises:
            DataError: the file has become shorter since it was opened.
            StorageError: its disk fails.
        """
        starts, sizes = self.index.offsets[sample].tolist(), self.index.sizes[sample].tolist()
        spans = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        # One that the data set does not have has no bytes, and no place either.
        first = min((start for start, end in spans if end > start), default=0)
        data = self._read(sample, first, max((end for start, end in spans if end > start), default=0) - first)
        return [data[start - first : end - first] if end > start else data[:0] for start, end in spans]

    def member_array(self, sample: int, column: int) -> np.ndarray:
        """The bytes of one component as a uint8 array."""
        return np.frombuffer(self.member(sample, column), np.uint8)

    def _read(self, sample: int, start: int, size: int) -> memoryview:
        try:
            data = self.data.read(start, size)
        except OSError as error:
            raise StorageError(
                f"{self.sample(sample)}: expected {size} bytes of {self.path}, found: {error}"
            ) from error
        if len(data) != size:
            raise DataError(
                f"{self.path.name}: expected {size} bytes of sample {self.index.keys[sample]!r} at {start}, found "
                f"{len(data)}; the shard was cut short while it was in use. Copy it again, to another name that is then "
                f"renamed, or run: softshard verify {self.path}"
            )
        return data

    def sample(self, sample: int) -> str:
        """How messages name a sample."""
        return f"{self.path.name}: sample {self.index.keys[sample]!r}"

    def where(self, sample: int, suffix: str) -> str:
        """How messages name a component."""
        return f"{self.sample(sample)}, component {suffix!r}"


def check_local(dataset: str | Path) -> None:
    """Refuse a URL.

    Raises:
        UsageError: the data set is not a local folder.
    """
    if is_remote(dataset):
        raise UsageError(
            f"{public_name(str(dataset))}: expected a local folder, found a URL. Copy the data set first, and give that "
            "folder"
        )


@dataclass(frozen=True)
class Following:
    """What comes after an iteration if nobody decides otherwise, so that its first shards are fetched in good time.

    Attributes:
        begins: what the iteration begins with: its epoch, and the samples that every lane has given before.
        num_steps: of the iteration.
        next_begins: the same of the next one.
        next_steps: begins to count its steps: the shards that each needs. None where this iteration is the last.
    """

    begins: tuple[int, int]
    num_steps: int
    next_begins: tuple[int, int]
    next_steps: Callable[[], Iterator[Any]] | None


class Shards(Protocol):
    """The shards of a data set, by their numbers in the manifest.

    What is said of the coming steps is for those that have to be fetched.
    """

    def __getitem__(self, number: int) -> OpenShard:
        """An open shard; raises DataError where it cannot be had, or is not the manifest's."""
        ...

    def close(self) -> None:
        """Let all shards go."""

    def expect(self, steps: Iterator[Sequence[int]], following: Following | None = None) -> None:
        """Say which shards each coming step needs, and what follows, so that they can be fetched ahead."""

    def reached(self, step: int) -> None:
        """Say that a step begins, counted from 0 since `expect`; the shards of those before may go."""

    def interrupt(self) -> None:
        """End all waiting, from another thread."""

    def forget(self) -> None:
        """Expect nothing more: fetching ends, and its threads."""

    def rest(self) -> None:
        """Say that all steps are done: only what follows is fetched on, if there is anything."""

    def abandon(self) -> None:
        """Let fetching end, and wait for nothing: called where garbage is collected, in whatever thread."""

    def stats(self) -> FetchStats:
        """What has been fetched."""
        ...


class ShardFiles(Shards):
    """The shards of a local data set, opened when needed and kept open, least recently used closed first.

    Args:
        folder: the data set's folder.
        manifest: its manifest.

    Raises:
        UsageError: the data set is not a local folder.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        check_local(folder)
        self._folder = Path(dataset_path(folder))
        self._manifest = manifest
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __getitem__(self, number: int) -> OpenShard:
        """The manifest's shard of that number.

        Raises:
            DataError: the shard or its index is missing, cut short, or not the manifest's.
        """
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._map(number)
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard

    def _map(self, number: int) -> OpenShard:
        record = self._manifest.shards[number]
        path = self._folder / record.name
        run = f"Copy it again, or run: softshard verify {path}"
        try:
            text = path.with_suffix(".idx").read_bytes()
            with open(path, "rb") as file:
                data, size = ShardBytes(file.fileno()), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DataError(
                f"{record.name}: expected the shard and its .idx in {self._folder}, found: {error}. {run}"
            ) from error
        if size != record.bytes:
            cut = "the shard is cut short" if size < record.bytes else "it is another shard"
            raise DataError(f"{record.name}: expected {record.bytes} bytes, found {size}; {cut}. {run}")
        index = checked_index(text, record, self._manifest.components, run)
        return OpenShard(path, data, index)

    def close(self) -> None:
        """Forget the open shards; each is closed once nothing reads it."""
        self._open.clear()

    def _nothing(self, *_: Any, **__: Any) -> None:
        """They are read in place: nothing is fetched."""

    expect = reached = interrupt = forget = rest = abandon = _nothing

    def stats(self) -> FetchStats:
        return FetchStats()


def checked_index(text: bytes, record: ShardRecord, components: Sequence[str], run: str) -> ShardIndex:
    """Read a shard's index.

    Args:
        text: of the `.idx`.
        record: what the manifest says of the shard.
        components: of the data set.
        run: what messages say to do.

    Raises:
        DataError: it is not the manifest's, or its samples are not.
    """
    name = index_name(record.name)
    if sha256_hex(text) != record.index_sha256:
        raise DataError(f"{name}: expected the manifest's SHA-256, found another. {run}")
    index = parse_index(text.decode("ascii", "replace"), name, record.bytes)
    if len(index.keys) != record.samples or index.suffixes != tuple(components):
        raise DataError(
            f"{record.name}: expected {record.samples} samples of {list(components)}, "
            f"found {len(index.keys)} of {list(index.suffixes)}. {run}"
        )
    return index
