"""Difficulty scores of a data set's images as JSON Lines, written by `softshard subset score`.

    {"softshard": "scores", "version": 1, "dataset": ..., "fingerprint": ..., "seed": ..., "model": ..., "samples": 2, ...}
    {"key": "n01440764_42", "class": 0, "probability": 0.93, "half": 0, "trained_on": 1}

`probability` is that of the image's own class, from the model that was trained on the other half: an image's `half` and
the half that its model was `trained_on` differ, or the score says nothing of its difficulty and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .files import read_text
from .storage import public_name
from .text_limits import every_problem

KIND, VERSION = "scores", 1
_MAX_BYTES = 8 * 2**30  # 14 million lines take 1.4 GB


@dataclass(frozen=True, eq=False)
class Scores:
    """How a model that did not see them in training takes the images of a data set.

    Attributes:
        header: the first line: `dataset`, its `fingerprint`, `seed`, `model`, `recipe`, `samples`.
        keys: N keys.
        classes: int32 [N], each image's class in the data set.
        probability: float64 [N] in [0, 1], of that class.
        half: uint8 [N], 0 or 1: the image's half.
    """

    header: Mapping[str, Any]
    keys: tuple[str, ...]
    classes: np.ndarray
    probability: np.ndarray
    half: np.ndarray


def score_header(**facts: Any) -> dict[str, Any]:
    """The first line of a file of scores."""
    return {"softshard": KIND, "version": VERSION, **facts}


def score_line(key: str, class_index: int, probability: float, half: int) -> str:
    """One image's line; the model is the one that was trained on the other half."""
    record = {
        "key": key,
        "class": class_index,
        "probability": round(probability, 6),
        "half": half,
        "trained_on": 1 - half,
    }
    return json.dumps(record) + "\n"


def read_score_line(line: str) -> dict[str, Any]:
    """What `score_line` wrote.

    Raises:
        DataError: it is something else; the message says what, not where.
    """
    record = _parsed(line)
    if problem := _problem(record):
        raise DataError(problem)
    return record


def read_scores(path: str | Path, *, fingerprint: str | None = None) -> Scores:
    """Read a file of scores.

    Args:
        path: a local path or any fsspec URL.
        fingerprint: of the data set that they must be of; None for any.

    Raises:
        UsageError: the file cannot be read.
        DataError: it is something else, cut short, of another data set, or has scores from a model that trained on the
            image; every problem is named, up to twenty.
    """
    where = public_name(str(path))
    # Not str.splitlines: that also splits at Unicode's separators.
    lines = read_text(str(path), _MAX_BYTES).removesuffix("\n").split("\n")
    header = _header(lines[0], where)
    if fingerprint is not None and header["fingerprint"] != fingerprint:
        raise DataError(
            f"{where}: expected scores of the data set {fingerprint}, found those of {header.get('dataset')!r}, "
            f"{header['fingerprint']}. Run: softshard subset score"
        )
    problems: list[str] = []
    seen: dict[str, None] = {}
    classes, probability, half = (np.empty(len(lines) - 1, kind) for kind in (np.int32, np.float64, np.uint8))
    for place, line in enumerate(lines[1:]):
        record = _parsed(line)
        problem = _problem(record)
        if problem is None and record["key"] in seen:
            problem = f"expected each key once, found {record['key']!r} again"
        if problem is not None:
            problems.append(f"{where}: line {place + 2}: {problem}")
            continue
        seen[record["key"]] = None
        classes[place], probability[place], half[place] = (
            record["class"],
            record["probability"],
            record["half"],
        )
    if len(lines) - 1 != header["samples"]:
        problems.append(
            f"{where}: expected {header['samples']:,} scores, found {len(lines) - 1:,}; it is cut short"
        )
    if problems:
        raise DataError(every_problem(problems))
    return Scores(header, tuple(seen), classes, probability, half)


def _header(line: str, where: str) -> dict[str, Any]:
    header = _parsed(line)
    if not isinstance(header, dict) or header.get("softshard") != KIND:
        raise DataError(f"{where}: expected a file of `softshard subset score`, found something else")
    if header.get("version") != VERSION:
        raise DataError(
            f"{where}: expected version {VERSION}, found {header.get('version')!r}; it was written by a newer softshard. "
            "Run: pip install -U softshard"
        )
    if not isinstance(header.get("fingerprint"), str) or type(header.get("samples")) is not int:
        raise DataError(f"{where}: expected a header with 'fingerprint' and 'samples', found {line:.200}")
    return header


def _parsed(line: str) -> Any:
    """A line's JSON, or None."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _problem(record: Any) -> str | None:
    """What is wrong with a line, or None."""
    if not isinstance(record, dict):
        return "expected a JSON object, found something else"
    index = record.get("class")
    if not isinstance(record.get("key"), str) or type(index) is not int or not 0 <= index < 2**31:
        return "expected a key and a class index"
    value = record.get("probability")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return f"expected a probability from 0 to 1, found {value!r}"
    halves = record.get("half"), record.get("trained_on")
    if not all(type(half) is int and half in (0, 1) for half in halves):
        return f"expected halves 0 or 1, found {halves}"
    if halves[0] == halves[1]:
        return (
            f"key {record['key']!r}: expected a score from a model that did not train on the image, found one that was "
            f"trained on its half, {halves[0]}"
        )
    return None
