"""Checkpoints: all that a run needs to continue on its next batch, in one file that appears whole.

The file is what torch.save writes, and torch.load(weights_only=True) reads it: it holds tensors, numbers,
strings and lists of them, no code. `timm.create_model(..., checkpoint_path=...)` finds the weights: under
`model_ema` where the recipe averages them, else under `model`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ..shards.errors import DataError, first_line
from ..shards.files import TEMPORARY_SUFFIX, naming, replace_durably
from ..shards.images import ImageRecipe
from ..shards.manifest import Manifest
from ..shards.schema import MANIFEST_NAME
from ..shards.tree import LabelTree
from .label_space import LabelSpace
from .recipes import Recipe

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_VERSION = 4
_LATER_FIELDS = ("tag_names", "without")  # lists that files of this version may lack


@dataclass(kw_only=True)
class Checkpoint:
    """The state of a training run after `step` steps.

    Attributes:
        model_name: timm's name of the architecture.
        recipe: as it ran, with every override.
        model: the model's state dict, in class order, as it trains on.
        model_ema: that of the averaged weights, which are evaluated and exported; None without an average.
        teacher: which one the run distils from (`ChosenTeacher.facts`), which is not in here; None without distillation.
        scaler: state of the loss scaling of float16, or None.
        optimizer: the optimizer's state dict; where the recipe has `level_order`, that of the head is in level order.
        step: steps taken since the run began; also the position in the learning rate schedule.
        epoch: the epoch that the next batch belongs to.
        loader: the loader's state dict: which batch is next.
        class_names: C names; the model's outputs are in this order.
        classes_sha256: fingerprint of the class list.
        tree_sha256: fingerprint of the label tree, or None.
        tree_json: the label tree as JSON text, or None.
        tag_names: T keywords; the model's outputs after those of the classes.
        stored_images: how the data set stored its images (fields of ImageRecipe), or None where it does not say.
        rng: for every rank the states of its random generators: `cpu` and, on a GPU, `cuda`.
        loss_sum: sum of the losses of the epoch's steps so far.
        loss_steps: how many they are.
        skipped: steps so far that overflowed in float16 and changed nothing.
        history: one dict per finished epoch: `epoch`, `loss` (mean over its steps) and the validation's
            numbers.
        without: samples of the epoch's steps so far without soft labels, of each kind of the recipe's targets.
    """

    model_name: str
    recipe: Recipe
    model: dict[str, torch.Tensor]
    model_ema: dict[str, torch.Tensor] | None
    teacher: dict[str, Any] | None
    scaler: dict[str, Any] | None
    optimizer: dict[str, Any]
    step: int
    epoch: int
    loader: dict[str, Any]
    class_names: list[str]
    classes_sha256: str
    tree_sha256: str | None
    tree_json: str | None
    stored_images: dict[str, Any] | None
    rng: list[dict[str, torch.Tensor]]
    loss_sum: float
    loss_steps: int
    skipped: int
    history: list[dict[str, Any]]
    tag_names: list[str] = field(default_factory=list)  # files older than keywords have none
    without: list[int] = field(default_factory=list)  # nor this, older ones

    @property
    def best_model(self) -> dict[str, torch.Tensor]:
        """The weights to evaluate: the average where there is one."""
        return self.model if self.model_ema is None else self.model_ema

    @property
    def best_weights(self) -> str:
        """Which weights these are: `ema` or `model`."""
        return "model" if self.model_ema is None else "ema"

    @property
    def tree(self) -> LabelTree | None:
        """The label tree of the model's classes, or None where the data set had none."""
        return None if self.tree_json is None else LabelTree.from_json(json.loads(self.tree_json))

    @property
    def label_space(self) -> LabelSpace:
        """What the model's outputs stand for."""
        return LabelSpace(self.class_names, self.classes_sha256, self.tree, self.tag_names)

    def check_data(self, path: Path, dataset: str, found: LabelSpace) -> None:
        """Refuse a data set with another class list or another label tree.

        Raises:
            DataError: with both fingerprints of everything that differs, and how.
        """
        problems = self.label_space.differences(found)
        if problems:
            raise DataError(
                f"{path} and data set {dataset!r} do not belong together: {'; '.join(problems)}; the data "
                "set was packed, or is read, with another class list or tree. Use the data set that the model was "
                "trained on, read it with the same --labels, or pack it again with the same --classes and --tree"
            )


def stored_images(manifest: Manifest) -> dict[str, Any] | None:
    """How a data set stored its images, as fields of ImageRecipe; None where its manifest does not say."""
    names = [field.name for field in dataclasses.fields(ImageRecipe)]
    if not all(name in manifest.recipe for name in names):
        return None
    return {name: manifest.recipe[name] for name in names}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file under another name, flush it and rename it: no crash leaves half a checkpoint."""
    fields = {part.name: getattr(checkpoint, part.name) for part in dataclasses.fields(checkpoint)}
    fields["recipe"] = dataclasses.asdict(checkpoint.recipe)
    part = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with naming(path), part.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, **fields}, file)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(part, path)
    except BaseException as error:
        with suppress(OSError):  # which would hide the first one
            part.unlink(missing_ok=True)  # a full disk has no room for half a checkpoint
        first = error.__context__
        if isinstance(error, RuntimeError) and isinstance(
            first, OSError
        ):  # torch fails again as it ends its archive
            raise OSError(first.errno, first.strerror, str(path)) from error
        raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors are on the CPU.

    Raises:
        DataError: there is no such file, it is cut short or damaged, or it is no checkpoint of softshard's.
    """
    _refuse_what_is_plainly_else(path)
    try:
        # torch.save writes a zip archive with checksums, which torch.load does not look at.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged!r}")
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: expected a checkpoint, found no such file") from None
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, ...
        raise DataError(
            f"{path}: expected a checkpoint, found a file that torch cannot read ({why_unreadable(error)}). Use an "
            "older copy, or start the run again without --resume"
        ) from error
    names = {part.name for part in dataclasses.fields(Checkpoint)} - set(_LATER_FIELDS)
    # The version first: another one may have other fields.
    if isinstance(fields, dict) and "recipe" in fields and fields.get("version") != CHECKPOINT_VERSION:
        raise DataError(
            f"{path}: expected checkpoint version {CHECKPOINT_VERSION}, found {fields.get('version')!r}; it was written by "
            "another version of softshard"
        )
    if not isinstance(fields, dict) or not names <= fields.keys():
        missing = sorted(names - fields.keys()) if isinstance(fields, dict) else sorted(names)
        raise DataError(
            f"{path}: expected a checkpoint of softshard train, found a file without {', '.join(missing)}; "
            "plain weights go to --init-from"
        )
    recipe = fields["recipe"]
    try:
        fields["recipe"] = Recipe(**recipe)
    except (TypeError, ValueError, IndexError) as error:  # other fields, or values that no recipe has
        raise DataError(
            f"{path}: expected a recipe of this version of softshard, found another ({error}); "
            "the checkpoint was written by another version, or changed"
        ) from error
    for name in _LATER_FIELDS:
        fields.setdefault(name, [])
    if other := _other_types(fields):
        raise DataError(
            f"{path}: expected the fields of a checkpoint, found others in {', '.join(other)}; it was changed, or "
            "written by something else"
        )
    checkpoint = Checkpoint(**{name: fields[name] for name in (*names, *_LATER_FIELDS)})
    try:
        _ = checkpoint.tree  # parsed here, so that what is wrong is said with the file's name
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected the label tree of a run, found another ({first_line(error)}); it was changed, "
            "or written by something else"
        ) from error
    return checkpoint


def why_unreadable(error: Exception) -> str:
    """What torch says of a file that it cannot read; but not its advice, to let the file's code run."""
    return (
        "it holds objects other than tensors and plain values, or is damaged"
        if isinstance(error, UnpicklingError)
        else first_line(error)
    )


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of the file, which says whose answers label maps, pseudo labels and a stored teacher are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's weights and buffers, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _other_types(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a file that are of another type than a checkpoint's, looking no deeper than lists and dicts."""
    hints = typing.get_type_hints(Checkpoint)
    other = []
    for name in sorted(hints):
        parts = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kinds = tuple(typing.get_origin(part) or part for part in parts)
        if not isinstance(fields[name], (*kinds, int) if float in kinds else kinds):
            other.append(name)
    return other


def _refuse_what_is_plainly_else(path: Path) -> None:
    """Name the common mix-ups: a folder, exported weights."""
    wanted = f"{path}: expected the file {CHECKPOINT_NAME} that softshard train writes"
    if path.is_dir():
        if (path / CHECKPOINT_NAME).is_file():
            raise DataError(f"{wanted}, found the folder it is in. Give {path / CHECKPOINT_NAME}")
        if (path / MANIFEST_NAME).is_file():
            raise DataError(f"{wanted}, found the folder of a data set. The checkpoint comes first")
        raise DataError(f"{wanted}, found a folder without one")
    if path.suffix == ".safetensors" and path.is_file():
        beside = path.with_name(CHECKPOINT_NAME)
        there = f"Give {beside}" if beside.is_file() else "Give the checkpoint of the same run"
        raise DataError(
            f"{wanted}, found weights alone, which do not say how their images are prepared. {there}; "
            "train --init-from and timm read weights"
        )
