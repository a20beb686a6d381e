"""The CUDA stream on which batches are made, beside the training step's, and how a batch changes streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import torch

from .batch import Batch, map_tensors


class MarkedBatch(NamedTuple):
    """A batch whose tensors may still be under way, and the event at the end of that work."""

    batch: Batch
    done: torch.cuda.Event


class BatchStream:
    """Where the thread that makes batches works on a GPU, and how the training loop takes what was made there.

    On torch's default stream that work would queue up behind the training step. Nobody waits on the host: an event
    marks the end of a batch, and the loop's stream waits for it on the device. On the CPU all this is nothing.

    Args:
        device: where batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def made(self, batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch | MarkedBatch]:
        """The same batches, made on a stream of their own; called, and iterated, in the thread that makes them."""
        return batches() if self._device.type == "cpu" else self._marked(batches)

    def _marked(self, batches: Callable[[], Iterator[Batch]]) -> Iterator[MarkedBatch]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            # What was put on the device when the loader was built: constants of the augmentation.
            stream.wait_stream(torch.cuda.default_stream())
            # Closed here: a generator in the middle of a batch holds shards, and is on this stream.
            with torch.cuda.stream(stream), closing(batches()) as running:  # pyright: ignore[reportArgumentType]
                for batch in running:
                    done = torch.cuda.Event()
                    done.record(stream)
                    yield MarkedBatch(batch, done)

    def taken(self, item: Batch | MarkedBatch | None) -> Batch | None:
        """What the loop gets, to be used on the stream that is current in its thread now.

        The memory stays of the stream on which it was made, which must not use it again before this one is done.
        """
        if not isinstance(item, MarkedBatch):
            return item
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(item.done)
        return map_tensors(item.batch, lambda tensor: used_on(tensor, stream))


def used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """The tensor, its memory held until the stream is done with it even where the tensor is gone before."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor
