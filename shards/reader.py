"""The plain reader: one shard, front to back, with the standard library's tarfile.

It knows nothing of `.idx` files, threads or DALI. Tests compare the loader with it; tools and people who want
to look at a shard can use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import DataError
from .index import tar_members


@dataclass(frozen=True)
class Sample:
    """One sample as it lies in a shard.

    Attributes:
        key: the sample's key.
        parts: component suffix to raw bytes.
    """

    key: str
    parts: dict[str, bytes]


def read_shard(path: str | Path) -> Iterator[Sample]:
    """Yield a shard's samples in order.

    Raises:
        DataError: see `tar_members`; or a component that a sample has twice.
    """
    path = Path(path)
    with open(path, "rb") as file:
        yield from read_samples(file, path.name)


def read_samples(file: BinaryIO, name: str) -> Iterator[Sample]:
    """The same of a shard that is open; `name` is for messages."""
    key: str | None = None
    parts: dict[str, bytes] = {}
    for member in tar_members(file, name):
        if key is not None and member.key != key:
            yield Sample(key, parts)
            parts = {}
        key = member.key
        if member.suffix in parts:
            raise DataError(
                f"{name}: sample {key!r}: expected component {member.suffix!r} once, found it again"
            )
        file.seek(member.offset)
        parts[member.suffix] = file.read(member.size)
    if key is not None:
        yield Sample(key, parts)
