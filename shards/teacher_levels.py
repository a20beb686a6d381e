"""The `kd` component: a teacher's best classes on every level of a label tree (Ridnik et al. 2021, sec. 3.3).

For semantic knowledge distillation without a teacher at hand. Of every level the K_k = ceil(N_k / 20) most
probable classes are kept, with their softmax probabilities *within the level*; what they leave of 1 is spread
evenly over the level's other classes when it is read. A sample of ImageNet-21K-P keeps 568 classes in 2 kB.

The value is a header, and a payload that is stored or one LZ4 block, whichever is shorter. All numbers are
little-endian. The payload, once expanded:

    uint16 [L]     N_k, classes of every level
    uint16 [K]     ids within their level, level by level, the most probable one first
    uint8  [2, K]  float16 probabilities: all low bytes, then all high bytes, which compress

FORMAT.md prints the header. Sizes and checksum are checked before anything is allocated.

Shape letters: N samples, L hierarchy levels, N_k classes and K_k kept classes of level k, K the sum of K_k.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import lz4.block
import numpy as np

from .errors import DataError, UsageError
from .schema import MAX_LEVEL_CLASSES

MAGIC = b"SSKD"
VERSION = 1
# (struct code, field, meaning), little-endian without padding.
HEADER_FIELDS = (
    ("4s", "magic", "`SSKD`"),
    ("B", "version", "1"),
    ("B", "compression", "0 stored, 1 one LZ4 block"),
    ("H", "levels", "L, 1 or more"),
    ("I", "kept", "K, kept classes of all levels; at most 65,536"),
    ("I", "crc32", "CRC-32 of all header bytes before it and of the block after it"),
)
HEADER = struct.Struct("<" + "".join(code for code, _, _ in HEADER_FIELDS))
STORED, LZ4 = 0, 1

MAX_KEPT = 65_536
MAX_LEVELS = 4_096
# A block is never longer than the payload of a value at both limits. (schema.KD has this number; a test compares.)
MAX_BYTES = HEADER.size + 2 * MAX_LEVELS + 4 * MAX_KEPT

# float16 rounds the K_k probabilities of a level by up to 2^-12 of each, so their sum may pass 1 by as much.
SUM_TOLERANCE = 1e-3


class TeacherHeader(NamedTuple):
    """What a value's header says, checked against the limits.

    Attributes:
        compression: STORED or LZ4.
        num_levels: L.
        num_kept: K.
    """

    compression: int
    num_levels: int
    num_kept: int

    @property
    def payload_bytes(self) -> int:
        """Size of the payload once expanded."""
        return 2 * self.num_levels + 4 * self.num_kept


def num_kept(level_sizes: Sequence[int]) -> tuple[int, ...]:
    """K_k = ceil(N_k / 20) of every level: the 5 % by which a teacher's confidence is measured too."""
    return tuple(-(-size // 20) for size in level_sizes)


def encode_teacher_levels(ids: np.ndarray, probabilities: np.ndarray, level_sizes: Sequence[int]) -> bytes:
    """Encode what a teacher says of one image.

    Args:
        ids: integer [K]. Ids within their level in [0, N_k), level by level, distinct within a level.
        probabilities: float [K]. Softmax probabilities within the level, falling.
        level_sizes: N_k of every level.

    Returns:
        The `kd` bytes. The same arrays give the same bytes for one LZ4 version.

    Raises:
        UsageError: levels beyond the limits.
        DataError: arrays of another shape, ids out of range or twice on a level, or numbers that are no
            falling probabilities of at most 1 in all.
    """
    sizes, kept = np.array(level_sizes, dtype=np.int64), num_kept(level_sizes)
    if not 1 <= len(sizes) <= MAX_LEVELS or sizes.min() < 1 or sizes.max() > MAX_LEVEL_CLASSES:
        raise UsageError(
            f"teacher levels: expected 1 to {MAX_LEVELS} levels of 1 to {MAX_LEVEL_CLASSES} classes, found "
            f"{list(level_sizes)[:20]}"
        )
    if sum(kept) > MAX_KEPT:
        raise UsageError(f"teacher levels: expected at most {MAX_KEPT} kept classes, found {sum(kept)}")
    ids, probabilities = np.asarray(ids), np.asarray(probabilities)
    if (
        ids.shape != (sum(kept),)
        or probabilities.shape != ids.shape
        or not np.issubdtype(ids.dtype, np.integer)
    ):
        raise DataError(
            f"teacher levels: expected integer ids and probabilities [{sum(kept)}], found {ids.dtype} "
            f"{list(ids.shape)} and {list(probabilities.shape)}; the teacher has another tree"
        )
    halves = probabilities.astype("<f2")
    check_teacher_levels(ids, halves, level_sizes)
    payload = sizes.astype("<u2").tobytes() + ids.astype("<u2").tobytes()
    payload += np.ascontiguousarray(halves.reshape(-1, 1).view(np.uint8).T).tobytes()
    block = lz4.block.compress(payload, mode="high_compression", compression=12, store_size=False)
    compression = LZ4
    if len(block) >= len(payload):
        compression, block = STORED, payload
    head = HEADER.pack(MAGIC, VERSION, compression, len(sizes), len(ids), 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(block, zlib.crc32(head))) + block


def check_teacher_levels(
    ids: np.ndarray, halves: np.ndarray, level_sizes: Sequence[int], where: str = "teacher levels"
) -> None:
    """Check all that a writer promises of one value.

    Args:
        ids: integer [K].
        halves: float16 [K], the probabilities.
        level_sizes: N_k of every level.
        where: shard, sample and component, for messages.

    Raises:
        DataError: ids out of range or twice on a level, or numbers that are no falling probabilities of at most 1 in
            all; every kind of problem is named.
    """
    sizes = np.array(level_sizes, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        is_probability = (halves >= 0).all() and (halves <= 1).all()  # False for NaN
    level, problems = np.repeat(np.arange(len(sizes)), num_kept(level_sizes)), []
    if ids.min() < 0 or (ids >= sizes[level]).any():
        problems.append("ids within their level")
    elif len(np.unique(level * (MAX_LEVEL_CLASSES + 1) + ids)) != len(ids):
        problems.append("distinct ids on each level")
    if not is_probability:
        problems.append("probabilities from 0 to 1")
    elif (np.bincount(level, weights=halves) > 1 + SUM_TOLERANCE).any():
        problems.append("at most 1 as the sum of a level's probabilities")
    elif ((np.diff(halves) > 0) & (np.diff(level) == 0)).any():
        problems.append("the most probable class of each level first")
    if problems:
        raise DataError(f"{where}: expected {' and '.join(problems)}, found others")


def read_teacher_header(data: bytes | memoryview, where: str = "teacher levels") -> TeacherHeader:
    """Read and check a value's header and checksum; nothing is expanded or allocated.

    Args:
        data: the `kd` bytes.
        where: shard, sample and component, for messages.

    Raises:
        DataError: not such a value, of a newer version, cut short, damaged, or over the limits.
    """
    size = len(data)
    if not HEADER.size <= size <= MAX_BYTES:
        raise DataError(
            f"{where}: expected {HEADER.size} to {MAX_BYTES} bytes, found {size}; it is cut short"
        )
    magic, version, compression, num_levels, kept, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DataError(f"{where}: expected teacher levels that start with {MAGIC!r}, found {bytes(magic)!r}")
    if version > VERSION:
        raise DataError(
            f"{where}: expected teacher levels of version {VERSION}, found {version}; "
            "they were written by a newer softshard. Run: pip install -U softshard"
        )
    if version != VERSION or compression > 1:
        raise DataError(f"{where}: expected encodings of version {VERSION}, found others; it is damaged")
    if not 1 <= num_levels <= MAX_LEVELS or not num_levels <= kept <= MAX_KEPT:
        raise DataError(
            f"{where}: expected 1 to {MAX_LEVELS} levels and as many to {MAX_KEPT} kept classes, found "
            f"{num_levels} and {kept}; it is damaged"
        )
    if zlib.crc32(data[HEADER.size :], zlib.crc32(data[: HEADER.size - 4])) != crc:
        raise DataError(f"{where}: expected checksum {crc:08x}, found another; it is damaged or cut short")
    return TeacherHeader(compression, num_levels, kept)


def decode_teacher_levels(
    values: Sequence[bytes | memoryview], level_sizes: Sequence[int], wheres: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode what a teacher says of N images.

    Args:
        values: N `kd` values.
        level_sizes: N_k of every level of the data set's tree.
        wheres: N names for messages (shard, sample, component).

    Returns:
        (ids, probabilities): int64 [N, K] ids within their level, float16 [N, K], level by level: what
        `softshard.training.TeacherLevels` holds.

    Raises:
        DataError: a value is damaged, was made for another tree, or has ids or probabilities out of range.
    """
    names = wheres if wheres is not None else [f"teacher levels {i}" for i in range(len(values))]
    sizes, kept = np.array(level_sizes, dtype=np.int64), num_kept(level_sizes)
    expected = TeacherHeader(STORED, len(kept), sum(kept))
    payloads = []
    for data, name in zip(values, names, strict=True):
        header = read_teacher_header(data, name)
        if header[1:] != expected[1:]:
            raise DataError(
                f"{name}: expected {expected.num_kept} kept classes on {expected.num_levels} levels, found "
                f"{header.num_kept} on {header.num_levels}; the teacher had another tree"
            )
        payloads.append(_payload(data, header, name))
    raw = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), expected.payload_bytes)
    numbers = raw[:, : 2 * (len(kept) + expected.num_kept)].copy().view("<u2").astype(np.int64)
    low, high = np.split(raw[:, 2 * numbers.shape[1] :], 2, axis=1)
    probabilities = (high.astype(np.uint16) << 8 | low).view(np.float16)
    found_sizes, ids = numbers[:, : len(kept)], numbers[:, len(kept) :]
    if (wrong := np.flatnonzero((found_sizes != sizes).any(axis=1))).size:
        i = int(wrong[0])
        raise DataError(
            f"{names[i]}: expected levels of {list(level_sizes)} classes, found {found_sizes[i].tolist()}; "
            "the teacher had another tree"
        )
    limits = np.repeat(sizes, kept)
    # Distinct ids are the writer's promise, under the checksum: looking for them would mean sorting.
    is_probability = (probabilities >= 0) & (probabilities <= 1)
    if (wrong := np.flatnonzero(((ids >= limits) | ~is_probability).any(axis=1))).size:
        raise DataError(
            f"{names[wrong[0]]}: expected ids within their level and probabilities from 0 to 1, found others; "
            "it was written by something else than softshard"
        )
    return ids, probabilities


def _payload(data: bytes | memoryview, header: TeacherHeader, where: str) -> bytes:
    block = bytes(data[HEADER.size :])
    if header.compression == LZ4:
        try:
            block = lz4.block.decompress(block, uncompressed_size=header.payload_bytes)
        except lz4.block.LZ4BlockError as error:
            raise DataError(f"{where}: expected an LZ4 block, found: {error}") from error
    if len(block) != header.payload_bytes:
        raise DataError(f"{where}: expected {header.payload_bytes} payload bytes, found {len(block)}")
    return block
