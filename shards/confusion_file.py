"""Confusion matrices as files: NumPy's `.npy`, which has numbers alone, or CSV, which names its classes.

    class,n02085620,n02085782        class,... and a name a column
    n02085620,45,3                   a line a class: its name and its numbers, row taken for column
    n02085782,7,41

A CSV of bare numbers is read, too; like `.npy` it must be in the class list's order.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from .destination import write_file
from .errors import DataError, UsageError
from .files import read_limited, read_text
from .names import name_bytes
from .storage import public_name
from .text_limits import every_problem, some

CORNER = "class"
SUFFIXES = (".npy", ".csv")
_MAX_BYTES = 4 * 2**30  # 21,841 classes in float64 take 3.8 GB


def save_confusion(path: str | Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a confusion matrix.

    Args:
        path: ends in `.npy` or `.csv`; a local path or an fsspec URL that can be written.
        counts: number [C, C]: row taken for column.
        class_names: C names.

    Raises:
        UsageError: another ending, or a place that cannot be written.
    """
    suffix = check_confusion_name(path)
    if suffix == ".npy":
        data = io.BytesIO()
        np.save(data, counts, allow_pickle=False)
        content = data.getvalue()
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([CORNER, *class_names])
        writer.writerows([name, *row.tolist()] for name, row in zip(class_names, counts, strict=True))
        content = name_bytes(text.getvalue())
    write_file(path, content)


def load_confusion(path: str | Path, class_names: Sequence[str]) -> np.ndarray:
    """Read a confusion matrix for a class list.

    Args:
        path: a `.npy` or `.csv`, a local path or any fsspec URL. A CSV that names its classes may have them in another
            order, and more of them: it is read by name.
        class_names: C names.

    Returns:
        float64 [C, C] in the order of `class_names`, finite and not negative.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: it is no such matrix, or of other classes; every problem is named.
    """
    where = public_name(str(path))
    if check_confusion_name(path) == ".npy":
        matrix = _read_npy(path, where)
        names = None
    else:
        names, matrix = _read_csv(read_text(str(path), _MAX_BYTES), where)
    wrong = np.argwhere(~(np.isfinite(matrix) & (matrix >= 0)))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise DataError(
            f"{where}: expected finite numbers that are not negative, found {matrix[row, column]} in row {row}, column "
            f"{column} (from 0){f' and {len(wrong) - 1:,} more' if len(wrong) > 1 else ''}"
        )
    if names is None:
        if len(matrix) != len(class_names):
            raise DataError(
                f"{where}: expected {len(class_names):,} rows and columns, one a class, found {len(matrix):,}; it is of "
                "another class list"
            )
        return matrix
    index = {name: i for i, name in enumerate(names)}
    if missing := [name for name in class_names if name not in index]:
        raise DataError(
            f"{where}: expected the data set's {len(class_names):,} classes, found {len(missing):,} missing: "
            f"{some(missing)}; it is of another class list"
        )
    order = [index[name] for name in class_names]
    return matrix[np.ix_(order, order)]


def check_confusion_name(path: str | Path) -> str:
    """The ending of a confusion matrix's file.

    Raises:
        UsageError: it is neither `.npy` nor `.csv`.
    """
    suffix = PurePosixPath(public_name(str(path))).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{public_name(str(path))}: expected a file that ends in .npy or .csv, found {suffix!r}"
        )
    return suffix


def _read_npy(path: str | Path, where: str) -> np.ndarray:
    try:
        data = read_limited(str(path), _MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read; {error.strerror or error}") from error
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # NumPy evaluates the header as a Python literal, which fails in many ways
        raise DataError(f"{where}: expected an array of numpy.save's, found none ({error})") from error
    # Before memory is taken: a header can claim anything.
    if dtype.kind not in "fiub" or len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise DataError(
            f"{where}: expected a square matrix [C, C] of numbers, found {dtype} of shape {list(shape)}"
        )
    expected = shape[0] * shape[1] * dtype.itemsize
    if len(data) - file.tell() != expected:
        raise DataError(
            f"{where}: expected {expected:,} bytes of numbers, found {len(data) - file.tell():,}; the file is cut short"
        )
    matrix = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return matrix.astype(np.float64)


def _read_csv(text: str, where: str) -> tuple[list[str] | None, np.ndarray]:
    """The names, where the file has them, and float64 [C, C]."""
    try:
        lines = list(enumerate(csv.reader(io.StringIO(text, newline="")), 1))
    except csv.Error as error:
        raise DataError(f"{where}: expected CSV, found another file ({error})") from error
    rows = [(number, row) for number, row in lines if any(map(str.strip, row))]
    if not rows:
        raise DataError(f"{where}: expected a confusion matrix, found an empty file")
    names = None
    problems: list[str] = []
    if _number(rows[0][1][0]) is None:
        names = [name.strip() for name in rows.pop(0)[1][1:]]
        found = [row[0].strip() for _, row in rows]
        problems += [f"class {name!r} stands twice" for name, count in Counter(names).items() if count > 1]
        if found != names:
            problems.append(
                f"expected the {len(names):,} classes of the first line as the first cells of as many lines, in that "
                f"order, found {some(found)}"
            )
    width = len(rows) + (names is not None)
    # Before memory is taken: a file of a few bytes a line can have millions of lines.
    square = all(len(row) == width for _, row in rows)
    matrix = np.zeros((len(rows), len(rows)) if square else (0, 0))
    for place, (number, row) in enumerate(rows):
        if len(row) != width:
            problems.append(f"line {number}: expected {width:,} cells, found {len(row):,}")
            continue
        values = list(map(_number, row[names is not None :]))
        if None in values:
            problems.append(
                f"line {number}: expected numbers, found {row[values.index(None) + (names is not None)]!r}"
            )
            continue
        if square:
            matrix[place] = values
    if problems:
        raise DataError(every_problem(f"{where}: {problem}" for problem in problems))
    return names, matrix


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
