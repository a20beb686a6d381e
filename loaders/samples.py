"""Reads from their shards what a batch says of its samples besides pixels: stored sizes and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import simplejpeg

from ..shards.components import decode_class, decode_levels, encode_levels
from ..shards.errors import DataError, ImageError, UsageError
from ..shards.jpeg import raise_if_memory_ran_out, read_jpeg_header
from ..shards.manifest import Manifest
from ..shards.schema import CLS, HIER, JPG, LMAP
from .fetch import OpenShard

# A sample: its shard, and its place in it. M of them, L hierarchy levels.
Place = tuple[OpenShard, int]

_PLAIN_DIGITS = 9  # of a class that needs no look on its own: int64 holds it


def check_label_maps(dataset: str, manifest: Manifest, num_renamed: int | None = None) -> None:
    """Refuse a data set whose label maps cannot be pooled into its own classes.

    Args:
        dataset: its folder, for messages.
        manifest: of the data set.
        num_renamed: classes that a class map takes to the data set's, or None without one.

    Raises:
        UsageError: it has no label maps.
        DataError: they are over another number of classes.
    """
    if LMAP.suffix not in manifest.components or manifest.label_maps is None:
        raise UsageError(
            f"{dataset}: expected label maps for targets that pool them, found components "
            f"{list(manifest.components)}. Run: softshard maps make DATASET DST --teacher NAME"
        )
    if num_renamed is not None:
        if manifest.label_maps.num_classes != num_renamed:
            raise UsageError(
                f"{dataset}: expected a class map of the {manifest.label_maps.num_classes} classes of the label "
                f"maps, found one of {num_renamed}"
            )
    elif manifest.label_maps.num_classes != manifest.num_classes:
        raise DataError(
            f"{dataset}: expected label maps over the {manifest.num_classes} classes of the class list, "
            f"found {manifest.label_maps.num_classes}; the teacher has another class list. "
            "LabelPooling(class_map=...) takes its classes to the data set's"
        )


def read_sizes(places: Sequence[Place], members: Sequence[memoryview]) -> np.ndarray:
    """The stored sizes of M samples, from their JPEGs' headers.

    Args:
        places: where the samples lie, for messages.
        members: their JPEGs.

    Returns:
        int64 [M, 2], height and width.

    Raises:
        DataError: see `read_size`.
    """
    found = []
    try:
        for data in members:
            found += read_size(data)
    except ImageError:
        shard, place = places[len(found) // 2]
        try:
            read_size(members[len(found) // 2], shard.where(place, JPG.suffix))  # with its name
        except ImageError as error:
            raise DataError(f"{error}. Run: softshard verify {shard.path}") from error
    return np.array(found, np.int64).reshape(-1, 2)


def read_size(data: bytes | memoryview, where: str = "image") -> tuple[int, int]:
    """The stored height and width of a JPEG that is whole, as far as that can be seen without decoding it.

    Raises:
        ImageError: not a JPEG with pixels within the limits; a lossless one, which decoders crash on; one that is cut
            short, of which libjpeg would make grey pixels.
    """
    header = read_jpeg_header(data, where)
    if header.lossless:
        raise ImageError(f"{where}: expected a JPEG with a DCT, found a lossless one", kind="unsupported")
    if (data[-1] != 0xD9 or data[-2] != 0xFF) and _is_cut(bytes(data), where):
        raise ImageError(
            f"{where}: expected a whole JPEG, found one that is cut short after {len(data)} bytes",
            kind="truncated",
        )
    return header.height, header.width


def _is_cut(jpeg: bytes, where: str) -> bool:
    """Whether a JPEG that does not end in its end marker lacks pixels, too: cameras put bytes behind it, or forget it."""
    if jpeg.rfind(b"\xff\xd9") > jpeg.rfind(b"\xff\xda"):  # behind the last scan: not that of a thumbnail
        return False
    try:
        simplejpeg.decode_jpeg(jpeg + b"\xff\xd9", "RGB", strict=True)
    except ValueError as error:
        raise_if_memory_ran_out(error, where)
        return True
    return False


def read_classes(places: Sequence[Place], members: Sequence[memoryview], num_classes: int) -> np.ndarray:
    """The class indices of M samples.

    Args:
        places: where the samples lie, for messages.
        members: their components `cls`.
        num_classes: indices are below it.

    Returns:
        int64 [M]; -1 for samples without a class, of somebody else's tars.

    Raises:
        DataError: not a number, or from `num_classes` up.
    """
    if any(shard.classes is not None for shard, _ in places):
        return _classes_of_tars(places)
    raw = [bytes(data) for data in members]
    if all(map(bytes.isdigit, raw)) and max(map(len, raw), default=0) <= _PLAIN_DIGITS:
        classes = np.array(list(map(int, raw)), np.int64)
        if classes.max(initial=0) < num_classes:
            return classes
    # One at a time, to say which is wrong, and how.
    for (shard, place), data in zip(places, raw, strict=True):
        index = decode_class(data, shard.sample(place))
        if index >= num_classes:
            raise DataError(
                f"{shard.where(place, CLS.suffix)}: expected a class below {num_classes}, found {index}. "
                f"Run: softshard verify {shard.path}"
            )
    return np.array(list(map(int, raw)), np.int64)


def _classes_of_tars(places: Sequence[Place]) -> np.ndarray:
    """int64 [M], the classes of samples of somebody else's tars, found when these were indexed."""
    return np.array(
        [-1 if shard.classes is None else shard.classes[place] for shard, place in places], np.int64
    )


def read_levels(
    places: Sequence[Place],
    members: Sequence[memoryview],
    shape: tuple[int, ...],
    level_sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """The hierarchical label vectors of M samples.

    Args:
        places: where the samples lie, for messages.
        members: their components `hier.npy`.
        shape: of one sample's: (L,), or (A, L) in a tree where classes have several parents.
        level_sizes: classes of each level, which indices are below; None where there is no tree to say so.

    Returns:
        int64 [M, L] or [M, A, L], -1 where a label has no such level and in rows of paths that it does not have.

    Raises:
        DataError: vectors of another shape or type, or of classes that a level does not have.
    """
    example = encode_levels(np.zeros(shape, np.int16))
    header = example[: len(example) - 2 * math.prod(shape)]
    raw = [bytes(data) for data in members]
    for i, data in enumerate(raw):
        if len(data) != len(example) or not data.startswith(header):
            shard, place = places[i]
            found = decode_levels(data, shard.sample(place))
            if found.shape != shape:
                raise DataError(
                    f"{shard.where(place, HIER.suffix)}: expected int16 {list(shape)}, found int16 "
                    f"{list(found.shape)}. Run: softshard verify {shard.path}"
                )
            raw[i] = encode_levels(found)  # another writer's header, padded otherwise
    if not raw:
        return np.empty((0, *shape), np.int64)
    # All headers are the same bytes: the vectors are cut out as one array, ten times as fast as a call each.
    bodies = np.frombuffer(b"".join(raw), np.uint8).reshape(len(raw), -1)[:, len(header) :]
    levels = np.ascontiguousarray(bodies).view("<i2").astype(np.int64).reshape(-1, *shape)
    if level_sizes is not None:
        sizes = np.asarray(level_sizes[: shape[-1]])
        wrong = ((levels < -1) | (levels >= sizes)).reshape(len(levels), -1).any(axis=1)
        if wrong.any():
            shard, place = places[int(wrong.argmax())]
            raise DataError(
                f"{shard.where(place, HIER.suffix)}: expected -1 or classes below {sizes.tolist()}, found "
                f"{levels[wrong.argmax()].tolist()}. Run: softshard verify {shard.path}"
            )
    return levels
