"""A column of file names: one blob of bytes and offsets, a few bytes a name instead of a Python object each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import IO, Any, overload

import numpy as np


class BytesInFile:
    """Bytes that lie in a file; slices of them are read when they are asked for.

    Args:
        file: that stays open and as it is.
        start: the first of them.
        size: how many.
    """

    __slots__ = ("_file", "_size", "_start")

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        pieces: list[bytes] = []
        while start < stop:  # one call reads 2 GB at most
            pieces.append(os.pread(self._file.fileno(), stop - start, self._start + start))
            if not pieces[-1]:
                raise OSError(f"{self._file.name}: expected {stop - start} bytes at {start}, found none")
            start += len(pieces[-1])
        return b"".join(pieces)


class Names(Sequence[str]):
    """Strings that do not change, packed.

    What all of them begin and end with (`n01440764_` and `.JPEG`) is kept once: ImageNet-21K's names take 9
    bytes each, 4 of them an offset, where a list of `str` takes 77.

    Args:
        names: file names; bytes that are not UTF-8 as `os.listdir` gives them (surrogates).
    """

    __slots__ = ("_blob", "_offsets", "prefix", "suffix")

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [name_bytes(name) for name in names]
        self.prefix: bytes = common_beginning(encoded)
        encoded = [name[len(self.prefix) :] for name in encoded]
        self.suffix: bytes = common_beginning([name[::-1] for name in encoded])[::-1]
        encoded = [name[: len(name) - len(self.suffix)] for name in encoded]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._offsets = ends.astype(np.int32 if ends[-1] < 2**31 else np.int64)
        self._blob: bytes | BytesInFile = b"".join(encoded)

    @classmethod
    def of(cls, prefix: bytes, suffix: bytes, lengths: np.ndarray, middles: bytes) -> Names:
        """Names from what `prefix`, `suffix`, `lengths` and `middles` of others were."""
        names = cls()
        names.prefix, names.suffix, names._blob = prefix, suffix, middles
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if ends[-1] != len(middles):
            raise ValueError(f"expected lengths that sum to {len(middles)}, found {ends[-1]}")
        names._offsets = ends.astype(np.int32 if ends[-1] < 2**31 else np.int64)
        return names

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(self[j] for j in range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        middle = self._blob[self._offsets[i] : self._offsets[i + 1]]
        return name_text(self.prefix + middle + self.suffix)

    def __iter__(self) -> Iterator[str]:
        return map(name_text, self.each_bytes())

    def each_bytes(self) -> Iterator[bytes]:
        """The names as bytes, in order."""
        offsets = self._offsets.tolist()
        blob, prefix, suffix = self.middles, self.prefix, self.suffix
        for start, stop in pairwise(offsets):
            yield prefix + blob[start:stop] + suffix

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return (
                (self.prefix, self.suffix, self.middles) == (other.prefix, other.suffix, other.middles)
            ) and np.array_equal(self._offsets, other._offsets)
        if isinstance(other, Sequence) and not isinstance(other, str):
            return tuple(self) == tuple(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to a tuple, whose hash it does not have

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"

    @property
    def middles(self) -> bytes:
        """All that lies between the common beginning and end, of all names in one."""
        return self._blob[:]

    @property
    def in_file(self) -> bool:
        """Whether they were moved to a file."""
        return isinstance(self._blob, BytesInFile)

    def moved_to(self, file: IO[bytes]) -> Names:
        """The same names, whose text lies at the end of a file from now on; their offsets stay in memory."""
        start, moved = file.seek(0, os.SEEK_END), Names()
        file.write(self.middles)
        file.flush()
        moved.prefix, moved.suffix, moved._offsets = self.prefix, self.suffix, self._offsets
        moved._blob = BytesInFile(file, start, len(self._blob))
        return moved

    @property
    def lengths(self) -> np.ndarray:
        """Integer [N], bytes of each name between the common beginning and end."""
        return np.diff(self._offsets)

    @property
    def longest(self) -> int:
        """Bytes of the longest name."""
        return len(self.prefix) + len(self.suffix) + int(self.lengths.max(initial=0))

    def update(self, digest: hashlib._Hash | Any) -> None:
        """Feed a hash with the names; two columns feed the same bytes only where they are equal."""
        digest.update(b"%d %d %d\n" % (len(self), len(self.prefix), len(self.suffix)))
        digest.update(self.prefix + self.suffix)
        digest.update(self._offsets.astype("<i8").tobytes())
        digest.update(self.middles)


def common_beginning(names: Sequence[bytes]) -> bytes:
    """What all names begin with."""
    if not names:
        return b""
    low, high = min(names), max(names)
    same = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(same, min(len(low), len(high)))]


def name_bytes(name: str) -> bytes:
    """A file name's bytes, which need not be UTF-8; not os.fsencode, which depends on the locale."""
    return name.encode("utf-8", "surrogateescape")


def name_text(name: bytes) -> str:
    """The inverse of `name_bytes`."""
    return name.decode("utf-8", "surrogateescape")
