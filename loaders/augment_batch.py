"""Everything done to images beyond crop, resize and flip: a stage behind the decoder, on the batch's own device.

    augment_options.py    what may be done        augment_program.py    drawn for every image, on the host
    augment_ops.py        each of it, in torch    mixing.py             images and targets with others

On a GPU a batch goes through as one. On the CPU threads of their own take image after image: one image's values
stay in cache from one operation to the next, and nothing can depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..shards.philox import PURPOSE_NOISE, uniforms
from .augment_ops import PLAIN_OPS, affine, noise
from .augment_options import RandAugment
from .augment_program import NUMBER, OPS, Program, draw_program, normals
from .crops import Augment
from .decode import DTYPES
from .mixing import MixPlan, blend, mix_images_, mix_pair_
from .normalize import normalization
from .one_thread import OneThreadEach


class AugmentStage:
    """Augments the images of one loader.

    Args:
        augment: what is done.
        seed: of the loader.
        dtype: of the images that come out: `uint8`, `float16` or `float32`.
        mean: channel means that float images are normalised with, in units of 0 to 1.
        std: channel standard deviations.
        num_threads: threads of the CPU path.
        device: where batches are.
    """

    def __init__(
        self,
        augment: Augment,
        seed: int,
        dtype: str,
        mean: Sequence[float],
        std: Sequence[float],
        num_threads: int,
        device: torch.device,
    ) -> None:
        self._augment, self._seed, self._mean = augment, seed, tuple(mean)
        self._dtype, self._device = DTYPES[dtype], device
        scale, shift = normalization(mean, std)
        self._scale, self._shift = (torch.from_numpy(row)[:, None, None].to(device) for row in (scale, shift))
        self._field = None
        if augment.erasing is not None and augment.erasing.fill == "noise":
            self._field = (_noise_field(seed, augment.size).to(device) - self._shift) / self._scale
        self._threads = OneThreadEach(num_threads, "softshard-augment") if device.type == "cpu" else None

    def start(self) -> None:
        """Begin the threads, where they do not run yet in this process.

        Raises:
            RuntimeError: see `one_thread_each`.
        """
        if self._threads is not None:
            self._threads.pool()

    @property
    def decode_dtype(self) -> str:
        """What the decoder is to give: whole values where operations follow, else what comes out."""
        names = {value: name for name, value in DTYPES.items()}
        return "uint8" if self._augment.changes_pixels else names[self._dtype]

    def augment(
        self,
        images: Tensor,
        slots: np.ndarray,
        samples: np.ndarray,
        epoch: int,
        occurrence: int | np.ndarray = 0,
    ) -> Tensor:
        """Run the operations of the real samples, and normalise.

        Args:
            images: [N, 3, S, S], channels-last, of `decode_dtype`.
            slots: int64 [M], where real samples stand; the other slots are zeros and stay so.
            samples: int64 [M], their indices in the manifest's order.
            epoch: number of the epoch.
            occurrence: which draw of a sample in this epoch: one number, or [M].

        Returns:
            [N, 3, S, S], channels-last, of the stage's dtype; `images` themselves where there are no operations.
        """
        if not self._augment.changes_pixels:
            return images
        program = draw_program(
            self._augment, samples, mean=self._mean, seed=self._seed, epoch=epoch, occurrence=occurrence
        )
        out = torch.empty_like(images, dtype=self._dtype)
        if len(slots) < len(images):
            out.zero_()
        if self._threads is not None:

            def one(i: int) -> None:
                part = Program(program.ops[i : i + 1], program.args[i : i + 1])
                slot = slice(slots[i], slots[i] + 1)
                self._finish(self.run(self._planar(images[slot]), part), out[slot])

            self._threads.share_out(one, len(slots))
        elif len(slots) == len(images):
            self._finish(self.run(self._planar(images), program), out)
        elif len(slots):
            there = self._there(slots)
            part = torch.empty_like(images[there], dtype=self._dtype)
            self._finish(self.run(self._planar(images[there]), program), part)
            out[there] = part
        return out

    def mix(self, images: Tensor, targets: Sequence[tuple[Tensor, Tensor | None]], plan: MixPlan) -> None:
        """Mix a batch's images and targets, in place.

        Args:
            images: [N, 3, S, S], as they came from `augment`.
            targets: of every kind float32 [N, ...], for what is seen of each slot's own image, and another for what
                is seen of it in its partner's slot, the same where None.
            plan: how.
        """

        def pairs(first: int, last: int) -> None:
            part = MixPlan(
                plan.partners[first:last] - first,
                plan.shares[first:last],
                plan.boxes[first:last],
                plan.pasted[first:last],
                plan.visible,
            )
            members = np.flatnonzero(part.mixed)
            if not len(members):
                return
            if self._threads is not None:
                mix_pair_(images[first:last], part)
            else:
                mix_images_(images[first:last], part)
            slots, partners, shares = (
                self._there(array) for array in (members, part.partners[members], part.shares[members])
            )
            for own, given in targets:
                other = own if given is None else given
                mixed = blend(own[first:last][slots], other[first:last][partners], shares)
                own[first:last][slots] = mixed

        if self._threads is None:
            pairs(0, len(images))
        else:  # pair by pair, in the threads
            self._threads.share_out(lambda i: pairs(2 * i, 2 * i + 2), len(images) // 2)

    def run(self, images: Tensor, program: Program) -> Tensor:
        """Run the operations of n images: float32 [n, 3, S, S], 0 to 255, to the same."""
        args = self._there(program.args.astype(np.float32))
        for t in range(program.ops.shape[1]):
            for op in np.unique(program.ops[:, t]):
                if op == NUMBER["identity"]:
                    continue
                members = np.flatnonzero(program.ops[:, t] == op)
                if len(members) == len(images):
                    images = self._apply(OPS[op], images, args[:, t])
                else:
                    there = self._there(members)
                    images[there] = self._apply(OPS[op], images[there], args[there, t])
        return images

    def _apply(self, name: str, images: Tensor, args: Tensor) -> Tensor:
        if name == "affine":
            options = self._augment.randaugment or RandAugment()
            return affine(images, args, options.interpolation, options.fill)
        if name == "noise":
            assert self._field is not None  # no other stage draws it
            return noise(images, args, self._field)
        return PLAIN_OPS[name](images, args)

    def _planar(self, images: Tensor) -> Tensor:
        return images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def _finish(self, images: Tensor, out: Tensor) -> None:
        """Round or normalise into the batch."""
        if out.dtype == torch.uint8:
            out.copy_(images.round_().clamp_(0, 255))
        else:
            # As the decoder does it: two roundings, whatever the device would fuse.
            out.copy_(images.mul_(self._scale).add_(self._shift))

    def _there(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def close(self) -> None:
        """Stop the threads."""
        if self._threads is not None:
            self._threads.close()


def _noise_field(seed: int, size: int) -> Tensor:
    """Normal noise, float32 [3, S, S]."""
    rows = uniforms(seed, PURPOSE_NOISE, 0, np.arange(3 * size), size + size % 2)
    return torch.from_numpy(normals(rows)[:, :size].reshape(3, size, size).astype(np.float32))
