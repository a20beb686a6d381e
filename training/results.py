"""What a run leaves in its folder beside the checkpoint, and what `train` returns.

`metrics.csv`, `epochs.csv` and `tensorboard/` grow while the run goes on; `init.json` is written where it began with
weights; `model.safetensors` and `summary.json` when it is finished.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.loader import Loader
from ..shards.files import write_atomically
from .label_space import LabelSpace
from .models import export_weights
from .recipes import Recipe
from .steplog import StepLog
from .without_labels import WITHOUT_NAMES

BAD_NAME = "bad_samples.jsonl"
BOARD_NAME = "tensorboard"
EPOCHS_NAME = "epochs.csv"
INIT_NAME = "init.json"
METRICS_NAME = "metrics.csv"
SUMMARY_NAME = "summary.json"
WEIGHTS_NAME = "model.safetensors"


# Of training: the epoch follows from the step, and the board has the loss step by step.
_NOT_EVALUATED = ("epoch", "loss", "num_bad", *WITHOUT_NAMES.values())


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        checkpoint: the latest checkpoint. Of a run that was stopped it may be older than `steps`, or not be there: a signal
            that lost a batch on its way saved nothing.
        weights: the exported weights, or None where the run was stopped before its end.
        steps: steps since the run began, those before a --resume included.
        history: one dict per finished epoch: `epoch`, `loss` (mean over its steps), `num_bad` (training samples that
            could not be read since this process began, on all ranks together), of a recipe of soft labels
            `without_tags` and so on (samples of the epoch that have none; of mixed ones, whose partners have none either)
            and, with a validation set, `weights` (`ema` or `model`: whose numbers follow) and the numbers of
            `evaluate_model`.
        stopped_by: number of the signal that stopped the run, or None where it finished.
        late_signal: number of a signal that came when no step was left to stop at, 0 for none: whoever has more runs to
            do should stop there.
    """

    checkpoint: Path
    weights: Path | None
    steps: int
    history: list[dict[str, Any]]
    stopped_by: int | None
    late_signal: int = 0


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file for people and programs; it appears whole."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table; it appears whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def epoch_numbers(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of an epoch under names of one column each: an entry of TrainResult's history.

    The list `per_level` becomes `level_0`, `level_1` and so on; `weights`, which is no number, is left out.
    """
    numbers = {name: value for name, value in entry.items() if name not in ("per_level", "weights")}
    return numbers | {f"level_{level}": share for level, share in enumerate(entry.get("per_level", ()))}


def write_epochs(path: Path, history: list[dict[str, Any]], board: Any = None, step: int = 0) -> None:
    """Write `epochs.csv`: a line per finished epoch, with its mean loss, bad samples and what was evaluated.

    All lines are written anew each time, so that a continued run leaves the file that an uninterrupted one does.

    Args:
        path: the CSV.
        history: see TrainResult, at least one epoch. What an epoch has no number for stays empty.
        board: a SummaryWriter of torch's, which gets what was evaluated last, as `val/semantic_accuracy` and so on; or
            None.
        step: steps taken so far.
    """
    rows = [epoch_numbers(entry) for entry in history]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [{name: f"{value:.8g}" for name, value in row.items() if value is not None} for row in rows]
    write_csv(path, columns, shown)
    if board is not None:
        for name in columns:
            if name not in _NOT_EVALUATED and rows[-1].get(name) is not None:
                board.add_scalar(f"val/{name}", rows[-1][name], step)


def write_weights(
    path: Path, weights: Mapping[str, Tensor], *, which: str, model: str, recipe: Recipe, labels: LabelSpace
) -> None:
    """Export a finished run's weights, which say themselves what their outputs stand for.

    Args:
        path: the safetensors file.
        weights: a state dict in class order.
        which: `ema` or `model`.
        model: timm's name of the architecture.
        recipe: that they were trained with.
        labels: of their outputs.
    """
    metadata = {
        "model": model,
        "recipe": recipe.name,
        "weights": which,
        "classes_sha256": labels.classes_sha256,
        "class_names": json.dumps(list(labels.class_names)),
        **({} if labels.tree_json is None else {"tree_json": labels.tree_json}),
        **({"tag_names": json.dumps(list(labels.tag_names))} if labels.tag_names else {}),
    }
    export_weights(path, weights, metadata)


def write_summary(
    path: Path, recipe: Recipe, loader: Loader, steps: StepLog, history: list[dict[str, Any]], **call: Any
) -> None:
    """Sum a finished run up: what was asked for, what it met, what it came to.

    Args:
        path: the JSON file.
        recipe: as it ran.
        loader: of the training set.
        steps: after the last one.
        history: see TrainResult.
        call: more of the call, as JSON can hold it.
    """
    summary = {
        "recipe": asdict(recipe),
        **call,
        "labels": loader.state_dict()["labels"],
        "classes": loader.num_classes,
        "chance": 1 / loader.num_classes,
        "samples": loader.num_samples,
        "steps_per_epoch": len(loader),
        "steps": steps.step,
        "skipped": steps.skipped,
        "num_bad": history[-1].get("num_bad", 0) if history else 0,
        "history": history,
    }
    write_json(path, summary)
