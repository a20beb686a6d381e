"""One card of a page: pictures side by side, a caption, and bars for probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .escape import escape
from .links import Inline, Link, inline_html
from .pictures import LOSSLESS_SIDE_PX, image_data_uri


@dataclass(frozen=True)
class Drawing:
    """A picture of SVG elements, as wide as its card.

    Attributes:
        width: of the picture, in its own units.
        height: of the picture.
        body: SVG elements. The caller has escaped all text in them.
    """

    width: float
    height: float
    body: str


@dataclass(frozen=True)
class Figure:
    """One card of a figure grid.

    Attributes:
        images: uint8 [H, W], [H, W, 1] or [H, W, 3] RGB, or drawings, shown side by side; none where there are none.
        caption: what they show; also read out by screen readers.
        bars: (label, probability in [0, 1]) in the order to show, such as the top classes of a target.
        own: place in `bars` of the image's own class, which is marked; None marks none.
        href: where the pictures lead (without pictures, the caption), as a Link's; None nowhere.
    """

    images: Sequence[np.ndarray | Drawing]
    caption: str
    bars: Sequence[tuple[str, float]] = ()
    own: int | None = None
    href: str | None = None


def figure_card(figure: Figure) -> str:
    """The card in HTML."""
    images = "".join(
        _drawing(image, figure.caption) if isinstance(image, Drawing) else _picture(image, figure.caption)
        for image in figure.images
    )
    bars = "".join(
        _bar(label, share, place == figure.own) for place, (label, share) in enumerate(figure.bars)
    )
    pictures = f'<div class="pictures">{images}</div>' if images else ""
    caption: Inline = figure.caption
    if figure.href is not None:
        link = Link(figure.caption, figure.href)
        # One stop of the tab key a card; the pictures' texts say what it opens.
        if images:
            pictures = f'<a href="{escape(link.href)}">{pictures}</a>'
        else:
            caption = link
    return (
        f'<figure class="card">{pictures}<figcaption>{inline_html(caption)}</figcaption>'
        + (f'<div class="bars">{bars}</div>' if bars else "")
        + "</figure>"
    )


def _picture(image: np.ndarray, caption: str) -> str:
    height, width = image.shape[:2]
    # A small picture is a map of cells: shown with sharp edges.
    cells = ' class="cells"' if min(height, width) <= LOSSLESS_SIDE_PX else ""
    size = f'width="{width}" height="{height}"'
    return f'<img{cells} src="{image_data_uri(image)}" {size} alt="{escape(caption)}">'


def _drawing(drawing: Drawing, caption: str) -> str:
    return (
        f'<svg class="picture" viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img" '
        f'aria-label="{escape(caption)}">{drawing.body}</svg>'
    )


def _bar(label: str, share: float, own: bool) -> str:
    style = ' class="own"' if own else ""
    # A sign beside the colour: not everybody sees one.
    shown, tooltip = (f"✓ {label}", f"{label}: the image's own class") if own else (label, label)
    return (
        f'<span{style} title="{escape(tooltip)}">{escape(shown)}</span>'
        f'<span class="track"><i{style} style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></span>'
        f'<span class="num">{share:.2f}</span>'
    )
