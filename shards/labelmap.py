"""The `lmap` component: a compressed top-k label map (Yun et al., CVPR 2021, "ReLabel").

A label map keeps the K best classes of every cell of a teacher's dense prediction: scores and class ids, both
[K, P, Q] with P rows (image height) and Q columns (image width). FORMAT.md has the byte layout, and the
measurements behind it. Everything a reader needs to know is in a fixed header; its sizes and the checksum are
checked before anything is allocated.

Shape letters: N maps, C classes, K classes kept per cell, P Q rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError
from .labelmap_encode import encode_label_map as encode_label_map
from .labelmap_expand import expand
from .labelmap_header import (
    IDS_PALETTE_DIFFERENCES,
    IDS_UINT16,
    MAX_PALETTE,
    RANK_DIFFERENCES,
    SCORES_UINT8,
    JoinedMaps,
    check_sums,
    join_maps,
    read_headers,
)

# Maps are decoded a few at a time: arrays of so many elements stay in cache and in memory that the allocator keeps
# (fresh pages for a whole batch took four times as long as the arithmetic).
GROUP_ELEMENTS = 32_000


class MapHeader(NamedTuple):
    """What a label map's header says, checked against the limits and the payload's size.

    Attributes:
        scores: code of their encoding, as FORMAT.md lists it.
        ids: code of their encoding.
        compression: code of the block's compression.
        shape: (K, P, Q).
        palette: entries of the palette.
        num_classes: C; every id is below it.
        payload_bytes: size of the payload once expanded.
        crc32: of header and block.
    """

    scores: int
    ids: int
    compression: int
    shape: tuple[int, int, int]
    palette: int
    num_classes: int
    payload_bytes: int
    crc32: int


class MapGroup(NamedTuple):
    """Label maps of one encoding, decoded as one array: what pooling works on.

    Attributes:
        members: int64 [n], which of the N maps these are.
        scores: float32 [n, K, P, Q] logits.
        places: integer [n, K, P, Q]: class ids, or with tables uint8 places in the map's table.
        tables: None, or uint16 [n, 256]: each map's classes in ascending order, at the end of its row.
        sizes: entries of each table, int64 [n]; zeros without tables.
    """

    members: np.ndarray
    scores: np.ndarray
    places: np.ndarray
    tables: np.ndarray | None
    sizes: np.ndarray

    def parts(self, most: int) -> Iterator[MapGroup]:
        """The maps, at most so many at a time, as views."""
        for first in range(0, len(self.members), most):
            part = slice(first, first + most)
            tables = None if self.tables is None else self.tables[part]
            yield MapGroup(self.members[part], self.scores[part], self.places[part], tables, self.sizes[part])

    def ids(self) -> np.ndarray:
        """Class ids, [n, K, P, Q]."""
        if self.tables is None:
            return self.places
        rows = np.arange(len(self.places), dtype=np.int32)[:, None, None, None] * MAX_PALETTE
        return self.tables.ravel()[self.places + rows]


def read_map_header(data: bytes | memoryview, where: str = "label map") -> MapHeader:
    """Read and check a label map's header and checksum; nothing is expanded or allocated.

    Args:
        data: the `lmap` bytes.
        where: shard, sample and component, for messages.

    Raises:
        DataError: not a label map, of a newer version, cut short, damaged, or over the limits.
    """
    maps = join_maps([data], lambda _: where)
    heads = read_headers(maps, lambda _: where)
    check_sums(maps, np.arange(1), heads, lambda _: where)
    _, _, scores, ids, compression, top, rows, columns, palette, classes, payload, crc32 = heads[0].item()
    return MapHeader(scores, ids, compression, (top, rows, columns), palette, classes, payload, crc32)


def decode_map_groups(
    maps: Sequence[bytes | memoryview],
    where: Callable[[int], str] | None = None,
    *,
    shares: int = 1,
    steps: DecodeSteps | None = None,
) -> tuple[tuple[int, int, int], list[Iterator[Any]]]:
    """Decode N label maps of one shape, a few of one encoding at a time.

    Args:
        maps: N `lmap` values with the same K, P and Q; encodings may differ.
        where: the name of map i (shard, sample, component), for messages.
        shares: parts that the groups are dealt out to, for as many threads.
        steps: by which functions; in numpy by default.

    Returns:
        ((K, P, Q), shares of the groups). Headers have been checked; every map is in one of the groups, which are
        decoded as they are asked for, and raise for a wrong checksum and for what is wrong inside. The shares have
        as many maps each.

    Raises:
        DataError: see `decode_label_maps`.
    """
    where, steps = where or (lambda i: f"label map {i}"), steps or DecodeSteps()
    if not maps:
        raise DataError("label maps: expected at least one, found none")
    joined = join_maps(maps, where)
    heads = steps.read(joined, where)
    top, rows, columns = (heads[name] for name in ("top", "rows", "columns"))
    shape = int(top[0]), int(rows[0]), int(columns[0])
    other = (top != shape[0]) | (rows != shape[1]) | (columns != shape[2])
    if other.any():
        i = int(other.argmax())
        raise DataError(
            f"{where(i)}: expected [K, P, Q] {list(shape)} as before, found "
            f"{[int(top[i]), int(rows[i]), int(columns[i])]}"
        )
    kinds = heads["scores"] * np.uint8(16) + heads["ids"]
    order = np.argsort(kinds, kind="stable")
    ends = [len(maps) * share // shares for share in range(shares + 1)]
    return shape, [
        _groups(joined, order[first:last], kinds, heads, shape, where, steps)
        for first, last in pairwise(ends)
    ]


def _groups(
    maps: JoinedMaps,
    members: np.ndarray,
    kinds: np.ndarray,
    heads: np.ndarray,
    shape: tuple[int, int, int],
    where: Callable[[int], str],
    steps: DecodeSteps,
) -> Iterator[Any]:
    """Maps in the order of their kinds, decoded so many of one kind at a time."""
    steps.check(maps, members, heads, where)
    step = max(1, steps.group_elements // (shape[0] * shape[1] * shape[2]))
    for same in np.split(members, np.flatnonzero(np.diff(kinds[members])) + 1):
        for first in range(0, len(same), step):
            part = same[first : first + step]
            payloads = steps.expand(maps, part, heads, where)
            starts = np.concatenate([[0], np.cumsum(heads["payload"][part][:-1], dtype=np.int64)])
            yield steps.decode(part, payloads, starts, heads, shape, where)


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
    shape, (groups,) = decode_map_groups(maps, None if wheres is None else wheres.__getitem__)
    scores = np.empty((len(maps), *shape), np.float32)
    ids = np.empty((len(maps), *shape), np.uint16)
    for group in groups:
        scores[group.members] = group.scores
        ids[group.members] = group.ids()
    return scores, ids


def decode_label_map(data: bytes | memoryview, where: str = "label map") -> tuple[np.ndarray, np.ndarray]:
    """Decode one label map.

    Returns:
        (scores, ids): float32 [K, P, Q] logits and uint16 [K, P, Q] class ids.

    Raises:
        DataError: see `decode_label_maps`.
    """
    scores, ids = decode_label_maps([data], [where])
    return scores[0], ids[0]


def decode_group(
    members: np.ndarray,
    payloads: bytes,
    starts: np.ndarray,
    heads: np.ndarray,
    shape: tuple[int, int, int],
    where: Callable[[int], str],
) -> MapGroup:
    """Decode maps of one encoding.

    Args:
        members: int64 [n], which of the N maps these are.
        payloads: bytes that hold their payloads, each of the size that its header states.
        starts: int64 [n], where they begin.
        heads: HEADER_DTYPE [N].
        shape: (K, P, Q).
        where: the name of map i, for messages.

    Raises:
        DataError: see `decode_label_maps`.
    """
    num, elements = len(members), shape[0] * shape[1] * shape[2]
    score_code, id_code = int(heads["scores"][members[0]]), int(heads["ids"][members[0]])
    sizes = heads["palette"][members].astype(np.int64)
    # Palettes come first and have any length: filled up from the left, all else stands in the same columns.
    score_bytes = elements + 8 if score_code & SCORES_UINT8 else 2 * elements
    id_bytes = 2 * elements if id_code == IDS_UINT16 else elements
    width = (0 if id_code == IDS_UINT16 else 2 * MAX_PALETTE) + id_bytes + score_bytes
    ends = starts + heads["payload"][members]
    parts = [payloads[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    raw = np.frombuffer(b"".join([part.rjust(width, b"\0") for part in parts]), np.uint8)
    raw = raw.reshape(num, width)
    part = raw[:, width - score_bytes :]
    scores = _decode_scores(part, score_code, shape)
    if not np.isfinite(scores).all():
        i = int((~np.isfinite(scores.reshape(num, -1)).all(axis=1)).argmax())
        raise DataError(f"{where(int(members[i]))}: expected finite scores, found NaN or infinity")
    part = raw[:, width - score_bytes - id_bytes : width - score_bytes]
    if id_code == IDS_UINT16:
        places, tables = np.ascontiguousarray(part).view("<u2"), None
        largest = places.max(axis=1)
    else:
        worst = part.max(axis=1)
        if (worst >= sizes).any():
            i = int((worst >= sizes).argmax())
            raise DataError(
                f"{where(int(members[i]))}: expected palette codes below {sizes[i]}, found {worst[i]}"
            )
        places = part + (MAX_PALETTE - sizes).astype(np.uint8)[:, None]  # 256 entries: 0, and all codes fit
        tables = _decode_tables(raw[:, : 2 * MAX_PALETTE], id_code, members, sizes, where)
        largest = tables[:, -1]
    limits = heads["classes"][members]
    if (largest >= limits).any():
        i = int((largest >= limits).argmax())
        raise DataError(f"{where(int(members[i]))}: expected class ids below {limits[i]}, found {largest[i]}")
    return MapGroup(members, scores, places.reshape(num, *shape), tables, sizes)


def _decode_tables(
    raw: np.ndarray, id_code: int, members: np.ndarray, sizes: np.ndarray, where: Callable[[int], str]
) -> np.ndarray:
    """Palettes from uint8 [n, 512], filled up from the left, to uint16 [n, 256]."""
    tables = np.ascontiguousarray(raw).view("<u2")
    if id_code == IDS_PALETTE_DIFFERENCES:
        tables = np.cumsum(tables, axis=1, dtype=np.uint16)
    # Each map's entries but its first are above the one before: pooling writes to each class once.
    inner = np.arange(1, MAX_PALETTE) > (MAX_PALETTE - sizes)[:, None]
    falls = ((tables[:, 1:] <= tables[:, :-1]) & inner).any(axis=1)
    if falls.any():
        raise DataError(
            f"{where(int(members[falls.argmax()]))}: expected a palette in ascending order, found another"
        )
    return tables


def _decode_scores(raw: np.ndarray, score_code: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Scores from uint8 [n, bytes] to float32 [n, K, P, Q]."""
    num, elements = len(raw), shape[0] * shape[1] * shape[2]
    if score_code & SCORES_UINT8:
        levels = raw[:, 8:]
    else:
        levels = raw[:, elements:].astype(np.uint16) << 8 | raw[:, :elements]
    levels = levels.reshape(num, *shape)
    if score_code & RANK_DIFFERENCES:
        levels = levels.copy()
        for rank in range(1, shape[0]):
            np.subtract(levels[:, rank - 1], levels[:, rank], out=levels[:, rank])
    if not score_code & SCORES_UINT8:
        return levels.view(np.float16).astype(np.float32)
    affine = np.ascontiguousarray(raw[:, :8]).view("<f4")
    low, step = (affine[:, i, None, None, None] for i in range(2))
    with np.errstate(over="ignore", invalid="ignore"):  # refused by the caller
        scores = levels * step
        scores += low
    return scores


class DecodeSteps(NamedTuple):
    """By which functions label maps are decoded. Others than these give the same, and raise the same errors.

    Attributes:
        read: (maps, where) to headers.
        check: compares (maps, members, heads, where) with their checksums.
        expand: (maps, members, heads, where) to payloads.
        decode: makes a group of what `decode_group` takes.
        group_elements: K * P * Q times the maps of a group, at most.
    """

    read: Callable[..., np.ndarray] = read_headers
    check: Callable[..., None] = check_sums
    expand: Callable[..., bytes | np.ndarray] = expand
    decode: Callable[..., Any] = decode_group
    group_elements: int = GROUP_ELEMENTS
