"""The plain reader: one shard, front to back, with the standard library's tarfile.

It knows nothing of indexes, threads or DALI. Tests compare the loader with it; `verify`-like tools and people
who want to look at a shard can use it too.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from .errors import DataError
from .schema import CLS, COMPONENT_BY_SUFFIX, HIER, split_member_name


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
        DataError: not a tar, or a member longer than its component may be.
    """
    path = Path(path)
    key: str | None = None
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                member_key, suffix = split_member_name(member.name)
                known = COMPONENT_BY_SUFFIX.get(suffix)
                if known and member.size > known.max_bytes:
                    raise DataError(
                        f"{path.name}: member {member.name!r}: expected at most {known.max_bytes} bytes, "
                        f"found {member.size}"
                    )
                content = tar.extractfile(member)
                if content is None:
                    raise DataError(f"{path.name}: member {member.name!r}: expected a plain file")
                if key is not None and member_key != key:
                    yield Sample(key, parts)
                    parts = {}
                key = member_key
                parts[suffix] = content.read()
    except tarfile.TarError as error:
        raise DataError(
            f"{path.name}: expected a tar, found: {error}; the shard is damaged or cut short. "
            f"Copy it again and run: softshard verify {path.name}"
        ) from error
    if key is not None:
        yield Sample(key, parts)


def decode_class(data: bytes | memoryview, where: str) -> int:
    """The `cls` component: a class index.

    Raises:
        DataError: not decimal digits.
    """
    text = bytes(data)
    if not text.isdigit() or len(text) > CLS.max_bytes:
        raise DataError(f"{where}, component 'cls': expected a decimal class index, found {text[:20]!r}")
    return int(text)


def decode_levels(data: bytes | memoryview, where: str) -> np.ndarray:
    """The `hier.npy` component: int16 [L], or int16 [A, L] where a class has A paths.

    Raises:
        DataError: not such an array. Nothing is unpickled.
    """
    try:
        array = np.load(io.BytesIO(bytes(data)), allow_pickle=False, max_header_size=HIER.max_bytes)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{where}, component 'hier.npy': expected an int16 array, found: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.int16 or array.ndim not in (1, 2):
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{where}, component 'hier.npy': expected int16 [L], found {found}")
    return array


def decode_meta(data: bytes | memoryview, where: str) -> dict:
    """The `msgpack` component.

    Raises:
        DataError: not a MessagePack map with text keys.
    """
    try:
        meta = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise DataError(f"{where}, component 'msgpack': expected a MessagePack map, found: {error}") from error
    if not isinstance(meta, dict):
        raise DataError(f"{where}, component 'msgpack': expected a map, found {type(meta).__name__}")
    return meta


