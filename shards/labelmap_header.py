"""The header of the `lmap` component: its fields, and what a reader checks before it allocates anything.

FORMAT.md prints the table of fields. Headers are checked many at a time, as one array: a call a batch, not a
dozen comparisons a map.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .errors import DataError
from .schema import LMAP, MAX_CLASS_ID, MAX_MAP_ELEMENTS

MAGIC = b"SSLM"
VERSION = 1
# (struct code, field, meaning), little-endian without padding; FORMAT.md prints this table.
HEADER_FIELDS = (
    ("4s", "magic", "`SSLM`"),
    ("B", "version", "1"),
    ("B", "scores", "0 float16, 1 affine uint8; 2 and 3 the same as differences between ranks"),
    ("B", "ids", "0 uint16, 1 palette, 2 palette as differences"),
    ("B", "compression", "0 stored, 1 one LZ4 block, 2 one zstd frame"),
    ("H", "top", "K, classes kept per cell"),
    ("H", "rows", "P"),
    ("H", "columns", "Q"),
    ("H", "palette", "entries of the palette, 1 to 256; 0 where ids are uint16"),
    ("I", "classes", "C, every id is below it; 1 to 65,536"),
    ("I", "payload", "bytes of the payload once expanded"),
    ("I", "crc32", "CRC-32 of all header bytes before it and of the block after it"),
)
HEADER = struct.Struct("<" + "".join(code for code, _, _ in HEADER_FIELDS))
HEADER_DTYPE = np.dtype(
    [(name, {"4s": "S4", "B": "u1", "H": "<u2", "I": "<u4"}[code]) for code, name, _ in HEADER_FIELDS]
)

SCORES_FLOAT16, SCORES_UINT8 = 0, 1
RANK_DIFFERENCES = 2  # added to either
IDS_UINT16, IDS_PALETTE, IDS_PALETTE_DIFFERENCES = 0, 1, 2
STORED, LZ4, ZSTD = 0, 1, 2

MAX_PALETTE = 256


def pack_header(fields: Sequence[int], block: bytes) -> bytes:
    """Header and block of a map, from the fields between the magic and the checksum."""
    head = HEADER.pack(MAGIC, VERSION, *fields, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(block, zlib.crc32(head))) + block


class JoinedMaps(NamedTuple):
    """N encoded label maps behind each other: work on many is a call, not a call a map.

    Attributes:
        data: their bytes.
        starts: int64 [N + 1], where each begins, and the end.
    """

    data: bytes
    starts: np.ndarray


def join_maps(maps: Sequence[bytes | memoryview], where: Callable[[int], str]) -> JoinedMaps:
    """Label maps behind each other.

    Raises:
        DataError: one is smaller than a header, or larger than a label map may be.
    """
    sizes = np.fromiter(map(len, maps), np.int64, len(maps))
    if (i := _first((sizes < HEADER.size) | (sizes > LMAP.max_bytes))) is not None:
        raise DataError(
            f"{where(i)}: expected {HEADER.size} to {LMAP.max_bytes} bytes, found {sizes[i]}; it is cut short"
        )
    return JoinedMaps(b"".join(maps), np.concatenate([[0], np.cumsum(sizes)]))


def check_sums(maps: JoinedMaps, members: np.ndarray, heads: np.ndarray, where: Callable[[int], str]) -> None:
    """Compare some maps with the checksums in their headers.

    Raises:
        DataError: naming the first that differs.
    """
    view, crc32 = memoryview(maps.data), zlib.crc32
    starts, ends = maps.starts[members].tolist(), maps.starts[members + 1].tolist()
    expected = heads["crc32"][members].tolist()
    fields, head = HEADER.size - 4, HEADER.size
    for i, (start, end, checksum) in enumerate(zip(starts, ends, expected, strict=True)):
        if crc32(view[start + head : end], crc32(view[start : start + fields])) != checksum:
            raise DataError(
                f"{where(int(members[i]))}: expected checksum {checksum:08x}, found another; it is damaged or cut short"
            )


def read_headers(maps: JoinedMaps, where: Callable[[int], str]) -> np.ndarray:
    """Read and check the headers of N label maps, but for their checksums (`check_sums`); nothing is expanded.

    Args:
        maps: N `lmap` values.
        where: the name of map i (shard, sample, component), for messages.

    Returns:
        HEADER_DTYPE [N]; shapes, class counts, encodings and payload sizes are within the limits.

    Raises:
        DataError: not a label map, of a newer version, damaged, or over the limits.
    """
    raw = np.frombuffer(maps.data, np.uint8)
    heads = raw[maps.starts[:-1, None] + np.arange(HEADER.size)].view(HEADER_DTYPE)[:, 0]
    sides = [heads[name].astype(np.int64) for name in ("top", "rows", "columns")]
    elements = sides[0] * sides[1] * sides[2]
    scores, ids, palette = heads["scores"], heads["ids"], heads["palette"]
    palette_fits = np.where(ids == IDS_UINT16, palette == 0, (palette > 0) & (palette <= MAX_PALETTE))
    known = (scores <= 3) & (ids <= 2) & (heads["compression"] <= 2) & (heads["version"] == VERSION)
    expected = payload_bytes(scores, ids, palette, elements)

    def found(i: int, message: str) -> DataError:
        return DataError(f"{where(i)}: {message}")

    if (i := _first(heads["magic"] != MAGIC)) is not None:
        raise found(i, f"expected a label map that starts with {MAGIC!r}, found {_bytes_at(maps, i, 4)!r}")
    if (i := _first(heads["version"] > VERSION)) is not None:
        raise found(
            i,
            f"expected label map version {VERSION}, found {heads['version'][i]}; "
            "it was written by a newer softshard. Run: pip install -U softshard",
        )
    if (i := _first((elements < 1) | (elements > MAX_MAP_ELEMENTS))) is not None:
        shape = " x ".join(str(side[i]) for side in sides)
        raise found(i, f"expected 1 to {MAX_MAP_ELEMENTS} elements, found {shape}")
    if (i := _first(~(known & palette_fits))) is not None:
        raise found(i, f"expected encodings of version {VERSION}, found others; it is damaged")
    if (i := _first((heads["classes"] < 1) | (heads["classes"] > MAX_CLASS_ID + 1))) is not None:
        raise found(
            i, f"expected 1 to {MAX_CLASS_ID + 1} classes, found {heads['classes'][i]}; it is damaged"
        )
    if (i := _first(heads["payload"] != expected)) is not None:
        raise found(
            i, f"expected a payload of {expected[i]} bytes for its shape, found {heads['payload'][i]}"
        )
    return heads


def check_geometry(
    maps: Sequence[bytes | memoryview],
    shape: tuple[int, int, int],
    num_classes: int,
    where: Callable[[int], str],
) -> None:
    """Refuse a label map of another shape, or over other classes, than its data set's: sound in itself, and wrong here.

    Args:
        maps: N `lmap` values; what is no label map at all is left to `read_headers`.
        shape: (K, P, Q) of the data set.
        num_classes: C of its label maps.
        where: the name of map i, for messages.

    Raises:
        DataError: naming the first one.
    """
    sides, classes = struct.pack("<3H", *shape), struct.pack("<I", num_classes)
    for i, data in enumerate(maps):
        if (data[8:14] != sides or data[16:20] != classes) and len(data) >= HEADER.size and data[:4] == MAGIC:
            fields = HEADER.unpack(data[: HEADER.size])
            raise DataError(
                f"{where(i)}: expected [K, P, Q] {list(shape)} over {num_classes} classes as in the manifest, found "
                f"{list(fields[5:8])} over {fields[9]}; the map is another data set's, or damaged"
            )


def payload_bytes(
    scores: np.ndarray, ids: np.ndarray, palette: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """Size of the expanded payload, int64 [N]; all arguments are header fields [N] and K * P * Q."""
    id_bytes = np.where(ids == IDS_UINT16, 2 * elements, elements)
    score_bytes = np.where(scores & SCORES_UINT8, elements + 8, 2 * elements)
    return 2 * palette.astype(np.int64) + id_bytes + score_bytes


def _bytes_at(maps: JoinedMaps, i: int, num: int) -> bytes:
    start = int(maps.starts[i])
    return maps.data[start : start + num]


def _first(wrong: np.ndarray) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None
