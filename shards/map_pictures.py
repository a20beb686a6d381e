"""One class of a label map as a picture: its scores, cell by cell, over the image.

Shape letters: K classes kept per cell, P Q label-map rows and columns.
"""

from __future__ import annotations

import numpy as np

from .pictures import as_rgb, overlay_map


def class_cells(scores_KPQ: np.ndarray, ids_KPQ: np.ndarray, class_index: int) -> np.ndarray:
    """The score of one class in every cell: float32 [P, Q], NaN in cells that did not keep it."""
    held = ids_KPQ == class_index
    return np.where(held.any(axis=0), np.where(held, scores_KPQ, 0).sum(axis=0), np.nan).astype(np.float32)


def score_range(scores_KPQ: np.ndarray) -> tuple[float, float]:
    """(low, high) of a map's colours, the same for all its classes; with 0, what a class counts as that is not kept."""
    return min(0.0, float(scores_KPQ.min())), max(0.0, float(scores_KPQ.max()))


def overlay_class(
    image: np.ndarray, scores_KPQ: np.ndarray, ids_KPQ: np.ndarray, class_index: int, alpha: float = 0.6
) -> np.ndarray:
    """Lay one class of a label map over the image, whose own colours are left out: they would be read as scores.

    Args:
        image: uint8 [H, W, 3], RGB.
        scores_KPQ: float32 [K, P, Q], logits.
        ids_KPQ: integer [K, P, Q], class ids.
        class_index: which class.
        alpha: weight of the map.

    Returns:
        uint8 [H, W, 3]. Cells are coloured on the map's `score_range`; those that did not keep the class stay grey.
    """
    grey = np.rint(as_rgb(image) @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    low, high = score_range(scores_KPQ)
    cells = class_cells(scores_KPQ, ids_KPQ, class_index)
    return overlay_map(grey, (cells - low) / max(high - low, 1e-6), alpha)
