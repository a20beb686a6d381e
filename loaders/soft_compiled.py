"""Soft labels by compiled loops (soft_kernels.py), where numba is installed; bit for bit what numpy makes of them.

One pass over the bytes of all samples of a batch, in place of an object of Python's for every tag and weight. What is
damaged, or only written otherwise, is left to `decode_soft_labels`, which says what is wrong with which sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..shards.soft_labels import TAGS, WEIGHTS, SparseLabels, encode_meta
from .compiled import compiled

# Of so many the loop that keeps the largest is faster than sorting all, whatever their order.
MOST_KEPT = 128


class SoftKernels(NamedTuple):
    """The functions of soft_kernels.py, compiled."""

    find_labels: Any
    fill_dense: Any
    fill_largest: Any


@lru_cache(maxsize=1)
def load_soft_kernels() -> SoftKernels | None:
    """Compile the kernels, or load them from numba's cache; None where numba is missing, switched off or fails."""
    labels = SparseLabels(np.zeros(1, np.int64), np.ones(1, np.int64), np.ones(1, np.float32))

    def finds(kernel: Any) -> bool:
        found = find_compiled(kernel, WEIGHTS, [encode_meta({WEIGHTS: [[1], [1.0]]})], 2)
        return found is not None and all(map(np.array_equal, found, labels))

    def fills(kernel: Any) -> bool:
        dense = np.ones((1, 2), np.float32)
        kernel(dense, *labels)
        return dense.tolist() == [[0, 1]]

    def keeps(kernel: Any) -> bool:
        return [part.tolist() for part in keep_compiled(kernel, labels, 1, 1)] == [[[1]], [[1]]]

    kernels = (
        compiled("soft_kernels", "find_labels", finds),
        compiled("soft_kernels", "fill_dense", fills),
        compiled("soft_kernels", "fill_largest", keeps),
    )
    return None if None in kernels else SoftKernels(*kernels)


def find_compiled(
    kernel: Any, kind: str, members: Sequence[bytes | memoryview], num_ids: int
) -> SparseLabels | None:
    """What `decode_soft_labels` gives, or None where it has to look itself."""
    raw = np.frombuffer(b"".join(members), np.uint8)
    starts = np.cumsum([0, *map(len, members)])
    field = np.frombuffer(kind.encode() if kind in (TAGS, WEIGHTS) else b"", np.uint8)
    # An entry has a byte or more; memory that is not written to is not taken.
    arrays = (np.empty(len(raw), dtype) for dtype in (np.int64, np.int64, np.float32))
    found = SparseLabels(*arrays)
    num = kernel(raw, starts, field, kind != TAGS, num_ids, *found)
    return None if num < 0 else SparseLabels(*(part[:num] for part in found))


def keep_compiled(
    kernel: Any, labels: SparseLabels, num_slots: int, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest of each slot: float32 and int64 [num_slots, keep], zeros where there are fewer."""
    values, classes = np.zeros((num_slots, keep), np.float32), np.zeros((num_slots, keep), np.int64)
    kernel(values, classes, np.zeros(num_slots, np.int64), *labels)
    return values, classes
