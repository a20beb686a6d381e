"""Copies a baseline JPEG without its metadata: the same tables and scans, so the same pixels, bit for bit.

Only what a decoder needs is kept (ITU-T T.81, annex B): quantisation and Huffman tables, restart interval, frame
and scans, a JFIF header without its thumbnail, and Adobe's marker where nothing else says how colours are coded.
EXIF, XMP, colour profiles, comments and whatever follows the end of the image are left out.
"""

from __future__ import annotations

import re

_SOI, _EOI, _SOS, _SOF0, _COM = 0xD8, 0xD9, 0xDA, 0xC0, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
_KEPT = {0xC4, 0xDB, 0xDD}  # Huffman and quantisation tables, restart interval
_JFIF, _ADOBE = b"JFIF\0", b"Adobe"
_JFIF_BYTES = 14  # up to the thumbnail's two sides
_YCBCR = 1  # Adobe's colour transform
# The next marker behind entropy-coded data: not a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def strip_metadata(data: bytes) -> bytes | None:
    """A baseline YCbCr JPEG without metadata.

    Args:
        data: the file.

    Returns:
        The JPEG with the same pixels, or None for one that cannot be copied like this: another kind than
        baseline with three components, coded as RGB (decoders differ in whether they honour the marker that
        says so), cut short, or damaged. That the scans are whole is for a decoder to find out.
    """
    kept: list[bytes] = [data[:2]]
    jfif = frame = scanned = False
    adobe: bytes | None = None
    at = 2
    if data[:2] != b"\xff\xd8":
        return None
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _EOI:
            if not (frame and scanned):
                return None
            if adobe is not None and not jfif:
                kept.insert(1, adobe)
            return b"".join([*kept, b"\xff\xd9"])
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + length]
        if length < 2 or len(segment) < 2 + length:
            return None
        at += 2 + length
        content = segment[4:]
        if marker == _SOF0:
            if frame or not _is_ycbcr_frame(content):
                return None
            frame = True
            kept.append(segment)
        elif marker == _SOS:
            following = _MARKER.search(data, at)
            if not frame or following is None:
                return None
            scanned = True
            kept += [segment, data[at : following.start()]]
            at = following.start()
        elif marker == _APP0 and content.startswith(_JFIF) and len(content) >= _JFIF_BYTES:
            if not jfif:
                kept.insert(1, _plain_jfif(content))
            jfif = True
        elif marker == _APP14 and content.startswith(_ADOBE) and len(content) >= 12:
            if content[11] != _YCBCR:
                return None
            adobe = segment
        elif marker in _KEPT:
            kept.append(segment)
        elif not (_APP0 <= marker <= _APP15 or marker == _COM):
            return None
    return None


def _is_ycbcr_frame(content: bytes) -> bool:
    """Three components of eight bits, not named R, G and B (which means RGB where no marker says otherwise)."""
    return len(content) == 15 and content[0] == 8 and content[5] == 3 and content[6:15:3] != b"RGB"


def _plain_jfif(content: bytes) -> bytes:
    return b"\xff\xe0\x00\x10" + content[: _JFIF_BYTES - 2] + b"\0\0"
