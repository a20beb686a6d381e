"""zstd frames of label maps expanded by the system's libzstd, called from a compiled loop.

Needs numba and libzstd.so.1, which package managers bring to nearly every Linux: `pooling_compiled` imports this, nobody
else, and where that fails the zstandard package expands. Its calls take Python's lock and half as long again.
"""

from __future__ import annotations

import numpy as np
from llvmlite.binding import load_library_permanently
from numba import njit, types

load_library_permanently("libzstd.so.1")  # RuntimeError where there is none

# Pointers, sizes and errors (which are above every size) are all intp here.
_create = types.ExternalFunction("ZSTD_createDCtx", types.intp())
_free = types.ExternalFunction("ZSTD_freeDCtx", types.intp(types.intp))
_frame_bytes = types.ExternalFunction("ZSTD_findFrameCompressedSize", types.intp(types.intp, types.intp))
_content_bytes = types.ExternalFunction("ZSTD_getFrameContentSize", types.intp(types.intp, types.intp))
_decompress = types.ExternalFunction("ZSTD_decompressDCtx", types.intp(*[types.intp] * 5))

_FLAGS_AT = 4  # in a frame, behind its magic
# It states its content's size in two bytes, and no window, dictionary or checksum (RFC 8878), as `encode_label_map` writes.
_SIZE_IN_TWO_BYTES = 0x60


@njit(nogil=True)
def expand_frames(raw, starts, ends, sizes, payloads):
    """Expand zstd frames as `encode_label_map` writes them, each alone in its place.

    Args:
        raw: uint8, the maps.
        starts: int64 [n], where the frames begin; there is room for flags behind them.
        ends: int64 [n], where they must end.
        sizes: int64 [n], what they must hold.
        payloads: uint8, room for all of them, to be filled.

    Returns:
        False where a frame is of another kind or damaged: `labelmap_expand.expand` says which it is.
    """
    context = _create()
    if context == 0:
        return False
    source, target = np.intp(raw.ctypes.data), np.intp(payloads.ctypes.data)
    fine, i = True, 0
    while fine and i < len(starts):
        frame, num = source + starts[i], ends[i] - starts[i]
        fine = (
            num > _FLAGS_AT
            and raw[starts[i] + _FLAGS_AT] == _SIZE_IN_TWO_BYTES
            and _frame_bytes(frame, num) == num  # nothing behind it
            and _content_bytes(frame, num) == sizes[i]
            and _decompress(context, target, sizes[i], frame, num) == sizes[i]
        )
        target += sizes[i]
        i += 1
    _free(context)
    return fine
