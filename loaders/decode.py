"""From JPEG bytes and crop windows to the images of a batch.

Both paths get bytes, windows and flips from outside through DALI's `external_source`; DALI holds no state
that a batch depends on. Work is submitted a batch ahead: DALI decodes one while the one before is finished.

    CPU   DALI image_slice (decodes the window only) -> resize, flip, normalise, into the batch
    GPU   DALI image_slice mixed -> resize -> crop-mirror-normalise, on the device
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import nvidia.dali.fn
import nvidia.dali.types
import simplejpeg
import torch
from nvidia.dali.pipeline import Pipeline

from ..shards.errors import DataError, UsageError
from ..shards.schema import JPG
from .batch_buffers import BatchBuffers
from .normalize import normalizer
from .one_thread import OneThreadEach
from .opencv_threads import without_opencv_threads
from .resize import resize
from .samples import Place

# DALI's stubs know neither its data types nor what its operators return.
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types

# ImageNet's channel means and standard deviations, in units of 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Share of a batch that the GPU's JPEG engines decode, where it has any: DALI's own default. Not measured yet;
# benchmarks/gpu.py sweeps it.
HW_DECODER_LOAD = 0.65
RESAMPLE = "softshard-resample"  # name of the threads that do
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


def usable_device(device: str | torch.device) -> torch.device:
    """A device by its full name; plain `cuda` is the process's current GPU.

    Raises:
        UsageError: neither the processor nor a GPU of this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UsageError(f"loader: expected device 'cpu' or 'cuda', found {str(device)!r}")
    if found.type == "cpu":
        return found
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num:
        raise UsageError(
            f"loader: expected an NVIDIA GPU for device {str(device)!r}, found none. Use device='cpu'"
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= num:
        raise UsageError(f"loader: expected a GPU from 'cuda:0' to 'cuda:{num - 1}', found {str(device)!r}")
    return torch.device("cuda", index)


@contextmanager
def naming_the_sample(jpegs: Sequence[np.ndarray], places: Sequence[Place]) -> Iterator[None]:
    """Turn a decoder's error about a batch into one that names the shard and the sample.

    Decoders take some damage without an error: see Loader.
    """
    try:
        yield
    except RuntimeError as error:
        for jpeg, (shard, place) in zip(jpegs, places, strict=True):
            try:
                simplejpeg.decode_jpeg(jpeg.tobytes(), "RGB", strict=True)
            except ValueError as reason:
                raise DataError(
                    f"{shard.where(place, JPG.suffix)}: expected a whole JPEG, found: {reason}; the shard is "
                    f"damaged. Run: softshard verify --decode {shard.path}"
                ) from error
        raise


_live: weakref.WeakSet[Decoder] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked process: forget DALI's pipelines without taking them down, which waits for threads that are not here."""
    for decoder in list(_live):
        decoder.leave()


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Decoder(ABC):
    """Decodes batches in the order in which they are submitted; what both paths have in common.

    Args:
        pipe: a built pipeline with the inputs `jpegs`, `starts` and `shapes`.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        _live.add(self)
        # Submitted and not taken: JPEGs, which DALI reads in place until the batch is done, and flips.
        self._pending: deque[tuple[Sequence[np.ndarray], np.ndarray]] = deque()

    def submit(self, jpegs: Sequence[np.ndarray], crop_tlhw_px: np.ndarray, flips: np.ndarray) -> None:
        """Start on M images: uint8 arrays of JPEG bytes, int32 [M, 4] windows, bool [M]. Returns at once."""
        if len(jpegs):
            self._feed(jpegs, crop_tlhw_px, flips)
            self._pipe.schedule_run()
        self._pending.append((jpegs, flips))

    def _feed(self, jpegs: Sequence[np.ndarray], crop_tlhw_px: np.ndarray, flips: np.ndarray) -> None:
        self._pipe.feed_input("jpegs", list(jpegs))
        self._pipe.feed_input("starts", np.ascontiguousarray(crop_tlhw_px[:, :2]))
        self._pipe.feed_input("shapes", np.ascontiguousarray(crop_tlhw_px[:, 2:]))

    @abstractmethod
    def take(self, slots: np.ndarray, num_slots: int) -> torch.Tensor:
        """Wait for the oldest batch submitted; put its images into `slots` of a new [num_slots, 3, S, S]."""

    def drop(self) -> None:
        """Let go what was submitted and not taken."""
        while self._pending:
            if len(self._pending[0][0]):
                # An error of images that nobody wants any more; StopIteration: a failed take had this batch.
                with suppress(RuntimeError, StopIteration):
                    self._pipe.share_outputs()
                    self._pipe.release_outputs()
            self._pending.popleft()

    def leave(self) -> None:
        """Never take the pipeline down, not even when the interpreter ends."""
        if (pipe := getattr(self, "_pipe", None)) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe._pipe))
            pipe._pipe = None

    def close(self) -> None:
        """Stop the threads; whatever was submitted is dropped. Nothing can be submitted afterwards."""
        self.drop()
        del self._pipe


def _decoded_windows(device: str, **options: Any) -> Any:
    """How both pipelines begin: from JPEG bytes, where each window begins and how large it is, to its pixels."""
    return fn.decoders.image_slice(
        fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True),
        device=device,
        start=fn.external_source(name="starts", dtype=types.INT32, ndim=1),
        shape=fn.external_source(name="shapes", dtype=types.INT32, ndim=1),
        axes=(0, 1),
        output_type=types.RGB,
        adjust_orientation=False,
        **options,
    )


class Buffers(Protocol):
    """Memory for the images of batches; see BatchBuffers."""

    def take(self) -> torch.Tensor:
        """A tensor that nobody else sees."""
        ...


MakeBuffers = Callable[[tuple[int, ...], torch.dtype], Buffers]


class _Scratch(threading.local):
    """Each thread's own memory for one image [S, S, 3]."""

    def __init__(self, size: int) -> None:
        self.pixels = np.empty((size, size, 3), np.uint8)
        self.floats = np.empty((size, size, 3), np.float32)


class CpuDecoder(Decoder):
    """The CPU path: same pixels on every machine with the same pixel stack, for any number of threads.

    Args:
        batch_size: the most images of one batch.
        size: S, pixels a side.
        dtype: `uint8`, `float16` or `float32`.
        mean: channel means that float images are normalised with, in units of 0 to 1.
        std: channel standard deviations.
        num_threads: threads that decode, and as many that resample.
        pin_memory: make the batches in page-locked memory.
        make_buffers: makes the memory of the batches otherwise; as BatchBuffers does.
        resample: `num_threads` threads that resample, which outlive this decoder; None: threads of its own.
    """

    def __init__(
        self,
        batch_size: int,
        size: int,
        dtype: str,
        mean: Sequence[float],
        std: Sequence[float],
        num_threads: int,
        pin_memory: bool = False,
        make_buffers: MakeBuffers = BatchBuffers,
        resample: OneThreadEach | None = None,
    ) -> None:
        self._threads = resample or OneThreadEach(num_threads, RESAMPLE)
        self._threads.pool()  # where none can be started, that is said here
        self._owns_threads = resample is None
        # OpenCV would start a thread a core for every resize of every thread here.
        self._give_back_opencv = without_opencv_threads(self)
        self._size, self._dtype, self._pin_memory = size, DTYPES[dtype], pin_memory
        self._buffers = make_buffers((batch_size, size, size, 3), DTYPES[dtype])
        self._normalize = None if dtype == "uint8" else normalizer(mean, std, size)
        self._scratch = _Scratch(size)
        pipe = Pipeline(
            batch_size=batch_size, num_threads=num_threads, device_id=None, prefetch_queue_depth=1
        )
        with pipe:
            pipe.set_outputs(_decoded_windows("cpu"))
        pipe.build()
        super().__init__(pipe)

    def take(self, slots: np.ndarray, num_slots: int) -> torch.Tensor:
        out = self.empty(num_slots)
        if len(slots) < num_slots:
            out.zero_()
        if len(slots):
            decoded = self._pipe.share_outputs()[0]
            try:
                windows = [np.asarray(decoded[i]) for i in range(len(slots))]
                self.finish(windows, self._pending[0][1], out, slots)
                del windows
            finally:
                self._pipe.release_outputs()
        self._pending.popleft()
        return out.permute(0, 3, 1, 2)

    def empty(self, num_slots: int) -> torch.Tensor:
        """[num_slots, S, S, 3] to be filled; at most `batch_size` slots."""
        if (
            self._pin_memory
        ):  # torch has a pool of its own for such memory, which waits for copies that are under way
            return torch.empty((num_slots, self._size, self._size, 3), dtype=self._dtype, pin_memory=True)
        return self._buffers.take()[:num_slots]

    def finish(
        self, windows: Sequence[np.ndarray], flips: np.ndarray, out: torch.Tensor, slots: np.ndarray
    ) -> None:
        """Resample, flip and normalise M decoded windows into `slots` of `out` [N, S, S, 3]."""
        batch = out.numpy()
        self._threads.share_out(
            lambda i: self._finish(windows[i], bool(flips[i]), batch[slots[i]]), len(slots)
        )

    def _finish(self, pixels: np.ndarray, flip: bool, out: np.ndarray) -> None:
        """Resample, flip and normalise one image into its slot."""
        if self._normalize is None:
            resize(pixels, out, flip=flip)
            return
        scratch = self._scratch  # what is not the result goes into memory that stays
        image = resize(pixels, scratch.pixels, flip=flip)
        if out.dtype == np.float32:
            self._normalize(image, out)
        else:
            self._normalize(image, scratch.floats)
            out[...] = scratch.floats

    def close(self) -> None:
        if self._owns_threads:
            self._threads.close()
        self._give_back_opencv()
        super().close()


class GpuDecoder(Decoder):
    """The GPU path: decodes, resizes and normalises on one device.

    Args:
        batch_size: the most images of one batch.
        size: S, pixels a side.
        dtype: `uint8`, `float16` or `float32`.
        mean: channel means that float images are normalised with, in units of 0 to 1.
        std: channel standard deviations.
        num_threads: host threads of the decoder.
        device: a CUDA device with its number.
        hw_decoder_load: share of a batch for the GPU's JPEG engines, 0 to 1.
    """

    def __init__(
        self,
        batch_size: int,
        size: int,
        dtype: str,
        mean: Sequence[float],
        std: Sequence[float],
        num_threads: int,
        device: torch.device,
        hw_decoder_load: float = HW_DECODER_LOAD,
    ) -> None:
        self._size, self._dtype, self._device = size, DTYPES[dtype], device
        pipe = Pipeline(
            batch_size=batch_size, num_threads=num_threads, device_id=device.index, prefetch_queue_depth=1
        )
        with pipe:
            flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
            windows = _decoded_windows("mixed", hw_decoder_load=hw_decoder_load)
            images = fn.resize(windows, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
            if dtype == "uint8":
                images = fn.flip(images, horizontal=flips)
            else:
                images = fn.crop_mirror_normalize(
                    images,
                    mirror=flips,
                    mean=[255 * value for value in mean],
                    std=[255 * value for value in std],
                    dtype=types.FLOAT16 if dtype == "float16" else types.FLOAT,
                    output_layout="HWC",
                )
            pipe.set_outputs(images)
        pipe.build()
        super().__init__(pipe)

    def _feed(self, jpegs: Sequence[np.ndarray], crop_tlhw_px: np.ndarray, flips: np.ndarray) -> None:
        super()._feed(jpegs, crop_tlhw_px, flips)
        self._pipe.feed_input("flips", flips.astype(np.int32))

    def take(self, slots: np.ndarray, num_slots: int) -> torch.Tensor:
        size = self._size
        out = torch.empty((num_slots, size, size, 3), dtype=self._dtype, device=self._device)
        if len(slots) < num_slots:
            out.zero_()
        if len(slots):
            images = torch.from_dlpack(self._pipe.share_outputs()[0].as_tensor())
            try:
                # Copied out, within the device. DALI's memory would be the tensor's own, too (DLPack, dynamic executor),
                # but is free again the moment that the tensor is: `record_stream`, by which BatchStream holds memory
                # until the loop's kernels are done with it, passes over what torch has not allocated. A batch of 256 at
                # 224 pixels in float16 is 77 MB, 0.05 ms to copy at an H100's 3.35 TB/s (docs/decisions.md).
                if len(slots) == num_slots:
                    out.copy_(images)
                else:
                    out[torch.from_numpy(slots).to(self._device)] = images
                # Of the thread that makes batches, which has a stream of its own: the training step is not waited for.
                torch.cuda.current_stream(self._device).synchronize()
            finally:
                self._pipe.release_outputs()
        self._pending.popleft()
        return out.permute(0, 3, 1, 2)


def create_decoder(
    device: torch.device,
    *,
    pin_memory: bool = False,
    make_buffers: MakeBuffers = BatchBuffers,
    resample: OneThreadEach | None = None,
    **options: Any,
) -> Decoder:
    """The decoder of a device, with the options of CpuDecoder."""
    if device.type == "cuda":
        return GpuDecoder(**options, device=device)
    return CpuDecoder(**options, pin_memory=pin_memory, make_buffers=make_buffers, resample=resample)
