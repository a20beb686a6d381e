"""The small components of a sample, between bytes and values: class, hierarchical label vector, metadata."""

from __future__ import annotations

import io
import math
from functools import lru_cache

import msgpack
import numpy as np

from .errors import DataError
from .schema import CLS, HIER


def encode_levels(vector: np.ndarray) -> bytes:
    """A class's hierarchical label vectors (int16 [L], or [A, L] for A paths) as the `hier.npy` component."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(vector, "<i2"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


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
    """The `hier.npy` component: int16 [L], or [A, L] in a tree with up to A paths to a class. Read-only.

    Raises:
        DataError: not such an array. Nothing is unpickled, nor allocated for the shape that a header claims.
    """
    data = bytes(data)
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape = _npy_int16_shape(data[:start])
    except ValueError as error:
        raise DataError(
            f"{where}, component 'hier.npy': expected `.npy` 1.0, int16 [L] or [A, L], found {error}"
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
