"""A batch: what the loader yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from .pooling import SparseTargets


class TeacherLevels(NamedTuple):
    """What a teacher says of N images: the K_k = ceil(N_k / 20) best classes of every level, side by side.

    What a `kd` component holds; SemanticKDLoss takes it as it is.

    Attributes:
        ids: int64 [N, K], index within its level, level by level, the most probable first; distinct within a level,
            but zeros in padding.
        probabilities: float16 [N, K], softmax within the level.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor


class Mix(NamedTuple):
    """How Mixup and CutMix mixed a batch of N.

    Images and targets are then mixed; classes, levels, crops, flips and keys are those of the slot's own image.

    Attributes:
        partners: int64 [N], the slot of the same batch whose image was mixed in; an unmixed slot's is itself.
        shares: float32 [N], of the slot's own image, in its pixels and its target; 1 where nothing was mixed in.
        boxes: int64 [N, 4], top, left, height and width in pixels of the window that CutMix pasted from the same
            place of the partner's image; zeros where nothing was pasted.
    """

    partners: torch.Tensor
    shares: torch.Tensor
    boxes: torch.Tensor


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
        targets: float32 [N, C], soft targets for the crop that was cut (with a grid [N, G, H, C]); of `tags`
            float32 [N, T], 1 for the image's tags; SparseTargets with `keep_targets`; None without `targets`.
        crops: float32 [N, 4], (x0, y0, x1, y1) as fractions of the stored image.
        flips: bool [N], mirrored left to right after the crop.
        keys: N sample keys.
        valid: bool [N].
        teacher: a distillation teacher's best classes per level, zeros in padding; None without `teacher=True`.
        mix: what Mixup and CutMix did; None without them, and in epochs that they are left out of.
        more_targets: where several `targets` were asked for, those after the first, by name; else None.
    """

    images: torch.Tensor
    classes: torch.Tensor
    levels: torch.Tensor | None
    targets: torch.Tensor | SparseTargets | None
    crops: torch.Tensor
    flips: torch.Tensor
    keys: list[str]
    valid: torch.Tensor
    teacher: TeacherLevels | None = None
    mix: Mix | None = None
    more_targets: dict[str, torch.Tensor | SparseTargets] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to_dict(self) -> dict[str, Any]:
        """The same tensors under the same names."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Batch:
        """This batch on a device; `non_blocking` as in torch, of use where the batch is pinned.

        Lightning's Trainer and Accelerate's `send_to_device` look for this method.
        """
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory; needs a GPU. DataLoaders and torchdata look for this method."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def map_tensors(item: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same batch, dict, tuple or list with a function applied to its tensors; all else stays as it is."""
    import torch

    if isinstance(item, torch.Tensor):
        return function(item)
    if isinstance(item, Batch):
        return Batch(**map_tensors(item.to_dict(), function))
    if isinstance(item, dict):
        return {name: map_tensors(value, function) for name, value in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(map_tensors(value, function) for value in item))
    if isinstance(item, (tuple, list)):
        return type(item)(map_tensors(value, function) for value in item)
    return item
