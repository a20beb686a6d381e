"""Makes any batch of one recipe: a Loader that is asked for single batches instead of being iterated.

One thread makes them, in the order in which they were asked for; each is begun while the one before it is finished, as in
a loader. Nothing is kept between two batches that decides a third: which server makes which is all one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..shards.errors import SoftshardError, UsageError
from .batch import Batch
from .batch_buffers import BatchBuffers
from .decode import Buffers
from .faults import BadSample, Faults
from .fetch import ShardFiles
from .loader import Loader
from .order import Order
from .pipeline import Step
from .service_ahead import EpochAhead
from .service_memory import Handle, SegmentStore, SharedBuffers
from .service_protocol import UNKNOWN_RECIPE, Refusal
from .service_wire import encode_batch

CLOSE_PATIENCE_S = 10.0  # for a batch that is under way
_ORDERS_KEPT = 4  # epochs whose order stays in memory: trainers of a sweep are not far apart

_LABEL_BYTES = 4096  # of a sample: key, class, levels and so on, without its targets

logger = logging.getLogger("softshard.service")


@dataclass(frozen=True)
class Place:
    """Which batch of a recipe."""

    epoch: int
    taken: int
    rank: int


class Made:
    """A batch as it is sent.

    Args:
        rows: of `encode_batch`.
        images: real samples in it.
        num_bad: of its own samples that could not be read.
    """

    def __init__(self, rows: pa.RecordBatch, images: int, num_bad: int) -> None:
        self.rows, self.images, self.num_bad = rows, images, num_bad
        self.num_bytes = rows.get_total_buffer_size()
        self._lock = threading.Lock()
        self._handle: Handle | None = None

    def handle(self, store: SegmentStore) -> Handle | None:
        """Where the same is in shared memory, put there when it is first asked for; None where there is no room."""
        with self._lock:
            if self._handle is None and (put := store.put(self.rows)) is not None:
                self._handle, self.rows = put  # the same bytes: one copy is enough
            return self._handle


class PlaceLoader(Loader):
    """A loader that makes the batches it is asked for; one thread at a time.

    Args:
        dataset: as a Loader's.
        segments: where batches are made that clients may read in shared memory.
        options: a Loader's, of rank 0.
    """

    def __init__(self, dataset: Any, segments: SegmentStore, **options: Any) -> None:
        self.target_bytes = 0  # of a batch; known once there is a loader
        self._segments = segments
        # How much bad data is put up with is the client's to say; the server reports what it meets.
        super().__init__(dataset, **options, rank=0, last_batch="pad", faults=Faults(max_bad=1.0))
        self._orders: OrderedDict[int, Order] = OrderedDict()
        self._ahead = None
        if not all(isinstance(part.shards, ShardFiles) for part in self.source.parts):
            plan = replace(self._plan, rank=0, world_size=1, last_batch="pad")
            self._ahead = EpochAhead(self._maker.reader, plan)

    def _make_buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> Buffers:
        if self.augment.changes_pixels:  # what is decoded is not what is sent
            return BatchBuffers(shape, dtype)
        rest_bytes = self.batch_size * _LABEL_BYTES + self.target_bytes
        return SharedBuffers(self._segments, rest_bytes, shape, dtype)

    @property
    def longest_lane(self) -> int:
        """Draws of the longest lane in an epoch."""
        return -(-self.num_samples // self.lanes)

    def made(self, places: Iterable[Place]) -> Iterator[tuple[Batch, list[BadSample]]]:
        """Each place's batch, in turn, and its own samples that could not be read.

        Raises:
            DataError: see BatchRun.batches.
        """
        steps: deque[Step] = deque()

        def each() -> Iterator[Step]:
            for place in places:
                if self._ahead is not None:
                    self._ahead.asked(place.epoch, place.taken)
                steps.append(self._step(place))
                yield steps[-1]

        for batch in self._run.batches(each()):
            yield batch, self._bad_of(steps.popleft(), batch)

    def _step(self, place: Place) -> Step:
        return Step.of(
            self._order(place.epoch),
            self.global_batch,
            place.taken,
            place.rank,
            self.world_size,
            number=-(-place.taken // self._per_lane),
            epoch=place.epoch,
        )

    def _order(self, epoch: int) -> Order:
        if epoch not in self._orders:
            self._orders[epoch] = self._plan.order(epoch)
            while len(self._orders) > _ORDERS_KEPT:
                self._orders.popitem(last=False)
        self._orders.move_to_end(epoch)
        return self._orders[epoch]

    def _bad_of(self, step: Step, batch: Batch) -> list[BadSample]:
        lost = np.flatnonzero((step.draws.samples >= 0) & ~batch.valid.cpu().numpy())
        return [self._quarantine[int(step.draws.samples[slot])] for slot in lost]

    def check(self, place: Place) -> None:
        """Refuse a place that there is not.

        Raises:
            UsageError: saying how far an epoch goes.
        """
        if place.taken >= self.longest_lane or place.rank >= self.world_size:
            raise UsageError(
                f"{self.dataset}: expected below {self.longest_lane:,} samples taken of a lane, and a rank below "
                f"{self.world_size}, found {place.taken:,} and {place.rank}"
            )


class RecipeMaker:
    """Makes the batches of one recipe in a thread.

    Args:
        loader: of the recipe; closed with this.
    """

    def __init__(self, loader: PlaceLoader) -> None:
        self.loader = loader
        self._wake = threading.Condition()
        self._asked: deque[tuple[Place, Future[Made]]] = deque()
        self._closed = self._ended = self._is_left = False
        self._thread = threading.Thread(target=self._work, name="softshard-serve", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Batches that were asked for and not begun."""
        return len(self._asked)

    def submit(self, place: Place) -> Future[Made]:
        """Begin to make a batch; returns at once. A future that is cancelled before its turn costs nothing.

        Raises:
            Refusal: the recipe was closed.
        """
        future: Future[Made] = Future()
        with self._wake:
            if self._closed:
                raise Refusal(UNKNOWN_RECIPE, "expected an open recipe, found one that was closed")
            self._asked.append((place, future))
            self._wake.notify()
        return future

    def _next(self) -> tuple[Place, Future[Made]] | None:
        """What is to be made next; None where nothing is asked for."""
        with self._wake:
            while self._asked and not self._closed:
                place, future = self._asked.popleft()
                if future.running() or future.set_running_or_notify_cancel():
                    return place, future
            return None

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    break
            begun: deque[tuple[Place, Future[Made]]] = deque()
            try:
                for batch, bad in self._made(begun):
                    made = _sent(batch, bad)
                    begun.popleft()[1].set_result(made)
                    del batch, made  # the memory of a batch is used again when nobody refers to it
            except BaseException as error:
                if not isinstance(error, SoftshardError):
                    logger.exception("a batch could not be made")
                if begun:  # the first is the one that failed, those after it were lost with the decoder
                    begun.popleft()[1].set_exception(error)
                with self._wake:
                    self._asked.extendleft(reversed(begun))
                begun.clear()
        with self._wake:
            left, self._asked = list(self._asked), deque()
            self._ended, closes = True, self._is_left
        for _, future in left:
            if not future.cancel():  # it was begun, and lost with the decoder
                future.set_exception(CancelledError())
        if closes:
            self.loader.close()

    def _made(self, begun: deque[tuple[Place, Future[Made]]]) -> Iterator[tuple[Batch, list[BadSample]]]:
        """Batches as long as some are asked for; what is begun and not yet given stands in `begun`."""

        def places() -> Iterator[Place]:
            while (asked := self._next()) is not None:
                begun.append(asked)
                yield asked[0]

        yield from self.loader.made(places())

    def stop(self) -> None:
        """Begin nothing more; returns at once. Whoever waits for what was not begun gets a CancelledError."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def close(self, patience_s: float = CLOSE_PATIENCE_S) -> bool:
        """Stop after the batches that are under way, and let the shards go; whether they were done in time.

        Args:
            patience_s: seconds for what is under way, such as a read from a storage that hangs; what takes longer is left
                to the thread, which lets the shards go when it is done.
        """
        self.stop()
        self._thread.join(patience_s)
        with self._wake:
            if not self._ended:
                self._is_left = True
                logger.warning("a batch of %s takes longer than the end may", self.loader.dataset)
                return False
        self._thread.join()
        self.loader.close()
        return True


def _sent(batch: Batch, bad: list[BadSample]) -> Made:
    if batch.images.device.type != "cpu":
        batch = batch.to(torch.device("cpu"))
    return Made(encode_batch(batch, bad), len(batch) - batch.keys.count(""), len(bad))
