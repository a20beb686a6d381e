"""Label pooling in torch operations, for maps and weights on any device.

N maps, C classes, K classes kept per cell, P Q rows and columns of the map, G H of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F

from ..shards.labelmap import MapGroup
from .pooling_job import PoolingJob


def pool_on_device(groups: Iterable[MapGroup], job: PoolingJob, device: torch.device) -> list[torch.Tensor]:
    """Pool N maps on a device; the dense map [N, C, P, Q] is never built.

    Returns:
        [float32 [N, G, H, C]], or with `keep` [float32 [N, G, H, m], int64 [N, G, H, m]].
    """
    num = job.shape[0]
    host_scores = np.empty((num, *job.map_shape), np.float32)
    host_ids = np.empty(host_scores.shape, np.int32)
    for group in groups:
        host_scores[group.members] = group.scores
        host_ids[group.members] = group.ids()

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    scores, ids, rows, columns = there(host_scores), there(host_ids), there(job.rows), there(job.columns)
    cells_NPQ = None if job.cells is None else there(job.cells)
    flat_ids = ids.reshape(num, -1).long()
    floor = scores.amin(dim=1) if job.floor else None
    if floor is not None:
        scores = scores - floor[:, None]
    cells = []
    for g in range(job.shape[1]):
        for h in range(job.shape[2]):
            weights = rows[:, g, :, None] * columns[:, h, None, :] if cells_NPQ is None else cells_NPQ
            pooled = scores.new_zeros(num, job.num_classes + 1)  # the last one takes dropped classes
            pooled.scatter_add_(1, flat_ids, (scores * weights[:, None]).reshape(num, -1))
            pooled = pooled[:, :-1]
            if floor is not None:
                pooled = pooled + (floor * weights).sum(dim=(1, 2))[:, None]
            cells.append(_finish(pooled, job, there))
    results = [torch.stack(part, dim=1) for part in zip(*cells, strict=True)]
    return [result.unflatten(1, job.shape[1:]) for result in results]


def _finish(
    pooled_NC: torch.Tensor, job: PoolingJob, there: Callable[[np.ndarray], torch.Tensor]
) -> list[torch.Tensor]:
    """One output cell's targets from its pooled logits."""
    targets = pooled_NC
    if job.kind == "softmax":
        targets = torch.softmax(pooled_NC, dim=1)
    elif job.kind == "one-hot":
        targets = torch.zeros_like(pooled_NC).scatter_(1, pooled_NC.argmax(dim=1, keepdim=True), 1.0)
    if job.own is not None:
        own = there(job.own)
        share = torch.where(own >= 0, job.original, 0.0)[:, None].to(targets.dtype)
        label = F.one_hot(own.clamp(min=0), job.num_classes).to(targets.dtype)
        targets = targets * (1 - share) + label * share
    return [targets] if job.keep is None else list(targets.topk(job.keep, dim=1))
