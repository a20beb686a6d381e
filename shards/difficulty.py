"""How difficult images are, from a file: what `softshard subset score` wrote, or a table of keys and scores.

A score by a model that was trained on the image says how well it was learnt by heart, and is refused. A table without the
columns `half` and `trained_on` says nothing of that, which is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .errors import DataError, UsageError
from .files import table_rows
from .gather import key_hashes
from .score_file import read_scores
from .storage import public_name
from .text_limits import shortened

_MAX_BYTES = 2**33
_MAX_PROBLEMS = 20


@dataclass(frozen=True, eq=False)
class Difficulty:
    """Scores of n images, to be looked up by key.

    Attributes:
        hashes: uint64 [n], 64 bits of each key's SHA-256, ascending.
        probabilities: float64 [n] of the right label, in the same order.
        says_halves: whether the file says that no image was scored by a model trained on it.
        header: what the file says of itself; empty where it is a table.
    """

    hashes: np.ndarray
    probabilities: np.ndarray
    says_halves: bool
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> str | None:
        """Fingerprint of what the data set was read with for the scores; None for its own classes, or not said."""
        return self.header.get("labels")

    @classmethod
    def of_keys(cls, keys: Sequence[str], probabilities: np.ndarray, says_halves: bool) -> Difficulty:
        """Scores of these keys, each once."""
        hashes = key_hashes(keys)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], np.asarray(probabilities, np.float64)[order], says_halves)

    def of(self, keys: Sequence[str]) -> np.ndarray:
        """float64 [len(keys)]: the probability of each, NaN where there is none."""
        hashes = key_hashes(keys)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, self.probabilities[at], np.nan)


def read_difficulty(url: str, fingerprint: str, labels: str | None = None) -> Difficulty:
    """Read scores, of either form.

    Args:
        url: `.jsonl`, as `read_scores` takes it; or `.csv` and `.tsv` with the columns `key` and `score` (or
            `probability`), and maybe `half` and `trained_on`. A path or any fsspec URL.
        fingerprint: of the data set that the scores must be of, where the file says of which it is.
        labels: fingerprint of the Relabelling into the classes that images are chosen of; None for the data set's own.
            Scores must be of these classes, or of the data set's own, where the file says of which they are.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: scores of another data set or of other classes, by a model that trained on the image, or outside 0 to
            1; keys twice; lines of another form. Up to twenty are named.
    """
    where = public_name(url)
    suffix = PurePosixPath(where).suffix.lower()
    if suffix == ".jsonl":
        scores = read_scores(url, fingerprint=fingerprint)
        if not scores.keys:
            raise DataError(f"{where}: expected a line for each image, found none")
        of_labels = scores.header.get("labels")
        if of_labels not in (None, labels):
            chosen = "" if labels is None else f" or of those of --classes, {labels[:12]}"
            raise DataError(
                f"{where}: expected scores of the data set's own classes{chosen}, found those of other labels, "
                f"{of_labels!s:.12}: what is difficult among these need not be so among others. If they were made with a "
                "file of softshard subset classes as --labels, give that file as --classes. Scores of a label tree or a "
                "class list can be used for no choice: score again, softshard subset score with the file of --classes as "
                "--labels, or without either"
            )
        return replace(Difficulty.of_keys(scores.keys, scores.probability, True), header=scores.header)
    if suffix not in (".csv", ".tsv"):
        raise UsageError(f"{where}: expected scores (.jsonl, .csv or .tsv), found the ending {suffix!r}")
    return _of_table(table_rows(url, _MAX_BYTES), where)


def _of_table(lines: Iterator[tuple[int, list[str]]], where: str) -> Difficulty:
    number, header = next(lines, (1, []))
    columns = ["probability" if name.lower() == "score" else name.lower() for name in header]
    has_halves = "half" in columns
    if not {"key", "probability"} <= set(columns) or has_halves != ("trained_on" in columns):
        raise DataError(
            f"{where}: line {number}: expected the columns key and score, and both half and trained_on or neither, "
            f"found {shortened(repr(','.join(header)), 80)}"
        )
    values: dict[str, float] = {}
    problems: list[str] = []
    for number, cells in lines:
        if len(cells) != len(columns):
            problem = f"expected {len(columns)} cells, found {len(cells)}"
        else:
            row = dict(zip(columns, cells, strict=True))
            problem = _problem(row, has_halves)
            if not problem and row["key"] in values:
                problem = f"expected each key once, found {row['key']!r} again"
            elif not problem:
                values[row["key"]] = float(row["probability"])
        if problem:
            problems.append(f"{where}: line {number}: {problem}")
            if len(problems) == _MAX_PROBLEMS:
                break
    if not values and not problems:
        problems.append(f"{where}: expected a line for each image, found none")
    if problems:
        raise DataError("\n".join(problems))
    return Difficulty.of_keys(list(values), np.array(list(values.values())), has_halves)


def _problem(row: dict[str, str], has_halves: bool) -> str:
    """What is wrong with a row, or nothing."""
    if not row["key"]:
        return "expected a key, found an empty cell"
    try:
        probability = float(row["probability"])
    except ValueError:
        probability = math.nan
    if not 0 <= probability <= 1:
        return f"{row['key']!r}: expected a probability from 0 to 1, found {row['probability']!r}"
    if has_halves:
        halves = row["half"], row["trained_on"]
        if not set(halves) <= {"0", "1"}:
            return f"{row['key']!r}: expected half and trained_on to be 0 or 1, found {halves[0]!r} and {halves[1]!r}"
        if halves[0] == halves[1]:
            return (
                f"{row['key']!r}: expected a score by a model that did not train on the image, found one that was trained "
                f"on half {halves[0]}, which the image is in"
            )
    return ""
