"""`softshard subset study`: the same models trained on a full set and on a subset of it.

    models x sets -> a run of `train` each -> curves.csv -> the evaluation of subset_evaluation.py

By default 100 epochs on the full set and 50 on the subset (Gao 2021). The recipe, the seed and the order of models are
the same on both sets. A study that was killed continues.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm

from ..loaders.faults import Faults
from ..loaders.labels import LabelSource
from ..loaders.subset import Subset
from ..shards.errors import UsageError
from ..shards.files import hold_folder, parse_json
from ..shards.storage import public_name
from ..shards.subset_file import SubsetFile
from .curves import COLUMNS, FULL, IMAGE_COLUMNS, SUBSET
from .data import open_loaders
from .recipes import Recipe
from .results import SUMMARY_NAME, TrainResult, write_csv
from .run_series import SeriesRun, any_checkpoint, settle_folder, train_series

CURVES_NAME = "curves.csv"
STUDY_NAME = "study.json"
EPOCHS = {FULL: 100, SUBSET: 50}
METRIC = "top1"


@dataclass(frozen=True)
class StudySet:
    """A set that models are trained on.

    Attributes:
        dataset: folder or fsspec URL of the shards.
        val: the data set that is evaluated after every epoch.
        subset: the part of `dataset` that is trained on, as `train` takes it; a file of `softshard subset` says with
            which classes both are read, too. None for all.
        labels: read both with these (see `train`).
    """

    dataset: str
    val: str
    subset: Subset | SubsetFile | None = None
    labels: str | Path | LabelSource | None = None

    def to_json(self) -> dict[str, Any]:
        """What `study.json` says of it."""
        part = self.subset
        return {
            "dataset": public_name(self.dataset),
            "val": public_name(self.val),
            "subset": part.record() if isinstance(part, SubsetFile) else part and part.to_json(),
            "labels": str(self.labels) if isinstance(self.labels, str | Path) else None,
        }


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        curves: the CSV of all finished runs, which `read_curves` reads when all are.
        stopped_by: number of the signal that stopped it, or None where it finished.
    """

    curves: Path
    stopped_by: int | None


def study_subset(
    full: StudySet,
    subset: StudySet,
    models: Sequence[str],
    out: str | Path,
    *,
    recipe: Recipe,
    epochs: Mapping[str, int] = EPOCHS,
    seed: int = 0,
    device: str = "cpu",
    num_threads: int | None = None,
    log: Callable[[str], None] | None = None,
) -> StudyResult:
    """Train a list of models on both sets and write their curves, model by model.

    Args:
        full: the full set.
        subset: what is to stand for it.
        models: timm's names.
        out: a folder for the runs, `curves.csv` and `study.json`. The same call continues; it may name more models.
        recipe: what all runs have in common but the number of epochs.
        epochs: of `full` and of `subset`.
        seed: of every run.
        device: as in `train`.
        num_threads: the loader's.
        log: gets the lines of every run.

    Returns:
        Where the curves are.

    Raises:
        UsageError: models that timm does not know, or twice; or a folder with another call's runs.
        DataError: see `train`.
    """
    _check_models(models)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CURVES_NAME
    rows: list[dict[str, Any]] = []

    def runs() -> Iterator[SeriesRun]:
        for model in models:
            for name, each in ((FULL, full), (SUBSET, subset)):
                options = {
                    "model": model,
                    "val": each.val,
                    "labels": each.labels,
                    "subset": each.subset,
                    "seed": seed,
                    "device": device,
                    "num_threads": num_threads,
                }
                run_name = f"{name}-{re.sub('[^A-Za-z0-9_.-]', '_', model)}"
                yield SeriesRun(run_name, replace(recipe, epochs=epochs[name]), each.dataset, options)

    def finished(run: SeriesRun, trained: TrainResult) -> None:
        name = run.name.partition("-")[0]
        file = trained.checkpoint.with_name(SUMMARY_NAME)
        summary = parse_json(file.read_bytes(), str(file))
        rows.extend(
            {
                "set": name,
                "model": run.options["model"],
                "epoch": entry["epoch"] + 1,
                "accuracy": f"{entry[METRIC]:.8g}",
                "train_images": summary["samples"],
                "val_images": entry["samples"],
            }
            for entry in trained.history
        )
        write_csv(path, [*COLUMNS, *IMAGE_COLUMNS], rows)

    with hold_folder(folder):
        for name, each in ((FULL, full), (SUBSET, subset)):
            _check_fits(each, replace(recipe, epochs=epochs[name]), seed, device, num_threads)
        call = {"recipe": asdict(recipe), "epochs": dict(epochs), "seed": seed}
        sets = {FULL: full.to_json(), SUBSET: subset.to_json()}
        settle_folder(folder / STUDY_NAME, call | sets, "-o", begun=any_checkpoint(folder))
        return StudyResult(path, train_series(runs(), folder, finished=finished, log=log))


def _check_fits(each: StudySet, recipe: Recipe, seed: int, device: str, num_threads: int | None) -> None:
    """Open a set as its first run will: what does not fit is told before the other set's run has taken days."""
    with ExitStack() as stack:
        open_loaders(
            recipe,
            each.dataset,
            each.val,
            labels=each.labels,
            subset=each.subset,
            connection=None,
            side=None,
            stored_teacher=False,
            seed=seed,
            device=device,
            rank=0,
            world_size=1,
            num_threads=num_threads,
            faults=Faults(),
            opened=stack,
        )


def _check_models(models: Sequence[str]) -> None:
    problems = []
    if len(models) < 2 or len(set(models)) < len(models):
        problems.append(f"expected two models or more, each once, found {', '.join(models) or 'none'}")
    if unknown := [model for model in models if not timm.is_model(model)]:
        problems.append(f"expected names that timm {timm.__version__} knows, found {', '.join(unknown)}")
    if problems:
        raise UsageError("subset study: " + "; ".join(problems))
