"""`softshard tags study`: which keywords are worth pretraining on (Yan et al. 2020).

    vocabulary -> pretraining on its tags -> the same fine-tuning -> accuracy on the same images -> table, study.json

Beside them a run without pretraining. Losses of two vocabularies do not compare, nor do their tag accuracies: what they
teach is measured on classes. Every run is a folder of `train`'s; a study that was killed continues.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..loaders.labels import LabelSource
from ..shards.errors import UsageError
from ..shards.storage import public_name
from .checkpoint import load_checkpoint
from .recipes import Recipe
from .results import METRICS_NAME, TrainResult, write_json
from .run_series import SeriesRun, train_series
from .study import STUDY_NAME, Row, format_study, seconds_per_step, summarise

# The contender without pretraining, which the others are compared with.
NONE = "none"
METRICS = ("top1", "balanced_top1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


def study_tags(
    vocabularies: Mapping[str, str],
    dataset: str,
    val: str,
    *,
    pretraining: Recipe,
    tuning: Recipe,
    model: str,
    out: str | Path,
    seeds: int = 3,
    labels: str | Path | LabelSource | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Pretrain on each vocabulary with each seed, fine-tune, and compare, seed by seed.

    Args:
        vocabularies: name to data set, folder or fsspec URL: the same images packed with different vocabularies.
        dataset: what all are fine-tuned on.
        val: what all are evaluated on; the last epoch counts.
        pretraining: what all begin with, such as `weakly_tagged()`.
        tuning: what all go on with, such as `fine_tune()`; without pretraining it begins with random weights.
        model: timm's name of the architecture.
        out: a folder for the runs, and for `study.json`, which is written after each. The same call continues.
        seeds: runs of each vocabulary, with the seeds 0, 1, ...
        labels: `dataset` and `val` are read with these, as in `train`.
        device: as in `train`.
        num_threads: the loader's.
        log: gets the lines of every run.

    Returns:
        What `study.json` holds: `rows`, one a pair of runs, and `summary`, one a vocabulary: see `summarise`.
        `keywords`, how many each vocabulary has. `stopped_by`, the number of the signal that stopped it, or None.

    Raises:
        UsageError: names that are no names of folders, recipes that do not train on keywords or classes; see `train`.
        DataError: see `train`.
    """
    _check(vocabularies, pretraining, tuning, seeds)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    keywords: dict[str, int] = {}
    result: dict[str, Any] = {
        "vocabularies": {name: public_name(source) for name, source in vocabularies.items()},
        "dataset": public_name(dataset),
        "val": public_name(val),
        "model": model,
        "pretraining": asdict(pretraining),
        "recipe": asdict(tuning),
        "seeds": seeds,
        "keywords": keywords,
        "rows": rows,
        "summary": [],
        "stopped_by": None,
    }
    shared: dict[str, Any] = {"model": model, "device": device, "num_threads": num_threads}
    starts: dict[str, TrainResult] = {}  # by folder

    def runs() -> Iterator[SeriesRun]:
        for seed, name in product(range(seeds), (NONE, *vocabularies)):
            place = f"{name}-{seed}"
            if name != NONE:
                yield SeriesRun(
                    f"{place}/pretraining", pretraining, vocabularies[name], {**shared, "seed": seed}
                )
            start = starts.get(place)
            options = {
                "val": val,
                "labels": labels,
                "init_from": None if start is None else start.checkpoint,
                "seed": seed,
            }
            recipe = replace(tuning, new_head=False) if start is None else tuning
            yield SeriesRun(f"{place}/tuning", recipe, dataset, {**shared, **options})

    def finished(run: SeriesRun, trained: TrainResult) -> None:
        place, _, part = run.name.rpartition("/")
        name, _, seed = place.rpartition("-")
        if part == "pretraining":
            starts[place] = trained
            keywords[name] = len(load_checkpoint(trained.checkpoint).tag_names)
            return
        last = trained.history[-1]
        step_s = seconds_per_step(trained.checkpoint.with_name(METRICS_NAME), tuning.global_batch)
        steps = trained.steps + (starts[place].steps if place in starts else 0)
        numbers = {metric: last[metric] for metric in METRICS}
        rows.append({"contender": name, "seed": int(seed), "steps": steps, "step_s": step_s, **numbers})
        result["summary"] = summarise(rows, NONE)
        write_json(folder / STUDY_NAME, result)

    result["stopped_by"] = train_series(runs(), folder, finished=finished, log=log)
    return result


def format_tags_study(result: Mapping[str, Any]) -> str:
    """The summary as a table: vocabularies and their sizes; shares in percent, differences from none in points."""
    sizes = result["keywords"]
    named = [
        {**entry, "contender": f"{name} ({sizes[name]:,})" if (name := entry["contender"]) in sizes else name}
        for entry in result["summary"]
    ]
    return format_study({**result, "summary": named}, METRICS, NONE, what="keywords")


def _check(vocabularies: Mapping[str, str], pretraining: Recipe, tuning: Recipe, seeds: int) -> None:
    problems = []
    if not vocabularies:
        problems.append("expected at least one vocabulary, found none")
    if wrong := [name for name in vocabularies if name == NONE or not _NAME.fullmatch(name)]:
        problems.append(
            f"expected names of letters, digits and _.+- other than {NONE!r}, found {', '.join(map(repr, wrong))}"
        )
    if pretraining.loss not in ("weakly-tagged", "joint"):
        problems.append(f"expected pretraining on keywords, found the loss {pretraining.loss!r}")
    if not tuning.new_head or tuning.loss == "weakly-tagged":
        problems.append(f"expected fine-tuning on classes with a new head, found the recipe {tuning.name!r}")
    if seeds < 1:
        problems.append(f"expected at least 1 seed, found {seeds}")
    if problems:
        raise UsageError("tags study: " + "; ".join(problems))
