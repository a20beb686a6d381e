"""Runs of `train`, one after the other, each in a folder of its own: what studies and scoring have in common.

A series that was killed continues when it is given again: finished runs are not trained anew, half a one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .recipes import Recipe
from .train import TrainResult, train


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
