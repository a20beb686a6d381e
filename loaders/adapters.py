"""The loader's batches in the form that other people's training loops take, and on their device.

    as_tuples        (images, labels): timm's train.py, torchvision's references, most loops
    as_dicts         dicts of tensors
    as_webdataset    what a pipeline of webdataset's gives after decode, to_tuple and batched
    on_device        the batches themselves, copied to a GPU one ahead of need

Lightning, Accelerate and torchdata take a Loader as it is: README, "Plug it in".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from ..shards.errors import UsageError
from .batch import Batch, map_tensors
from .batch_stream import used_on
from .decode import usable_device

if TYPE_CHECKING:
    from .loader import Loader

Item = TypeVar("Item")

LABELS = ("classes", "targets", "levels")
# webdataset's names of image formats -> (dtype of the loader, channels first). Torch's and numpy's names differ
# in the order of axes only: its DataLoader makes tensors of arrays.
IMAGE_FORMATS = {
    "torchrgb": ("float32", True),
    "torchrgb8": ("uint8", True),
    "rgb": ("float32", False),
    "rgb8": ("uint8", False),
}
COMPONENTS = ("__key__", "jpg", "cls")


class Batches(Generic[Item]):
    """A loader's batches in another form, or on another device; epochs and state are the loader's.

    With a device, the copy of a batch is under way while the one before it is used. On a GPU the copies run on a
    stream of their own, at the same time as the computation where the loader's memory is pinned
    (`Loader(pin_memory=True)`). Use a batch on the stream that was current when it was asked for, and ask for it
    on the stream that it is used on: its memory is held until that stream is done with it.

    Args:
        loader: where batches come from; everything else about them is its own.
        convert: makes what is yielded of a batch, before it is copied.
        device: None leaves the tensors where they are.

    Raises:
        UsageError: no such device.
    """

    def __init__(
        self, loader: Loader, convert: Callable[[Batch], Item], device: str | torch.device | None = None
    ) -> None:
        self.loader = loader
        self.batch_size = loader.batch_size
        self.device = None if device is None else usable_device(device)
        self._convert = convert
        self._stream: torch.cuda.Stream | None = None
        # After the batch yielded last, while the loader is a batch ahead; None: the loader's own state.
        self._state: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return len(self.loader)

    @property
    def epoch(self) -> int:
        """The one that is iterated, or comes next."""
        return self.loader.epoch if self._state is None else self._state["epoch"]

    @property
    def sampler(self) -> Batches[Item]:
        """These batches: Lightning and timm's train.py choose the epoch with `loader.sampler.set_epoch`."""
        return self

    batch_sampler = sampler  # Lightning expects both or neither, and DeepSpeed a `batch_size` there

    def set_epoch(self, epoch: int) -> None:
        """See Loader.set_epoch."""
        if not epoch == self.epoch == self.loader.epoch:
            self._state = None
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See Loader.state_dict; one that is ahead does not count what was not yielded yet."""
        return self.loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Loader.load_state_dict."""
        self.loader.load_state_dict(state)
        self._state = None

    def __iter__(self) -> Iterator[Item]:
        self._state = None
        if self.device is None:
            for batch in self.loader:
                yield self._convert(batch)
            return
        for item, state, copied in one_ahead(self._sent(self.device)):
            self._state = state
            if copied is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(copied)
                # The memory belongs to the stream of the copies, which must not reuse it before this one is done.
                map_tensors(item, lambda tensor, stream=stream: used_on(tensor, stream))
            yield item
        self._state = None

    def _sent(self, device: torch.device) -> Iterator[tuple[Item, dict[str, Any], torch.cuda.Event | None]]:
        """Batches whose copy has begun, the state after each, and an event at the end of the copy."""
        if device.type == "cpu":
            for batch in self.loader:
                item = map_tensors(self._convert(batch), lambda tensor: tensor.to(device))
                yield item, self.loader.state_dict(), None
            return
        stream = self._stream = self._stream or torch.cuda.Stream(device)
        for batch in self.loader:
            item = self._convert(batch)
            with torch.cuda.stream(stream):
                item = map_tensors(item, lambda tensor: tensor.to(device, non_blocking=True))
                copied = torch.cuda.Event()
                copied.record(stream)
            yield item, self.loader.state_dict(), copied


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each given after the next one was taken; an error is raised in its turn."""
    problem: Exception | None = None
    waiting: list[Item] = []
    try:
        while True:
            try:
                waiting.append(next(items))
            except StopIteration:
                break
            except Exception as error:
                problem = error
                break
            if len(waiting) > 1:
                yield waiting.pop(0)
        yield from waiting
        if problem is not None:
            raise problem
    finally:
        problem = None  # its traceback holds this frame: a cycle, which would keep the shards open


def on_device(loader: Loader, device: str | torch.device) -> Batches[Batch]:
    """A loader's batches on a device, each copied while the one before it is used.

    Args:
        loader: with `pin_memory=True`, if the device is a GPU.
        device: of the model.

    Raises:
        UsageError: no such device.
    """
    return Batches(loader, lambda batch: batch, device)


def as_dicts(loader: Loader, *, device: str | torch.device | None = None) -> Batches[dict[str, Any]]:
    """A loader's batches as dicts with the names of Batch; `valid` is among them, and no row is left out.

    Args:
        loader: of the batches.
        device: copy them there, each while the one before it is used.
    """
    return Batches(loader, Batch.to_dict, device)


def as_tuples(
    loader: Loader, targets: str = "classes", *, device: str | torch.device | None = None
) -> Batches[tuple[torch.Tensor, torch.Tensor]]:
    """A loader's batches as (images, labels), for loops that know nothing else.

    Such a loop cannot see `valid`, so rows where it is False are left out: with `last_batch="pad"` the last batch of
    an epoch is shorter. With several processes one of them could be left without a row where the others train
    or add up, so that `pad` is refused there.

    Args:
        loader: of the batches.
        targets: what the labels are: `classes` (int64 [N]), `targets` (float32 [N, C]) or `levels` (int64 [N, L],
            -1 where there is no such level).
        device: copy them there, each while the one before it is used.

    Raises:
        UsageError: the loader has no such labels, or pads with several processes.
    """
    if targets not in LABELS:
        raise UsageError(f"as_tuples: expected targets of {', '.join(LABELS)}, found {targets!r}")
    if targets == "targets" and loader.targets == "none":
        raise UsageError(
            "as_tuples: expected a loader with soft targets for targets='targets', found one with targets='none'. "
            "Build it with targets='relabel' or 'original'"
        )
    if targets == "levels" and loader.tree is None:
        raise UsageError(
            f"as_tuples: expected a data set with a label tree for targets='levels', found none in {loader.dataset}. "
            "Give the loader labels=LabelTree.load(...), or use targets='classes'"
        )
    _check_padding("as_tuples", loader)

    def convert(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = _valid_rows(batch)
        return _chosen(batch.images, rows), _chosen(getattr(batch, targets), rows)

    return Batches(loader, convert, device)


def as_webdataset(
    loader: Loader, *components: str, images: str = "torchrgb", device: str | torch.device | None = None
) -> Batches[Any]:
    """What `WebLoader` gives for `WebDataset(tars).decode(images).to_tuple(*components).batched(N)`.

    Images are floats from 0 to 1, or uint8; classes int64 [N]; keys a list. Pixels are those of the loader's decoder
    and of its `augment`: `Augment.evaluation(size)` with the size that is stored leaves them as they are. Rows where
    `valid` is False are left out: `last_batch="pad"` gives the shorter last batch that `batched` gives. There is
    no `with_epoch` or `with_length`: an epoch ends by itself, the same for all processes, and `len` says where.

    Args:
        loader: with `mean=(0, 0, 0)` and `std=(1, 1, 1)`, or `dtype="uint8"`.
        components: `jpg`, `cls` and `__key__` in the order of the tuple; none for dicts of all three.
        images: a format of webdataset's: `torchrgb` or `torchrgb8` (uint8), [N, 3, H, W]; `rgb` or `rgb8`, [N, H, W, 3].
        device: copy them there, each while the one before it is used.

    Raises:
        UsageError: an unknown component or format, a loader that normalises or has another dtype, or one that pads
            with several processes.
    """
    for name in components:
        if name not in COMPONENTS:
            raise UsageError(f"as_webdataset: expected components of {', '.join(COMPONENTS)}, found {name!r}")
    if images not in IMAGE_FORMATS:
        raise UsageError(f"as_webdataset: expected images of {', '.join(IMAGE_FORMATS)}, found {images!r}")
    dtype, channels_first = IMAGE_FORMATS[images]
    if loader.dtype != dtype:
        raise UsageError(
            f"as_webdataset: expected a loader with dtype {dtype!r} for images={images!r}, found {loader.dtype!r}"
        )
    if dtype != "uint8" and (tuple(loader.mean), tuple(loader.std)) != ((0, 0, 0), (1, 1, 1)):
        raise UsageError(
            "as_webdataset: expected a loader whose images are from 0 to 1, found one that normalises. "
            "Build it with mean=(0, 0, 0), std=(1, 1, 1)"
        )
    _check_padding("as_webdataset", loader)

    def convert(batch: Batch) -> Any:
        rows = _valid_rows(batch)
        pixels = batch.images if channels_first else batch.images.permute(0, 2, 3, 1)
        keys = batch.keys if rows is None else [batch.keys[row] for row in rows.tolist()]
        found = {"__key__": keys, "jpg": _chosen(pixels, rows), "cls": _chosen(batch.classes, rows)}
        return tuple(found[name] for name in components) if components else found

    return Batches(loader, convert, device)


def _check_padding(where: str, loader: Loader) -> None:
    if loader.last_batch == "pad" and loader.world_size > 1:
        raise UsageError(
            f"{where}: expected last_batch='drop' with several processes, found 'pad' and world_size "
            f"{loader.world_size}; a process could be left with an empty batch. Use 'drop', or batches with `valid`, or "
            "let every process see all samples (rank=0, world_size=1)"
        )


def _valid_rows(batch: Batch) -> torch.Tensor | None:
    """int64 [M], rows where `valid` is True; None where that is all of them."""
    valid = batch.valid
    if valid.is_cuda:
        # On a stream of its own: a whole training step may be queued on the current one, and this would wait for it.
        with torch.cuda.stream(torch.cuda.Stream(valid.device)):
            valid = valid.cpu()
    return None if bool(valid.all()) else valid.nonzero().flatten()


def _chosen(value: Any, rows: torch.Tensor | None) -> Any:
    """Rows of a tensor, or of each tensor of sparse targets."""
    return value if rows is None else map_tensors(value, lambda tensor: tensor[rows.to(tensor.device)])
