"""What a trainer takes from a server of the data service: every answer is checked before anything is made of it.

A server may be damaged, of another version, or somebody else's. Its JSON is compared field by field. A batch's rows are
compared with the recipe: dtypes, shapes, and every id with what it points into, since losses and kernels index by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import torch

from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from ..shards.soft_labels import TAGS
from ..shards.teacher_levels import num_kept
from .batch import Batch
from .decode import DTYPES
from .faults import BadSample, Faults
from .labels import Labels
from .pooling import SparseTargets
from .service_protocol import read_object
from .service_recipe import BatchRecipe
from .service_wire import decode_batch
from .target_modes import each_target

MAX_ANSWER_BYTES = 2**30  # of JSON: the manifest of 100,000 shards takes 30 MB

# The fields that are read of what a server says; others are left alone, for servers of a later version.
HELLO_FIELDS: Mapping[str, Any] = {"stack": dict[str, str], "request_bytes": int | None}
OPENED_FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "dataset": str,
    "fingerprint": str,
    "num_samples": int,
    "labels": str | None,
    "mixture": dict[str, Any] | None,
    "class_names": list[str],
    "tree": dict[str, Any] | None,
    "manifest": dict[str, Any],
}
COUNTS_FIELDS: Mapping[str, Any] = {"counts": list[int]}
VOCABULARY_FIELDS: Mapping[str, Any] = {"tags": list[str], "images": list[int]}


def read_answer(content: bytes, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parse what a server says.

    Args:
        content: JSON.
        fields: types by name.
        where: the server and what it was asked.

    Raises:
        DataError: it is no object, or has other fields.
    """
    try:
        found = read_object(content, MAX_ANSWER_BYTES, where)
    except UsageError as error:  # a request's error: here it is the server that is wrong
        raise DataError(f"{error}. {_SAME_VERSION}") from error
    check_fields(found, fields, where)
    return found


def check_fields(found: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
    """Compare fields with their types.

    Raises:
        DataError: naming those that are missing or of another type.
    """
    if wrong := [name for name, hint in fields.items() if name not in found or not _fits(found[name], hint)]:
        shown = ", ".join(f"{name} {found.get(name)!r:.80}" for name in wrong[:3])
        raise DataError(f"{where}: expected an answer of the data service, found {shown}. {_SAME_VERSION}")


def same_length(found: list[int], beside: Sequence[str], what: str) -> list[int]:
    """The list, which goes with another one.

    Raises:
        DataError: it is longer or shorter.
    """
    if len(found) != len(beside):
        raise DataError(
            f"data service: expected {len(beside):,} {what}, found {len(found):,}. {_SAME_VERSION}"
        )
    return found


def remote_faults(faults: Faults | None) -> Faults:
    """What a trainer puts up with.

    Raises:
        UsageError: of images that it does not see.
    """
    if faults is not None and faults.check_images:
        raise UsageError(
            "data service: expected Faults without check_images, since servers read the images. Run softshard verify "
            "--decode where the shards are"
        )
    return faults or Faults()


_SAME_VERSION = "Is that a server of softshard? Install the same version on servers and trainers"


def _fits(value: Any, hint: Any) -> bool:
    """Whether parsed JSON is of a type; numbers are counts, from 0."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(part, args[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, args[1]) for part in value.values())
    if origin is Union or args:
        return any(_fits(value, each) for each in args)
    if hint is int:
        return type(value) is int and 0 <= value < 2**62
    return type(value) is hint


@dataclass(frozen=True)
class AnswerCheck:
    """Compares batches with what was asked for.

    Attributes:
        recipe: of the batches.
        num_classes: of the loader.
        level_sizes: classes of each level of its tree; None without one, where nothing indexes by levels.
        num_tags: of the data set.
    """

    recipe: BatchRecipe
    num_classes: int
    level_sizes: Sequence[int] | None
    num_tags: int = 0

    @classmethod
    def of(cls, recipe: BatchRecipe, labels: Labels, manifest: Manifest) -> AnswerCheck:
        """For a loader of these labels and this data set."""
        sizes = None if labels.tree is None else labels.tree.level_sizes
        soft = manifest.soft_labels
        return cls(recipe, len(labels.class_names), sizes, 0 if soft is None else soft.num_tags)

    def __call__(self, rows: pa.RecordBatch, where: str) -> None:
        """Refuse rows that are not a batch of the recipe.

        Args:
            rows: as they came.
            where: from which server.

        Raises:
            DataError: saying what differs.
        """
        try:
            rows.validate(full=True)  # Arrow takes offsets on trust
            batch, bad = decode_batch(rows)
        except (DataError, pa.ArrowException) as error:
            raise DataError(f"{where}: {error}") from error
        if problems := [*self._problems(batch), *_bad_problems(bad, len(batch))]:
            raise DataError(
                f"{where}: expected a batch of the recipe, found {'; '.join(problems[:3])}. {_SAME_VERSION}"
            )

    def _problems(self, batch: Batch) -> list[str]:
        num, size, recipe = self.recipe.batch_size, self.recipe.augment.size, self.recipe
        check = _Problems()
        check.shape("images", batch.images, DTYPES[recipe.dtype], (num, 3, size, size))
        check.ids("classes", batch.classes, (num,), self.num_classes, least=-1)
        check.shape("crops", batch.crops, torch.float32, (num, 4))
        for name in ("flips", "valid"):
            check.shape(name, getattr(batch, name), torch.bool, (num,))
        if len(batch.keys) != num or None in batch.keys:
            check.found.append(f"{len(batch.keys)} keys")
        if batch.levels is not None and self.level_sizes is not None:
            *rows, num_levels = batch.levels.shape[1:] or (0,)
            bounds = self.level_sizes[:num_levels]
            check.below("levels", batch.levels, (num, *rows[:1], len(bounds)), bounds, least=-1)
        self._check_targets(check, batch)
        if recipe.teacher != (batch.teacher is not None):
            check.found.append("a teacher" if batch.teacher else "no teacher")
        if batch.teacher is not None:
            sizes = self.level_sizes or (self.num_classes,)
            bounds = np.repeat(sizes, num_kept(sizes)).tolist()
            check.below("teacher.ids", batch.teacher.ids, (num, len(bounds)), bounds, least=0)
            check.shape(
                "teacher.probabilities", batch.teacher.probabilities, torch.float16, (num, len(bounds))
            )
        if batch.mix is not None:
            check.ids("mix.partners", batch.mix.partners, (num,), num)
            check.shape("mix.shares", batch.mix.shares, torch.float32, (num,))
            check.shape("mix.boxes", batch.mix.boxes, torch.int64, (num, 4))
        return check.found

    def _check_targets(self, check: _Problems, batch: Batch) -> None:
        """Every kind of target that was asked for, and no other."""
        kinds = [each for each in each_target(self.recipe.targets) if each != "none"]
        more = batch.more_targets or {}
        found = [*([] if batch.targets is None else [batch.targets]), *more.values()]
        if len(found) != len(kinds) or list(more) != [str(kind) for kind in kinds[1:]]:
            check.found.append(f"{len(found)} kinds of targets ({', '.join(more)})")
            return
        for kind, targets in zip(kinds, found, strict=True):
            width = self.num_tags if kind == TAGS else self.num_classes
            shape = (self.recipe.batch_size, *((getattr(kind, "grid", None)) or ()))
            name = f"targets {kind}" if isinstance(kind, str) else "targets"
            if isinstance(targets, SparseTargets) != (self.recipe.keep_targets is not None):
                check.found.append(f"{name} of another form")
            elif isinstance(targets, SparseTargets):
                shape = (*shape, *targets.ids.shape[-1:])
                check.ids(f"{name} ids", targets.ids, shape, width)
                check.shape(f"{name} values", targets.values, torch.float32, shape)
            else:
                check.shape(name, targets, torch.float32, (*shape, width))


def _bad_problems(bad: Sequence[BadSample], num: int) -> list[str]:
    """What is wrong with what a server says of samples that it could not read."""
    if len(bad) > num:
        return [f"{len(bad)} bad samples"]
    hints = {"sample": int, "shard": str, "key": str, "reason": str}
    return [
        f"a bad sample of {name} {getattr(one, name)!r:.80}"
        for one in bad
        for name, hint in hints.items()
        if not _fits(getattr(one, name), hint)
    ]


@dataclass
class _Problems:
    """Collects what differs."""

    found: list[str] = field(default_factory=list)

    def shape(self, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
        """Whether a tensor has its dtype and shape."""
        fits = tuple(tensor.shape) == shape and tensor.dtype == dtype
        if not fits:
            self.found.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")
        return fits

    def ids(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], width: int, least: int = 0
    ) -> None:
        """Integers from `least` to below `width`."""
        if self.shape(name, tensor, torch.int64, shape) and tensor.numel():
            low, high = (int(bound) for bound in torch.aminmax(tensor))
            if low < least or high >= width:
                self.found.append(f"{name} from {low} to {high}, with {width} to point to")

    def below(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], bounds: Sequence[int], least: int
    ) -> None:
        """Integers from `least`, in each column below its bound."""
        if self.shape(name, tensor, torch.int64, shape):
            wrong = (tensor < least) | (tensor >= torch.tensor(bounds))
            if bool(wrong.any()):
                self.found.append(f"{name} {int(tensor[wrong][0])} beyond the classes of its level")
