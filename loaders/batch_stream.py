"""The CUDA stream on which batches are made, beside the training step's, and how a batch changes streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from .batch import Batch, map_tensors


class BatchStream:
    """Where the thread that makes batches works on a GPU, and how the training loop takes what was made there.

    On torch's default stream that work would queue up behind the training step. One stream for all iterations: torch
    keeps free memory stream by stream. On the CPU all this is nothing.

    Args:
        device: where batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def made(self, batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """The same batches, made on the stream, each when all its work is done; iterate it in the thread that makes them."""
        return batches() if self._device.type == "cpu" else self._on_stream(batches)

    def _on_stream(self, batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        with torch.cuda.device(self._device):
            if self._stream is None:
                torch.cuda.synchronize()  # constants of the augmentation, put on the device when the loader was built
                self._stream = torch.cuda.Stream()
            # Closed here: a generator in the middle of a batch holds shards, and is on this stream.
            with torch.cuda.stream(self._stream), closing(batches()) as running:  # pyright: ignore[reportArgumentType]
                for batch in running:
                    # This thread waits, ahead of the loop, not the loop's: any stream may read the batch then.
                    self._stream.synchronize()
                    yield batch

    def taken(self, batch: Batch | None) -> Batch | None:
        """The same batch, to be used on the stream that is current in the loop's thread now.

        Its memory is of the stream on which it was made, and is held until this one is done with it.
        """
        if batch is None or self._device.type == "cpu":
            return batch
        stream = torch.cuda.current_stream(self._device)
        return map_tensors(batch, lambda tensor: used_on(tensor, stream))


def used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """The tensor, its memory held until the stream is done with it even where the tensor is gone before."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor
