"""Progress bars: on standard error, for people only."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int | None, label: str, unit: str) -> tqdm:
    """A bar that shows itself on a terminal and nowhere else.

    Args:
        total: how many units there are, or None.
        label: what is being done.
        unit: what is counted, such as `img`.
    """
    return tqdm(
        total=total, desc=label, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty(), unit_scale=True
    )
