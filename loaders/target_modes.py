"""Target modes: what becomes of a label map and a crop (the factors of Yun et al. 2021). No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..shards.errors import UsageError
from ..shards.soft_labels import KINDS

FILLS = ("zero", "floor")


# Arrays have no single answer to `==`: two of these are equal only where they are one.
@dataclass(frozen=True, eq=False)
class LabelPooling:
    """What becomes of a label map and a crop (the factors of Yun et al. 2021, sec. 3 and 5).

    Attributes:
        local: pool over the crop; False pools over the whole image, whatever the crop.
        multi: the softmax over the classes; False gives the one class with the largest pooled logit.
        fill: what a class that a cell did not keep counts as: `zero`, or `floor` (the cell's smallest kept
            value).
        swap_xy: the maps were made to fit crops in (y, x) order: their rows run along the image's width.
            `softshard maps check` tells.
        grid: None, or (G, H): one target for each of G x H parts of the crop, as token labelling wants them.
            A flip mirrors the columns.
        original: share of the image's own label that is mixed in, 0 to 1.
        class_map: None, or integers [number of the maps' classes]: the target class of each of the maps'
            classes, -1 to drop it. Classes that become one have the logit of either, log(sum(exp)).
    """

    local: bool = True
    multi: bool = True
    fill: str = "zero"
    swap_xy: bool = False
    grid: tuple[int, int] | None = None
    original: float = 0.0
    class_map: Sequence[int] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise UsageError(f"label pooling: expected fill of {', '.join(FILLS)}, found {self.fill!r}")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise UsageError(f"label pooling: expected a grid of (rows, columns) from 1, found {self.grid!r}")
        if not 0 <= self.original <= 1:
            raise UsageError(
                f"label pooling: expected a share of the original label from 0 to 1, found {self.original}"
            )
        if self.class_map is not None:
            table = np.array(self.class_map)
            if table.ndim != 1 or table.dtype.kind not in "iu" or not table.size or table.min() < -1:
                raise UsageError(
                    "label pooling: expected a class map of integers from -1, one for each of the maps' "
                    f"classes, found {table.dtype} {list(table.shape)}"
                )
            table = table.astype(np.int64)
            table.flags.writeable = False
            object.__setattr__(self, "class_map", table)


LABEL_POOLING = LabelPooling()
# The loader's target modes that pool label maps, by name.
TARGET_MODES = {
    "relabel": LABEL_POOLING,
    "relabel-global": LabelPooling(local=False),
    "relabel-single": LabelPooling(multi=False),
    "relabel-global-single": LabelPooling(local=False, multi=False),
}
# Those that are read from the shards as they are, by name.
SOFT_KINDS = KINDS
# What the loader's `targets` may be, besides a LabelPooling and several names at once.
TARGETS = ("none", "original", *TARGET_MODES, *SOFT_KINDS)

Targets = str | LabelPooling | Sequence[str]


def each_target(targets: Targets) -> tuple[str | LabelPooling, ...]:
    """The targets one by one: of a batch's `targets` first, then of its `more_targets`.

    Raises:
        UsageError: no name, one twice, or `none` among several.
    """
    if isinstance(targets, str | LabelPooling):
        return (targets,)
    names = tuple(targets)
    if not names or len(set(names)) < len(names) or (len(names) > 1 and "none" in names):
        raise UsageError(f"loader: expected targets as distinct names without 'none', found {targets!r}")
    return names


def pools_maps(targets: Targets) -> bool:
    """Whether any of these targets is pooled from a label map."""
    return any(isinstance(each, LabelPooling) or each in TARGET_MODES for each in each_target(targets))
