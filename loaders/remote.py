"""The shards of a remote data set: fetched whole into the cache, checked, and opened."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.files import join_url, sha256_hex
from ..shards.index import ShardIndex, build_index, format_index, index_name, tar_members
from ..shards.manifest import Manifest
from ..shards.storage import public_name
from .ahead import FetchAhead
from .cache import Cache, CacheFolder, DiskFullError
from .download import Downloads
from .fetch import Following, OpenShard, ShardBytes, Shards, ShardUrl, checked_index
from .fetch_stats import FetchCounters, FetchStats
from .stop_flag import StopFlag

_MAX_INDEX_FIELD_BYTES = 160  # of a component, as in shard_files

logger = logging.getLogger("softshard.loaders")


class RemoteShards(Shards):
    """The shards of a data set behind a URL; see Shards.

    Args:
        url: of the data set.
        manifest: its manifest.
        cache: where shards are kept.
    """

    def __init__(self, url: str, manifest: Manifest, cache: Cache) -> None:
        self._url, self._manifest, self._cache = url, manifest, cache
        self.counters = FetchCounters()
        self._warned = self._unkept_warned = False
        self._folder = CacheFolder(cache, self.counters)
        self._run: FetchAhead | None = None
        self._rests = False  # between two iterations
        self._verified: set[tuple[int, int, int]] = set()  # shards, and the device and inode of their files

    def expect(self, steps: Iterator[Sequence[int]], following: Following | None = None) -> None:
        run, rests = self._run, self._rests
        if run is not None and rests and following is not None and run.continues_with(following.begins):
            self._rests = False
            run.go_on(following)
            return
        self.forget()
        self._run, self._rests = FetchAhead(self, steps, self._cache, following), False

    def reached(self, step: int) -> None:
        if self._run is not None:
            self._run.reached(step)

    def __getitem__(self, number: int) -> OpenShard:
        if self._run is None:
            raise UsageError("loader: expected an iteration that fetches shards, found none")
        if (shard := self._run.opened(number)) is not None:  # once a sample: no clock, no lock
            return shard
        start = time.monotonic()
        try:
            return self._run.get(number)
        finally:
            self.counters.add(waited_s=time.monotonic() - start)

    def interrupt(self) -> None:
        if (run := self._run) is not None and not self._rests:
            run.interrupt()

    def abandon(self) -> None:
        if (run := self._run) is not None:
            run.interrupt()

    def rest(self) -> None:
        if self._run is not None and self._run.has_more:
            self._rests = True
        else:
            self.forget()

    def forget(self) -> None:
        if self._run is not None:
            self.counters.add(fetched_in_vain=self._run.close())
            self._run = None

    def stats(self) -> FetchStats:
        return self.counters.stats()

    def close(self) -> None:
        self.forget()

    def downloads(self, stopped: StopFlag) -> Downloads:
        """What fetches for one iteration, in the process that iterates."""
        return Downloads(
            self._url, deadline_s=self._cache.deadline_s, stopped=stopped, counters=self.counters
        )

    def name(self, number: int) -> str:
        """A shard's name, for messages."""
        return self._manifest.shards[number].name

    def size(self, number: int) -> int:
        """Bytes of a shard."""
        return self._manifest.shards[number].bytes

    @property
    def max_bytes(self) -> int:
        """The cache's budget."""
        return self._folder.max_bytes

    def open(
        self, number: int, downloads: Downloads, *, urgent: Callable[[], bool], wanted: Callable[[], bool]
    ) -> tuple[OpenShard, bool]:
        """Have a shard in the cache, checked, and open it.

        Args:
            number: of the shard.
            downloads: fetch what is not there.
            urgent: whether a batch waits for it.
            wanted: whether one needs it at all.

        Returns:
            The shard, and whether it was downloaded for this.
        """
        descriptor, fetched = self.pinned(number, downloads, urgent=urgent, wanted=wanted)
        try:
            self.counters.add(**{"shards_fetched" if fetched else "cache_hits": 1})
            index, classes = self._index(number, descriptor, downloads)
            return OpenShard(self._shard_url(number), ShardBytes(descriptor), index, classes), fetched
        finally:
            os.close(descriptor)

    def pinned(
        self, number: int, downloads: Downloads, *, urgent: Callable[[], bool], wanted: Callable[[], bool]
    ) -> tuple[int, bool]:
        """A descriptor of a shard in the cache, and whether it was downloaded for this; see `open`."""
        record, url = self._manifest.shards[number], self._shard_url(number)
        fetched = False

        def fill(descriptor: int) -> None:
            nonlocal fetched
            for last in (False, True):
                try:
                    found = downloads.whole(record.name, record.bytes, descriptor)
                except FileNotFoundError:
                    raise DataError(
                        f"{url}: expected the shard, which the data set has by its manifest or listing, found none. "
                        "Copy it there again"
                    ) from None
                if self._is_right(number, found):
                    fetched = True
                    return
                self.counters.add(damaged=1)
                if last:
                    raise DataError(
                        f"{url}: expected SHA-256 {record.sha256[:12]}, found {found[:12]}, twice; the shard is not the "
                        f"manifest's, or damaged. Run: softshard verify {url}"
                    )

        name = f"{self._key(number)}.tar"
        while True:
            descriptor = self._folder.fetch(
                name, record.bytes, fill, urgent=urgent, wanted=wanted, stopped=downloads.stopped
            )
            try:
                if self._is_trusted(number, descriptor, downloads, fetched=fetched):
                    return descriptor, fetched
                self._folder.discard(name, descriptor)
                self.counters.add(damaged=1)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_trusted(self, number: int, descriptor: int, downloads: Downloads, *, fetched: bool) -> bool:
        """Whether a file of the cache has the manifest's bytes, as far as `Cache.verify` asks for that."""
        status = os.fstat(descriptor)
        file = number, status.st_dev, status.st_ino
        sha256 = self._known_sha256(number)
        if not fetched and self._cache.verify != "size" and sha256 is not None:
            if self._cache.verify == "once" and file in self._verified:
                return True
            if ShardBytes(descriptor).sha256(downloads.check_stopped) != sha256:
                return False
        self._verified.add(file)
        return True

    def _known_sha256(self, number: int) -> str | None:
        """Of a shard; None where nobody knows it."""
        return self._manifest.shards[number].sha256

    def _shard_url(self, number: int) -> ShardUrl:
        return ShardUrl(public_name(join_url(self._url, self._manifest.shards[number].name)))

    def _key(self, number: int) -> str:
        """What names a shard's content."""
        return self._manifest.shards[number].sha256

    def _is_right(self, number: int, sha256: str) -> bool:
        """Whether a download has the bytes that it should have."""
        return sha256 == self._manifest.shards[number].sha256

    def _index(
        self, number: int, descriptor: int, downloads: Downloads
    ) -> tuple[ShardIndex, np.ndarray | None]:
        """An open shard's index, and its samples' classes where the tar does not say them."""
        record = self._manifest.shards[number]
        run = f"Run: softshard verify {self._shard_url(number)}"
        return checked_index(
            self._index_text(number, descriptor, downloads), record, self._manifest.components, run
        ), None

    def _index_text(self, number: int, descriptor: int, downloads: Downloads) -> bytes:
        """The text of an open shard's index: from the cache, fetched, or made from the tar."""
        record = self._manifest.shards[number]
        name = f"{record.sha256}.idx"
        if (text := self._folder.read(name)) is not None and sha256_hex(text) == record.index_sha256:
            return text
        limit = 32 + record.samples * len(self._manifest.components) * _MAX_INDEX_FIELD_BYTES
        try:
            text = downloads.small(index_name(record.name), limit)
        except FileNotFoundError:
            with os.fdopen(os.dup(descriptor), "rb") as file:
                members = list(tar_members(file, record.name))
            text = format_index(build_index(members, record.name)).encode("ascii")
        if sha256_hex(text) == record.index_sha256:
            try:
                self._folder.write(name, text)
            except (OSError, DiskFullError) as error:  # not kept, it costs a request the next time, no more
                if not self._unkept_warned:
                    self._unkept_warned = True
                    logger.warning("indexes of shards are not kept, and fetched each time: %s", error)
        return text

    def fetched_again(self) -> None:
        """Count a shard that an iteration fetches for the second time, and warn of the first one."""
        self.counters.add(fetched_again=1)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"cache: shards of {public_name(self._url)} are fetched again in the same epoch; {self._folder.folder} "
                f"with {self.max_bytes:,} bytes is too small for the shuffle window, or for all runs that share it. "
                "Use a larger Cache(max_bytes=...), or a smaller window",
                stacklevel=2,
            )

    def used(self, number: int) -> None:
        """Say that a shard was in use until now."""
        self._folder.used(f"{self._key(number)}.tar")
