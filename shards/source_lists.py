"""File lists: CSV, TSV or JSON lines of path and label, and whatever else is known of each image.

    path,label,photographer            {"path": "a/1.jpg", "label": "dog", "photographer": "Ann"}
    a/1.jpg,dog,Ann

Paths are relative to the list, absolute, or URLs. The other columns go into the samples' metadata. Rows whose column
`split` says `val` are the validation part.
"""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from .errors import DataError
from .kept_rows import KeptRows
from .listing import ClassFolder, Listing, Seen, not_seen
from .source_labels import name_classes
from .storage import Storage, is_remote, open_storage, public_name
from .text_limits import every_problem

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_MAX_PROBLEMS = 1000  # then the list is not what it is taken for
_MAX_LINE_BYTES = 1024 * 1024
VALIDATION = "val"

Row = tuple[int, str, str, dict[str, Any]]  # line, path, label, metadata


def list_file_list(
    storage: Storage, class_names: Sequence[str] | None = None, seen: Seen = not_seen
) -> Listing:
    """List the images that a file names; none of them is looked at.

    Args:
        storage: of the list itself.
        class_names: what whole-number labels point into.

    Raises:
        DataError: every bad line, up to a limit.
    """
    name = storage.name
    problems: list[str] = []
    training, validation = KeptRows(), KeptRows()  # rows of a class need not follow each other
    with storage.open() as file:
        lines = text_lines(enumerate(bounded_lines(file), 1), name, problems)
        for line, path, label, metadata in (json_rows if is_json_list(name) else csv_rows)(
            lines, name, problems
        ):
            if problem := bad_row(path, label, storage):
                problems.append(f"{name}: line {line}: {problem}")
            else:
                rows = validation if metadata.get("split") == VALIDATION else training
                rows.add(label, path, metadata)
                seen(1)
            if len(problems) >= _MAX_PROBLEMS:
                break
    if not training.groups and not problems:
        found = "those of split val alone" if validation.groups else "none"
        raise DataError(f"{name}: expected rows of path and label, found {found}")
    classes, numbered = name_classes(set(map(str, training.groups | validation.groups)), class_names, name)
    folders = _classes(training, classes, name, problems)
    val_folders = _classes(validation, classes, name, problems)
    if problems:
        raise DataError(every_problem(problems))
    return Listing(name, folders, val_folders, class_names=numbered, storage=folder_of_list(storage))


def _classes(
    rows: KeptRows, classes: dict[str, str], where: str, problems: list[str]
) -> tuple[ClassFolder, ...]:
    labels: dict[str, list[Hashable]] = {}
    for label in sorted(map(str, rows.groups)):
        labels.setdefault(classes[label], []).append(label)
    return tuple(rows.class_folder(name, labels[name], where, problems) for name in sorted(labels))


def folder_of_list(storage: Storage) -> Storage:
    """The folder of the list, which its paths are relative to."""
    if storage.remote:
        return open_storage(storage.root.partition("?")[0].rpartition("/")[0])
    return open_storage(Path(storage.root).parent)


def path_prefix(folder: Storage, output: Path) -> str:
    """What must stand before a list's relative paths in a list that is made of it, whose paths begin at its own folder.

    Args:
        folder: of the first list.
        output: the second list, a local file.
    """
    if folder.remote:
        return f"{public_name(folder.root).rstrip('/')}/"
    between = os.path.relpath(folder.root, output.absolute().parent)
    return "" if between == os.curdir else f"{between}/"


def moved_path(path: str, prefix: str) -> str:
    """A path of the first list in the second."""
    return path if path.startswith("/") or is_remote(path) else prefix + path


def is_json_list(name: str) -> bool:
    """Whether a list is of JSON lines, by its name."""
    return name.lower().endswith((".jsonl", ".ndjson"))


def bad_row(path: str, label: str, storage: Storage) -> str:
    """What is wrong with a row of a list that lies in this storage, or an empty text."""
    if not path or "\0" in path:
        return f"expected a path, found {path!r}"
    if not label or "\0" in label or label != label.strip():
        return f"expected a label, found {label!r}"
    if not _is_utf8(path + label):
        return f"expected text, found half a character in {path!r} or {label!r}"
    if storage.remote and not is_remote(path):
        # A list from elsewhere must not choose files of this machine, nor climb out of its own folder.
        if path.startswith(("/", "file:", "~")) or ".." in path.split("/"):
            return f"expected a path below the list's own folder, found {path!r}"
    elif storage.remote and urlsplit(path).scheme != urlsplit(storage.root).scheme:
        return f"expected a {urlsplit(storage.root).scheme}:// URL as the list's own, found {public_name(path)!r}"
    return ""


def _is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8; JSON can spell half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; of one longer than 1 MiB a little more than that, the rest is read past."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE_BYTES)
        yield line


def text_lines(
    lines: Iterable[tuple[int, bytes]], where: str, problems: list[str]
) -> Iterator[tuple[int, str]]:
    """Numbered lines as text, without a byte-order mark; those that cannot be are among the problems."""
    for number, line in lines:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > _MAX_LINE_BYTES:
            problems.append(f"{where}: line {number}: expected at most {_MAX_LINE_BYTES} bytes, found more")
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(
                f"{where}: line {number}: expected UTF-8 text, found byte {line[error.start]:#04x}"
            )


class _Lines:
    """Texts of numbered lines for a reader of rows, which may take several lines for one.

    Attributes:
        row: the lines taken since it was last emptied.
    """

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines, self._again = lines, deque[tuple[int, str]]()
        self.row: list[tuple[int, str]] = []
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._length > _MAX_LINE_BYTES:
            raise csv.Error(f"a row of more than {_MAX_LINE_BYTES} characters")
        self.row.append(self._again.popleft() if self._again else next(self._lines))
        self._length += len(self.row[-1][1])
        return self.row[-1][1]

    def begin(self) -> None:
        """Begin another row."""
        self.row.clear()
        self._length = 0

    def again(self) -> None:
        """Take the row for its first line alone, and read the others again."""
        self._again.extendleft(reversed(self.row[1:]))


def csv_rows(lines: Iterator[tuple[int, str]], where: str, problems: list[str]) -> Iterator[Row]:
    """Rows of comma- or tab-separated values below a header; those that are none are among the problems.

    A quoted cell may go on over several lines. Where that makes no row, a quote stands by mistake: only the line that it
    is on is a bad one, and those behind are read as rows of their own.
    """
    texts = _Lines(lines)
    reader = csv.reader(texts, delimiter="\t" if where.lower().endswith(".tsv") else ",", strict=True)
    header: list[str] | None = None
    while True:
        texts.begin()
        try:
            row = next(reader, None)
        except csv.Error as error:
            problems.append(f"{_taken(texts, where)}: expected comma-separated values, found: {error}")
            texts.again()
            continue
        if row is None:
            return
        if not row:
            continue  # a blank line
        if header is None:
            header = [cell.strip() for cell in row]
            if len(set(header)) < len(header) or not {"path", "label"} <= set(header):
                problems.append(
                    f"{_taken(texts, where)}: expected a header with path and label, found {header}"
                )
                return
            continue
        if len(row) != len(header):
            problems.append(
                f"{_taken(texts, where)}: expected {len(header)} cells as in the header, found {len(row)}"
            )
            texts.again()
            continue
        cells = dict(zip(header, row, strict=True))
        yield texts.row[-1][0], cells.pop("path"), cells.pop("label").strip(), cells


def _taken(texts: _Lines, where: str) -> str:
    """Where a row begins, and ends if that is another line."""
    first, last = texts.row[0][0], texts.row[-1][0]
    return f"{where}: line {first}" + (f": inside a quote up to line {last}" if last > first else "")


def json_rows(lines: Iterator[tuple[int, str]], where: str, problems: list[str]) -> Iterator[Row]:
    """Rows of JSON objects, one a line; those that are none are among the problems."""
    for at, text in lines:
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: line {at}: expected a JSON object, found: {error}")
            continue
        if not isinstance(value, dict):
            problems.append(f"{where}: line {at}: expected a JSON object, found {type(value).__name__}")
            continue
        path, label = value.pop("path", None), value.pop("label", None)
        if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            label = str(label)
        if not isinstance(path, str) or not isinstance(label, str):
            problems.append(f"{where}: line {at}: expected path and label, found {path!r} and {label!r}")
            continue
        yield at, path, label, value
