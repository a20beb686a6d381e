"""Records to find tags in, block by block: of a list or of WebVision, read by many processes in bounded memory.

The process that runs the build cuts the source into blocks, each of which another process reads:

    list.jsonl    some lines, as they are
    list.csv      some rows, parsed: where a row ends is known only by who began at the top
    WebVision     a query's images: their paths, and the name of the file that has their texts
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError, UsageError
from .files import canonical_json, sha256_hex
from .listing_file import folders_stamp, source_stamp
from .source_lists import (
    LIST_SUFFIXES,
    Row,
    bad_row,
    bounded_lines,
    csv_rows,
    folder_of_list,
    is_json_list,
    json_rows,
    text_lines,
)
from .source_webvision import rows_by_meta, texts_of
from .storage import Storage, is_remote, open_storage
from .text_limits import every_problem
from .webvision_info import INFO_FOLDER, WebVision, WebVisionRow, is_webvision, open_webvision

BLOCK_RECORDS = 2000
_BLOCK_BYTES = 8 * 1024 * 1024


class Record(NamedTuple):
    """One image.

    Attributes:
        path: as the source names it.
        label: its class.
        fields: what else the source says of it.
        problem: what is wrong with its text (a missing file), or empty.
    """

    path: str
    label: str
    fields: dict[str, Any]
    problem: str = ""


class Block(NamedTuple):
    """A part of the source, not read yet: one of the first three, and problems met on the way."""

    lines: list[tuple[int, bytes]]
    rows: list[Row]
    webvision: list[WebVisionRow]
    problems: list[str]


@dataclass(frozen=True)
class TextSource:
    """Where records come from.

    Attributes:
        storage: of the list, or WebVision's folder.
        webvision: whether it is WebVision.
        fixed_classes: WebVision's wnids, in the order of its class indices; else empty.
    """

    storage: Storage
    webvision: bool
    fixed_classes: tuple[str, ...] = ()

    @property
    def folder(self) -> Storage:
        """What relative paths begin at."""
        return self.storage if self.webvision else folder_of_list(self.storage)

    def stamp(self) -> str | None:
        """What changes when the list does, or of WebVision the info folder, where images and texts lie, and the files of
        texts (one a query; none of the images is looked at); None where sizes and times are not known.
        """
        if not self.webvision:
            return source_stamp(self.storage)
        parts = open_webvision(self.storage).parts
        texts = {"".join(part.meta): ".json" for part in parts if part.meta is not None}
        files = folders_stamp(self.storage, {INFO_FOLDER: "", **texts})
        return None if files is None else f"{files} {sha256_hex(canonical_json(parts))}"

    def blocks(self) -> Iterator[Block]:
        """All of the source, in order."""
        if self.webvision:
            yield from _webvision_blocks(open_webvision(self.storage))
        elif is_json_list(self.storage.name):
            yield from self._line_blocks()
        else:
            yield from self._row_blocks()

    def read(self, block: Block) -> tuple[list[Record], list[str]]:
        """The records of a block in order, and what is wrong with the rest of it."""
        if block.webvision:
            webvision = _webvision_at(self.storage.root)
            texts = texts_of(webvision, block.webvision)
            # With the words of its class, for where an image has no others.
            return [
                Record(
                    row.path,
                    webvision.synsets[row.label],
                    {**text, "label_words": webvision.names[row.label]},
                    problem,
                )
                for row, (text, problem) in zip(block.webvision, texts, strict=True)
            ], block.problems
        name = self.storage.name
        problems = list(block.problems)
        rows = (
            json_rows(text_lines(block.lines, name, problems), name, problems) if block.lines else block.rows
        )
        records = []
        for line, path, label, fields in rows:
            if problem := bad_row(path, label, self.storage):
                problems.append(f"{name}: line {line}: {problem}")
            else:
                records.append(Record(path, label, fields))
        return records, problems

    def validation(self) -> Iterator[tuple[str, str]]:
        """(path, label) of WebVision's validation images, which have no text; a list has them among its rows."""
        if self.webvision:
            webvision = open_webvision(self.storage)
            problems: list[str] = []
            for path, label in webvision.validation(problems):
                yield path, webvision.synsets[label]
            if problems:
                raise DataError(every_problem(problems))

    def _line_blocks(self) -> Iterator[Block]:
        with self.storage.open() as file:
            lines: list[tuple[int, bytes]] = []
            size = 0
            for number, line in enumerate(bounded_lines(file), 1):
                lines.append((number, line))
                size += len(line)
                if len(lines) == BLOCK_RECORDS or size > _BLOCK_BYTES:
                    yield Block(lines, [], [], [])
                    lines, size = [], 0
            if lines:
                yield Block(lines, [], [], [])

    def _row_blocks(self) -> Iterator[Block]:
        name = self.storage.name
        problems: list[str] = []
        with self.storage.open() as file:
            rows: list[Row] = []
            for row in csv_rows(
                text_lines(enumerate(bounded_lines(file), 1), name, problems), name, problems
            ):
                rows.append(row)
                if len(rows) == BLOCK_RECORDS or len(problems) >= BLOCK_RECORDS:
                    yield Block([], rows, [], problems.copy())
                    rows = []
                    problems.clear()
            if rows or problems:
                yield Block([], rows, [], problems.copy())


def open_text_source(source: str | Path) -> TextSource:
    """Open a list (.csv, .tsv, .jsonl) of path, label and text, or a WebVision folder.

    Raises:
        UsageError: it is not there, or neither.
        DataError: WebVision's info folder is damaged.
    """
    storage = open_storage(source if is_remote(source) else os.path.abspath(source))
    if storage.is_folder():
        if not is_webvision(storage):
            raise UsageError(
                f"{storage.name}: expected a list of path, label and text (.csv, .tsv, .jsonl) or a WebVision folder with "
                "info/synsets.txt, found another folder"
            )
        return TextSource(storage, True, open_webvision(storage).synsets)
    if not storage.name.lower().endswith(LIST_SUFFIXES):
        raise UsageError(
            f"{storage.name}: expected a list of path, label and text (.csv, .tsv, .jsonl) or a WebVision folder, found a "
            "file of another kind"
        )
    return TextSource(storage, False)


def _webvision_blocks(webvision: WebVision) -> Iterator[Block]:
    problems: list[str] = []
    for part in webvision.parts:
        for rows in rows_by_meta(webvision, part, problems):
            yield Block([], [], rows, problems.copy())
            problems.clear()
        if problems:
            yield Block([], [], [], problems.copy())
            problems.clear()


@lru_cache(maxsize=1)
def _webvision_at(root: str) -> WebVision:
    """The small files of the info folder, read once per process."""
    return open_webvision(open_storage(root))
