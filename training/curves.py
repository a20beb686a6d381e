"""Accuracy curves of the same models on a full set and on a subset, read from CSV.

    set,model,epoch,accuracy            one file for both sets; or two files without the column `set`,
    full,resnet18,1,0.412               the full set's first. More columns are allowed; of these
    subset,resnet18,1,0.377             `train_images` and `val_images` are read.

Shape letters: M models, E epochs.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..shards.errors import DataError
from ..shards.files import read_text
from ..shards.schema import MIB
from ..shards.storage import public_name
from ..shards.text_limits import every_problem, some

FULL, SUBSET = "full", "subset"
SETS = (FULL, SUBSET)
COLUMNS = ("set", "model", "epoch", "accuracy")
IMAGE_COLUMNS = ("train_images", "val_images")
_MAX_BYTES = 256 * MIB
_MAX_EPOCH = 10**6


@dataclass(frozen=True, eq=False)
class Curves:
    """What some models reach on one set, epoch by epoch.

    Attributes:
        models: M names.
        epochs: E ascending numbers of epochs that were trained; the same for all models.
        accuracy: float64 [M, E], shares in [0, 1].
        train_images: of the set, which an epoch loops over; None where the file does not say.
        val_images: that the accuracy was measured on; None where the file does not say.
    """

    models: tuple[str, ...]
    epochs: tuple[int, ...]
    accuracy: np.ndarray
    train_images: int | None = None
    val_images: int | None = None

    @property
    def final(self) -> np.ndarray:
        """float64 [M]: after the last epoch."""
        return self.accuracy[:, -1]


def read_curves(paths: Sequence[str | Path], *, percent: bool = False) -> tuple[Curves, Curves]:
    """Read the curves of both sets.

    Args:
        paths: one CSV with a column `set`, whose cells are `full` and `subset`; or two without it, the full set's first.
            Paths or fsspec URLs; UTF-8 with or without a byte-order mark, with any kind of line ends.
        percent: accuracies are in percent; else they are shares.

    Returns:
        The full set's curves and the subset's: the same models, in the order in which the full set names them.

    Raises:
        UsageError: a file cannot be read.
        DataError: no such files; every problem is named, up to twenty.
    """
    if len(paths) not in (1, 2):
        raise DataError(f"curves: expected one CSV or two, found {len(paths)}")
    problems: list[str] = []
    rows = _Rows(problems=problems, most=100.0 if percent else 1.0)
    for path, only in zip(paths, (None,) if len(paths) == 1 else SETS, strict=True):
        rows.read(read_text(str(path), _MAX_BYTES), public_name(str(path)), only)
    where = ", ".join(public_name(str(path)) for path in paths)
    if not problems:
        problems += _gaps(rows, where)
    if problems:
        raise DataError(every_problem(problems))
    models = tuple(dict.fromkeys(model for model, _ in rows.accuracy[FULL]))
    full, subset = (rows.curves(name, models) for name in SETS)
    return full, subset


@dataclass
class _Rows:
    """What the files say, and what is wrong with them."""

    problems: list[str]
    most: float
    # Of each set: (model, epoch) to accuracy, and to where it stands.
    accuracy: dict[str, dict[tuple[str, int], float]] = field(
        default_factory=lambda: {name: {} for name in SETS}
    )
    places: dict[tuple[str, str, int], str] = field(default_factory=dict)
    images: dict[tuple[str, str], int] = field(default_factory=dict)

    def read(self, text: str, where: str, only: str | None) -> None:
        """Take a file's rows in.

        Args:
            text: of the file.
            where: its name, for messages.
            only: the set that all of it is of; None where a column says so.
        """
        try:
            lines = list(enumerate(csv.reader(io.StringIO(text, newline="")), 1))
        except csv.Error as error:
            self.problems.append(f"{where}: expected CSV, found another file ({error})")
            return
        lines = [
            (number, [cell.strip() for cell in row]) for number, row in lines if any(map(str.strip, row))
        ]
        wanted = COLUMNS if only is None else COLUMNS[1:]
        header = lines.pop(0)[1] if lines else []
        missing = [name for name in wanted if name not in header]
        twice = sorted({name for name in header if header.count(name) > 1})
        if missing or twice or (only is not None and "set" in header):
            self._header_problem(where, header, missing, twice)
            return
        if not lines:
            self.problems.append(f"{where}: expected lines with accuracies, found none")
        for number, row in lines:
            if len(row) != len(header):
                self.problems.append(
                    f"{where}: line {number}: expected {len(header)} cells as in the first line, found {len(row)}"
                )
                continue
            self._take(dict(zip(header, row, strict=True)), f"{where}: line {number}", only)

    def _header_problem(self, where: str, header: list[str], missing: list[str], twice: list[str]) -> None:
        if twice:
            self.problems.append(
                f"{where}: expected distinct columns, found twice: {', '.join(map(repr, twice))}"
            )
        if missing:
            cure = (
                "; with two files, the full set's and the subset's, it is not needed"
                if missing == ["set"]
                else ""
            )
            self.problems.append(
                f"{where}: expected the columns {', '.join(missing)}, found {', '.join(header) or 'none'}{cure}"
            )
        if not twice and not missing:
            self.problems.append(
                f"{where}: expected one file where a column 'set' says which set, found two files"
            )

    def _take(self, row: dict[str, str], where: str, only: str | None) -> None:
        name, model = only or row["set"], row["model"]
        epoch, accuracy = _whole(row["epoch"]), _number(row["accuracy"])
        found = len(self.problems)
        if name not in SETS:
            self.problems.append(f"{where}: expected the set full or subset, found {name!r}")
        if not model:
            self.problems.append(f"{where}: expected a model, found an empty cell")
        if epoch is None or not 1 <= epoch <= _MAX_EPOCH:
            self.problems.append(
                f"{where}: expected an epoch from 1 (the number trained so far), found {row['epoch']!r}"
            )
        if accuracy is None or not 0 <= accuracy <= self.most:
            cure = (
                "; for percent: --percent" if self.most == 1 and accuracy is not None and accuracy > 1 else ""
            )
            self.problems.append(
                f"{where}: expected an accuracy from 0 to {self.most:g}, found {row['accuracy']!r}{cure}"
            )
        for column in IMAGE_COLUMNS:
            if row.get(column):
                self._take_images(name, column, row[column], where)
        if len(self.problems) > found or epoch is None or accuracy is None:
            return
        earlier = self.places.setdefault((name, model, epoch), where)
        if earlier != where:
            self.problems.append(
                f"{where}: expected each model and epoch once, found {model!r}, epoch {epoch}, of the {name} set again; "
                f"the first stands in {earlier}"
            )
        self.accuracy[name][model, epoch] = accuracy / self.most

    def _take_images(self, name: str, column: str, text: str, where: str) -> None:
        images = _whole(text)
        if images is None or images < 1:
            self.problems.append(f"{where}: expected a number of {column} from 1, found {text!r}")
        elif self.images.setdefault((name, column), images) != images:
            self.problems.append(
                f"{where}: expected one number of {column} for the {name} set, {self.images[name, column]:,}, found "
                f"{images:,}"
            )

    def curves(self, name: str, models: tuple[str, ...]) -> Curves:
        """Of one set, when nothing is wrong."""
        table = self.accuracy[name]
        epochs = tuple(sorted({epoch for _, epoch in table}))
        accuracy = np.array([[table[model, epoch] for epoch in epochs] for model in models])
        train_images, val_images = (self.images.get((name, column)) for column in IMAGE_COLUMNS)
        return Curves(models, epochs, accuracy, train_images, val_images)


def _gaps(rows: _Rows, where: str) -> list[str]:
    """Models of one set alone, and epochs that some models of a set do not have."""
    problems = []
    epochs: dict[str, dict[str, set[int]]] = {name: defaultdict(set) for name in SETS}
    for name in SETS:
        for model, epoch in rows.accuracy[name]:
            epochs[name][model].add(epoch)
        if not epochs[name]:
            problems.append(f"{where}: expected accuracies on the {name} set, found none")
    if problems:
        return problems
    for name, other in (SETS, SETS[::-1]):
        problems += [
            f"{where}: model {model!r}: expected on both sets, found on the {name} set alone"
            for model in epochs[name]
            if model not in epochs[other]
        ]
    for name in SETS:
        wanted = set().union(*epochs[name].values())
        problems += [
            f"{where}: model {model!r}: expected the epochs that others have on the {name} set, found none for "
            f"{some([*map(str, sorted(wanted - found))], show=str)}"
            for model, found in epochs[name].items()
            if found != wanted
        ]
    if len(epochs[FULL]) < 2:
        problems.append(f"{where}: expected two models or more to rank, found {len(epochs[FULL])}")
    return problems


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
