"""What a run leaves in its folder beside the checkpoint, and what `train` returns.

`metrics.csv` and `tensorboard/` grow while the run goes on; `init.json` is written where it began with weights;
`model.safetensors` and `summary.json` when it is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

BOARD_NAME = "tensorboard"
INIT_NAME = "init.json"
METRICS_NAME = "metrics.csv"
SUMMARY_NAME = "summary.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        checkpoint: the latest checkpoint.
        weights: the exported weights, or None where the run was stopped before its end.
        steps: steps since the run began, those before a --resume included.
        history: one dict per finished epoch: `epoch`, `loss` (mean over its steps), `num_bad` (training samples that
            could not be read since this process began, on all ranks together) and, with a validation set,
            `weights` (`ema` or `model`: whose numbers follow) and the numbers of `evaluate_model`.
        stopped_by: number of the signal that stopped the run, or None where it finished.
    """

    checkpoint: Path
    weights: Path | None
    steps: int
    history: list[dict[str, Any]]
    stopped_by: int | None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file for people and programs; it appears whole."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


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
