"""The plain reader: one shard, front to back, with the standard library's tarfile.

It knows nothing of `.idx` files, threads or DALI. Tests compare the loader with it; tools and people who want
to look at a shard can use it too.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgpack
import numpy as np

from .errors import DataError
from .index import Member, check_tar_end
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
        DataError: not a tar, cut short, or a member longer than its component may be.
    """
    path = Path(path)
    last: Member | None = None
    parts: dict[str, bytes] = {}
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for header in tar:
                    member = Member(*split_member_name(header.name), header.offset_data, header.size)
                    known = COMPONENT_BY_SUFFIX.get(member.suffix)
                    if known and member.size > known.max_bytes:
                        raise DataError(
                            f"{path.name}: sample {member.key!r}, component {member.suffix!r}: expected at "
                            f"most {known.max_bytes} bytes, found {member.size}"
                        )
                    if last is not None and member.key != last.key:
                        yield Sample(last.key, parts)
                        parts = {}
                    last = member
                    content = tar.extractfile(header)
                    if content is None:
                        raise DataError(f"{path.name}: member {header.name!r}: expected a plain file")
                    parts[member.suffix] = content.read()
        except DataError:
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:
            check_tar_end(file, last, path.name)
            raise DataError(f"{path.name}: expected a tar, found: {error}; the shard is damaged") from error
        check_tar_end(file, last, path.name)
    if last is not None:
        yield Sample(last.key, parts)


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
    """The `hier.npy` component: int16 [L], or int16 [A, L] where a class has A paths. Read-only.

    Raises:
        DataError: not such an array. Nothing is unpickled, nor allocated for the shape that a header claims.
    """
    data = bytes(data)
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape = _npy_int16_shape(data[:start])
    except ValueError as error:
        raise DataError(
            f"{where}, component 'hier.npy': expected `.npy` 1.0, int16 [L], found {error}"
        ) from error
    expected = start + 2 * math.prod(shape)
    if len(data) != expected:
        raise DataError(
            f"{where}, component 'hier.npy': expected {expected} bytes, found {len(data)}; it is damaged"
        )
    return np.frombuffer(data, "<i2", offset=start).reshape(shape)


@lru_cache(maxsize=64)  # all samples of a data set have the same header, and parsing one takes 20 us
def _npy_int16_shape(header: bytes) -> tuple[int, ...]:
    """The shape in a `.npy` 1.0 header of a C-ordered little-endian int16 array; ValueError for any other."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(
            file, max_header_size=HIER.max_bytes
        )
    except Exception as error:  # NumPy evaluates the header as a Python literal, which fails in many ways
        raise ValueError(f"another header: {error}") from error
    if version != (1, 0) or dtype != np.dtype("<i2") or fortran_order or len(shape) not in (1, 2):
        raise ValueError(f"version {version}, {dtype} {list(shape)}")
    if min(shape) < 0:
        raise ValueError(f"a shape of {list(shape)}")
    return shape


def decode_meta(data: bytes | memoryview, where: str) -> dict:
    """The `msgpack` component.

    Raises:
        DataError: not a MessagePack map with text keys.
    """
    try:
        meta = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise DataError(
            f"{where}, component 'msgpack': expected a MessagePack map, found: {error}"
        ) from error
    if not isinstance(meta, dict):
        raise DataError(f"{where}, component 'msgpack': expected a map, found {type(meta).__name__}")
    return meta
