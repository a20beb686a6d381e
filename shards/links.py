"""Links, navigation and forms of a page; a page in a file has none of them, those of `softshard inspect --serve` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .escape import escape

# Text of a page: anything that has a `str`, a link, or a tuple of such parts, one after the other.
Inline = object


@dataclass(frozen=True)
class Link:
    """A word to follow.

    Attributes:
        text: what it says.
        href: where it leads: an address on the same server, or a `#place` on the same page.
    """

    text: str
    href: str

    def __post_init__(self) -> None:
        # A data set must not be able to name a place elsewhere, or a script.
        if not self.href.startswith(("/", "#")) or self.href.startswith("//"):
            raise ValueError(f"link: expected an address that begins with / or #, found {self.href!r}")


@dataclass(frozen=True)
class Field:
    """One input of a form.

    Attributes:
        name: of the value in the address.
        label: what people read.
        value: what it holds at first.
        number: only digits.
    """

    name: str
    label: str
    value: str = ""
    number: bool = False


def inline_html(value: Inline) -> str:
    """Text or links in HTML, escaped."""
    if isinstance(value, Link):
        return f'<a href="{escape(value.href)}">{escape(value.text)}</a>'
    if isinstance(value, tuple):
        return "".join(map(inline_html, value))
    return escape(str(value))


def nav_html(links: Sequence[Link], label: str, current: str = "") -> str:
    """Links beside each other.

    Args:
        links: in their order.
        label: what they are, for screen readers.
        current: address of the page that they stand on; that link is marked.
    """
    items = "".join(
        f'<li><a href="{escape(link.href)}"{" aria-current=page" if link.href == current else ""}>'
        f"{escape(link.text)}</a></li>"
        for link in links
    )
    return f'<nav aria-label="{escape(label)}"><ul>{items}</ul></nav>'


def form_html(fields: Sequence[Field], button: str, action: str) -> str:
    """A form that asks for another page: what is filled in becomes part of its address.

    Args:
        fields: the inputs.
        button: what the button says.
        action: address of the page.
    """
    inputs = "".join(
        f"<label>{escape(field.label)} "
        f'<input name="{escape(field.name)}" value="{escape(field.value)}"'
        + (' type="number" min="0" inputmode="numeric"' if field.number else ' type="search"')
        + "></label>"
        for field in fields
    )
    return f'<form method="get" action="{escape(action)}">{inputs}<button>{escape(button)}</button></form>'
