"""Expanding the compressed blocks of label maps."""

from __future__ import annotations

from collections.abc import Callable

import lz4.block
import numpy as np
import zstandard

from .errors import DataError
from .labelmap_header import HEADER, LZ4, STORED, JoinedMaps

_MAX_WINDOW_BYTES = 32 * 1024 * 1024  # above the largest payload: no frame needs more


def expand(maps: JoinedMaps, members: np.ndarray, heads: np.ndarray, where: Callable[[int], str]) -> bytes:
    """The payloads of some maps behind each other, each of the size that its header states.

    Args:
        maps: N maps.
        members: int64 [n], which of them.
        heads: HEADER_DTYPE [N], their headers.
        where: the name of map i, for messages.

    Raises:
        DataError: a block is damaged, or its payload of another size.
    """
    zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    starts, ends, fields = maps.starts[members] + HEADER.size, maps.starts[members + 1], heads[members]
    view, codes, expected = memoryview(maps.data), fields["compression"].tolist(), fields["payload"].tolist()
    return b"".join(
        _expand(view[start:end], code, size, zstd, where, i)
        for start, end, code, size, i in zip(
            starts.tolist(), ends.tolist(), codes, expected, members.tolist(), strict=True
        )
    )


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
