"""What fetching shards has cost so far: counted in many threads, read as one frozen record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .counters import Counters, total


@dataclass(frozen=True)
class FetchStats:
    """What a loader has fetched since it was built; all zero for a local folder, which is read in place.

    Attributes:
        requests: ranges and small files that were asked for, retries included. What a file system of fsspec repeats
            by itself is not seen here.
        retries: requests that repeated one without an answer.
        bytes_fetched: bytes of shards and indexes that came, also those of a damaged download.
        shards_fetched: shards that were downloaded by this process.
        cache_hits: shards that were in the cache, or came there by another process of this host.
        fetched_again: of these, the ones that the same iteration had fetched before: the cache is too small.
        fetched_in_vain: shards that were fetched for the next epoch, which then was not the next one. They stay in the
            cache for as long as there is room.
        damaged: downloads, and shards in the cache, that were thrown away because they were not the manifest's bytes.
        evictions: shards that this process removed from the cache to make room.
        over_budget: shards that were let in beyond the budget, because a batch waited for them and everything else
            was in use.
        waited_s: seconds that batches waited for shards.
    """

    requests: int = 0
    retries: int = 0
    bytes_fetched: int = 0
    shards_fetched: int = 0
    cache_hits: int = 0
    fetched_again: int = 0
    fetched_in_vain: int = 0
    damaged: int = 0
    evictions: int = 0
    over_budget: int = 0
    waited_s: float = 0.0


class FetchCounters(Counters[FetchStats]):
    """FetchStats that grow; for several threads."""

    def __init__(self) -> None:
        super().__init__(FetchStats())


def sum_stats(parts: Iterable[FetchStats]) -> FetchStats:
    """Counts of several data sets together."""
    return total(FetchStats(), parts)
