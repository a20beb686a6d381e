"""Which of a teacher's outputs are which classes of a data set, by name.

A teacher of 1,000 classes can label a data set of 100 of them: its outputs for other classes are left out, before the
best of a cell are chosen, and what is stored counts in the data set's own class list. (So a cell of something else
gets the best of the data set's classes, with the low logits that the teacher gave them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shards.classes import class_list_sha256
from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest
from ..shards.text_limits import some
from ..shards.wordnet import WNID_PATTERN


@dataclass(frozen=True)
class Outputs:
    """A teacher's outputs beside a data set's C classes.

    Attributes:
        number: how many the teacher has.
        of_class: C numbers: the output of each class, -1 for a class that the teacher does not know.
        classes_sha256: fingerprint of the class list that the outputs mean.
    """

    number: int
    of_class: tuple[int, ...]
    classes_sha256: str

    @property
    def num_used(self) -> int:
        """Outputs that are classes of the data set."""
        return sum(output >= 0 for output in self.of_class)

    def to_classes(self, logits: Tensor) -> Tensor:
        """Logits [N, outputs, ...] as those of the data set's classes, [N, C, ...]; -inf for an unknown class."""
        if logits.shape[1] != self.number:
            raise UsageError(f"teacher: expected {self.number} outputs, found {logits.shape[1]}")
        of_class = torch.tensor(self.of_class, device=logits.device)
        found = logits.index_select(1, of_class.clamp(min=0))
        unknown = (of_class < 0).reshape(1, -1, *[1] * (logits.ndim - 2))
        return found.masked_fill(unknown, -torch.inf)

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"number": self.number, "used": self.num_used, "classes_sha256": self.classes_sha256}

    def line(self, name: str) -> str:
        """For the person who starts a run."""
        unknown = len(self.of_class) - self.num_used
        return (
            f"teacher {name}: {self.num_used:,} of its {self.number:,} outputs are classes of the data set; the other "
            f"{self.number - self.num_used:,} are left out"
            + (f"; {unknown:,} classes of the data set, all without images, have none" if unknown else "")
        )


def find_outputs(labels: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """The output of each class, by its name; -1 for a class that is none of them.

    Args:
        labels: what the outputs mean, in their order.
        class_names: the classes.
    """
    places = {label: place for place, label in enumerate(labels)}
    return tuple(places.get(class_name, -1) for class_name in class_names)


def match_outputs(name: str, labels: Sequence[str], source: str, manifest: Manifest) -> Outputs | None:
    """Find the classes of a data set among a teacher's outputs.

    Args:
        name: of the teacher, for messages.
        labels: what its outputs mean, in their order.
        source: where that is from, for messages.
        manifest: of the data set.

    Returns:
        None where they are the data set's classes in its order.

    Raises:
        DataError: they have no class in common.
    """
    if tuple(labels) == manifest.class_names:
        return None
    of_class = find_outputs(labels, manifest.class_names)
    if max(of_class) < 0:
        by_wnid = [bool(WNID_PATTERN.fullmatch(names[0])) for names in (labels, manifest.class_names)]
        cause = (
            "the data set's classes are not named by wnid; say in its words what the outputs mean, one name a line: "
            "--labels FILE"
            if by_wnid == [True, False]
            else "it is another class list"
        )
        raise DataError(
            f"teacher {name}: its outputs are the {len(labels)} classes of {source} ({class_list_sha256(labels)[:12]}); "
            f"expected classes of the data set ({manifest.classes_sha256[:12]}) among them, found none: {labels[0]!r}, ... "
            f"against {manifest.class_names[0]!r}, ...; {cause}. Or give a teacher trained on these classes: --checkpoint"
        )
    return Outputs(len(labels), of_class, class_list_sha256(labels))


def check_all_known(name: str, outputs: Outputs, manifest: Manifest, classes: np.ndarray) -> None:
    """Refuse a teacher that has no output for a class with images: their maps would be of other classes.

    Args:
        name: of the teacher.
        outputs: of the teacher.
        manifest: of the data set.
        classes: int [samples]: every sample's class.

    Raises:
        DataError: naming the classes.
    """
    counts = np.bincount(classes, minlength=manifest.num_classes)
    unknown = np.flatnonzero((counts > 0) & (np.array(outputs.of_class) < 0)).tolist()
    if unknown:
        shown = some([f"{manifest.class_names[i]!r} ({counts[i]:,} images)" for i in unknown], 5, str)
        raise DataError(
            f"teacher {name}: expected an output for each class of the data set that has images, found none for "
            f"{len(unknown):,} of {int((counts > 0).sum()):,}: {shown}. Leave their images out (softshard reshard "
            "--classes), or choose a teacher that knows them"
        )
