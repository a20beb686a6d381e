"""What a manifest says of the teachers behind a data set's samples: of its label maps, of its stored teacher.

Both are entries of `manifest.json`; a reader checks them as it checks everything else there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LabelMapInfo:
    """Geometry and origin of a data set's label maps.

    Attributes:
        top: K, classes kept per cell.
        rows: P.
        columns: Q.
        num_classes: C of the teacher; ids are below it.
        teacher: what made the maps: model name, input size and the SHA-256 of its weights.
    """

    top: int
    rows: int
    columns: int
    num_classes: int
    teacher: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "teacher": dict(self.teacher)}


@dataclass(frozen=True)
class TeacherInfo:
    """Origin of a data set's stored distillation teacher (`kd`).

    Attributes:
        model: timm's name of the architecture.
        checkpoint_sha256: of the teacher's checkpoint, the file.
        levels: how many levels of the tree it was trained on, from the root: what it says of those below is noise.
        how: how it was asked: image size, precision, device, version of torch.
    """

    model: str
    checkpoint_sha256: str
    levels: int
    how: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "how": dict(self.how)}


def label_maps_problem(entry: object) -> str | None:
    """What is wrong with a manifest's entry `label_maps`, or None."""
    numbers = ("top", "rows", "columns", "num_classes")
    fine = (
        isinstance(entry, dict)
        and all(type(entry.get(key)) is int and entry[key] > 0 for key in numbers)
        and isinstance(entry.get("teacher"), dict)
    )
    return None if fine else "expected the label maps' geometry and teacher"


def teacher_problem(entry: object) -> str | None:
    """What is wrong with a manifest's entry `teacher`, or None."""
    fine = (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("model", "checkpoint_sha256"))
        and type(entry.get("levels")) is int
        and entry["levels"] > 0
        and isinstance(entry.get("how"), dict)
    )
    return None if fine else "expected the stored teacher's model, checkpoint and levels"
