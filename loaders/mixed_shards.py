"""The shards of several data sets, counted one after the other and all with the same columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..shards.index import ShardIndex
from .fetch import Following, OpenShard, Shards
from .fetch_stats import FetchStats, sum_stats
from .source import Source

_MAX_ALIGNED = 256


def all_components(sources: Sequence[Source]) -> tuple[str, ...]:
    """Every component that some data set has, in the order of the first that has it."""
    return tuple(dict.fromkeys(suffix for source in sources for suffix in source.manifest.components))


class MixedShards:
    """The shards of a loader's data sets, opened when needed.

    Data sets may have other components, or the same in another order: each index is rearranged to the columns of
    `all_components`. A component that a data set does not have takes zero bytes there; nothing reads it.

    Args:
        sources: the data sets.
        beside: shards of the first one's numbers, which are fetched and let go with its own: label maps.
    """

    def __init__(self, sources: Sequence[Source], beside: Shards | None = None) -> None:
        self._files = [source.shards for source in sources]
        self._every = self._files if beside is None else [*self._files, beside]
        self._firsts = np.cumsum([0, *(len(source.manifest.shards) for source in sources)])
        self._components = all_components(sources)
        self._aligned: dict[int, tuple[OpenShard, OpenShard]] = {}

    def __getitem__(self, number: int) -> OpenShard:
        """The shard of that number, counted through all data sets.

        Raises:
            DataError: see `ShardFiles`.
        """
        source = int(np.searchsorted(self._firsts, number, side="right")) - 1
        shard = self._files[source][number - int(self._firsts[source])]
        if shard.index.suffixes == self._components:
            return shard
        known = self._aligned.get(number)
        if known is None or known[0] is not shard:  # it was closed and opened again
            while len(self._aligned) >= _MAX_ALIGNED:
                del self._aligned[next(iter(self._aligned))]
            known = self._aligned[number] = shard, replace(shard, index=_align(shard.index, self._components))
        return known[1]

    def expect(
        self, steps: Callable[[], Iterator[Sequence[int]]], following: Following | None = None
    ) -> None:
        """Say which shards each coming step needs, so that they can be fetched ahead.

        Args:
            steps: begins to count the steps, once for each data set: they are fetched side by side.
            following: what comes after them.
        """
        owners = [*range(len(self._files)), 0]
        for i, files in zip(owners, self._every, strict=False):
            own = following
            if following is not None and following.next_steps is not None:
                own = replace(following, next_steps=partial(self._own, i, following.next_steps))
            files.expect(self._own(i, steps), own)

    def _own(self, source: int, steps: Callable[[], Iterator[Sequence[int]]]) -> Iterator[Sequence[int]]:
        """The shards of one data set that each step needs, in its own numbers."""
        first, end = int(self._firsts[source]), int(self._firsts[source + 1])
        return ([number - first for number in numbers if first <= number < end] for numbers in steps())

    def reached(self, step: int) -> None:
        """Say that a step begins; the shards of those before may go."""
        for files in self._every:
            files.reached(step)

    def interrupt(self) -> None:
        """End all waiting, from another thread."""
        for files in self._every:
            files.interrupt()

    def forget(self) -> None:
        """Expect nothing more: fetching ends, and its threads."""
        for files in self._every:
            files.forget()

    def rest(self) -> None:
        """Say that all steps are done: only what follows is fetched on."""
        for files in self._every:
            files.rest()

    def abandon(self) -> None:
        """Let fetching end, and wait for nothing: called where garbage is collected."""
        for files in self._every:
            files.abandon()

    def stats(self) -> FetchStats:
        """What has been fetched, of all data sets together."""
        return sum_stats(files.stats() for files in self._every)

    def close(self) -> None:
        """Forget the open shards."""
        self._aligned.clear()
        for files in self._every:
            files.close()


def _align(index: ShardIndex, components: tuple[str, ...]) -> ShardIndex:
    shape = len(index.keys), len(components)
    offsets, sizes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    columns = [components.index(suffix) for suffix in index.suffixes]
    offsets[:, columns], sizes[:, columns] = index.offsets, index.sizes
    return ShardIndex(components, index.keys, offsets, sizes)
