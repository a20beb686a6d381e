"""What all metrics share: counts that follow the logits to their device, and are summed over the ranks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..loaders.batch import map_tensors
from ..shards.errors import UsageError


class Counted:
    """A metric: `update` adds a batch's counts, `reduce` sums them over the ranks, `compute` turns them into numbers (the
    first moment the host waits for the device).

    Counts, not means of means, are kept, so uneven batches and padded slots do no harm.
    """

    counts: Tensor
    _summed: ClassVar[tuple[str, ...]] = ("counts",)

    def reduce(self) -> None:
        """Sum the counts over the ranks of torch.distributed; afterwards every rank computes the same."""
        sum_over_ranks(*(getattr(self, name) for name in self._summed))

    def _begin(
        self, logits: Tensor, num_outputs: int, valid: Tensor | None, cause: str = "class list"
    ) -> Tensor:
        """Before a batch is counted: which of its slots are, bool [N]; everything is on the logits' device by then.

        Raises:
            UsageError: other logits than [N, num_outputs].
        """
        if logits.ndim != 2 or logits.shape[1] != num_outputs:
            raise UsageError(
                f"{type(self).__name__}: expected logits [N, {num_outputs}], found {tuple(logits.shape)}; "
                f"the model was built for another {cause}"
            )
        self._follow(logits)
        return logits.new_ones(len(logits), dtype=torch.bool) if valid is None else valid

    def _follow(self, logits: Tensor) -> None:
        if self.counts.device != logits.device:
            vars(self).update(map_tensors(vars(self), lambda tensor: tensor.to(logits.device)))


def sum_over_ranks(*counts: Tensor) -> None:
    """Sum counts over the ranks of torch.distributed, in place; nothing happens without it."""
    if dist.is_available() and dist.is_initialized():
        for count in counts:
            dist.all_reduce(count)
