"""Mixup and CutMix: which slots are mixed, how, and what their targets become.

Slots are mixed in pairs: slot s of the global batch with slot s xor 1. Samples stand in shuffled order, so that a
neighbour is as good a partner as any, and pairs are the same for every world size and every batch size, as long
as each rank's part of a batch, and each lane's, is even (others are refused): the samples at places 2j and
2j + 1 of a lane. A larger group, such as a lane's whole part of the batch, would be torn apart where several
ranks share a lane. What a pair draws is keyed by the sample in its even slot. A pair with padding stays as it is.

N slots, M real samples, S pixels a side, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..shards.errors import UsageError
from ..shards.philox import PURPOSE_MIX, uniforms
from .augment_ops import inside
from .augment_program import normals
from .crops import Augment
from .target_modes import TARGET_MODES, LabelPooling, Targets, each_target

_GAMMA_ATTEMPTS = 8  # each fits with a probability of at least 0.95
_GAMMA_NUMBERS = 3 * _GAMMA_ATTEMPTS + 1


class MixPlan(NamedTuple):
    """How N slots are mixed.

    Attributes:
        partners: int64 [N], the other slot of each pair; an unmixed slot's is itself.
        shares: float32 [N], of the slot's own image: by area where something is pasted; 1 for unmixed slots.
        boxes: int64 [N, 4], top, left, height, width in pixels of what is pasted; zeros elsewhere.
        pasted: bool [N], CutMix; mixed slots that are not pasted into are blended.
        visible: targets of pasted slots are pooled from what can be seen.
    """

    partners: np.ndarray
    shares: np.ndarray
    boxes: np.ndarray
    pasted: np.ndarray
    visible: bool

    @property
    def mixed(self) -> np.ndarray:
        """bool [N]."""
        return self.partners != np.arange(len(self.partners))


def check_mixing(augment: Augment, targets: Targets, batch_size: int, world_size: int, lanes: int) -> None:
    """Refuse mixing that has no targets to mix, or pairs that ranks or lanes would tear apart.

    Raises:
        UsageError: see there.
    """
    if not augment.mixes:
        return
    names = " and ".join(name for name in ("mixup", "cutmix") if getattr(augment, name) is not None)
    if targets == "none":
        raise UsageError(
            f"loader: expected soft targets for {names}, found targets='none'; a mixed image has no single class. "
            "Use targets='original' (one-hot), or 'relabel' for a data set with label maps"
        )
    per_lane = batch_size * world_size // lanes
    if batch_size % 2 or per_lane % 2:
        raise UsageError(
            f"loader: expected an even batch_size, and an even part of the global batch for each lane, for {names}, "
            f"found {batch_size} and {per_lane}; images are mixed in pairs, which neither ranks nor lanes may part"
        )
    if augment.cutmix is None:
        return
    for each in each_target(targets):
        pooling = each if isinstance(each, LabelPooling) else TARGET_MODES.get(each)
        if pooling is not None and pooling.grid is not None:
            raise UsageError(
                f"loader: expected targets without a grid for cutmix, found a grid of {pooling.grid}. Use mixup"
            )
        if augment.cutmix.visible and (pooling is None or not pooling.local):
            raise UsageError(
                "loader: expected targets that pool each crop's label map for CutMix(visible=True), found "
                f"{each!r}. Use targets='relabel', or visible=False"
            )


def draw_mix(
    augment: Augment,
    samples: np.ndarray,
    *,
    seed: int,
    epoch: int,
    occurrence: int | np.ndarray = 0,
) -> MixPlan | None:
    """Draw how the slots of a batch are mixed.

    Args:
        augment: what to draw.
        samples: int64 [N], N even: sample indices in the manifest's order, -1 in padding.
        seed: of the loader.
        epoch: number of the epoch.
        occurrence: which draw of a sample in this epoch: one number, or [N].

    Returns:
        The plan; None where nothing is mixed in this epoch.
    """
    until = augment.mix_until_epoch
    if not augment.mixes or (until is not None and epoch >= until):
        return None
    num, size = len(samples), augment.size
    pairs = np.asarray(samples).reshape(-1, 2)
    whole = np.flatnonzero((pairs >= 0).all(axis=1))
    occurrences = np.broadcast_to(occurrence, num).reshape(-1, 2)[whole, 0]
    numbers = uniforms(seed, PURPOSE_MIX, epoch, pairs[whole, 0], 4 + 2 * _GAMMA_NUMBERS, occurrences)
    mixup, cutmix = augment.mixup, augment.cutmix
    cuts = np.full(len(whole), cutmix is not None)
    if mixup is not None and cutmix is not None:
        cuts = numbers[:, 0] < 0.5
    prob = np.where(cuts, cutmix.prob if cutmix else 0, mixup.prob if mixup else 0)
    shares = np.ones(len(whole))
    for chosen, option in ((~cuts, mixup), (cuts, cutmix)):
        if option is not None:
            shares[chosen] = beta(option.alpha, numbers[chosen, 4:])
    boxes = np.zeros((len(whole), 4), np.int64)
    boxes[cuts] = cut_boxes(shares[cuts], numbers[cuts, 2:4], size)
    areas = boxes[:, 2] * boxes[:, 3]
    shares = np.where(cuts, 1 - areas / (size * size), shares)
    used = (numbers[:, 1] < prob) & (~cuts | (areas > 0))
    slots = 2 * whole[used, None] + np.arange(2)

    plan = MixPlan(
        partners=np.arange(num),
        shares=np.ones(num, np.float32),
        boxes=np.zeros((num, 4), np.int64),
        pasted=np.zeros(num, bool),
        visible=cutmix is not None and cutmix.visible,
    )
    plan.partners[slots] = slots[:, ::-1]
    plan.shares[slots] = shares[used, None]
    plan.boxes[slots] = boxes[used, None]
    plan.pasted[slots] = cuts[used, None]
    return plan


def cut_boxes(shares: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """What CutMix pastes: the image's shape shrunk to 1 - share of its area, cut at the border.

    Args:
        shares: float [N], of the area that is to stay.
        places: float [N, 2], row and column of the centre, in [0, 1).
        size: S.

    Returns:
        int64 [N, 4], top, left, height, width in pixels; maybe empty.
    """
    half = np.floor(size * np.sqrt(1 - shares)).astype(np.int64)[:, None] // 2
    centres = np.floor(places * size).astype(np.int64)
    first, last = np.clip(centres - half, 0, size), np.clip(centres + half, 0, size)
    return np.concatenate([first, last - first], axis=1)


def beta(alpha: float, numbers: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) from uniform numbers: float64 [N, 2 * 25] -> float64 [N], in [0, 1].

    Two gamma numbers (Marsaglia and Tsang 2000), compared by their logarithms: small ones do not vanish.
    """
    if alpha == 1:
        return numbers[:, 0]
    one, other = (
        _log_gamma_number(alpha, part) for part in np.split(numbers[:, : 2 * _GAMMA_NUMBERS], 2, axis=1)
    )
    return 1 / (1 + np.exp(np.clip(other - one, -700, 700)))


def _log_gamma_number(alpha: float, numbers: np.ndarray) -> np.ndarray:
    d = alpha + 1 - 1 / 3  # alpha + 1, and back from there: the method wants 1 or more
    x = normals(numbers[:, : 2 * _GAMMA_ATTEMPTS])[:, :_GAMMA_ATTEMPTS]
    v = np.maximum(1 + x / np.sqrt(9 * d), 1e-9) ** 3
    u = 1 - numbers[:, 2 * _GAMMA_ATTEMPTS : 3 * _GAMMA_ATTEMPTS]
    fits = np.log(u) < x * x / 2 + d - d * v + d * np.log(v)
    rows = np.arange(len(numbers))
    return np.log(d * v[rows, fits.argmax(axis=1)]) + np.log1p(-numbers[:, -1]) / alpha


def mix_images_(images: Tensor, plan: MixPlan) -> None:
    """Mix images in place: [n, 3, S, S] of any of the loader's types, and their n slots of a plan."""
    device, size = images.device, images.shape[-1]

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    for pasted in (True, False):
        members = np.flatnonzero(plan.mixed & (plan.pasted == pasted))
        if not len(members):
            continue
        slots = there(members)
        own, other = images[slots], images[there(plan.partners[members])]
        if pasted:
            mixed = torch.where(inside(there(plan.boxes[members]), size), other, own)
        else:
            mixed = blend(own, other, there(plan.shares[members]))
        images[slots] = mixed


def mix_pair_(images: Tensor, plan: MixPlan) -> None:
    """mix_images_ for one pair, which only moves what is pasted: [2, 3, S, S] and two slots of a plan."""
    if plan.pasted[0]:
        top, left, height, width = plan.boxes[0].tolist()
        window = images[:, :, top : top + height, left : left + width]
        window.copy_(window.flip(0))
    else:
        images.copy_(blend(images, images.flip(0), torch.from_numpy(plan.shares)))


def blend(own: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    """share * own + (1 - share) * other, in float32, rounded for whole numbers; shares float32 [N]."""
    shares = shares.view(-1, *[1] * (own.dim() - 1))
    # No fused operation: it would round differently at the ends of rows.
    mixed = (own.float() * shares).add_(other.float() * (1 - shares))
    return (mixed.round_() if own.dtype == torch.uint8 else mixed).to(own.dtype)


def visible_regions(
    plan: MixPlan, crops: np.ndarray, flips: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What can be seen of each slot's crop: in its own slot, and in its partner's.

    A crop without a box is four rectangles: above and below it over the whole width, left and right of it.
    Pooled one by one and weighted by their areas they give an average with weights from 0 to 1, however small
    they are; the difference of the crop and the box would have weights below 0, large where little is left.

    Args:
        plan: how the slots are mixed.
        crops: float32 [N, 4], (x0, y0, x1, y1) as fractions of the stored image.
        flips: bool [N]: boxes are windows of the flipped crop, and are mirrored back.
        size: S.

    Returns:
        (own, given): float32 [N, 4, 4] and [N, 1, 4], rectangles (x0, y0, x1, y1) of the stored image, some
        empty; the whole crop for slots without a box, and as `own` for those that are covered (their share is 0).
    """
    top, left, height, width = plan.boxes.T
    left = np.where(flips, size - left - width, left)
    bottom, right = top + height, left + width
    zero, full = np.zeros_like(top), np.full_like(top, size)
    own = [
        (zero, zero, full, top),
        (zero, bottom, full, full),
        (zero, top, left, bottom),
        (right, top, full, bottom),
    ]
    own_px = np.stack([np.stack(corners, axis=1) for corners in own], axis=1)
    given_px = np.stack([left, top, right, bottom], axis=1)[:, None]
    uncut = ~plan.pasted
    covered = plan.pasted & (height * width == size * size)
    own_px[uncut | covered] = 0
    own_px[uncut | covered, 0] = (0, 0, size, size)
    given_px[uncut] = (0, 0, size, size)
    return _in_image(own_px, crops, size), _in_image(given_px, crops, size)


def _in_image(xyxy_px: np.ndarray, crops: np.ndarray, size: int) -> np.ndarray:
    """Windows of crops, [N, R, 4] in pixels, as fractions of the stored image; the crop's own edges bit by bit."""
    shares = xyxy_px / size
    first, last = crops[:, None, (0, 1, 0, 1)], crops[:, None, (2, 3, 2, 3)]
    return np.where(shares == 1, last, first + (last.astype(np.float64) - first) * shares).astype(np.float32)
