"""Text of a length that a page or a message can show."""

from __future__ import annotations


def shortened(text: str, most: int) -> str:
    """The text, cut where it is longer than `most` characters, with what is left out counted."""
    return text if len(text) <= most else f"{text[:most]} ... and {len(text) - most:,} characters more"
