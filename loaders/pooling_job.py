"""What the host's and the device's pooling are asked to do, once options are checked and weights computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..shards.labelmap import MapGroup


class PoolingJob(NamedTuple):
    """N maps, C classes, G H output cells, P Q rows and columns of the map.

    Attributes:
        top: K, classes kept per cell.
        rows: float32 [N, G, P], weights of the map's rows in each row of the output.
        columns: float32 [N, H, Q].
        num_classes: C; ids equal to it belong to dropped classes.
        kind: `logits`, `softmax` or `one-hot`.
        floor: classes that a cell did not keep count as its smallest kept value, not as 0.
        original: share of the images' own classes.
        own: int64 [N], those classes, -1 for none; None where `original` is 0.
        keep: None, or how many of the largest values to keep.
        cells: None, or, for one output cell, float32 [N, P, Q]: weights of the map's cells that are no product of
            rows and columns, which then count for nothing.
    """

    top: int
    rows: np.ndarray
    columns: np.ndarray
    num_classes: int
    kind: str
    floor: bool
    original: float
    own: np.ndarray | None
    keep: int | None
    cells: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, G, H)."""
        return len(self.rows), self.rows.shape[1], self.columns.shape[1]

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(K, P, Q)."""
        return self.top, self.rows.shape[2], self.columns.shape[2]


def check_ids(group: MapGroup, num_ids: int) -> None:
    """Refuse maps with class ids that are not below `num_ids`."""
    if group.tables is None:
        low, high = int(group.places.min()), int(group.places.max())
    else:  # in ascending order
        low, high = 0, int(group.tables[:, -1].max())
    if low < 0 or high >= num_ids:
        raise ValueError(
            f"label pooling: expected class ids from 0 to {num_ids - 1}, found {low} to {high}; the maps are "
            "over another class list"
        )
