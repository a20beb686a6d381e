"""How difficult images are: the probability that a model gave to the right label of each, from a file.

JSON Lines that `softshard subset score` writes: a header, then a line an image. Each line says in which half of the data set
the image is, and on which half the model that scored it was trained: a score by a model that trained on the image says
how well it was learnt by heart, and is refused. Or a table with the columns key and score, which says nothing of that.

    {"softshard": "scores", "version": 1, "dataset": "train", "fingerprint": "ab12...", "halves": {...}}
    {"key": "n01440764_18", "class": 0, "probability": 0.93, "half": 0, "trained_on": 1}
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .errors import DataError, UsageError
from .files import read_text, sha256_hex
from .gather import key_hashes
from .storage import public_name

FORMAT_NAME = "scores"
FORMAT_VERSION = 1
MAX_SCORES_BYTES = 2**33
_MAX_PROBLEMS = 20
_REQUIRED = ("key", "probability", "half", "trained_on")


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of images; n of them.

    Attributes:
        hashes: uint64 [n], 64 bits of each key's SHA-256, ascending.
        probabilities: float32 [n], in the same order.
        header: what the file says of itself; empty of a table.
        sha256: of the file's text.
        says_halves: whether it says that no image was scored by a model trained on it.
    """

    hashes: np.ndarray
    probabilities: np.ndarray
    header: dict[str, Any]
    sha256: str
    says_halves: bool

    def of(self, keys: Sequence[str]) -> np.ndarray:
        """float32 [len(keys)]: the probability of each, NaN where there is none."""
        hashes = key_hashes(keys)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, self.probabilities[at], np.float32(np.nan))


def read_scores(url: str, fingerprint: str | None = None) -> Scores:
    """Read a file of scores.

    Args:
        url: `.jsonl`, or `.csv` and `.tsv` with the columns `key` and `score` (or `probability`), and maybe `half` and
            `trained_on`; a path or any fsspec URL.
        fingerprint: of the data set that the scores must be of, where the file says of which it is.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: scores of another data set, by a model that trained on the image, or outside 0 to 1; keys twice;
            lines of another form. Up to twenty are named.
    """
    where = public_name(url)
    suffix = PurePosixPath(where).suffix.lower()
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise UsageError(f"{where}: expected scores (.jsonl, .csv or .tsv), found the ending {suffix!r}")
    text = read_text(url, MAX_SCORES_BYTES)
    header: dict[str, Any] = {}
    if suffix == ".jsonl":
        lines = iter(text.split("\n"))
        header = _read_header(next(lines, ""), where, fingerprint)
        rows = _json_rows(lines)
    else:
        rows = _table_rows(text, where, "\t" if suffix == ".tsv" else ",")
    keys: list[str] = []
    values: list[float] = []
    problems: list[str] = []
    says_halves = True
    for number, row in rows:
        problem = row if isinstance(row, str) else _row_problem(row)
        if problem:
            problems.append(f"{where}: line {number}: {problem}")
            if len(problems) == _MAX_PROBLEMS:
                break
        elif isinstance(row, dict):
            keys.append(row["key"])
            values.append(float(row["probability"]))
            says_halves = says_halves and "half" in row
    if not keys and not problems:
        problems.append(f"{where}: expected a line for each image, found none")
    hashes = key_hashes(keys)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1])
    problems += [
        f"{where}: expected every key once, found {keys[order[i]]!r} again"
        for i in again[: _MAX_PROBLEMS - len(problems)]
    ]
    if problems:
        raise DataError("\n".join(problems))
    sha256 = sha256_hex(text.encode("utf-8"))
    return Scores(hashes, np.array(values, np.float32)[order], header, sha256, says_halves)


def _read_header(line: str, where: str, fingerprint: str | None) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("softshard") != FORMAT_NAME:
        raise DataError(
            f'{where}: line 1: expected {{"softshard": "{FORMAT_NAME}", ...}}, found {line[:60]!r}; scores are made by '
            "softshard subset score"
        )
    if header.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{where}: line 1: expected version {FORMAT_VERSION}, found {header.get('version')!r}; another softshard "
            "wrote it"
        )
    found = header.get("fingerprint")
    if fingerprint is not None and found is not None and found != fingerprint:
        raise DataError(
            f"{where}: expected scores of the data set {fingerprint[:12]}, found those of {str(found)[:12]} "
            f"({header.get('dataset')!r}); make them of this one: softshard subset score"
        )
    return header


def _json_rows(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"expected JSON, found: {error}"
            continue
        missing = [name for name in _REQUIRED if not isinstance(row, dict) or name not in row]
        if missing:
            found = f"no {', '.join(missing)}" if isinstance(row, dict) else repr(line[:40])
            yield number, f"expected an object with {', '.join(_REQUIRED)}, found {found}"
        else:
            yield number, row


def _table_rows(text: str, where: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            cells = [cell.strip() for cell in cells]
            if header is None:
                header = ["probability" if cell.lower() == "score" else cell.lower() for cell in cells]
                if not {"key", "probability"} <= set(header) or ("half" in header) != (
                    "trained_on" in header
                ):
                    raise DataError(
                        f"{where}: line {reader.line_num}: expected the columns key and score, and both half and "
                        f"trained_on or neither, found {delimiter.join(cells)[:80]!r}"
                    )
            elif len(cells) != len(header):
                yield reader.line_num, f"expected {len(header)} cells, found {len(cells)}"
            else:
                yield reader.line_num, _typed(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        yield reader.line_num, f"expected CSV; {error}"


def _typed(row: dict[str, Any]) -> dict[str, Any] | str:
    """A row of text with its numbers."""
    try:
        row["probability"] = float(row["probability"])
        for name in ("half", "trained_on"):
            if name in row:
                row[name] = int(row[name])
    except ValueError as error:
        return f"expected numbers, found: {error}"
    return row


def _row_problem(row: dict[str, Any]) -> str:
    """What is wrong with a line, or nothing."""
    key, probability = row["key"], row["probability"]
    if not isinstance(key, str) or not key:
        return f"expected a key, found {key!r:.40}"
    is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
    if not is_number or not math.isfinite(probability) or not 0 <= probability <= 1:
        return f"{key!r}: expected a probability from 0 to 1, found {probability!r:.40}"
    if "half" in row:
        half, trained_on = row["half"], row["trained_on"]
        if half not in (0, 1) or trained_on not in (0, 1) or isinstance(half, bool):
            return f"{key!r}: expected half and trained_on to be 0 or 1, found {half!r:.20} and {trained_on!r:.20}"
        if half == trained_on:
            return (
                f"{key!r}: expected a score by a model that was trained on the other half, found one that was trained on "
                f"half {half}, which the image is in"
            )
    return ""
