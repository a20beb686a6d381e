"""What an earlier run left for the next one, and weights to begin with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from softshard.loaders.bad_lines import read_bad_lines
from softshard.shards import Manifest
from softshard.shards.added_component import settle
from softshard.shards.destination import open_destination
from softshard.shards.files import canonical_json, sha256_hex
from softshard.shards.labelmap_import import IMPORT_NAME, ImportOptions
from softshard.shards.labelmap_import import _settle as settle_import
from softshard.shards.pack_soft import load_how
from softshard.shards.receipts import settle_content
from softshard.shards.tags_tasks import BlockCounts, BlockLines, BlockStats
from softshard.shards.tags_work import Counted, TagsWork, _note
from softshard.training import subset_score, subset_study
from softshard.training.demo_folder import MARKED, MARKER, _is_demo
from softshard.training.run_series import settle_folder
from softshard.training.start import _read
from softshard.training.steplog import LogLine, _start_csv
from softshard.training.study import seconds_per_step

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


def _counts(folder: Path) -> None:
    """What was counted is added up as `tags build` does; a damaged part and those after it are counted again."""
    (folder / "build-key").write_text("k")
    total = Counted()
    for part in TagsWork(folder, "k").counted():
        total.images.update(part.images)
        total.add_part(part)
    total.repeats()


def _lines(folder: Path) -> None:
    """What was written is gone on with, or begun again."""
    (folder / "build-key").write_text("k")
    for name in ("lines.part", "bad.part"):
        (folder / name).write_bytes(b"{}\n" * 4)
    with TagsWork(folder, "k").writing("k") as written:
        written.add(BlockLines(b"{}\n", b"", BlockStats(images=1)))


def _counted_facts(data: bytes, folder: Path) -> None:
    """Behind the checksum of the archive's member."""
    file = io.BytesIO()
    with np.load(io.BytesIO(_counted())) as arrays:
        np.savez(file, **{**arrays, "facts": np.frombuffer(data, np.uint8)})
    (folder / "count-000000.npz").write_bytes(file.getvalue())
    _counts(folder)


def _counted() -> bytes:
    part = Counted()
    part.add_block(
        BlockCounts({"big cat": 2}, np.array([3, 5, 3], np.uint64), 1, 1, 0, ["web.csv: line 4: no label"])
    )
    return part.to_bytes()


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
        Target("counts of tags", in_folder("count-000000.npz", _counts), (_counted(),), BINARY),
        Target("counts of tags behind their checksum", _counted_facts, (b'[{"big cat": 2}, [1, 1, 0], ["line 4"]]',), JSON),
        Target("written lines of tags", in_folder("written.json", _lines),
            (_note("k", 50, [9, 6], vars(BlockStats(images=7))),), JSON),
        Target("how tags were made", in_folder("list.tags.json", lambda folder: load_how(folder / "list.jsonl", "tags")),
            (json.dumps({"tokenizer": "softshard", "keep": ["title"], "max_share": 0.25}).encode(),), JSON,
            "list.tags.json"),
        Target("speed of a run", in_file("metrics.csv", lambda path: seconds_per_step(Path(path), 8)),
            (metrics.encode(),), TEXT, "metrics.csv"),
        Target("import.json", in_folder(IMPORT_NAME, lambda folder: settle_import(folder, folder, [], options)),
            (json.dumps(imported | {"shape": [3, 4, 5]}).encode(),), JSON),
        Target("plan of scores", in_folder(subset_score.PLAN_NAME,
            lambda folder: settle_folder(
                folder / subset_score.PLAN_NAME, _CALL, "--runs", begun=True, may_differ="dataset")),
            (json.dumps(_CALL).encode(),), JSON),
        Target("plan of a study", in_folder(subset_study.STUDY_NAME,
            lambda folder: settle_folder(folder / subset_study.STUDY_NAME, _CALL, "-o", begun=True)),
            (json.dumps(_CALL).encode(),), JSON),
        Target("mark of a demo", in_folder(MARKER, _is_demo), (json.dumps(MARKED).encode(),), JSON),
        Target("weights as safetensors", _weights("model.safetensors"), (tensors,), BINARY, "model.safetensors"),
        Target("weights as checkpoint", _weights("model.pt"), (checkpoint,), BINARY, "model.pt"),
    ]  # fmt: skip
