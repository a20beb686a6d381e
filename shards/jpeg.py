"""Reads a JPEG's header: size, components and kind, without decoding (about 3 us); and what a decoder's error is about."""

from __future__ import annotations

from typing import NamedTuple

from .errors import ImageError
from .schema import MAX_IMAGE_PIXELS

_STANDALONE = {0x01, *range(0xD0, 0xD8)}
# Start-of-frame markers: baseline, extended, progressive, lossless and their arithmetic-coded kin.
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}


class JpegHeader(NamedTuple):
    """The frame header of a JPEG.

    Attributes:
        height: pixels, before any EXIF orientation.
        width: pixels.
        components: 1 grey, 3 colour, 4 CMYK.
        baseline: False for progressive and other kinds that hardware decoders refuse.
        lossless: True for a kind without a DCT, which libjpeg-turbo does not scale although it is asked to: it
            writes the whole picture past the end of the smaller array.
    """

    height: int
    width: int
    components: int
    baseline: bool
    lossless: bool = False


def read_jpeg_header(data: bytes | memoryview, where: str = "image") -> JpegHeader:
    """Find the frame header of a JPEG.

    Args:
        data: the file (any buffer that gives integers when indexed).
        where: for messages.

    Raises:
        ImageError: not a JPEG, no frame header, no pixels, or more than MAX_IMAGE_PIXELS.
    """
    size = len(data)
    if size == 0:
        raise ImageError(f"{where}: expected a JPEG, found 0 bytes", kind="empty")
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        raise ImageError(f"{where}: expected a JPEG, found bytes {bytes(data[:4])!r}", kind="not-jpeg")
    at = 2
    while at + 9 < size:
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        if marker in _FRAMES:
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            if not height or not width:
                raise ImageError(
                    f"{where}: expected pixels, found a JPEG of {width} x {height}", kind="no-pixels"
                )
            if height * width > MAX_IMAGE_PIXELS:
                raise ImageError(
                    f"{where}: expected at most {MAX_IMAGE_PIXELS} pixels, found {width} x {height}",
                    kind="too-large",
                )
            return JpegHeader(height, width, data[at + 9], marker == 0xC0, marker in _LOSSLESS)
        if marker in (0xD9, 0xDA):  # end of image, or pixels without a frame
            break
        length = data[at + 2] << 8 | data[at + 3]
        if length < 2:
            break
        at += 2 + length
    raise ImageError(f"{where}: expected a JPEG frame header, found none in {size} bytes", kind="truncated")


def raise_if_memory_ran_out(error: ValueError, where: str) -> None:
    """Tell a lack of memory from a bad JPEG, which simplejpeg does in its text alone.

    What a shard holds, and which samples are bad, must not depend on how much memory was free.

    Raises:
        MemoryError: the error tells of a lack of it.
    """
    text = str(error)
    if "Insufficient memory" in text or "Memory allocation failure" in text:
        raise MemoryError(f"{where}: {text}") from error
