"""The `lmap` component: a compressed top-k label map (Yun et al., CVPR 2021, "ReLabel").

A label map keeps the K best classes of every cell of a teacher's dense prediction: scores and class ids, both
[K, P, Q] with P rows (image height) and Q columns (image width). FORMAT.md has the byte layout. Everything a
reader needs to know is in a fixed header; its sizes and the checksum are checked before anything is
allocated.

Shape letters: N maps, K classes kept per cell, P Q rows and columns.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import lz4.block
import numpy as np

from .errors import DataError, UsageError
from .schema import LMAP, MAX_CLASS_ID, MAX_MAP_ELEMENTS

MAGIC = b"SSLM"
VERSION = 1
# (struct code, field, meaning), little-endian without padding; FORMAT.md prints this table.
HEADER_FIELDS = (
    ("4s", "magic", "`SSLM`"),
    ("B", "version", "1"),
    ("B", "scores", "0 float16, 1 affine uint8"),
    ("B", "ids", "0 uint16, 1 palette"),
    ("B", "compression", "0 stored, 1 one LZ4 block"),
    ("H", "top", "K, classes kept per cell"),
    ("H", "rows", "P"),
    ("H", "columns", "Q"),
    ("H", "palette", "entries of the palette, 1 to 256; 0 where ids are uint16"),
    ("I", "classes", "C, every id is below it; 1 to 65,536"),
    ("I", "payload", "bytes of the payload once expanded"),
    ("I", "crc32", "CRC-32 of all header bytes before it and of the block after it"),
)
HEADER = struct.Struct("<" + "".join(code for code, _, _ in HEADER_FIELDS))

SCORES_FLOAT16, SCORES_UINT8 = 0, 1
IDS_UINT16, IDS_PALETTE = 0, 1
STORED, LZ4 = 0, 1

SCORE_ENCODINGS = {"float16": SCORES_FLOAT16, "uint8": SCORES_UINT8}


def header_table() -> str:
    """The byte layout of the header, as FORMAT.md prints it."""
    kinds = {"4s": "4 bytes", "B": "uint8", "H": "uint16", "I": "uint32"}
    lines, at = ["| byte | type | field | meaning |", "|---|---|---|---|"], 0
    for code, name, meaning in HEADER_FIELDS:
        lines.append(f"| {at} | {kinds[code]} | {name} | {meaning} |")
        at += struct.calcsize("<" + code)
    return "\n".join(lines)


class MapHeader(NamedTuple):
    """What a label map's header says, checked against the limits and the payload's size.

    Attributes:
        shape: (K, P, Q).
        num_classes: C; every id is below it.
        payload_bytes: size of the payload once expanded.
    """

    scores: int
    ids: int
    compression: int
    shape: tuple[int, int, int]
    palette: int
    num_classes: int
    payload_bytes: int
    crc32: int


def _payload_bytes(scores: int, ids: int, palette: int, elements: int) -> int:
    palette_bytes = 2 * palette
    id_bytes = elements * (1 if ids == IDS_PALETTE else 2)
    score_bytes = elements + 8 if scores == SCORES_UINT8 else elements * 2
    return palette_bytes + id_bytes + score_bytes


def encode_label_map(
    scores: np.ndarray, ids: np.ndarray, *, num_classes: int, score_encoding: str = "float16"
) -> bytes:
    """Encode one label map.

    Args:
        scores: float [K, P, Q]. Logits of the K best classes of each cell.
        ids: integer [K, P, Q]. Class ids in [0, num_classes), distinct within a cell.
        num_classes: C, at most 65,536.
        score_encoding: `float16`, or `uint8`: affine per map, off by at most half of (max - min) / 255.

    Returns:
        The `lmap` bytes. The same map gives the same bytes for one LZ4 version.

    Raises:
        DataError: shapes that differ, scores that are not finite (or overflow float16), ids out of range or
            twice in a cell.
        UsageError: an unknown score encoding.
    """
    scores, ids = np.asarray(scores), np.asarray(ids)
    if scores.ndim != 3 or scores.shape != ids.shape or scores.size == 0:
        raise DataError(
            f"label map: expected scores and ids of one shape [K, P, Q], found {list(scores.shape)} and "
            f"{list(ids.shape)}"
        )
    if scores.size > MAX_MAP_ELEMENTS or max(scores.shape) > 0xFFFF:
        raise DataError(
            f"label map: expected at most {MAX_MAP_ELEMENTS} elements and 65535 a side, found "
            f"{' x '.join(map(str, scores.shape))}"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"label map: expected integer class ids, found {ids.dtype}")
    if not 1 <= num_classes <= MAX_CLASS_ID + 1:
        raise DataError(f"label map: expected 1 to {MAX_CLASS_ID + 1} classes, found {num_classes}")
    if ids.min() < 0 or ids.max() >= num_classes:
        raise DataError(
            f"label map: expected class ids from 0 to {num_classes - 1}, found {ids.min()} to {ids.max()}; "
            "the teacher's class list is another one"
        )
    if (np.diff(np.sort(ids, axis=0), axis=0) == 0).any():
        raise DataError("label map: expected distinct class ids in each cell, found one twice")
    if not np.isfinite(scores).all():
        raise DataError("label map: expected finite scores, found NaN or infinity")

    id_codes = ids.astype("<u2")
    palette = np.unique(id_codes)
    id_encoding = IDS_UINT16
    if palette.size <= 256 and 2 * palette.size + ids.size < 2 * ids.size:
        id_encoding = IDS_PALETTE
        id_codes = np.searchsorted(palette, id_codes).astype(np.uint8)
    else:
        palette = palette[:0]

    code = SCORE_ENCODINGS.get(score_encoding)
    if code is None:
        raise UsageError(
            f"label map: expected a score encoding of {list(SCORE_ENCODINGS)}, found {score_encoding!r}"
        )
    if code == SCORES_FLOAT16:
        with np.errstate(over="ignore"):
            halves = scores.astype("<f2")
        if not np.isfinite(halves).all():
            raise DataError(
                f"label map: expected scores within +-65504, found {float(np.abs(scores).max()):g}"
            )
        # Low bytes, then high bytes: the high ones (sign and exponent) repeat, and only they compress.
        score_bytes = np.ascontiguousarray(halves.reshape(-1, 1).view(np.uint8).T).tobytes()
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            low = np.float32(scores.min())
            step = np.float32((np.float32(scores.max()) - low) / np.float32(255))
        if not (np.isfinite(low) and np.isfinite(step)):
            raise DataError(
                f"label map: expected scores in float32's range, found {float(np.abs(scores).max()):g}"
            )
        levels = np.rint((scores.astype(np.float64) - low) / (step or 1)).clip(0, 255).astype(np.uint8)
        score_bytes = np.array([low, step], "<f4").tobytes() + levels.tobytes()

    payload = palette.tobytes() + id_codes.tobytes() + score_bytes
    block = lz4.block.compress(payload, mode="high_compression", compression=12, store_size=False)
    compression = LZ4
    if len(block) >= len(payload):
        compression, block = STORED, payload
    fields = (
        MAGIC,
        VERSION,
        code,
        id_encoding,
        compression,
        *ids.shape,
        palette.size,
        num_classes,
        len(payload),
    )
    head = HEADER.pack(*fields, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(block, zlib.crc32(head))) + block


def read_map_header(data: bytes | memoryview, where: str = "label map") -> MapHeader:
    """Read and check a label map's header and checksum; nothing is expanded or allocated.

    Args:
        data: the `lmap` bytes.
        where: shard, sample and component, for messages.

    Raises:
        DataError: not a label map, of a newer version, cut short, damaged, or over the limits.
    """
    size = len(data)
    if size < HEADER.size or size > LMAP.max_bytes:
        raise DataError(
            f"{where}: expected {HEADER.size} to {LMAP.max_bytes} bytes, found {size}; it is cut short"
        )
    magic, version, scores, ids, compression, k, p, q, palette, classes, payload, crc = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise DataError(f"{where}: expected a label map that starts with {MAGIC!r}, found {bytes(magic)!r}")
    if version > VERSION:
        raise DataError(
            f"{where}: expected label map version {VERSION}, found {version}; "
            "it was written by a newer softshard. Run: pip install -U softshard"
        )
    elements = k * p * q
    if not 0 < elements <= MAX_MAP_ELEMENTS:
        raise DataError(f"{where}: expected 1 to {MAX_MAP_ELEMENTS} elements, found {k} x {p} x {q}")
    palette_fits = 0 < palette <= 256 if ids == IDS_PALETTE else palette == 0
    if version != VERSION or scores > 1 or ids > 1 or compression > 1 or not palette_fits:
        raise DataError(f"{where}: expected encodings of version {VERSION}, found others; it is damaged")
    if not 1 <= classes <= MAX_CLASS_ID + 1:
        raise DataError(f"{where}: expected 1 to {MAX_CLASS_ID + 1} classes, found {classes}; it is damaged")
    expected = _payload_bytes(scores, ids, palette, elements)
    if payload != expected:
        raise DataError(f"{where}: expected a payload of {expected} bytes for its shape, found {payload}")
    if zlib.crc32(data[HEADER.size :], zlib.crc32(data[: HEADER.size - 4])) != crc:
        raise DataError(f"{where}: expected checksum {crc:08x}, found another; it is damaged or cut short")
    return MapHeader(scores, ids, compression, (k, p, q), palette, classes, payload, crc)


def _payload(data: bytes | memoryview, header: MapHeader, where: str) -> bytes:
    block = bytes(data[HEADER.size :])
    if header.compression == LZ4:
        try:
            block = lz4.block.decompress(block, uncompressed_size=header.payload_bytes)
        except lz4.block.LZ4BlockError as error:
            raise DataError(f"{where}: expected an LZ4 block, found: {error}") from error
    if len(block) != header.payload_bytes:
        raise DataError(f"{where}: expected {header.payload_bytes} payload bytes, found {len(block)}")
    return block


def decode_label_maps(
    maps: Sequence[bytes | memoryview], wheres: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode N label maps of one shape.

    Args:
        maps: N `lmap` values with the same K, P and Q; encodings may differ.
        wheres: N names for messages (shard, sample, component).

    Returns:
        (scores, ids): float32 [N, K, P, Q] logits and uint16 [N, K, P, Q] class ids.

    Raises:
        DataError: a map is damaged, an id is out of range, a score is not finite, or shapes differ.
    """
    names = wheres if wheres is not None else [f"label map {i}" for i in range(len(maps))]
    headers = [read_map_header(data, name) for data, name in zip(maps, names, strict=True)]
    if not headers:
        raise DataError("label maps: expected at least one, found none")
    shape = headers[0].shape
    elements = shape[0] * shape[1] * shape[2]
    scores = np.empty((len(maps), elements), np.float32)
    ids = np.empty((len(maps), elements), np.uint16)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, header in enumerate(headers):
        if header.shape != shape:
            raise DataError(
                f"{names[i]}: expected [K, P, Q] {list(shape)} as before, found {list(header.shape)}"
            )
        groups.setdefault((header.scores, header.palette), []).append(i)
    # Maps with the same layout are decoded as one array: a few calls a batch, not a few calls a map.
    for (score_encoding, palette), members in groups.items():
        raw = np.frombuffer(b"".join(_payload(maps[i], headers[i], names[i]) for i in members), np.uint8)
        raw = raw.reshape(len(members), -1)
        at = 2 * palette
        if palette:
            tables = np.ascontiguousarray(raw[:, :at]).view("<u2")
            codes = raw[:, at : at + elements]
            at += elements
            if codes.max() >= palette:
                raise DataError(
                    f"{names[members[0]]}: expected palette codes below {palette}, found {codes.max()}"
                )
            ids[members] = np.take_along_axis(tables, codes.astype(np.intp), axis=1)
        else:
            ids[members] = np.ascontiguousarray(raw[:, at : at + 2 * elements]).view("<u2")
            at += 2 * elements
        if score_encoding == SCORES_FLOAT16:
            halves = raw[:, at + elements :].astype(np.uint16) << 8 | raw[:, at : at + elements]
            scores[members] = halves.view(np.float16)
        else:
            affine = np.ascontiguousarray(raw[:, at : at + 8]).view("<f4")
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                scores[members] = raw[:, at + 8 :] * affine[:, 1:] + affine[:, :1]
    limits = np.array([header.num_classes for header in headers])
    if (wrong := np.flatnonzero(ids.max(axis=1) >= limits)).size:
        i = int(wrong[0])
        raise DataError(f"{names[i]}: expected class ids below {limits[i]}, found {ids[i].max()}")
    if not np.isfinite(scores).all():
        i = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise DataError(f"{names[i]}: expected finite scores, found NaN or infinity")
    return scores.reshape(-1, *shape), ids.reshape(-1, *shape)


def decode_label_map(data: bytes | memoryview, where: str = "label map") -> tuple[np.ndarray, np.ndarray]:
    """Decode one label map.

    Returns:
        (scores, ids): float32 [K, P, Q] logits and uint16 [K, P, Q] class ids.

    Raises:
        DataError: see `decode_label_maps`.
    """
    scores, ids = decode_label_maps([data], [where])
    return scores[0], ids[0]
