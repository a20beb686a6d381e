"""The shards of several data sets, counted one after the other and all with the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..shards.index import ShardIndex
from .fetch import OpenShard, ShardFiles
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
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._files = [ShardFiles(source.dataset, source.manifest) for source in sources]
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

    def close(self) -> None:
        """Forget the open shards."""
        self._aligned.clear()
        for files in self._files:
            files.close()


def _align(index: ShardIndex, components: tuple[str, ...]) -> ShardIndex:
    shape = len(index.keys), len(components)
    offsets, sizes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    columns = [components.index(suffix) for suffix in index.suffixes]
    offsets[:, columns], sizes[:, columns] = index.offsets, index.sizes
    return ShardIndex(components, index.keys, offsets, sizes)
