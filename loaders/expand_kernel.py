"""zstd frames of label maps expanded by the system's libzstd, called from a compiled loop.

Needs numba and libzstd.so.1, which package managers bring to nearly every Linux: `pooling_compiled` imports this
(and `softshard doctor`), and where that fails the zstandard package expands. Its calls take Python's lock and half as
long again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite.binding import add_symbol
from numba import njit, types

_LIBRARY = ctypes.CDLL("libzstd.so.1")  # OSError where there is none


def _function(name: str, num_arguments: int) -> Any:
    """A function of the library; AttributeError where it has none. Pointers, sizes and errors (above every size) are intp.

    It goes by a name of our own: of two libzstd in a process the loader of code might take the other.
    """
    add_symbol(f"softshard_{name}", ctypes.cast(getattr(_LIBRARY, name), ctypes.c_void_p).value)
    return types.ExternalFunction(f"softshard_{name}", types.intp(*[types.intp] * num_arguments))


def library_version() -> str:
    """The library's own, such as `1.5.7`."""
    _LIBRARY.ZSTD_versionString.restype = ctypes.c_char_p
    return _LIBRARY.ZSTD_versionString().decode("ascii", "replace")


_create = _function("ZSTD_createDCtx", 0)
_free = _function("ZSTD_freeDCtx", 1)
_frame_bytes = _function("ZSTD_findFrameCompressedSize", 2)
_content_bytes = _function("ZSTD_getFrameContentSize", 2)
_decompress = _function("ZSTD_decompressDCtx", 5)

# A distribution's libzstd also reads the frames of versions before 1.0, by code that nobody looks after any more.
_MAGIC = 0x28, 0xB5, 0x2F, 0xFD
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
            and raw[starts[i]] == _MAGIC[0]
            and raw[starts[i] + 1] == _MAGIC[1]
            and raw[starts[i] + 2] == _MAGIC[2]
            and raw[starts[i] + 3] == _MAGIC[3]
            and raw[starts[i] + _FLAGS_AT] == _SIZE_IN_TWO_BYTES
            and _frame_bytes(frame, num) == num  # nothing behind it
            and _content_bytes(frame, num) == sizes[i]
            and _decompress(context, target, sizes[i], frame, num) == sizes[i]
        )
        target += sizes[i]
        i += 1
    _free(context)
    return fine
