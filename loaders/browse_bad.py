"""What a loader left out, and what could not be packed, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..shards.html import Page
from ..shards.links import Inline
from ..shards.schema import LEDGER_NAME
from ..shards.text_limits import shortened
from .bad_lines import read_bad_lines
from .inspect_links import Places

LINES_A_PAGE = 100
_COLUMNS = ("sample", "shard", "key", "path", "kind", "reason", "epoch", "step", "rank")
_MAX_CELL = 500  # characters


def add_quarantine(page: Page, file: Path | None, first: int, num_samples: int, places: Places) -> bool:
    """Add lines of a loader's quarantine file.

    Args:
        page: that they are added to.
        file: of JSON lines, or None where none was given.
        first: the first line that is shown.
        num_samples: of the data set.
        places: links.

    Returns:
        Whether there are more.
    """
    page.heading("Quarantine of a loader")
    if file is None:
        page.paragraph("No file was given. Give one: --quarantine FILE (a run's bad_samples.jsonl)")
        return False
    return _add_lines(page, file.parent, file.name, first, num_samples, places)


def add_ledger(page: Page, folder: str | Path | None, first: int, num_samples: int, places: Places) -> bool:
    """Add lines of `bad.jsonl`, which `softshard pack` writes above its data sets and others beside the shards.

    Args:
        page: that they are added to.
        folder: folder or URL of the data set; None for somebody else's tars.
        first: the first line that is shown.
        num_samples: of the data set.
        places: links.

    Returns:
        Whether there are more.
    """
    page.heading("Inputs that could not be packed")
    text = "" if folder is None else str(folder).rstrip("/")
    for place in (text, text.rpartition("/")[0] or ".") if text else ():
        if read_bad_lines(place, LEDGER_NAME, 0, 1):
            return _add_lines(page, place, LEDGER_NAME, first, num_samples, places)
    page.paragraph(f"There is no {LEDGER_NAME} in the data set's folder or above it, or it is empty.")
    return False


def _add_lines(
    page: Page, place: str | Path, name: str, first: int, num_samples: int, places: Places
) -> bool:
    lines = read_bad_lines(place, name, first, LINES_A_PAGE + 1)
    if not lines:
        page.paragraph(
            f"There is no file {name} (yet)." if lines is None else "No more lines." if first else "None."
        )
        return False
    shown = lines[:LINES_A_PAGE]
    header = [column for column in _COLUMNS if any(column in line for line in shown)]
    page.table(header, [[_cell(line, column, num_samples, places) for column in header] for line in shown])
    return len(lines) > LINES_A_PAGE


def _cell(line: dict[str, Any], column: str, num_samples: int, places: Places) -> Inline:
    value = line.get(column, "")
    if column == "sample" and type(value) is int and 0 <= value < num_samples:
        return places.sample(value, str(value))
    return shortened(str(value), _MAX_CELL)
