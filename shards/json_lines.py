"""JSON lines, one object a line, with what is wrong with a line in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .schema import MIB

MAX_LINE_BYTES = 64 * MIB
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLine(NamedTuple):
    """A line that is not blank.

    Attributes:
        number: of the line, from 1.
        offset: its first byte.
        length: its bytes, with the end of the line.
        row: the object; None where there is none.
        problem: what was expected and found; empty where there is an object.
    """

    number: int
    offset: int
    length: int
    row: dict[str, Any] | None
    problem: str = ""


def read_json_lines(file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[JsonLine]:
    """Every line that is not blank; one that is too long is skipped without being held in memory."""
    offset = number = 0
    while line := file.readline(max_line_bytes + 1):
        number, start, length = number + 1, offset, len(line)
        if length > max_line_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(max_line_bytes)
                length += len(line)
            offset += length
            problem = f"expected at most {max_line_bytes:,} bytes, found {length:,}"
            yield JsonLine(number, start, length, None, problem)
            continue
        offset += length
        if number == 1 and line.startswith(_BYTE_ORDER_MARK):
            line, start, length = line[3:], 3, length - 3
        if line.strip():
            yield _parsed(number, start, length, line)


def _parsed(number: int, start: int, length: int, line: bytes) -> JsonLine:
    try:
        row = json.loads(line.decode("utf-8"))
        if isinstance(row, dict):
            return JsonLine(number, start, length, row)
        problem = f"expected a JSON object, found {type(row).__name__}"
    except UnicodeDecodeError as error:
        problem = f"expected UTF-8 text, found byte {line[error.start]:#04x}"
    except (ValueError, RecursionError) as error:
        problem = f"expected a JSON object, found: {error}"
    return JsonLine(number, start, length, None, problem)
