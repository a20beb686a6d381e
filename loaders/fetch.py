"""Opens the shards of a data set: checks size and index, maps the tar into memory.

Those of a local folder are read straight from the page cache, nothing is copied; remote.py fetches the others.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.files import sha256_hex
from ..shards.index import ShardIndex, index_name, parse_index
from ..shards.manifest import Manifest
from ..shards.shard_files import dataset_path
from ..shards.storage import is_remote, public_name
from ..shards.writer import ShardRecord
from .fetch_stats import FetchStats

_MAX_OPEN = 256


class ShardUrl(str):
    """Where a remote shard comes from, without passwords."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The tar's own name."""
        return self.rpartition("/")[2]


@dataclass(frozen=True)
class OpenShard:
    """A shard that is mapped into memory.

    Attributes:
        path: the tar, for messages.
        data: the tar's bytes.
        array: the same bytes as a plain uint8 array, which DALI takes slices of without copying.
        index: where its members lie.
        classes: int64 [samples], -1 for none, where they do not stand in members `cls`: in somebody else's tars.
    """

    path: Path | ShardUrl
    data: memoryview
    array: np.ndarray
    index: ShardIndex
    classes: np.ndarray | None = None

    @classmethod
    def map(
        cls, path: Path | ShardUrl, descriptor: int, index: ShardIndex, classes: np.ndarray | None = None
    ) -> OpenShard:
        """Map an open file. The mapping holds a descriptor of its own, and with it the file's lock."""
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        return cls(path, memoryview(mapped), np.frombuffer(mapped, np.uint8), index, classes)

    def _span(self, sample: int, column: int) -> slice:
        start = int(self.index.offsets[sample, column])
        return slice(start, start + int(self.index.sizes[sample, column]))

    def member(self, sample: int, column: int) -> memoryview:
        """The bytes of one component of one sample."""
        return self.data[self._span(sample, column)]

    def members(self, sample: int) -> list[memoryview]:
        """The bytes of all components of one sample: for a whole batch three times as fast as one after the other."""
        data, starts, sizes = (
            self.data,
            self.index.offsets[sample].tolist(),
            self.index.sizes[sample].tolist(),
        )
        return [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def member_array(self, sample: int, column: int) -> np.ndarray:
        """The same as a uint8 array, which keeps the shard mapped for as long as it lives."""
        return self.array[self._span(sample, column)]

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


class Shards(Protocol):
    """The shards of a data set, by their numbers in the manifest."""

    def __getitem__(self, number: int) -> OpenShard:
        """An open shard; raises DataError where it cannot be had, or is not the manifest's."""
        ...

    def expect(self, steps: Iterator[Sequence[int]]) -> None:
        """Say which shards each coming step needs, so that they can be fetched ahead."""
        ...

    def reached(self, step: int) -> None:
        """Say that a step begins, counted from 0 since `expect`; the shards of those before may go."""
        ...

    def interrupt(self) -> None:
        """End all waiting, from another thread."""
        ...

    def forget(self) -> None:
        """Expect nothing more: fetching ends, and its threads."""
        ...

    def stats(self) -> FetchStats:
        """What has been fetched."""
        ...

    def close(self) -> None:
        """Let all shards go."""
        ...


class ShardFiles:
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
            size = path.stat().st_size
            text = path.with_suffix(".idx").read_bytes()
        except OSError as error:
            raise DataError(
                f"{record.name}: expected the shard and its .idx in {self._folder}, found: {error}. {run}"
            ) from error
        if size != record.bytes:
            cut = "the shard is cut short" if size < record.bytes else "it is another shard"
            raise DataError(f"{record.name}: expected {record.bytes} bytes, found {size}; {cut}. {run}")
        index = checked_index(text, record, self._manifest.components, run)
        with open(path, "rb") as file:
            return OpenShard.map(path, file.fileno(), index)

    def expect(self, steps: Iterator[Sequence[int]]) -> None:
        """Nothing is fetched."""

    def reached(self, step: int) -> None:
        """Nothing is fetched."""

    def interrupt(self) -> None:
        """Nothing waits."""

    def forget(self) -> None:
        """Nothing is fetched."""

    def stats(self) -> FetchStats:
        """Nothing is fetched."""
        return FetchStats()

    def close(self) -> None:
        """Forget the open shards; each is unmapped once nothing points into it."""
        self._open.clear()


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
