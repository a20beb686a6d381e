"""Expanding the compressed blocks of label maps: many in one call where they are as `encode_label_map` writes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import lz4.block
import numpy as np
import zstandard

from .errors import DataError
from .labelmap_header import HEADER, LZ4, STORED, ZSTD, JoinedMaps, gather

_MAX_WINDOW_BYTES = 32 * 1024 * 1024  # above the largest payload: no frame needs more
_EXPANDS_MANY = "multi_decompress_to_buffer" in zstandard.backend_features  # only CPython's zstandard
# How a zstd frame begins that states its size in two bytes, and no window, dictionary or checksum (RFC 8878).
_FRAME = np.dtype([("magic", "S4"), ("flags", "u1"), ("size", "<u2"), ("block", "u1", 3)])
_SIZE_IN_TWO_BYTES = 0x60


def decompressor() -> zstandard.ZstdDecompressor:
    """What `expand` needs; not for two threads at once."""
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)


def expand(
    maps: JoinedMaps,
    members: np.ndarray,
    heads: np.ndarray,
    zstd: zstandard.ZstdDecompressor,
    where: Callable[[int], str],
) -> bytes:
    """The payloads of some maps behind each other, each of the size that its header states.

    Args:
        maps: N maps.
        members: int64 [n], which of them.
        heads: HEADER_DTYPE [N], their headers.
        zstd: see `decompressor`.
        where: the name of map i, for messages.

    Raises:
        DataError: a block is damaged, or its payload of another size.
    """
    fields = heads[members]
    starts, ends = maps.starts[members] + HEADER.size, maps.starts[members + 1]
    if _EXPANDS_MANY and (fields["compression"] == ZSTD).all() and _are_one_block(maps.data, starts, ends):
        places = np.stack([starts, ends - starts], axis=1).astype("<u8").tobytes()
        sizes = fields["payload"].astype("<u8").tobytes()
        # One call, without Python's lock; what it refuses is expanded again below, to say which and why.
        with suppress(zstandard.ZstdError):
            frames = zstandard.BufferWithSegments(maps.data, places)  # pyright: ignore
            return b"".join(zstd.multi_decompress_to_buffer(frames, decompressed_sizes=sizes, threads=1))  # pyright: ignore
    view, codes, expected = memoryview(maps.data), fields["compression"].tolist(), fields["payload"].tolist()
    return b"".join(
        _expand(view[start:end], code, size, zstd, where, i)
        for start, end, code, size, i in zip(
            starts.tolist(), ends.tolist(), codes, expected, members.tolist(), strict=True
        )
    )


def _are_one_block(data: bytes, starts: np.ndarray, ends: np.ndarray) -> bool:
    """Whether these are zstd frames of one compressed block, with nothing behind it, as `encode_label_map` writes them.

    Bytes behind a frame are an error, which expanding many at once would not see. Nor does such a frame state a window:
    what it may claim is the 64 kB of its own size.
    """
    if (ends - starts).min() < _FRAME.itemsize:
        return False
    frames = gather(data, starts, _FRAME)
    low, high = frames["block"][:, 0], frames["block"][:, 1:].astype(np.int64)
    sizes = _FRAME.itemsize + (low >> 3) + (high[:, 0] << 5) + (high[:, 1] << 13)
    last_and_compressed = (low & 7) == 5
    plain = (frames["magic"] == zstandard.FRAME_HEADER) & (frames["flags"] == _SIZE_IN_TWO_BYTES)
    return bool((plain & last_and_compressed & (sizes == ends - starts)).all())


def _expand(
    block: memoryview,
    code: int,
    size: int,
    zstd: zstandard.ZstdDecompressor,
    where: Callable[[int], str],
    i: int,
) -> bytes:
    """The payload of map i, of the size that its header states."""
    found = None
    try:
        if code == STORED:
            payload = bytes(block)
        elif code == LZ4:
            payload = lz4.block.decompress(block, uncompressed_size=size)
        else:
            # The frame states a size of its own, and that much would be allocated.
            found = zstandard.frame_content_size(block)
            payload = zstd.decompress(block, allow_extra_data=False) if found == size else b""
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        kind = "an LZ4 block" if code == LZ4 else "a zstd frame"
        raise DataError(f"{where(i)}: expected {kind}, found: {error}") from error
    if len(payload) != size:
        count = len(payload) if found is None else found
        raise DataError(f"{where(i)}: expected {size} payload bytes, found {count}")
    return payload
