"""Opens the shards of a data set: checks size and index, maps the tar into memory.

Local folders only: shards are read straight from the page cache, nothing is copied.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.files import sha256_hex
from ..shards.index import ShardIndex, parse_index
from ..shards.manifest import Manifest

_MAX_OPEN = 256


@dataclass(frozen=True)
class OpenShard:
    """A shard that is mapped into memory.

    Attributes:
        path: the tar.
        data: the tar's bytes.
        array: the same bytes as a plain uint8 array, which DALI takes slices of without copying.
        index: where its members lie.
    """

    path: Path
    data: memoryview
    array: np.ndarray
    index: ShardIndex

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
    if "://" in str(dataset) or "::" in str(dataset):
        raise UsageError(
            f"{dataset}: expected a local folder, found a URL. Copy the data set first, and give that folder"
        )


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
        self._folder = Path(folder)
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
        if sha256_hex(text) != record.index_sha256:
            raise DataError(
                f"{path.with_suffix('.idx').name}: expected the manifest's SHA-256, found another. {run}"
            )
        index = parse_index(text.decode("ascii", "replace"), path.with_suffix(".idx").name, size)
        if len(index.keys) != record.samples or index.suffixes != self._manifest.components:
            raise DataError(
                f"{record.name}: expected {record.samples} samples of {list(self._manifest.components)}, "
                f"found {len(index.keys)} of {list(index.suffixes)}. {run}"
            )
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return OpenShard(path, memoryview(mapped), np.frombuffer(mapped, np.uint8), index)

    def close(self) -> None:
        """Forget the open shards; each is unmapped once nothing points into it."""
        self._open.clear()
