"""A batch: what the loader yields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Batch:
    """N samples of one step.

    Slots with `valid` False are padding: zeros for images and targets, -1 for class and levels, the whole
    image as crop, no flip, an empty key. Classes and levels are those of the loader's label space (its
    `class_names` and `tree`).

    Attributes:
        images: [N, 3, H, W], channels-last in memory; uint8, or float16/float32 normalised, on the device.
        classes: int64 [N], class indices.
        levels: int64 [N, L], index within each level's classes, -1 where the label has no such level; None
            without label vectors. In a tree where classes have several parents int64 [N, A, L]: a row for each
            path to the class, the longest first, then rows of -1.
        targets: float32 [N, C], soft targets for the crop that was cut (with a grid [N, G, H, C]); None without
            `targets`.
        crops: float32 [N, 4], (x0, y0, x1, y1) as fractions of the stored image.
        flips: bool [N], mirrored left to right after the crop.
        keys: N sample keys.
        valid: bool [N].
    """

    images: torch.Tensor
    classes: torch.Tensor
    levels: torch.Tensor | None
    targets: torch.Tensor | None
    crops: torch.Tensor
    flips: torch.Tensor
    keys: list[str]
    valid: torch.Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def to_dict(self) -> dict[str, Any]:
        """The same tensors under the same names."""
        return {part.name: getattr(self, part.name) for part in fields(self)}
