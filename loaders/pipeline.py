"""Makes a run of batches, each begun a step ahead: its images are decoded while the batch before is finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from ..shards.errors import DataError
from .batch import Batch
from .decode import Decoder
from .make_batch import BatchMaker, BegunBatch
from .order import Draws


def make_batches(maker: BatchMaker, decoder: Decoder, steps: Iterable[Draws], epoch: int) -> Iterator[Batch]:
    """The batches of some steps, in turn.

    Args:
        maker: of the loader.
        decoder: of the images; the caller's to close.
        steps: what each of them serves.
        epoch: of the crops and flips.

    Raises:
        DataError: of the first step whose samples cannot be read, after the batches before it.
    """
    begun: deque[BegunBatch] = deque()
    problem: DataError | None = None
    try:
        for draws in steps:
            try:
                begun.append(maker.begin(draws, epoch, decoder))
            except DataError as error:
                problem = error  # raised in its turn: the step before it is whole
                break
            if len(begun) > 1:
                yield maker.finish(begun.popleft(), decoder)
        while begun:
            yield maker.finish(begun.popleft(), decoder)
        if problem is not None:
            raise problem
    finally:
        problem = None  # its traceback holds this frame: a cycle, which would keep the shards open
