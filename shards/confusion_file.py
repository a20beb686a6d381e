"""A confusion matrix from a file: `.npy`, or `.csv` with or without class names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from .errors import DataError, UsageError
from .files import read_limited, read_text
from .storage import public_name

MAX_CONFUSION_BYTES = 2**31
_SHOWN = 10


def read_confusion(url: str, names: Sequence[str]) -> np.ndarray:
    """Read how often the images of each class were taken for each class.

    Args:
        url: `.npy` (numbers [C, C], nothing is unpickled); or `.csv`: numbers, with or without a first row and
            column of class names, which may be in any order then, and of more classes. A path or any fsspec URL.
        names: C class names, the order of rows and columns where the file names none.

    Returns:
        float64 [C, C]: row: what an image shows; column: what it was taken for.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: another shape, no numbers, negative or not finite ones, classes that it does not have.
    """
    where = public_name(url)
    suffix = PurePosixPath(where).suffix.lower()
    if suffix == ".npy":
        matrix = _read_npy(url, where)
    elif suffix == ".csv":
        matrix = _read_csv(url, names, where)
    else:
        raise UsageError(f"{where}: expected a confusion matrix (.npy or .csv), found the ending {suffix!r}")
    num = len(names)
    if matrix.shape != (num, num):
        raise DataError(
            f"{where}: expected numbers [{num}, {num}], a row and a column for each class, found "
            f"{list(matrix.shape)}; it is of another class list"
        )
    wrong = ~np.isfinite(matrix) | (matrix < 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{where}: expected counts or shares from 0, found {matrix[row, column]} for {names[row]!r} taken for "
            f"{names[column]!r} and {int(wrong.sum()) - 1} more"
        )
    return matrix


def _read_npy(url: str, where: str) -> np.ndarray:
    try:
        data = read_limited(url, MAX_CONFUSION_BYTES)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read; {error.strerror or error}") from error
    try:
        matrix = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "biuf":
            raise ValueError("no numbers")
    except Exception as error:  # NumPy evaluates the header as a Python literal, which fails in many ways
        raise DataError(f"{where}: expected an array of numbers, found: {error}") from error
    return matrix.astype(np.float64)


def _read_csv(url: str, names: Sequence[str], where: str) -> np.ndarray:
    text = io.StringIO(read_text(url, MAX_CONFUSION_BYTES), newline="")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text) if any(row)]
    except csv.Error as error:
        raise DataError(f"{where}: expected CSV; {error}") from error
    if not rows:
        raise DataError(f"{where}: expected a confusion matrix, found an empty file")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(rows[0])]:
        raise DataError(
            f"{where}: row {ragged[0]}: expected {len(rows[0])} cells as in the first, found {len(rows[ragged[0] - 1])}"
        )
    columns: list[str] | None = None
    if rows[0][0] in ("", "class", "name"):
        columns = rows[0][1:]
        in_rows = [row[0] for row in rows[1:]]
        rows = [row[1:] for row in rows[1:]]
        if in_rows != columns or len(set(columns)) != len(columns):
            raise DataError(f"{where}: expected the same distinct classes down and across, found others")
    try:
        matrix = np.array(rows, np.float64)
    except ValueError as error:
        raise DataError(
            f"{where}: expected numbers, or class names in the first row and column (behind an empty cell), "
            f"found: {error}"
        ) from error
    if columns is None:
        return matrix
    place = {name: i for i, name in enumerate(columns)}
    if missing := [name for name in names if name not in place]:
        raise DataError(
            f"{where}: expected all {len(names):,} classes, found none of {', '.join(map(repr, missing[:_SHOWN]))}"
            f"{' and more' if len(missing) > _SHOWN else ''}"
        )
    chosen = [place[name] for name in names]
    return matrix[np.ix_(chosen, chosen)]
