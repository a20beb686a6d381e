"""Rows of lists while they are gathered into classes: beyond a limit they lie in a file, which nobody else sees.

The texts of 16 million web images are 5 GB. A plan needs one class's at a time, a shard those of its samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable
from itertools import pairwise
from tempfile import TemporaryFile
from typing import IO, Any

from .listing import ClassFolder
from .names import Names, name_text
from .schema import MIB
from .storage import public_name

_SEPARATOR = b"\0"
_IN_MEMORY_BYTES = 256 * MIB


class KeptRows:
    """Rows by class: a growing blob each, not a Python object a row.

    Args:
        limit: bytes of rows that stay in memory.
    """

    def __init__(self, limit: int = _IN_MEMORY_BYTES) -> None:
        self._limit = limit
        self._blobs: dict[Hashable, bytearray] = {}
        self._num_bytes = 0
        self._file: IO[bytes] | None = None
        self._chunks: dict[Hashable, list[tuple[int, int]]] = {}

    def add(self, group: Hashable, path: str, metadata: dict[str, Any]) -> None:
        """Add a row to those of a class, by any name for it."""
        extra = json.dumps(metadata, sort_keys=True) if metadata else ""
        row = path.encode("utf-8") + _SEPARATOR + extra.encode("ascii") + _SEPARATOR
        self._blobs.setdefault(group, bytearray()).extend(row)
        self._num_bytes += len(row)
        if self._num_bytes > self._limit:
            self._spill()

    @property
    def groups(self) -> set[Hashable]:
        """What classes were called so far."""
        return self._blobs.keys() | self._chunks.keys()

    def class_folder(self, name: str, groups: list[Hashable], where: str, problems: list[str]) -> ClassFolder:
        """A class of all rows that were added for it; they are forgotten.

        Args:
            name: the class.
            groups: what `add` was told.
            where: names the source in messages.
            problems: gets the paths that come twice.
        """
        cells = b"".join(map(self._take, groups)).split(_SEPARATOR)[:-1]
        rows = sorted(
            (name_text(path), extra.decode("ascii"))
            for path, extra in zip(cells[::2], cells[1::2], strict=True)
        )
        paths = [path for path, _ in rows]
        for path, following in pairwise(paths):
            if path == following:
                problems.append(
                    f"{where}: {public_name(path)!r}: expected once in class {name!r}, found it again"
                )
        metadata = Names(extra for _, extra in rows) if any(extra for _, extra in rows) else None
        if metadata is not None and self._file is not None:
            metadata = metadata.moved_to(self._file)
        return ClassFolder(name, "", paths, metadata=metadata)

    def _take(self, group: Hashable) -> bytes:
        file = self._file
        earlier = [os.pread(file.fileno(), size, at) for at, size in self._chunks.pop(group, ()) if file]
        return b"".join([*earlier, self._blobs.pop(group, b"")])

    def _spill(self) -> None:
        if self._file is None:
            self._file = TemporaryFile(prefix="softshard-rows-")  # noqa: SIM115 - open as long as its rows are wanted
        at = self._file.seek(0, os.SEEK_END)
        for group, blob in self._blobs.items():
            self._file.write(blob)
            self._chunks.setdefault(group, []).append((at, len(blob)))
            at += len(blob)
        self._file.flush()
        self._blobs.clear()
        self._num_bytes = 0
