"""What a client of the data service wants batches of: a Loader's options, as data.

A recipe holds everything that decides a batch beside (epoch, taken, rank). It has no path, URL or code in it: data sets
are called by the names that the server gave them, label trees, class lists and keys are sent as they are. Its
fingerprint stands for it in every ticket.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..shards.errors import UsageError
from ..shards.files import canonical_json, sha256_hex
from ..shards.relabel import Relabelling
from ..shards.subset_file import ClassGroup, SubsetFile
from ..shards.tree import LabelTree
from .crops import Augment
from .decode import MEAN, STD
from .labels import LabelSource
from .subset import Subset
from .target_modes import LabelPooling, Targets, each_target


@dataclass(frozen=True)
class NamedMixture:
    """A Mixture of data sets of one server.

    Attributes:
        names: of its data sets.
        weights: the share of each.
        epoch_samples: draws of an epoch; None for as many as they have samples.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    epoch_samples: int | None = None


@dataclass(frozen=True)
class Relabels:
    """A Relabelling as data; see there."""

    class_map: tuple[int, ...]
    class_names: tuple[str, ...]
    tree: dict[str, Any] | None
    dropped: tuple[str, ...]
    merged: tuple[tuple[str, str], ...]
    without_source: tuple[str, ...]


@dataclass(frozen=True)
class ChosenClasses:
    """The classes of a SubsetFile as data.

    Attributes:
        groups: see there.
        source: name of the class list that they were chosen from, for messages.
    """

    groups: tuple[ClassGroup, ...]
    source: str | None


@dataclass(frozen=True)
class LabelData:
    """What a data set is read with: exactly one of these.

    Attributes:
        tree: a LabelTree as JSON.
        class_names: names.
        relabels: a Relabelling.
        chosen: classes of a SubsetFile.
    """

    tree: dict[str, Any] | None = None
    class_names: tuple[str, ...] | None = None
    relabels: Relabels | None = None
    chosen: ChosenClasses | None = None

    @classmethod
    def of(cls, labels: LabelSource | None) -> LabelData | None:
        """As data what a loader was given."""
        if labels is None:
            return None
        if isinstance(labels, LabelTree):
            return cls(tree=labels.to_json())
        if isinstance(labels, Relabelling):
            return cls(
                relabels=Relabels(
                    tuple(labels.class_map.tolist()),
                    labels.class_names,
                    None if labels.tree is None else labels.tree.to_json(),
                    labels.dropped,
                    labels.merged,
                    labels.without_source,
                )
            )
        if isinstance(labels, SubsetFile):
            # What a group's members have in common decides nothing.
            groups = tuple(ClassGroup(group.name, tuple(group.members)) for group in labels.groups)
            source = labels.class_source.get("name")
            return cls(chosen=ChosenClasses(groups, source if isinstance(source, str) else None))
        return cls(class_names=tuple(labels))

    def to_labels(self) -> LabelSource:
        """What a Loader takes.

        Raises:
            DataError: no tree, or groups that cannot be.
            UsageError: not one of the four.
        """
        if sum(getattr(self, part.name) is not None for part in fields(self)) != 1:
            raise UsageError("recipe: labels: expected one of tree, class_names, relabels and chosen")
        if self.tree is not None:
            return LabelTree.from_json(self.tree, where="recipe: labels")
        if self.class_names is not None:
            return self.class_names
        if self.chosen is not None:
            return SubsetFile(self.chosen.groups, {}, {"name": self.chosen.source})
        assert self.relabels is not None
        tree = self.relabels.tree
        return Relabelling(
            np.array(self.relabels.class_map, np.int32),
            self.relabels.class_names,
            None if tree is None else LabelTree.from_json(tree, where="recipe: labels"),
            self.relabels.dropped,
            self.relabels.merged,
            self.relabels.without_source,
        )


@dataclass(frozen=True, eq=False)
class BatchRecipe:
    """A Loader's options, as far as they decide batches; see Loader.

    Attributes:
        dataset: the server's name of one; None for its only one.
        dtype: of the images on the wire; see `wire_dtype`.
    """

    dataset: str | NamedMixture | None
    batch_size: int
    world_size: int = 1
    lanes: int = 1
    window: int = 1
    shuffle: bool = True
    seed: int = 0
    targets: str | LabelPooling | tuple[str, ...] = "none"
    keep_targets: int | None = None
    labels: LabelData | None = None
    teacher: bool = False
    subset: Subset | None = None
    balance: float | None = None
    augment: Augment = dataclasses.field(default_factory=Augment)
    dtype: str = "uint8"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return write_value(self)

    @classmethod
    def from_json(cls, content: Any) -> BatchRecipe:
        """Read and check a client's recipe.

        Raises:
            UsageError: it is none; the field is named.
        """
        return read_value(cls, content, "recipe")

    def options(self) -> dict[str, Any]:
        """What a Loader takes by the same names: all but the data set.

        Raises:
            UsageError, DataError: see `LabelData.to_labels`.
        """
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "dataset"}
        return found | {"labels": None if self.labels is None else self.labels.to_labels()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of its canonical JSON."""
        return sha256_hex(canonical_json(self.to_json()))


def wire_dtype(augment: Augment, dtype: str) -> str:
    """What images are sent as, so that a client can have the local loader's very bits.

    Crop, resize, flip and CutMix give whole numbers, which clients normalise: uint8. What is computed in floats and only
    then normalised, or blended after it (colours, RandAugment, erasing, Mixup), is sent as it comes out, four times the
    bytes for float32.
    """
    return dtype if augment.changes_pixels or augment.mixup is not None else "uint8"


def plain_targets(targets: Targets) -> str | LabelPooling | tuple[str, ...]:
    """The same targets in one spelling: a name, several, or a pooling."""
    each = each_target(targets)
    if len(each) == 1:
        return each[0]
    return tuple(map(str, each))


def plain_subset(subset: Subset | None) -> Subset | None:
    """The same subset without a file of keys, which is read here: servers take data, not paths.

    Raises:
        UsageError: the file cannot be read.
        DataError: there is no key in it.
    """
    if subset is None or subset.key_set is None:
        return subset
    return dataclasses.replace(subset, keys=tuple(sorted(subset.key_set)))


# Fields that a Loader's options take more kinds of than a recipe does.
_HINTS: Mapping[type, Mapping[str, Any]] = {
    LabelPooling: {"class_map": tuple[int, ...] | None},
    Subset: {"classes": tuple[str, ...] | None, "keys": tuple[str, ...] | None},
}


def write_value(value: Any) -> Any:
    """Options as JSON: objects of their fields, lists, and plain values."""
    if is_dataclass(value):
        return {field.name: write_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [write_value(part) for part in value]
    return value


def read_value(hint: Any, value: Any, where: str) -> Any:
    """Options from JSON, of exactly the types that their fields have.

    Args:
        hint: a type: a dataclass, tuple, union, or a plain one.
        value: parsed JSON.
        where: for error texts.

    Raises:
        UsageError: another type, a field that is missing or not known, or what the dataclass refuses.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _read_union(args, value, where)
    if origin is dict and isinstance(value, dict):
        return value
    if origin is tuple and isinstance(value, list):
        hints = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(hints) == len(value):
            return tuple(read_value(one, part, where) for one, part in zip(hints, value, strict=True))
    elif is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _read_fields(hint, value, where)
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint is not float and type(value) is hint:
        return value
    raise UsageError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r:.80}")


def _read_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first that fits; an object is read as the dataclass, whose own error says more."""
    for hint in hints:
        if is_dataclass(hint) and isinstance(value, dict):
            return read_value(hint, value, where)
    for hint in hints:
        try:
            return read_value(hint, value, where)
        except UsageError:
            continue
    names = ", ".join(
        "None" if hint is type(None) else getattr(hint, "__name__", str(hint)) for hint in hints
    )
    raise UsageError(f"{where}: expected one of {names}, found {value!r:.80}")


def _read_fields(kind: type, value: dict[str, Any], where: str) -> Any:
    names = [field.name for field in fields(kind)]
    if value.keys() != set(names):
        odd = sorted(value.keys() ^ set(names))
        raise UsageError(
            f"{where}: expected the fields {', '.join(names)}, found others or too few: {odd!r:.200}"
        )
    hints = get_type_hints(kind) | dict(_HINTS.get(kind, {}))
    parts = {name: read_value(hints[name], value[name], f"{where}: {name}") for name in names}
    try:
        return kind(**parts)
    except UsageError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # of numbers that no check thought of
        raise UsageError(f"{where}: expected {kind.__name__}, found {error}") from error
