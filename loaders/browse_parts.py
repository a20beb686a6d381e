"""Parts of the browser's pages: small pictures, links of a class's relatives, links from page to page of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg

from ..shards.errors import DataError
from ..shards.figures import Figure
from ..shards.html import Page
from ..shards.jpeg import read_jpeg_header
from ..shards.links import Inline, Link
from ..shards.schema import JPG
from ..shards.tree import LabelTree
from .inspect_figures import ClassNames, shrunk
from .inspect_links import Places
from .inspection import Inspector

MAX_RELATIVES = 60  # siblings and children that a class page names
THUMB_PX = 200
_NEAR = 3  # pages before and after this one that are named


def thumbs(inspector: Inspector, numbers: Sequence[int], names: ClassNames, places: Places) -> list[Figure]:
    """Small stored images that lead to their samples; one that cannot be read says why."""
    figures = []
    for number in numbers:
        shard_number, place = inspector.place_of(number)
        index = int(inspector.classes[number])
        label = names.short(index) if index >= 0 else "no class"
        images, caption = [], f"sample {number:,}"
        try:
            (shard,) = inspector.open_shards([shard_number])
            caption = f"{shard.index.keys[place]}, {label}"
            images = [_thumb(bytes(shard.member(place, shard.index.column(JPG.suffix))))]
        except (DataError, ValueError) as error:
            caption += f": {error}"
        figures.append(Figure(images, caption, href=places.address_of_sample(number)))
    return figures


def _thumb(jpeg: bytes) -> np.ndarray:
    """The image, small; a large JPEG is decoded at a fraction of its size.

    Raises:
        DataError, ValueError: it cannot be decoded.
    """
    read_jpeg_header(jpeg)  # its limits come first
    return shrunk(
        simplejpeg.decode_jpeg(jpeg, "RGB", min_height=THUMB_PX, min_width=THUMB_PX, min_factor=1), THUMB_PX
    )


def relatives(tree: LabelTree, index: int, names: ClassNames, places: Places) -> dict[str, Inline]:
    """A class's path from the root, its children and its siblings; what it has none of is left out."""
    chain, node = [], index
    while node >= 0:
        chain, node = [node, *chain], int(tree.parents[node])
    siblings = np.flatnonzero(tree.parents == tree.parents[index]).tolist()
    groups = {
        "path in the tree": (" › ", chain),
        "children": (", ", np.flatnonzero(tree.parents == index).tolist()),
        "siblings": (", ", [each for each in siblings if each != index]),
    }
    return {
        name: _linked(between, members, names, places)
        for name, (between, members) in groups.items()
        if members
    }


def _linked(between: str, members: Sequence[int], names: ClassNames, places: Places) -> Inline:
    parts: list[Inline] = []
    for index in members[:MAX_RELATIVES]:
        parts += [between] if parts else []
        parts.append(places.label(index, names.short(index)))
    more = len(members) - MAX_RELATIVES
    return (*parts, *([f"{between}and {more:,} more"] if more > 0 else []))


def add_pages(page: Page, number: int, per_page: int, total: int, address: Callable[[int], str]) -> None:
    """Links to the first and last pages of a list and those near this one; none where there is one page.

    Args:
        page: that they are added to.
        number: of this page, from 0.
        per_page: entries of a page.
        total: entries of the list.
        address: of a page, from its number.
    """
    last = max(0, total - 1) // per_page
    if not last:
        return
    links = []
    for near in sorted({0, last, *range(max(0, number - _NEAR), min(last, number + _NEAR) + 1)}):
        text = f"{near * per_page + 1:,}–{min(total, (near + 1) * per_page):,}"
        links.append(Link(f"[{text}]" if near == number else text, address(near)))
    page.links(links, "Pages of this list")
