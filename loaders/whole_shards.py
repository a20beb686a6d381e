"""Whole shards, one after the other: for what looks at every sample of a data set, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..shards.reader import Sample
from .fetch import OpenShard, Shards


def in_order(shards: Shards, numbers: Sequence[int]) -> Iterator[OpenShard]:
    """Open shards one by one; remote ones are fetched ahead, and may leave the cache when the next one is asked for.

    Args:
        shards: of a data set. Nothing else may iterate over them meanwhile.
        numbers: which, in which order.

    Raises:
        DataError: a shard is missing or damaged, or its server is away.
    """
    shards.expect(iter([[number] for number in numbers]))
    try:
        for step, number in enumerate(numbers):
            shards.reached(step)
            yield shards[number]
    finally:
        shards.forget()


def samples_of(shard: OpenShard) -> Iterator[Sample]:
    """The samples of an open shard, where its index says that they lie."""
    for place, key in enumerate(shard.index.keys):
        members = zip(shard.index.suffixes, shard.members(place), strict=True)
        yield Sample(key, {suffix: bytes(member) for suffix, member in members})
