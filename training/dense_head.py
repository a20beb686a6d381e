"""What a classifier does between its last map and its answer, found by watching it.

timm has dozens of classes of heads. Instead of knowing them all, `watch_head` runs a head once and notes the
modules that ran and what they were given; whatever they leave unseen (operations that are no modules) is found
by comparing numbers.

Shape letters: N batch, F features, C classes, P Q rows and columns of cells, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Modules that change no value (in eval mode) or that pool; whether the pooling is the mean is compared.
_PASSED_THROUGH = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass(frozen=True)
class WatchedHead:
    """One run of a head.

    Attributes:
        answer_NC: what the model itself says.
        pooled_NF: the vector behind the pooling, in front of norm and classifier; None where the classifier did
            not run.
        between: modules that ran in front of the classifier and are neither pooling nor without effect, in
            their order.
    """

    answer_NC: Tensor
    pooled_NF: Tensor | None
    between: tuple[nn.Module, ...]


def watch_head(model: Any, classifier: nn.Module, features: Tensor) -> WatchedHead:
    """Run `model.forward_head` and note what it does up to its classifier."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        seen.append((module, args[0] if args else torch.empty(0)))

    # A module with children only calls them, unless it has weights of its own (timm's norms with activations).
    watched = [
        module
        for module in model.modules()
        if not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
    ]
    hooks = [module.register_forward_hook(note) for module in watched]
    try:
        answer_NC = model.forward_head(features)
    finally:
        for hook in hooks:
            hook.remove()
    modules = [module for module, _ in seen]
    if classifier not in modules:
        return WatchedHead(answer_NC, None, ())
    front = seen[: modules.index(classifier) + 1]
    between = [(module, given) for module, given in front[:-1] if not _is_passed_through(module)]
    pooled = between[0][1] if between else front[-1][1]
    return WatchedHead(answer_NC, pooled.flatten(1), tuple(module for module, _ in between))


def _is_passed_through(module: nn.Module) -> bool:
    return isinstance(module, _PASSED_THROUGH) or "Pool" in type(module).__name__


def norm_as_affine(norm: nn.Module, pooled_NF: Tensor) -> tuple[Tensor, Tensor] | None:
    """A norm of the pooled vector as `pooled * scale + shift`, with the statistics of that vector.

    Those statistics (the mean and variance over F of an image's pooled vector) are numbers of the image. Once they are
    taken, the norm is linear: applied to every cell it has a mean over the cells that is exactly the norm of the mean.
    A norm with each cell's own statistics has not.

    Returns:
        (scale, shift), both broadcastable to [N, F]; None for a module that is no norm known here.
    """
    if isinstance(norm, _BatchNorm):
        if norm.running_mean is None or norm.running_var is None:
            return None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean * scale
    elif isinstance(norm, nn.LayerNorm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups == 1):
        variance, mean = torch.var_mean(pooled_NF, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + norm.eps)
        shift = -mean * scale
    elif type(norm).__name__.startswith(("RmsNorm", "RMSNorm")):
        eps = norm.eps if isinstance(norm.eps, float) else torch.finfo(pooled_NF.dtype).eps
        scale = torch.rsqrt(pooled_NF.square().mean(dim=1, keepdim=True) + eps)
        shift = torch.zeros_like(scale)
    else:
        return None
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    return scale, shift if bias is None else shift + bias


def cells_of(
    features: Tensor, pooled_NF: Tensor, image_hw: tuple[int, int], num_prefix: int, tolerance: float
) -> Tensor | str:
    """The map of features whose mean over the cells is the pooled vector.

    Args:
        features: [N, F, P, Q], [N, P, Q, F], or tokens [N, T, F], row by row, `num_prefix` others first.
        pooled_NF: what the head's pooling made of them.
        image_hw: pixels of the images; tokens are laid out in its proportions.
        num_prefix: class and register tokens in front.
        tolerance: how far the mean may be off, relative to the largest value.

    Returns:
        [N, P, Q, F], or in words why there is none.
    """
    if features.ndim == 4:
        layouts = [features.permute(0, 2, 3, 1), features]
    elif features.ndim == 3:
        grid = token_grid(features.shape[1] - num_prefix, image_hw)
        if grid is None:
            return (
                f"its {features.shape[1] - num_prefix} tokens are not the cells of a map over images of "
                f"{image_hw[0]} x {image_hw[1]} pixels"
            )
        layouts = [features[:, num_prefix:].unflatten(1, grid)]
    else:
        return f"its features have the shape {tuple(features.shape)}, which is no map"
    fitting = [cells for cells in layouts if cells.shape[3] == pooled_NF.shape[1]]
    for cells_NPQF in fitting:
        if relative_difference(cells_NPQF.mean(dim=(1, 2)), pooled_NF) <= tolerance:
            return cells_NPQF
    if not fitting:
        return (
            f"its last map of shape {tuple(features.shape)} has other features than the {pooled_NF.shape[1]} that its "
            "head pools to: another pooling than the mean, or layers between them"
        )
    if features.ndim == 3 and num_prefix:
        if relative_difference(features[:, 0], pooled_NF) <= tolerance:
            return "its answer is made of its class token, which has no place in the image"
        if relative_difference(features.mean(dim=1), pooled_NF) <= tolerance:
            return "its pooling includes the class token, which has no place in the image"
    return "it pools otherwise than by the mean over the cells"


def token_grid(num: int, image_hw: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of `num` square patches that cover an image, or None where they do not."""
    height, width = image_hw
    if num < 1:
        return None
    side = (height * width / num) ** 0.5
    rows = max(1, round(height / side))
    return (rows, num // rows) if rows * round(width / side) == num else None


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest expected value; NaN where there is one in either."""
    return float(
        (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12)
    )
