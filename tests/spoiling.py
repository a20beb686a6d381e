"""Spoils data sets on purpose, for tests and benchmarks: components that are wrong in themselves, in shards that are not.

Whoever changes bytes of a shard in place breaks its hash and keeps all sizes. Here the shard is written again with another
component, and index, hash and manifest follow: only somebody who looks at the component itself can tell.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from softshard.shards import Manifest, decode_label_map, read_shard
from softshard.shards.labelmap_header import HEADER, IDS_UINT16, SCORES_FLOAT16, STORED, pack_header
from softshard.shards.writer import ShardWriter


def rewrite(folder: Path, changes: dict[int, dict[str, Callable[[bytes], bytes]]]) -> list[tuple[str, str]]:
    """Write shards again with some components changed.

    Args:
        folder: of the data set; its shards are replaced.
        changes: sample, counted in the manifest's order, to component to what becomes of it.

    Returns:
        (shard, key) of each changed sample.
    """
    manifest = Manifest.load(folder)
    records, found, number = [], [], 0
    for record in manifest.shards:
        samples = list(read_shard(folder / record.name))
        numbers = range(number, number + len(samples))
        number += len(samples)
        if changes.keys().isdisjoint(numbers):
            records.append(record)
            continue
        with ShardWriter(folder / record.name, manifest.components) as writer:
            for i, sample in zip(numbers, samples, strict=True):
                own = changes.get(i, {})
                writer.write(
                    sample.key, sample.parts | {name: f(sample.parts[name]) for name, f in own.items()}
                )
                if own:
                    found.append((record.name, sample.key))
        assert writer.record is not None
        records.append(writer.record)
    replace(manifest, shards=tuple(records)).save(folder)
    return found


def plain_map(scores: np.ndarray, ids: np.ndarray, num_classes: int) -> bytes:
    """A label map [K, P, Q] with a right checksum, whatever the scores are: float16, uint16, stored."""
    halves = np.asarray(scores, "<f2").view("<u2").ravel()
    payload = (halves & 255).astype(np.uint8).tobytes() + (halves >> 8).astype(np.uint8).tobytes()
    block = np.asarray(ids, "<u2").tobytes() + payload
    fields = SCORES_FLOAT16, IDS_UINT16, STORED, *ids.shape, 0, num_classes, len(block)
    return pack_header(fields, block)


def map_with_nan(data: bytes) -> bytes:
    scores, ids = decode_label_map(data)
    scores = scores.copy()
    scores[0, 0, 0] = np.nan
    return plain_map(scores, ids, _num_classes(data))


def map_of_another_shape(data: bytes) -> bytes:
    """One row less: sound in itself."""
    scores, ids = decode_label_map(data)
    return plain_map(scores[:, 1:], ids[:, 1:], _num_classes(data))


def map_of_other_classes(data: bytes) -> bytes:
    """Over 10,000 classes, one of which the data set does not have: sound in itself."""
    scores, ids = decode_label_map(data)
    ids = ids.copy()
    ids[0, 0, 0] = 9_999
    return plain_map(scores, ids, 10_000)


def map_of_hostile_size(data: bytes) -> bytes:
    """Claims a payload of 4 GB."""
    fields = list(HEADER.unpack(data[: HEADER.size]))[2:-1]
    fields[-1] = 2**32 - 1
    return pack_header(fields, data[HEADER.size :])


def _num_classes(data: bytes) -> int:
    return HEADER.unpack(data[: HEADER.size])[9]


def levels_out_of_range(data: bytes) -> bytes:
    """A label vector whose last entry is a class that the level does not have."""
    return data[:-2] + struct.pack("<h", 30_000)


def cut_in_the_middle(jpeg: bytes) -> bytes:
    """Half a JPEG."""
    return jpeg[: len(jpeg) // 2]


def without_segment(marker: int) -> Callable[[bytes], bytes]:
    """Takes all segments of one marker out of a JPEG's header."""

    def change(jpeg: bytes) -> bytes:
        kept, at = bytearray(jpeg[:2]), 2
        while jpeg[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
            if jpeg[at + 1] != marker:
                kept += jpeg[at:end]
            at = end
        return bytes(kept) + jpeg[at:]

    return change


def with_frame(marker: int | None = None, precision: int | None = None, hw: tuple[int, int] | None = None):
    """Changes the frame header of a baseline JPEG: its kind, bits a sample, or size."""

    def change(jpeg: bytes) -> bytes:
        at, changed = _frame(jpeg), bytearray(jpeg)
        if marker is not None:
            changed[at + 1] = marker
        if precision is not None:
            changed[at + 4] = precision
        if hw is not None:
            changed[at + 5 : at + 9] = struct.pack(">HH", *hw)
        return bytes(changed)

    return change


def _frame(jpeg: bytes) -> int:
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at


def broken_huffman_table(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xc4") + 4
    return jpeg[:at] + b"\xff" * 16 + jpeg[at + 16 :]


def noise_in_the_pixels(jpeg: bytes) -> bytes:
    """Zeros in the middle of the entropy-coded data: the header is whole, and so is the end."""
    at = len(jpeg) // 2
    return jpeg[:at] + bytes(min(64, len(jpeg) - at - 2)) + jpeg[at + min(64, len(jpeg) - at - 2) :]


def cmyk(jpeg: bytes) -> bytes:
    """The same picture as a CMYK JPEG."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


def progressive(jpeg: bytes) -> bytes:
    """The same picture as a progressive JPEG."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(out, "JPEG", progressive=True)
    return out.getvalue()
