"""Checkpoints: all that a run needs to continue on its next batch, in one file that appears whole.

The file is what torch.save writes, and torch.load(weights_only=True) reads it: it holds tensors, numbers,
strings and lists of them, no code. `timm.create_model(..., checkpoint_path=...)` finds the weights under
`model`.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..shards.errors import DataError
from ..shards.files import TEMPORARY_SUFFIX, replace_durably
from .recipes import Recipe

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_VERSION = 1


@dataclass(kw_only=True)
class Checkpoint:
    """The state of a training run after `step` steps.

    Attributes:
        model_name: timm's name of the architecture.
        recipe: as it ran, with every override.
        model: the model's state dict.
        optimizer: the optimizer's state dict.
        step: steps taken since the run began; also the position in the learning rate schedule.
        epoch: the epoch that the next batch belongs to.
        loader: the loader's state dict: which batch is next.
        class_names: C names; the model's outputs are in this order.
        classes_sha256: fingerprint of the class list.
        tree_sha256: fingerprint of the label tree, or None.
        tree_json: the label tree as JSON text, or None.
        rng: for every rank the states of its random generators: `cpu` and, on a GPU, `cuda`.
        loss_sum: sum of the losses of the epoch's steps so far.
        loss_steps: how many they are.
        history: one dict per finished epoch: `epoch`, `loss` (mean over its steps) and the validation's
            numbers.
    """

    model_name: str
    recipe: Recipe
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    epoch: int
    loader: dict[str, Any]
    class_names: list[str]
    classes_sha256: str
    tree_sha256: str | None
    tree_json: str | None
    rng: list[dict[str, torch.Tensor]]
    loss_sum: float
    loss_steps: int
    history: list[dict[str, Any]]

    def check_data(self, path: Path, dataset: str, classes_sha256: str, tree_sha256: str | None) -> None:
        """Refuse a data set with another class list or another label tree.

        Mixing two versions of a class list gives a model that looks trained and is wrong.

        Raises:
            DataError: with both fingerprints of everything that differs.
        """
        problems = []
        if classes_sha256 != self.classes_sha256:
            problems.append(f"class list: expected {self.classes_sha256}, found {classes_sha256}")
        # Without a tree on one side there are no levels to mix up.
        if None not in (tree_sha256, self.tree_sha256) and tree_sha256 != self.tree_sha256:
            problems.append(f"label tree: expected {self.tree_sha256}, found {tree_sha256}")
        if problems:
            raise DataError(
                f"{path} and data set {dataset!r} do not belong together: {'; '.join(problems)}; the data "
                "set was packed with another class list or tree. Use the data set that the model was trained "
                "on, or pack it again with the same --classes and --tree"
            )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file under another name, flush it and rename it: no crash leaves half a checkpoint."""
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    fields["recipe"] = dataclasses.asdict(checkpoint.recipe)
    part = path.with_name(path.name + TEMPORARY_SUFFIX)
    with part.open("wb") as file:
        torch.save({"version": CHECKPOINT_VERSION, **fields}, file)
        file.flush()
        os.fsync(file.fileno())
    replace_durably(part, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors are on the CPU.

    Raises:
        DataError: there is no such file, it is cut short or damaged, or it is no checkpoint of softshard's.
    """
    try:
        # torch.save writes a zip archive with checksums, which torch.load does not look at.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged!r}")
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: expected a checkpoint, found no such file") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected a checkpoint, found a file that torch cannot read ({reason}); it is cut short "
            "or damaged. Use an older copy, or start the run again without --resume"
        ) from error
    names = {field.name for field in dataclasses.fields(Checkpoint)}
    if not isinstance(fields, dict) or not names <= fields.keys():
        missing = sorted(names - fields.keys()) if isinstance(fields, dict) else sorted(names)
        raise DataError(
            f"{path}: expected a checkpoint of softshard train, found a file without {', '.join(missing)}; "
            "plain weights go to --init-from"
        )
    version = fields.get("version")
    if version != CHECKPOINT_VERSION:
        raise DataError(
            f"{path}: expected checkpoint version {CHECKPOINT_VERSION}, found {version!r}; it was written by "
            "another version of softshard"
        )
    recipe = fields["recipe"]
    try:
        fields["recipe"] = Recipe(**recipe)
    except (TypeError, ValueError, IndexError) as error:  # other fields, or values that no recipe has
        raise DataError(
            f"{path}: expected a recipe of this version of softshard, found another ({error}); "
            "the checkpoint was written by another version, or changed"
        ) from error
    return Checkpoint(**{name: fields[name] for name in names})
