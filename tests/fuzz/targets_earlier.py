"""What an earlier run left for the next one, and weights to begin with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from softshard.loaders.bad_lines import read_bad_lines
from softshard.shards import Manifest
from softshard.shards.added_component import settle
from softshard.shards.destination import open_destination
from softshard.shards.files import canonical_json, sha256_hex
from softshard.shards.labelmap_import import IMPORT_NAME, ImportOptions
from softshard.shards.labelmap_import import _settle as settle_import
from softshard.shards.receipts import settle_content
from softshard.training import subset_score, subset_study
from softshard.training.demo_folder import MARKED, MARKER, _is_demo
from softshard.training.start import _read
from softshard.training.steplog import LogLine, _start_csv

from . import whole_files as whole
from .judge import Target
from .mutate import BINARY, JSON, TEXT
from .targets_data_set import in_file, in_folder

_CALL = {"kd": {"dataset": "f" * 64, "batch_size": 8}}
_ORIGIN = {"sources": ["a"], "seed": 3}


def _plan_of(content: dict[str, Any]) -> bytes:
    return json.dumps({"sha256": sha256_hex(canonical_json(content)), **content}).encode()


@lru_cache(maxsize=1)
def _manifest() -> Manifest:
    return Manifest.from_json(json.loads(whole.packed().train["manifest.json"]))


def _reshard(folder: Path) -> None:
    settle_content(open_destination(folder), {"name": "train", "reshard": _ORIGIN})


def _weights(name: str) -> Callable[[bytes, Path], Any]:
    return in_file(name, lambda path: _read(path, "test_resnet", 32))


def _weight_files() -> tuple[bytes, bytes]:
    """As softshard writes them: for timm, and a checkpoint's model."""
    about = {
        "class_names": json.dumps(list(whole.CLASSES)),
        "classes_sha256": "a" * 64,
        "tree_json": json.dumps(whole.TREE.to_json()),
    }
    weights, file = {"fc.weight": torch.ones(2, 3)}, io.BytesIO()
    torch.save({"state_dict": weights, **about, "class_names": list(whole.CLASSES)}, file)
    return safetensors.torch.save(weights, about), file.getvalue()


def targets() -> list[Target]:
    bad = b'{"shard": "train-000000.tar", "key": "a", "reason": "cut short"}\n' * 3
    names = [field.name for field in fields(LogLine)]
    metrics = f"{','.join(names)}\n" + "".join(f"{i}{',0.5' * (len(names) - 1)}\n" for i in range(1, 4))
    options = ImportOptions()
    imported = {"num_classes": options.num_classes, "transpose": options.transpose, "scores": options.scores}
    tensors, checkpoint = _weight_files()
    return [
        Target("lines of bad samples", in_folder("bad.jsonl", lambda folder: read_bad_lines(folder, "bad.jsonl", 0, 9)),
            (bad,), TEXT),
        Target("metrics of a run", in_file("metrics.csv", lambda path: _start_csv(Path(path), 2)), (metrics.encode(),),
            TEXT),
        Target("plan of a reshard", in_folder("plan.json", _reshard),
            (_plan_of({"name": "train", "reshard": _ORIGIN}),), JSON),
        Target("plan of a component", in_folder("plan.json",
            lambda folder: settle(open_destination(folder), dict(_CALL), _manifest())), (_plan_of(_CALL),), JSON),
        Target("import.json", in_folder(IMPORT_NAME, lambda folder: settle_import(folder, folder, [], options)),
            (json.dumps(imported | {"shape": [3, 4, 5]}).encode(),), JSON),
        Target("plan of scores", in_folder(subset_score.PLAN_NAME, lambda folder: subset_score._settle(folder, _CALL)),
            (json.dumps(_CALL).encode(),), JSON),
        Target("plan of a study", in_folder(subset_study.STUDY_NAME, lambda folder: subset_study._settle(folder, _CALL)),
            (json.dumps(_CALL).encode(),), JSON),
        Target("mark of a demo", in_folder(MARKER, _is_demo), (json.dumps(MARKED).encode(),), JSON),
        Target("weights as safetensors", _weights("model.safetensors"), (tensors,), BINARY, "model.safetensors"),
        Target("weights as checkpoint", _weights("model.pt"), (checkpoint,), BINARY, "model.pt"),
    ]  # fmt: skip
