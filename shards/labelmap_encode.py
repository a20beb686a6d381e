"""Encoding of label maps: which forms a map's ids and scores take in the `lmap` component, and why.

FORMAT.md has the byte layout and the measurements behind these choices.

Shape letters: C classes, K classes kept per cell, P Q rows and columns.
"""

from __future__ import annotations

import lz4.block
import numpy as np
import zstandard

from .errors import DataError, check_choice
from .labelmap_header import (
    IDS_PALETTE_DIFFERENCES,
    IDS_UINT16,
    LZ4,
    MAX_PALETTE,
    RANK_DIFFERENCES,
    SCORES_FLOAT16,
    SCORES_UINT8,
    STORED,
    ZSTD,
    pack_header,
)
from .schema import MAX_CLASS_ID, MAX_MAP_ELEMENTS

SCORE_ENCODINGS = {"float16": SCORES_FLOAT16, "uint8": SCORES_UINT8}
COMPRESSIONS = {"lz4": LZ4, "zstd": ZSTD}

# The step of uint8 scores: an eighth of a logit, but no more than 256 levels and no fewer than 64.
UINT8_STEP, UINT8_MOST_STEPS, UINT8_FEWEST_STEPS = 0.125, 255, 63

# Entropy coding is what makes maps smaller; short matches gain 4 % more and take twice as long to expand.
_ZSTD_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    window_log=17,
    hash_log=12,
    write_content_size=True,
    write_checksum=False,
    write_dict_id=False,
)


def encode_label_map(
    scores: np.ndarray,
    ids: np.ndarray,
    *,
    num_classes: int,
    score_encoding: str = "float16",
    compression: str = "zstd",
) -> bytes:
    """Encode one label map.

    Args:
        scores: float [K, P, Q]. Logits of the K best classes of each cell; smallest in bytes with the best first.
        ids: integer [K, P, Q]. Class ids in [0, num_classes), distinct within a cell.
        num_classes: C, at most 65,536.
        score_encoding: `float16`, or `uint8`: affine per map, in steps of 1/8 where the map's scores lie within
            31.875 of each other, else of (max - min) / 255. A score is off by a step at most, and so is the sum of
            neighbouring scores of a class along a row.
        compression: `zstd`, or `lz4`: larger by a fifth, which DALI's GPU inflate can expand.

    Returns:
        The `lmap` bytes. The same map gives the same bytes for one zstd (LZ4) version.

    Raises:
        DataError: shapes that differ, scores that are not finite (or overflow float16), ids out of range or
            twice in a cell.
        UsageError: an unknown score encoding or compression.
    """
    scores, ids = np.asarray(scores), np.asarray(ids)
    _check_map(scores, ids, num_classes)
    check_choice("label map: score encoding", score_encoding, SCORE_ENCODINGS)
    check_choice("label map: compression", compression, COMPRESSIONS)
    id_code, num_entries, id_bytes = _encode_ids(ids)
    payload = id_bytes + (
        _encode_uint8(scores, ids) if score_encoding == "uint8" else _encode_float16(scores)
    )
    if compression == "lz4":
        block = lz4.block.compress(payload, mode="high_compression", compression=12, store_size=False)
    else:
        block = zstandard.ZstdCompressor(compression_params=_ZSTD_PARAMETERS).compress(payload)
    compression_code = COMPRESSIONS[compression]
    if len(block) >= len(payload):
        compression_code, block = STORED, payload
    score_code = SCORE_ENCODINGS[score_encoding] + RANK_DIFFERENCES
    return pack_header(
        (score_code, id_code, compression_code, *ids.shape, num_entries, num_classes, len(payload)), block
    )


def _check_map(scores: np.ndarray, ids: np.ndarray, num_classes: int) -> None:
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


def _encode_ids(ids: np.ndarray) -> tuple[int, int, bytes]:
    """(code, entries of the palette, bytes): through a palette where that is smaller."""
    palette = np.unique(ids)
    if palette.size > MAX_PALETTE or 2 * palette.size >= ids.size:
        return IDS_UINT16, 0, ids.astype("<u2").tobytes()
    places = np.searchsorted(palette, ids).astype(np.uint8)
    steps = np.diff(palette, prepend=palette.dtype.type(0)).astype("<u2")
    return IDS_PALETTE_DIFFERENCES, palette.size, steps.tobytes() + places.tobytes()


def _rank_differences(levels_KPQ: np.ndarray) -> np.ndarray:
    """The best rank as it is, every other as what it is below the one before it, modulo the type's range."""
    below = levels_KPQ.copy()
    np.subtract(levels_KPQ[:-1], levels_KPQ[1:], out=below[1:])
    return below


def _encode_float16(scores: np.ndarray) -> bytes:
    with np.errstate(over="ignore"):
        halves = scores.astype("<f2")
    if not np.isfinite(halves).all():
        raise DataError(f"label map: expected scores within +-65504, found {float(np.abs(scores).max()):g}")
    below = _rank_differences(halves.view("<u2"))
    # Low bytes, then high bytes: the high ones (sign and exponent) repeat.
    return np.ascontiguousarray(below.reshape(-1, 1).view(np.uint8).T).tobytes()


def _encode_uint8(scores: np.ndarray, ids: np.ndarray) -> bytes:
    with np.errstate(over="ignore", invalid="ignore"):
        low = np.float32(scores.min())
        span = np.float32(scores.max()) - low
    if not (np.isfinite(low) and np.isfinite(span)):
        raise DataError(
            f"label map: expected scores in float32's range, found {float(np.abs(scores).max()):g}"
        )
    finest, coarsest = span / np.float32(UINT8_MOST_STEPS), span / np.float32(UINT8_FEWEST_STEPS)
    step = min(max(np.float32(UINT8_STEP), finest), coarsest)
    levels = _levels((scores.astype(np.float64) - low) / (step or 1), ids)
    return np.array([low, step], "<f4").tobytes() + _rank_differences(levels).tobytes()


def _levels(wanted_KPQ: np.ndarray, ids_KPQ: np.ndarray) -> np.ndarray:
    """Whole levels, uint8 [K, P, Q], whose sums along a row of cells stay close to those of what is wanted.

    What rounding adds to a class in one cell is taken off the same class in the next cell of the row, where that kept
    it, too (error diffusion). Pooling averages over cells, so that errors which cancel count for less than independent
    ones: a crop's probabilities change half as much.
    """
    _, places = np.unique(ids_KPQ, return_inverse=True)
    places = places.reshape(ids_KPQ.shape)
    num_rows, num_columns = ids_KPQ.shape[1:]
    levels = np.empty(ids_KPQ.shape, np.uint8)
    carried, rows = np.zeros((places.max() + 1, num_rows)), np.arange(num_rows)
    for q in range(num_columns):
        cells = places[:, :, q], rows
        wanted = wanted_KPQ[:, :, q] + carried[cells]
        rounded = np.rint(wanted).clip(0, 255)
        levels[:, :, q] = rounded
        carried[:] = 0
        carried[cells] = wanted - rounded  # half a level at most
    return levels
