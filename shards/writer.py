"""Writes one shard: a POSIX ustar tar with fixed times, owners and order, and its `.idx`.

The same samples give the same bytes. A shard gets its name when it is whole (see `destination`), so that nothing
half-written ever has a shard's name.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from .destination import open_destination
from .errors import DataError
from .files import split_url
from .index import ShardIndex, format_index, index_name, padded
from .schema import COMPONENT_BY_SUFFIX, KEY_PATTERN, SUFFIX_PATTERN, TAR_BLOCK_BYTES, sorted_suffixes


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of one shard.

    Attributes:
        name: file name of the tar.
        samples: number of samples.
        bytes: size of the tar.
        sha256: of the tar, hex.
        index_sha256: of the `.idx`, hex.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    def to_json(self) -> dict:
        return asdict(self)


class ShardWriter:
    """Writes the samples of one shard.

    Use as a context manager; when the block ends well the shard and its index appear under their names and
    `record` is set, otherwise nothing stays behind.

    Args:
        path: where the shard goes, a path or any fsspec URL that can be written, ending in `.tar`.
        suffixes: the components that every sample has.

    Raises:
        DataError: a suffix that a member name cannot end in, or one given twice.
    """

    def __init__(self, path: str | Path, suffixes: Sequence[str]) -> None:
        self.path = path
        folder, self.name = split_url(path)
        self._destination = open_destination(folder)
        for suffix in suffixes:
            if not SUFFIX_PATTERN.fullmatch(suffix) or list(suffixes).count(suffix) > 1:
                raise DataError(
                    f"{self.name}: expected distinct component suffixes of at most 10 lower-case "
                    f"letters, digits, '_' and '.', found {list(suffixes)}"
                )
        self.suffixes = tuple(sorted_suffixes(suffixes))
        self.record: ShardRecord | None = None
        self._keys: list[str] = []
        self._seen: set[str] = set()
        self._offsets: list[list[int]] = []
        self._sizes: list[list[int]] = []
        self._position = 0
        self._sha256 = hashlib.sha256()
        self._staged = self._destination.stage(self.name)

    @property
    def num_samples(self) -> int:
        return len(self._keys)

    def write(self, key: str, parts: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: letters, digits, `_` and `-`, at most 89; unique in the shard.
            parts: component suffix to bytes, exactly the writer's components.

        Raises:
            DataError: another key or other components than a shard may have.
        """
        where = f"{self.name}: sample {key!r}"
        if not KEY_PATTERN.fullmatch(key):
            raise DataError(f"{where}: expected a key of 1 to 89 letters, digits, '_' or '-'")
        if key in self._seen:
            raise DataError(f"{where}: expected each key once in a shard, found it again")
        if set(parts) != set(self.suffixes):
            raise DataError(f"{where}: expected components {list(self.suffixes)}, found {sorted(parts)}")
        offsets, sizes = [], []
        for suffix in self.suffixes:
            data = parts[suffix]
            known = COMPONENT_BY_SUFFIX.get(suffix)
            if known and len(data) > known.max_bytes:
                raise DataError(
                    f"{where}, component {suffix!r}: expected at most {known.max_bytes} bytes, "
                    f"found {len(data)}"
                )
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size, header.mode, header.mtime = len(data), 0o644, 0
            self._append(header.tobuf(tarfile.USTAR_FORMAT))
            offsets.append(self._position)
            sizes.append(len(data))
            self._append(data)
            self._append(bytes(padded(len(data)) - len(data)))
        self._keys.append(key)
        self._seen.add(key)
        self._offsets.append(offsets)
        self._sizes.append(sizes)

    def _append(self, data: bytes) -> None:
        self._staged.file.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def close(self) -> ShardRecord:
        """Finish the shard: both files appear under their names, the index first.

        Raises:
            DataError: there is no sample.
        """
        try:
            return self._finish()
        except BaseException:
            self.abort()
            raise

    def _finish(self) -> ShardRecord:
        if not self._keys:
            raise DataError(f"{self.name}: expected at least one sample, found none")
        self._append(bytes(2 * TAR_BLOCK_BYTES))
        index = ShardIndex(
            self.suffixes,
            tuple(self._keys),
            np.array(self._offsets, np.int64),
            np.array(self._sizes, np.int64),
        )
        text = format_index(index).encode("ascii")
        self._destination.write(index_name(self.name), text)
        self._staged.publish()
        self.record = ShardRecord(
            name=self.name,
            samples=len(self._keys),
            bytes=self._position,
            sha256=self._sha256.hexdigest(),
            index_sha256=hashlib.sha256(text).hexdigest(),
        )
        return self.record

    def abort(self) -> None:
        """Drop what has been written."""
        self._staged.discard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
