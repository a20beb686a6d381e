"""`softshard maps check`: do label maps lie the right way round, and do they agree with the labels?

ReLabel's published pooling hands RoIAlign boxes as (y, x) where it takes (x, y), so label maps exist in both
orientations, and a mirrored map does not look wrong: it is a plausible map of another crop. Crops beside the
diagonal tell: a teacher looks at the crop itself, and the map is pooled over it as stored and with rows and columns
swapped. Whichever agrees more with the teacher, over many images, is right.

Shape letters: N images, W windows of an image, C classes, K kept per cell, P Q rows and columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..loaders.cache import Cache
from ..loaders.data_set import open_shards
from ..loaders.fetch import OpenShard
from ..loaders.pooling import pool_label_maps
from ..loaders.samples import Place, check_label_maps
from ..loaders.side_maps import SideFiles
from ..loaders.whole_shards import in_order
from ..shards.errors import UsageError
from ..shards.labelmap import decode_label_maps
from ..shards.manifest import Manifest, load_sidecar
from ..shards.progress import progress_bar
from ..shards.schema import LMAP
from ..shards.shard_files import dataset_name, dataset_path
from .bootstrap import mean_interval
from .maps_images import TeacherImages
from .maps_teacher import Teacher

# (x0, y0, x1, y1): two sizes above the diagonal, and the same below it. Mirrored, each is another one.
WINDOWS = np.array(
    [(0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.55, 0.05, 0.95, 0.45), (0.05, 0.55, 0.45, 0.95)],
    np.float32,
)
MIN_IMAGES = 10  # fewer say nothing about their spread
WORST_CLASSES = 10

_WHOLE = np.array([[0, 0, 1, 1]], np.float32)
_MAPS_AT_ONCE = 256


class StoredMaps:
    """A data set's shards, each with the one that holds its samples' label maps.

    Args:
        dataset: its folder or fsspec URL.
        manifest: its manifest.
        side: folder or URL of side shards with the label maps; None where they lie in the data set's own.
        cache: where remote shards are kept.

    Raises:
        UsageError: the data set has no label maps, or those are of other classes.
        DataError: the side shards are damaged, or belong to another data set.
    """

    def __init__(
        self,
        dataset: str | Path,
        manifest: Manifest,
        side: str | Path | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._side = None if side is None else SideFiles(side, dataset, manifest, cache)
        check_label_maps(dataset_name(dataset), manifest if self._side is None else self._side.manifest)
        self._shards = open_shards(dataset_path(dataset), manifest, cache)
        self._column = manifest.components.index(LMAP.suffix) if self._side is None else 0

    def in_order(self, numbers: Sequence[int]) -> Iterator[tuple[OpenShard, OpenShard]]:
        """Shards one by one, and each one's with the maps: it itself, or the one of its name beside it.

        Raises:
            DataError: one is missing or damaged, or has other samples beside it.
        """
        own = in_order(self._shards, numbers)
        if self._side is None:
            yield from ((shard, shard) for shard in own)
            return
        for number, shard, _ in zip(numbers, own, in_order(self._side.shards, numbers), strict=True):
            yield shard, self._side.beside(number, shard)

    def read(self, places: Sequence[Place]) -> tuple[list[memoryview], list[str]]:
        """Encoded label maps of some places in the shards that hold them, and how messages name each."""
        maps = [shard.member(place, self._column) for shard, place in places]
        return maps, [shard.where(place, LMAP.suffix) for shard, place in places]

    def close(self) -> None:
        """Let the shards go."""
        self._shards.close()
        if self._side is not None:
            self._side.close()


def check_label_map_labels(
    dataset: str | Path,
    manifest: Manifest,
    cache: Cache | None = None,
    *,
    side: str | Path | None = None,
) -> dict[str, Any]:
    """How often the best class of the map, pooled over the whole image, is the image's label.

    Args:
        dataset: folder or fsspec URL of a data set.
        manifest: its manifest.
        cache: where remote shards are kept.
        side: folder or URL of side shards, whose label maps are looked at in place of the data set's own.

    Returns:
        `num_images`, `top1`, and the classes with the lowest top-1: `class`, `top1`, `num_images`.

    Raises:
        UsageError: the data set has no label maps.
        DataError: it is damaged.
    """
    stored = StoredMaps(dataset, manifest, side, cache)
    classes = load_sidecar(dataset, manifest)
    right = np.zeros(len(classes), bool)
    at = 0
    with closing(stored), progress_bar(len(classes), "labels", "img") as bar:
        every = range(len(manifest.shards))
        for record, (_, beside) in zip(manifest.shards, stored.in_order(every), strict=True):
            for start in range(0, record.samples, _MAPS_AT_ONCE):
                places = range(start, min(start + _MAPS_AT_ONCE, record.samples))
                maps, wheres = stored.read([(beside, place) for place in places])
                pooled_NC = pool_label_maps(
                    maps,
                    np.repeat(_WHOLE, len(places), axis=0),
                    num_classes=manifest.num_classes,
                    softmax=False,
                    wheres=wheres,
                )
                right[at : at + len(places)] = (
                    pooled_NC.argmax(dim=1).numpy() == classes[at : at + len(places)]
                )
                at += len(places)
                bar.update(len(places))
    counts = np.bincount(classes, minlength=manifest.num_classes)
    hits = np.bincount(classes, right, manifest.num_classes)
    present = np.flatnonzero(counts)
    worst = present[np.argsort(hits[present] / counts[present], kind="stable")][:WORST_CLASSES]
    return {
        "num_images": len(classes),
        "top1": float(right.mean()),
        "worst_classes": [
            {
                "class": manifest.class_names[i],
                "top1": float(hits[i] / counts[i]),
                "num_images": int(counts[i]),
            }
            for i in worst.tolist()
        ],
    }


def check_orientation(
    dataset: str | Path,
    manifest: Manifest,
    teacher: Teacher,
    *,
    size: int | None = None,
    num_images: int = 500,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    num_threads: int | None = None,
    cache: Cache | None = None,
    side: str | Path | None = None,
) -> dict[str, Any]:
    """Which way round the label maps agree more with what a teacher says of crops beside the diagonal.

    The measure is the cross-entropy of the pooled map's probabilities under the teacher's, in nats, a mean over the
    windows of an image. The interval is a bootstrap over images.

    Args:
        dataset: folder or fsspec URL of a data set with label maps.
        manifest: its manifest.
        teacher: any classifier of the data set's classes; its head does not matter.
        size: pixels that crops are squished to; by default what the teacher is known to take.
        num_images: how many images, chosen at random; all where there are fewer.
        seed: of the choice and of the bootstrap; the same seed gives the same numbers.
        batch_size: crops a step.
        device: where the teacher runs.
        num_threads: of the decoder.
        cache: where the shards of a remote data set are kept.
        side: folder or URL of side shards, whose label maps are looked at in place of the data set's own.

    Returns:
        `verdict` (`right`: rows run down the image; `swapped`; or `undecided`, when the interval holds zero),
        `advantage` (cross-entropy with swapped rows and columns minus as stored) with its `interval`, `as_stored` and
        `swapped` (mean `cross_entropy`, and `top1` agreement with the teacher), and `num_images`.

    Raises:
        UsageError: the data set has no label maps, or an option is wrong.
        DataError: it is damaged.
    """
    if num_images < 1 or batch_size < 1 or seed < 0:
        raise UsageError(
            f"maps check: expected images and batch size from 1 and a seed from 0, found {num_images}, {batch_size} and "
            f"{seed}"
        )
    rng = np.random.default_rng(seed)
    num = min(num_images, manifest.num_samples)
    chosen = np.sort(rng.choice(manifest.num_samples, num, replace=False))
    model = teacher.model.to(device).eval()
    entropies, agreements = [], []
    per_batch = max(1, batch_size // len(WINDOWS))
    stored = StoredMaps(dataset, manifest, side, cache)
    under_way: deque[list[Place]] = deque()  # where the maps are of the batches that are being decoded
    with (
        closing(stored),
        closing(
            TeacherImages(
                manifest,
                size=size or _own_size(teacher),
                batch_size=per_batch * len(WINDOWS),
                device=device,
                num_threads=num_threads,
            )
        ) as images,
        progress_bar(num, "crops", "img") as bar,
        torch.inference_mode(),
    ):
        for _, crops in images.windows(_batches(stored, manifest, chosen, per_batch, under_way)):
            said_MC = teacher.to_classes(model(teacher.normalise(crops)).float()).softmax(dim=1).cpu()
            entropy, agreement = _compare(*stored.read(under_way.popleft()), manifest, said_MC)
            entropies.append(entropy)
            agreements.append(agreement)
            bar.update(len(entropy))
    entropy_N2, agreement_N2 = np.concatenate(entropies), np.concatenate(agreements)
    advantage_N = entropy_N2[:, 1] - entropy_N2[:, 0]
    low, high = mean_interval(advantage_N, rng)
    verdict = "undecided"
    if num >= MIN_IMAGES:
        verdict = "right" if low > 0 else "swapped" if high < 0 else "undecided"
    return {
        "verdict": verdict,
        "num_images": num,
        "advantage": float(advantage_N.mean()),
        "interval": [low, high],
        **{
            name: {
                "cross_entropy": float(entropy_N2[:, i].mean()),
                "top1": float(agreement_N2[:, i].mean()),
            }
            for i, name in enumerate(("as_stored", "swapped"))
        },
    }


def format_check(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    labels = result["labels"]
    lines = [
        f"labels: the best class of the whole map is the label for {labels['top1']:.2%} of {labels['num_images']:,} images",
        "  least often: "
        + ", ".join(
            f"{worst['class']} {worst['top1']:.0%} of {worst['num_images']:,}"
            for worst in labels["worst_classes"]
        ),
    ]
    found = result.get("orientation")
    if found is None:
        return "\n".join([*lines, "rows and columns: not looked at. Give a --teacher"])
    meaning = {
        "right": "right: rows run down the image, columns across it",
        "swapped": "swapped. Import them again with --transpose, or in a loop of your own read them with "
        "Loader(targets=LabelPooling(swap_xy=True))",
        "undecided": "undecided: the interval holds zero. Use more --images or a better teacher",
    }[found["verdict"]]
    low, high = found["interval"]
    lines += [
        f"rows and columns: {meaning}",
        f"  against a teacher on {len(WINDOWS)} crops of {found['num_images']:,} images: cross-entropy "
        f"{found['as_stored']['cross_entropy']:.4f} as stored, {found['swapped']['cross_entropy']:.4f} swapped; difference "
        f"{found['advantage']:+.2g} (95% {low:+.2g} to {high:+.2g})",
        f"  same best class as the teacher: {found['as_stored']['top1']:.2%} as stored, {found['swapped']['top1']:.2%} "
        "swapped",
    ]
    return "\n".join(lines)


def _own_size(teacher: Teacher) -> int:
    config: dict[str, Any] = getattr(teacher.model, "pretrained_cfg", None) or {}
    return int(config.get("input_size", (3, 224, 224))[-1])


def _batches(
    stored: StoredMaps,
    manifest: Manifest,
    chosen: np.ndarray,
    per_batch: int,
    under_way: deque[list[Place]],
) -> Iterator[tuple[list[Place], np.ndarray]]:
    """Places, each W times in a row, and their windows; where their maps are goes to `under_way`.

    `chosen` ascends, so each shard is opened once.
    """
    ends = np.cumsum([record.samples for record in manifest.shards])
    of_shard = np.searchsorted(ends, chosen, side="right")
    numbers = np.unique(of_shard).tolist()
    places = (
        (pair, int(sample - ends[number] + manifest.shards[number].samples))
        for number, pair in zip(numbers, stored.in_order(numbers), strict=True)
        for sample in chosen[of_shard == number]
    )
    while batch := list(islice(places, per_batch)):
        under_way.append([(beside, place) for (_, beside), place in batch])
        yield (
            [(shard, place) for (shard, _), place in batch for _ in WINDOWS],
            np.tile(WINDOWS, (len(batch), 1)),
        )


def _compare(
    maps: Sequence[memoryview], wheres: Sequence[str], manifest: Manifest, said_MC: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and agreement of some images' maps with the teacher, as stored and swapped: float [N, 2] each."""
    scores, ids = decode_label_maps(maps, wheres)
    # Every map once for each of its windows.
    scores, ids = (np.repeat(array, len(WINDOWS), axis=0) for array in (scores, ids))
    crops = np.tile(WINDOWS, (len(maps), 1))
    entropies, agreements = [], []
    for turned in ((scores, ids), (scores.swapaxes(2, 3), ids.swapaxes(2, 3))):
        pooled_MC = pool_label_maps(turned, crops, num_classes=manifest.num_classes, softmax=False)
        entropy_M = -(said_MC * pooled_MC.log_softmax(dim=1)).sum(dim=1)
        same_M = (said_MC.argmax(dim=1) == pooled_MC.argmax(dim=1)).float()
        entropies.append(entropy_M.reshape(-1, len(WINDOWS)).mean(dim=1).double().numpy())
        agreements.append(same_M.reshape(-1, len(WINDOWS)).mean(dim=1).double().numpy())
    return np.stack(entropies, axis=1), np.stack(agreements, axis=1)
