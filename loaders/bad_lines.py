"""Reads files of JSON lines about bad samples and bad inputs: a loader's quarantine, `bad.jsonl` of a packed data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..shards.storage import open_storage
from ..shards.text_limits import shortened

_MAX_LINE_BYTES = 2**16


def read_bad_lines(place: str | Path, name: str, first: int, count: int) -> list[dict[str, Any]] | None:
    """Some lines of a file of JSON maps, whatever its length; memory for those only.

    Args:
        place: folder or fsspec URL.
        name: of the file.
        first: the first line, from 0.
        count: how many.

    Returns:
        One map a line; a line that is none is {"reason": what it is}. None where there is no such file.

    Raises:
        DataError: its server is away.
    """
    try:
        file = open_storage(place).open(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        return [_parsed(line) for line in islice(_lines(file), first, first + count)]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of a longer one than a page can show, its beginning."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    return {"reason": f"not a JSON map: {shortened(repr(line), 200)}"}
