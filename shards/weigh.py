"""`softshard tags weigh`: a list's labels and texts become weights of all classes (Yan et al. 2020, label-weighted sets).

    scores [C] of an image -> temperature -> threshold -> top k -> normalise -> {"weights": {class: weight, ...}}

One pass over the list (two where classes are counted first), a line at a time; memory holds the [C, C] matrix, row by row as
labels come, and nothing of the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import DataError, UsageError, check_choice, check_share
from .files import open_named, replace_durably, temporary_beside
from .json_lines import JsonLine, read_json_lines
from .ledger import bad_limit
from .pack_soft import load_how, save_how
from .progress import progress_bar
from .similarities import COUNTS, Measures, Similarities
from .soft_labels import TAGS, WEIGHTS
from .source_labels import is_index
from .source_lists import (
    LIST_SUFFIXES,
    VALIDATION,
    bounded_lines,
    csv_rows,
    folder_of_list,
    is_json_list,
    moved_path,
    path_prefix,
    text_lines,
)
from .storage import Storage, open_storage
from .tree import LabelTree

NORMALISE = ("none", "max", "sum")
TEXT_COLUMNS = ("title", "description", "tags", "text")
_DIGITS = 7  # significant ones of a weight in the list: more than a float32 distinguishes is of no use
_KEPT_LABELS = 65_536  # whose weights are remembered, where texts do not matter


@dataclass(frozen=True)
class WeighOptions:
    """What becomes of scores.

    Attributes:
        temperature: T: scores are raised to 1 / T; below 1 the largest stand out more.
        threshold: scores below it are left out.
        top: classes that are kept at most, the largest first; None for all: C weights an image.
        normalise: `max` makes the largest weight of an image 1, `sum` makes them sum to 1.
        max_bad: share of bad lines that stops the run; ten are always allowed, with 0 none.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    top: int | None = 20
    normalise: str = "none"
    max_bad: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature: expected a number above 0, found {self.temperature}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold: expected a score from 0 to 1, found {self.threshold}")
        if self.top is not None and self.top < 1:
            raise UsageError(f"top: expected 1 or more, found {self.top}")
        check_choice("normalise", self.normalise, NORMALISE)
        check_share("max_bad", self.max_bad)

    def to_json(self) -> dict[str, Any]:
        """What decides the weights."""
        return {name: value for name, value in asdict(self).items() if name != "max_bad"}


@dataclass(frozen=True)
class WeighSummary:
    """What a run did. `read == written + bad` always holds.

    Attributes:
        read: lines that are not blank.
        written: with weights.
        bad: lines that are none, or whose label is unknown.
        label_only: images whose scores left nothing, which got their label with weight 1.
        mean_classes: weights of an image.
    """

    read: int
    written: int
    bad: int
    label_only: int
    mean_classes: float


def weights_of(scores: np.ndarray, options: WeighOptions) -> tuple[np.ndarray, np.ndarray]:
    """Which classes get which weights.

    Args:
        scores: float [C], from 0 to 1.
        options: see there.

    Returns:
        (int64 [K], float64 [K]): classes, the largest weight first and of equals the lower class, and their weights; empty
        where no score is above 0 and reaches the threshold.
    """
    values = np.asarray(scores, np.float64)
    if options.temperature != 1:
        values = values ** (1 / options.temperature)
    kept = np.flatnonzero((values > 0) & (values >= options.threshold))
    if options.top is not None and len(kept) > options.top:
        # Sorting all of them would take most of the time; those that tie with the last one stay for now.
        last = np.partition(values[kept], -options.top)[-options.top]
        kept = kept[values[kept] >= last]
    kept = kept[np.argsort(-values[kept], kind="stable")][: options.top]
    weights = values[kept]
    if len(kept) and options.normalise != "none":
        weights = weights / (weights[0] if options.normalise == "max" else weights.sum())
    return kept, weights


def label_of(row: dict[str, Any], index: Mapping[str, int]) -> int:
    """The class of a row: its name, or its whole number.

    Args:
        row: of a list.
        index: class name to number.

    Raises:
        DataError: neither.
    """
    label = row.get("label")
    if isinstance(label, str):
        label = label.strip()
        if label in index:
            return index[label]
        if is_index(label):
            label = int(label)
    if type(label) is int and 0 <= label < len(index):
        return label
    raise DataError(f"expected a label of the {len(index):,} classes, found {label!r:.60}")


class Weigher:
    """Weighs images.

    Args:
        similarities: of the classes.
        options: what becomes of scores.
    """

    def __init__(self, similarities: Similarities, options: WeighOptions) -> None:
        self._similarities, self._options = similarities, options
        self._index = {name: i for i, name in enumerate(similarities.class_names)}
        self._weigh_label = lru_cache(_KEPT_LABELS)(self._weigh)
        self.label_only = 0

    def weigh(self, row: dict[str, Any]) -> dict[str, float]:
        """The weights of a row, the largest first.

        Raises:
            DataError: an unknown label.
        """
        label = label_of(row, self._index)
        return self._weigh(label, text_of(row)) if self._similarities.reads_text else self._weigh_label(label)

    def _weigh(self, label: int, text: str = "") -> dict[str, float]:
        classes, weights, fell_back = image_weights(self._similarities, label, text, self._options)
        names = self._similarities.class_names
        self.label_only += fell_back
        rows = zip(classes.tolist(), weights.tolist(), strict=True)
        return {names[i]: float(f"{value:.{_DIGITS}g}") for i, value in rows if value > 0}


def image_weights(
    similarities: Similarities, label: int, text: str, options: WeighOptions
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which classes an image gives which weights.

    Args:
        similarities: of the classes.
        label: the image's class.
        text: of the image.
        options: what becomes of scores.

    Returns:
        Classes and weights as of `weights_of`; and whether no class scored, so that the label alone has the weight 1.
    """
    classes, weights = weights_of(similarities.scores(label, text), options)
    if len(classes):
        return classes, weights, False
    return np.array([label]), np.ones(1), True


def text_of(row: dict[str, Any]) -> str:
    """An image's text: title, description, tags and text, whichever there are."""
    parts: list[str] = []
    for name in TEXT_COLUMNS:
        value = row.get(name)
        parts += [value] if isinstance(value, str) else []
        parts += [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    return "\n".join(parts)


def _count_labels(lines: Iterator[JsonLine], class_names: Sequence[str]) -> np.ndarray:
    """int64 [C], how often each class is a label of a training image."""
    counts, index = np.zeros(len(class_names), np.int64), {name: i for i, name in enumerate(class_names)}
    for line in lines:
        if line.row is None or line.row.get("split") == VALIDATION:
            continue
        with suppress(DataError):  # told when it is weighed
            counts[label_of(line.row, index)] += 1
    return counts


def _table_lines(file: BinaryIO, name: str) -> Iterator[JsonLine]:
    """Rows of a table as if they were JSON lines."""
    problems: list[str] = []
    rows = csv_rows(text_lines(enumerate(bounded_lines(file), 1), name, problems), name, problems)
    offset = 0
    for row in chain(rows, [None]):
        for problem in problems:
            number, _, reason = problem.removeprefix(f"{name}: line ").partition(": ")
            yield JsonLine(int(number), offset, 0, None, reason)
        problems.clear()
        if row is not None:
            at, path, label, fields = row
            before, offset = offset, file.tell()
            yield JsonLine(at, before, offset - before, {"path": path, "label": label, **fields})


@dataclass
class _Bad:
    """Bad lines, which are counted and written down."""

    file: BinaryIO
    where: str
    num: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        self.num += 1
        if len(self.first) < 5:
            self.first.append(f"{self.where}: line {line}: {reason}")
        self.file.write(json.dumps({"line": line, "reason": reason}).encode("ascii") + b"\n")


def weigh_list(
    source: str | Path,
    output: Path,
    class_names: tuple[str, ...],
    measures: Measures,
    options: WeighOptions | None = None,
    tree: LabelTree | None = None,
) -> WeighSummary:
    """Write a list with the column `weights`.

    Paths lead from the new list to the images.

    Beside OUT.jsonl comes OUT.weights.json, which says how they were made, and OUT.bad.jsonl with the lines that were left
    out. All appear when they are whole, the list last; an earlier list of that name goes before anything beside it changes,
    so that where a list is, all beside it is of that list. What lies beside the source and says how its tags were made
    (`tags build`) is written again beside OUT.jsonl.

    Args:
        source: list (.csv, .tsv, .jsonl) with a label each; a path or any fsspec URL.
        output: the new list, `.jsonl`.
        class_names: the classes that get weights.
        measures: what makes them.
        options: see WeighOptions.
        tree: hierarchy of the classes; None takes WordNet's.

    Raises:
        UsageError: another kind of file, the same file twice, or one that cannot be read.
        DataError: too many bad lines, or none that is good; classes that WordNet does not know.
    """
    options = options or WeighOptions()
    storage = open_storage(source)
    _check_files(storage, output)
    tags_how = load_how(source, TAGS)

    def lines(what: str) -> Iterator[JsonLine]:
        with storage.open() as file, progress_bar(None, what, "B") as bar:
            for line in (
                read_json_lines(file) if is_json_list(storage.name) else _table_lines(file, storage.name)
            ):
                yield line
                bar.update(line.length)

    prefix = path_prefix(folder_of_list(storage), output)
    counts = None
    if measures.information_content == COUNTS:
        counts = _count_labels(lines("count"), class_names)
    similarities = Similarities(class_names, measures, tree, counts)
    weigher = Weigher(similarities, options)
    output.parent.mkdir(parents=True, exist_ok=True)
    bad_file = output.with_suffix(".bad.jsonl")
    temporary = [temporary_beside(file) for file in (output, bad_file)]
    read = num_weights = 0
    try:
        with open_named(temporary[0]) as good, open_named(temporary[1]) as others:
            bad = _Bad(others, storage.name)
            for line in lines("weigh"):
                read += 1
                try:
                    if line.row is None:
                        raise DataError(line.problem)
                    weights = weigher.weigh(line.row)
                except DataError as error:
                    bad.add(line.number, str(error))
                    continue
                num_weights += len(weights)
                row = {**line.row, "weights": weights}
                if isinstance(path := row.get("path"), str):
                    row["path"] = moved_path(path, prefix)
                good.write(json.dumps(row).encode("ascii") + b"\n")
        _check_bad(bad, read, options.max_bad)
        how = {**similarities.to_json(), **options.to_json(), "tree": tree.fingerprint if tree else None}
        output.unlink(missing_ok=True)  # an earlier one, before what is beside it is of another
        save_how(output, WEIGHTS, how)
        save_how(output, TAGS, tags_how)
        replace_durably(temporary[1], bad_file)
        replace_durably(temporary[0], output)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
    written = read - bad.num
    return WeighSummary(read, written, bad.num, weigher.label_only, num_weights / max(1, written))


def _check_files(storage: Storage, output: Path) -> None:
    """Refuse a source that is no list, and an output that is none or the source itself."""
    if not storage.name.lower().endswith(LIST_SUFFIXES) or storage.is_folder():
        raise UsageError(
            f"{storage.name}: expected a list ({', '.join(LIST_SUFFIXES)}), found another kind of source. Of WebVision "
            "make one: softshard tags build --keep title --keep description"
        )
    if output.suffix not in (".jsonl", ".ndjson"):
        raise UsageError(f"{output}: expected a name that ends in .jsonl for the new list")
    if not storage.remote and output.exists() and os.path.samefile(storage.root, output):
        raise UsageError(f"{output}: expected another file than the source. Write into a new one")


def _check_bad(bad: _Bad, read: int, max_bad: float) -> None:
    """Refuse a list that is mostly bad, or empty."""
    if not read:
        raise DataError(f"{bad.where}: expected lines with a label, found none; nothing has been written")
    most_bad = min(bad_limit(max_bad, read), read - 1)  # one has to be good
    if bad.num > most_bad:
        more = [f"{bad.where}: and {bad.num - len(bad.first):,} more"] if bad.num > len(bad.first) else []
        raise DataError(
            "\n".join([*bad.first, *more])
            + f"\n{bad.where}: expected at most {most_bad:,} bad lines of {read:,}, found {bad.num:,}; nothing has been "
            "written. Is it of another class list?"
        )
