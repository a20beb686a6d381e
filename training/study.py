"""`softshard maps study`: what label maps are worth on a data set, beside the labels that it has.

    recipe -> a recipe for each kind of target -> a run for each of them and seed -> table, study.json

The factors of Yun et al. (2021), sec. 5: local or global, multi or single; the original label, plain and smoothed; and a
live teacher, which ReLabel is to replace. With one seed all runs begin with the same weights and see the same images with
the same crops, for as many steps. Every run is a folder of `train`'s; a study that was killed continues.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..loaders.labels import LabelSource
from ..shards.errors import DataError, UsageError
from ..shards.storage import public_name
from .bootstrap import mean_interval
from .recipes import Recipe
from .results import METRICS_NAME, TrainResult, write_json
from .run_series import SeriesRun, train_series

STUDY_NAME = "study.json"
REFERENCE = "original"
LIVE = "live-distillation"
SMOOTHING = 0.1
# What of the relabel recipe each contender changes.
CONTENDERS: dict[str, dict[str, Any]] = {
    "local-multi": {},
    "global-multi": {"targets": "relabel-global"},
    "local-single": {"targets": "relabel-single"},
    "global-single": {"targets": "relabel-global-single"},
    REFERENCE: {"targets": "original"},
    "label-smoothing": {"loss": "single-label", "targets": "none", "smoothing": SMOOTHING},
    LIVE: {"loss": "live-teacher", "targets": "none"},
}
_DRAWS = 10_000  # of seeds, for the interval of their mean

Row = dict[str, Any]


def study(
    dataset: str,
    val: str,
    *,
    recipe: Recipe,
    model: str,
    out: str | Path,
    seeds: int = 3,
    contenders: Sequence[str] | None = None,
    teacher: str | Path | None = None,
    labels: str | Path | LabelSource | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
    measure: Callable[[Path], Mapping[str, float]] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train every contender with every seed, seed by seed, and compare them.

    Args:
        dataset: folder or fsspec URL of a data set with label maps.
        val: the data set that all are evaluated on, after every epoch; the last one counts.
        recipe: what all have in common, such as `relabel()`; its loss, targets and smoothing are the contenders'.
        model: timm's name of the architecture.
        out: a folder for the runs, and for `study.json`, which is written after each. The same call continues.
        seeds: runs of each contender, with the seeds 0, 1, ...
        contenders: of CONTENDERS; by default all, without `live-distillation` where there is no teacher.
        teacher: what `live-distillation` asks about every crop: a checkpoint, or `timm:` and a name.
        labels: as in `train`.
        device: as in `train`.
        num_threads: the loader's.
        measure: given a run's checkpoint, more numbers to compare; by default top-1 and top-5 on `val` alone.
        log: gets the lines of every run.

    Returns:
        What `study.json` holds: `rows`, one a run, and `summary`, one a contender: see `summarise`. `stopped_by`, the
        number of the signal that stopped it, or None.

    Raises:
        UsageError: no such contender, or no teacher for it; see `train`.
        DataError: see `train`.
    """
    if seeds < 1:
        raise UsageError(f"study: expected at least 1 seed, found {seeds}")
    names = _checked(contenders, teacher)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    result: dict[str, Any] = {
        "dataset": public_name(dataset),
        "val": public_name(val),
        "model": model,
        "teacher": None if teacher is None else str(teacher),
        "recipe": asdict(recipe),
        "seeds": seeds,
        "rows": rows,
        "summary": [],
        "stopped_by": None,
    }

    def runs() -> Iterator[SeriesRun]:
        for seed, name in product(range(seeds), names):
            run = contender(recipe, name)
            options = {
                "val": val,
                "model": model,
                "labels": labels,
                "teacher": teacher if run.wants_teacher else None,
                "seed": seed,
                "device": device,
                "num_threads": num_threads,
            }
            yield SeriesRun(f"{name}-{seed}", run, dataset, options)

    def finished(run: SeriesRun, trained: TrainResult) -> None:
        name, _, seed = run.name.rpartition("-")
        last = trained.history[-1]
        numbers = {"top1": last["top1"], "top5": last["top5"]}
        numbers |= dict(measure(trained.checkpoint)) if measure is not None else {}
        step_s = seconds_per_step(trained.checkpoint.with_name(METRICS_NAME), run.recipe.global_batch)
        rows.append(
            {"contender": name, "seed": int(seed), "steps": trained.steps, "step_s": step_s, **numbers}
        )
        result["summary"] = summarise(rows)
        write_json(folder / STUDY_NAME, result)

    result["stopped_by"] = train_series(runs(), folder, finished=finished, log=log)
    return result


def contender(recipe: Recipe, name: str) -> Recipe:
    """A recipe with a contender's targets: everything else stays as it is."""
    plain = {"loss": "soft-target", "targets": "relabel", "smoothing": 0.0}
    return replace(recipe, name=f"{recipe.name}, {name}", **{**plain, **CONTENDERS[name]})


def seconds_per_step(metrics: Path, global_batch: int) -> float:
    """Median over the lines of a run's `metrics.csv`, the wait for data included, evaluation left out.

    A median: a run begins slowly, and may have been continued. It is the first line's where there is no other.

    Raises:
        DataError: the file is missing, has no line, or its median is no speed.
    """
    try:
        with metrics.open(newline="") as file:
            rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{metrics}: expected the lines of a training run, found none ({error})") from error
    if not rates:
        raise DataError(
            f"{metrics}: expected the lines of a training run, found none; begin it in a new folder"
        )
    rate = median(rates[1:] or rates)
    if not 0 < rate < inf:
        raise DataError(
            f"{metrics}: expected a median of images_per_s above 0, found {rate}; begin it in a new folder"
        )
    return global_batch / rate


def summarise(rows: Iterable[Row], reference: str = REFERENCE) -> list[dict[str, Any]]:
    """Each contender's numbers over its seeds, and beside the reference's with the same seeds.

    Args:
        rows: `contender`, `seed` and numbers.
        reference: the contender that the others are compared with; where it has no rows, nothing is compared.

    Returns:
        For each contender `contender`, `runs`, `step_s` (median) and for every other number its `mean` and `std` (of
        the sample; None for one run), `difference` (mean, from the reference with the same seed) and `interval`: the
        95 % bootstrap interval of that mean, None for one run. Few seeds give a narrow one: read it with `std`.
    """
    rows = list(rows)
    found = []
    base = {row["seed"]: row for row in rows if row["contender"] == reference}
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        entry: dict[str, Any] = {"contender": name, "runs": len(own)}
        entry["step_s"] = median(row["step_s"] for row in own)
        for metric in (key for key in own[0] if key not in ("contender", "seed", "steps", "step_s")):
            values = np.array([row[metric] for row in own], np.float64)
            std = float(values.std(ddof=1)) if len(own) > 1 else None
            entry[metric] = {"mean": float(values.mean()), "std": std}
            gaps = [row[metric] - base[row["seed"]][metric] for row in own if row["seed"] in base]
            if gaps and name != reference:
                entry[metric] |= {
                    "difference": float(np.mean(gaps)),
                    "interval": _interval(gaps),
                }
        found.append(entry)
    return found


def _interval(gaps: Sequence[float]) -> list[float] | None:
    return None if len(gaps) < 2 else list(mean_interval(gaps, np.random.default_rng(0), _DRAWS))


def format_study(
    result: Mapping[str, Any],
    metrics: Sequence[str] = ("top1",),
    reference: str = REFERENCE,
    what: str = "targets",
) -> str:
    """The summary as a table: shares in percent, differences from the reference in points; `what` heads the names."""
    global_batch = result["recipe"]["global_batch"]
    heads = [f"{metric + ', %':>14} {'against ' + reference:>24}  " for metric in metrics]
    lines = [f"{what:<18} {'runs':>4}  {''.join(heads)}{'ms a step':>10} {'ms an image':>12}"]
    for entry in result["summary"]:
        cells = [f"{_spread(entry[metric]):>14} {_gap(entry[metric]):>24}  " for metric in metrics]
        step_ms = 1000 * entry["step_s"]
        lines.append(
            f"{entry['contender']:<18} {entry['runs']:>4}  {''.join(cells)}{step_ms:>10.1f} "
            f"{step_ms / global_batch:>12.2f}"
        )
    return "\n".join(lines)


def _spread(number: Mapping[str, Any]) -> str:
    mean = f"{100 * number['mean']:.1f}"
    return mean if number["std"] is None else f"{mean} ± {100 * number['std']:.1f}"


def _gap(number: Mapping[str, Any]) -> str:
    if "difference" not in number:
        return ""
    gap = f"{100 * number['difference']:+.1f}"
    if number["interval"] is None:
        return gap
    low, high = (f"{100 * edge:+.1f}" for edge in number["interval"])
    return f"{gap} ({low} to {high})"


def _checked(contenders: Sequence[str] | None, teacher: str | Path | None) -> list[str]:
    if contenders is None:
        return [name for name in CONTENDERS if name != LIVE or teacher is not None]
    problems = []
    if not contenders or len(set(contenders)) < len(contenders):
        problems.append(f"expected targets, each once, found {list(contenders)}")
    if unknown := [name for name in contenders if name not in CONTENDERS]:
        problems.append(f"expected targets of {', '.join(CONTENDERS)}, found {', '.join(unknown)}")
    if LIVE in contenders and teacher is None:
        problems.append(f"expected a teacher for {LIVE}, found none. Give --teacher")
    if problems:
        raise UsageError("study: " + "; ".join(problems))
    return list(contenders)
