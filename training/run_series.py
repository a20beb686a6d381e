"""Runs of `train`, one after the other, each in a folder of its own: what studies and scoring have in common.

A series that was killed continues when it is given again: finished runs are not trained anew, half a one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shards.errors import DataError, UsageError
from .checkpoint import CHECKPOINT_NAME
from .recipes import Recipe
from .results import TrainResult, write_json
from .train import train


@dataclass(frozen=True)
class SeriesRun:
    """One run.

    Attributes:
        name: of its folder, another one for every run of a series.
        recipe: that it is trained by.
        dataset: that it is trained on.
        options: more of what `train` takes.
    """

    name: str
    recipe: Recipe
    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)


def train_series(
    runs: Iterable[SeriesRun],
    folder: Path,
    *,
    finished: Callable[[SeriesRun, TrainResult], object],
    log: Callable[[str], None] | None = None,
) -> int | None:
    """Train one run after the other.

    Args:
        runs: in the order to train them.
        folder: their folders are made in here.
        finished: called with each run that came to its end.
        log: gets the lines of every run.

    Returns:
        The number of the signal that stopped the series, or None. A run that was stopped is not `finished`: half a
        run would count as a whole one.
    """
    for run in runs:
        trained = train(run.recipe, run.dataset, out=folder / run.name, resume=True, log=log, **run.options)
        if trained.stopped_by is not None:
            return trained.stopped_by
        finished(run, trained)
        if trained.late_signal:
            return trained.late_signal
    return None


def any_checkpoint(folder: Path) -> bool:
    """Whether a run of the series in this folder has come to its first checkpoint."""
    return any(folder.glob(f"*/{CHECKPOINT_NAME}"))


def settle_folder(
    path: Path, call: Mapping[str, Any], option: str, *, begun: bool, may_differ: str | None = None
) -> None:
    """Begin a folder of runs, or make sure that it is this call's: half the runs of another recipe compare nothing.

    A call whose first run did not begin, since an option did not fit the data, binds nobody.

    Args:
        path: the JSON file in it that says whose it is. The caller holds the folder.
        call: what must be the same, as JSON can hold it.
        option: names another folder, for the message.
        begun: whether the folder holds something that an earlier call came to, which this one would go on with.
        may_differ: a key of it that need not be.

    Raises:
        UsageError: the folder is another call's.
        DataError: the file is damaged.
    """
    wanted = json.loads(json.dumps(call))  # as JSON has it: a tuple is a list
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected what an earlier run wrote, found: {error}. Remove {path.parent}"
        ) from error
    keys = (wanted.keys() | found.keys()) - {may_differ}
    if other := sorted(key for key in keys if wanted.get(key) != found.get(key)):
        if not begun:
            write_json(path, wanted)
            return
        raise UsageError(
            f"{path.parent}: expected the runs of this call, found those of one with another {', '.join(other)}. Repeat "
            f"that call, or give another folder: {option}"
        )
