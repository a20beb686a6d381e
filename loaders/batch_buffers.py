"""Memory for the images of batches, used again once nobody holds the batch.

A new batch of 128 float32 images takes 77 MB from the kernel, which clears it page by page: on an AMD EPYC 0.2 ms an
image, as long as decoding takes. Memory that has been used is there at once.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch

# Of the batches that live at a time: one is being made, one or two are the loop's.
_KEPT = 4
_ALIGNED_BYTES = 64  # as torch's own


class BatchBuffers:
    """Makes tensors of one shape and type; what is in them is whatever was there.

    A tensor's memory comes back when the last tensor or array that sees it is gone, however long somebody keeps it.

    Args:
        shape: of every tensor.
        dtype: of `decode.DTYPES`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = shape
        self._dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._num_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._free: deque[np.ndarray] = deque(maxlen=_KEPT)  # beyond that, the oldest go

    def take(self) -> torch.Tensor:
        """A tensor that nobody else sees."""
        try:
            memory = self._free.pop()  # the one used last: it may be in the processor's cache
        except IndexError:
            raw = np.empty(self._num_bytes + _ALIGNED_BYTES, np.uint8)
            start = -raw.ctypes.data % _ALIGNED_BYTES
            memory = raw[start : start + self._num_bytes]
        # The tensor and all that share its memory hold this one array, and nothing else does.
        seen = memory.view(self._dtype).reshape(self.shape)
        weakref.finalize(seen, self._free.append, memory).atexit = False
        return torch.from_numpy(seen)
