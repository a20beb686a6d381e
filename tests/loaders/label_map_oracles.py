"""Random label maps and crops, and what pooling is by definition: torchvision's RoIAlign of the dense map."""

import numpy as np
import torch
from torchvision.ops import roi_align

from softshard.shards import encode_label_map


def random_maps(rng, num, top, rows, columns, num_classes):
    """Logits and ids [N, K, P, Q]; the ids of a cell are distinct."""
    scores = rng.normal(0, 5, (num, top, rows, columns)).astype(np.float32)
    ids = rng.random((num, rows, columns, max(top, min(num_classes, 64)))).argsort(axis=-1)[..., :top]
    ids = np.moveaxis(ids, -1, 1) * (num_classes // max(ids.max(), 1) if num_classes > 64 else 1)
    return scores, np.minimum(ids, num_classes - 1)


def random_crops(rng, num):
    """Crops of every kind: large, tiny, and at the borders."""
    corner = rng.random((num, 2))
    size = np.maximum(rng.random((num, 2)) ** rng.choice([0.3, 1, 6], (num, 1)), 1e-4)
    low = corner * (1 - size)
    border = rng.random((num, 2))
    low = np.where(border < 0.15, 0, np.where(border > 0.85, 1 - size, low))
    high = np.minimum(low + size, 1)
    crops = np.concatenate([low, high], axis=1).astype(np.float32)
    crops[:, 2:] = np.maximum(crops[:, 2:], np.nextafter(crops[:, :2], np.float32(2)))
    return crops


def made(seed, num=8, top=3, rows=6, columns=9, num_classes=40):
    """Random maps and as many crops: logits, ids, crops."""
    rng = np.random.default_rng(seed)
    return *random_maps(rng, num, top, rows, columns, num_classes), random_crops(rng, num)


def encode(scores, ids, num_classes, **options):
    """Each map's bytes."""
    return [
        encode_label_map(s, i, num_classes=num_classes, **options) for s, i in zip(scores, ids, strict=True)
    ]


def dense_map(scores, ids, num_classes, fill="zero"):
    """[N, C, P, Q]; where a class was not kept zero, or the cell's smallest kept value."""
    if fill == "zero":
        dense = torch.zeros(len(scores), num_classes, *scores.shape[2:])
    else:
        dense = torch.from_numpy(scores).amin(dim=1, keepdim=True).repeat(1, num_classes, 1, 1)
    return dense.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores))


def roi_align_dense(dense, crops, grid=(1, 1)):
    """RoIAlign of [N, C, P, Q], box = fractions * (Q, P) - 0.5, as [N, G, H, C]."""
    rows, columns = dense.shape[2:]
    scale = torch.tensor([columns, rows, columns, rows], dtype=torch.float32)
    boxes = torch.from_numpy(crops) * scale - 0.5
    boxes = torch.cat([torch.arange(len(crops))[:, None].float(), boxes], dim=1)
    return roi_align(dense, boxes, grid, sampling_ratio=-1, aligned=False).permute(0, 2, 3, 1)


def by_roi_align(scores, ids, crops, num_classes):
    """Pooled logits [N, C]."""
    return roi_align_dense(dense_map(scores, ids, num_classes), crops)[:, 0, 0]
