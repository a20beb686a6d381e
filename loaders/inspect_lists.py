"""Tables of a data set's shards and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..shards.html import Page
from .inspect_figures import ClassNames
from .inspect_links import Places
from .inspect_views import Inspection


def add_shards(page: Page, found: Inspection, first: int, count: int, places: Places) -> None:
    """A table of `count` shards from the `first` on."""
    shards = found.manifest.shards
    shown = shards[first : first + count]
    start = sum(shard.samples for shard in shards[:first])
    rows = []
    for number, shard in enumerate(shown, first):
        rows.append(
            [
                places.shard(number, shard.name),
                shard.samples,
                f"{start:,} to {start + shard.samples - 1:,}",
                shard.bytes,
                shard.sha256[:12],
            ]
        )
        start += shard.samples
    page.table(
        ["shard", "samples", "numbers", "bytes", "SHA-256"],
        rows,
        caption=_part(first, len(shown), len(shards)),
    )


def largest_classes(found: Inspection, count: int) -> np.ndarray:
    """Indices of the classes with the most samples, the largest first; int64 [at most `count`]."""
    return np.argsort(-found.class_counts, kind="stable")[:count]


def add_classes(
    page: Page,
    found: Inspection,
    names: ClassNames,
    indices: Sequence[int] | np.ndarray,
    places: Places,
    first: int | None = 0,
) -> None:
    """A table of some classes; `first` is the place of the first of them among all, None where they are picked."""
    levels = found.tree.levels if found.tree is not None and names.tree_fits else None
    rows = [
        [
            int(index),
            places.label(int(index), names.title(int(index))),
            int(found.class_counts[index]),
            *([int(levels[index])] if levels is not None else []),
        ]
        for index in indices
    ]
    header = ["class", "name", "samples", *(["level"] if levels is not None else [])]
    page.table(
        header, rows, caption="" if first is None else _part(first, len(rows), found.manifest.num_classes)
    )


def _part(first: int, count: int, total: int) -> str:
    return "" if count == total else f"{first + 1:,} to {first + count:,} of {total:,}"
