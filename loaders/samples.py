"""Reads from their shards what a batch says of its samples besides pixels: stored sizes and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..shards.components import decode_class, decode_levels, encode_levels
from ..shards.errors import DataError, ImageError, UsageError
from ..shards.jpeg import read_jpeg_header
from ..shards.manifest import Manifest
from ..shards.schema import CLS, HIER, JPG, LMAP
from .fetch import OpenShard

# A sample: its shard, and its place in it. M of them, L hierarchy levels.
Place = tuple[OpenShard, int]


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


def read_sizes(places: Sequence[Place], column: int) -> np.ndarray:
    """The stored sizes of M samples, from their JPEGs' headers.

    Args:
        places: where the samples lie.
        column: of the component in the shards' indexes.

    Returns:
        int64 [M, 2], height and width.

    Raises:
        DataError: not a JPEG with pixels within the limits.
    """
    hw = np.empty((len(places), 2), np.int64)
    for i, (shard, place) in enumerate(places):
        try:
            header = read_jpeg_header(shard.member(place, column), shard.where(place, JPG.suffix))
        except ImageError as error:
            raise DataError(f"{error}. Run: softshard verify {shard.path}") from error
        hw[i] = header.height, header.width
    return hw


def read_classes(places: Sequence[Place], column: int, num_classes: int) -> np.ndarray:
    """The class indices of M samples.

    Args:
        places: where the samples lie.
        column: of the component in the shards' indexes.
        num_classes: indices are below it.

    Returns:
        int64 [M]; -1 for samples without a class, of somebody else's tars.

    Raises:
        DataError: not a number, or from `num_classes` up.
    """
    classes = np.empty(len(places), np.int64)
    for i, (shard, place) in enumerate(places):
        if shard.classes is not None:
            classes[i] = shard.classes[place]
            continue
        classes[i] = index = decode_class(shard.member(place, column), shard.sample(place))
        if index >= num_classes:
            raise DataError(
                f"{shard.where(place, CLS.suffix)}: expected a class below {num_classes}, found {index}. "
                f"Run: softshard verify {shard.path}"
            )
    return classes


def read_levels(places: Sequence[Place], column: int, shape: tuple[int, ...]) -> np.ndarray:
    """The hierarchical label vectors of M samples.

    Args:
        places: where the samples lie.
        column: of the component in the shards' indexes.
        shape: of one sample's: (L,), or (A, L) in a tree where classes have several parents.

    Returns:
        int64 [M, L] or [M, A, L], -1 where a label has no such level and in rows of paths that it does not have.

    Raises:
        DataError: vectors of another shape or type.
    """
    example = encode_levels(np.zeros(shape, np.int16))
    header = example[: len(example) - 2 * math.prod(shape)]
    raw = [bytes(shard.member(place, column)) for shard, place in places]
    for i, ((shard, place), data) in enumerate(zip(places, raw, strict=True)):
        if len(data) != len(example) or not data.startswith(header):
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
    return np.ascontiguousarray(bodies).view("<i2").astype(np.int64).reshape(-1, *shape)
