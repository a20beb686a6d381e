"""Pixels for a teacher: any windows of any samples of a data set, through the loader's own decoders.

The Loader yields an epoch; a teacher wants one shard at a time, in batches that depend on nothing else (so that
any process that makes the shard makes the same bytes), or several windows of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..loaders.decode import MEAN, STD, CpuDecoder, Decoder, GpuDecoder, naming_the_sample, usable_device
from ..loaders.fetch import OpenShard
from ..loaders.samples import Place, read_sizes
from ..shards.cores import usable_cores
from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.schema import JPG


class TeacherImages:
    """Decodes windows of stored images, squished to the teacher's size. Close it.

    Args:
        manifest: of the data set that the samples belong to.
        size: pixels of both sides of what comes out.
        batch_size: the most images of one batch.
        device: where they are decoded to.
        num_threads: of the decoder; by default one a core that this process may use.

    Raises:
        UsageError: a size, batch size or number of threads below 1, or no such device.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        size: int,
        batch_size: int,
        device: str,
        num_threads: int | None,
    ) -> None:
        if size < 1 or batch_size < 1 or (num_threads is not None and num_threads < 1):
            raise UsageError(
                f"teacher: expected size, batch_size and threads from 1, found {size}, {batch_size} and {num_threads}"
            )
        self.batch_size = batch_size
        self._column = manifest.components.index(JPG.suffix)
        threads = num_threads or usable_cores()
        target = usable_device(device)
        options = (batch_size, size, "uint8", MEAN, STD, threads)
        self._decoder: Decoder = (
            CpuDecoder(*options) if target.type == "cpu" else GpuDecoder(*options, target)
        )

    def whole(self, shard: OpenShard) -> Iterator[tuple[list[Place], torch.Tensor]]:
        """The whole images of a shard, in its order, at most `batch_size` at a time.

        Yields:
            (places, images): their places, and uint8 [n, 3, S, S].

        Raises:
            DataError: an image is damaged.
        """
        num = len(shard.index.keys)
        batches = (
            [(shard, place) for place in range(start, min(start + self.batch_size, num))]
            for start in range(0, num, self.batch_size)
        )
        return self.windows(
            (places, np.array([[0, 0, 1, 1]] * len(places), np.float32)) for places in batches
        )

    def windows(
        self, batches: Iterable[tuple[Sequence[Place], np.ndarray]]
    ) -> Iterator[tuple[list[Place], torch.Tensor]]:
        """Windows of stored images; the next batch is decoded while the caller works on this one.

        Args:
            batches: places, the same one perhaps several times, and for each of them (x0, y0, x1, y1) as
                fractions of the stored image, float32 [n, 4].

        Yields:
            (places, images) as `whole` does.
        """
        waiting: tuple[list[Place], list[np.ndarray]] | None = None
        try:
            for places, crops_xyxy in batches:
                places = list(places)
                jpegs = [shard.member_array(place, self._column) for shard, place in places]
                tlhw = window_px(
                    crops_xyxy,
                    read_sizes(places, [shard.member(place, self._column) for shard, place in places]),
                )
                with naming_the_sample(jpegs, places):
                    self._decoder.submit(jpegs, tlhw, np.zeros(len(places), bool))
                if waiting is not None:
                    yield self._take(*waiting)
                waiting = places, jpegs
            if waiting is not None:
                yield self._take(*waiting)
        finally:
            self._decoder.drop()  # nothing, unless the caller stopped early

    def _take(self, places: list[Place], jpegs: list[np.ndarray]) -> tuple[list[Place], torch.Tensor]:
        with naming_the_sample(jpegs, places):
            return places, self._decoder.take(np.arange(len(places)), len(places))

    def close(self) -> None:
        self._decoder.close()


def window_px(crops_xyxy: np.ndarray, hw: np.ndarray) -> np.ndarray:
    """Fractions of stored images as windows in whole pixels, at least one pixel a side.

    Args:
        crops_xyxy: float [n, 4], (x0, y0, x1, y1) in [0, 1].
        hw: integer [n, 2], stored height and width.

    Returns:
        int32 [n, 4], top, left, height, width.
    """
    x0, y0, x1, y1 = np.asarray(crops_xyxy, np.float64).T
    height, width = np.asarray(hw, np.int64).T
    top = np.minimum(np.rint(y0 * height), height - 1)
    left = np.minimum(np.rint(x0 * width), width - 1)
    bottom = np.maximum(np.rint(y1 * height), top + 1)
    right = np.maximum(np.rint(x1 * width), left + 1)
    return np.stack([top, left, bottom - top, right - left], axis=1).astype(np.int32)
