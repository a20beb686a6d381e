"""The cache: shards of remote data sets in a folder of this host, shared by all processes that use it.

One file a shard, named by its content (the manifest's SHA-256): a shard that has changed has another name, so that
nothing stale is ever served. Everything between processes is the kernel's `flock`, which ends with a process however
it dies:

    <key>.tar         shared lock = in use (pinned): held by whoever has it open, for as long as it is open
    <key>.tar.part    exclusive lock = being downloaded; the others wait, and take over if its holder dies
    <key>.idx         the shard's index; comes and goes with it
    .lock             exclusive lock = room is being made: counted, evicted, reserved

Room is reserved before a download begins, in full size, so that the budget holds for what is under way too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..shards.errors import StorageError, UsageError
from ..shards.files import TEMPORARY_SUFFIX, write_atomically
from .cache_files import is_at, is_shard, may_go, try_lock
from .fetch_stats import FetchCounters
from .stop_flag import StopFlag

T = TypeVar("T")

GIB = 1024**3
VERIFY = ("once", "always", "size")
DEFAULT_MAX_BYTES = 64 * GIB
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RESERVING = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_POLL_S = 0.05  # for another process's download
_NO_ROOM_POLL_S = 0.2


class Stopped(GeneratorExit):
    """The iteration that wanted a shard has ended. Generators treat it as their own end; nobody's fault."""


class NotWanted(Exception):
    """The steps that would have used a shard have gone by while it waited for room."""


class DiskFullError(StorageError):
    """There is no room on the cache's disk, and nothing more to evict.

    Attributes:
        may_pass: whether other shards are in the folder, in use when room was looked for: they may be let go soon.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


@dataclass(frozen=True)
class Cache:
    """Where shards of remote data sets are kept, and how they are fetched.

    Attributes:
        folder: on a local disk. None is `$SOFTSHARD_CACHE`, or `$XDG_CACHE_HOME/softshard`, or
            `~/.cache/softshard`. All processes of a host that name one folder share its shards.
        max_bytes: the folder's budget; shards that nobody uses go, the least recently used first. None is 64 GiB,
            or half of what the disk has free where that is less.
        num_fetchers: shards that are downloaded at a time.
        ahead: shards that are fetched before a batch needs them, and kept until then.
        deadline_s: seconds without a byte of progress, retries included, after which a shard cannot be had.
        verify: what is done about a shard that was in the cache already, where its bytes may have changed on the disk.
            `once` hashes it when a loader first uses it, ahead of need; `always` whenever it is opened, so in every
            epoch; `size` looks at its length only. One that is wrong is thrown away, counted (`damaged`), and fetched
            again. What is downloaded is always hashed.
    """

    folder: str | Path | None = None
    max_bytes: int | None = None
    num_fetchers: int = 8
    ahead: int = 16
    deadline_s: float = 120.0
    verify: str = "once"

    def __post_init__(self) -> None:
        if self.num_fetchers < 1 or self.ahead < 0 or not self.deadline_s > 0:
            raise UsageError(
                "cache: expected num_fetchers from 1, ahead from 0 and a deadline_s above 0, found "
                f"{self.num_fetchers}, {self.ahead} and {self.deadline_s}"
            )
        if self.verify not in VERIFY:
            raise UsageError(f"cache: expected verify of {', '.join(VERIFY)}, found {self.verify!r}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UsageError(f"cache: expected max_bytes from 1, found {self.max_bytes}")

    @property
    def path(self) -> Path:
        """The folder, chosen."""
        if self.folder is not None:
            return Path(self.folder)
        if chosen := os.environ.get("SOFTSHARD_CACHE"):
            return Path(chosen)
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return Path(base) / "softshard"


class CacheFolder:
    """The files of a cache.

    Args:
        cache: where, and how large.
        counters: of evictions.

    Raises:
        UsageError: the folder cannot be made or written.
    """

    def __init__(self, cache: Cache, counters: FetchCounters) -> None:
        self.folder = cache.path / "shards"
        self._counters = counters
        try:
            with self._locked():
                held = sum(size for _, size, _ in self._entries())
        except OSError as error:
            raise UsageError(
                f"{cache.path}: expected a folder for the cache, which can be written: {error.strerror}. Give "
                "Cache(folder=...), or set SOFTSHARD_CACHE"
            ) from error
        free = shutil.disk_usage(self.folder).free
        self.max_bytes = cache.max_bytes or min(DEFAULT_MAX_BYTES, (free + held) // 2)

    def open(self, name: str, num_bytes: int) -> int | None:
        """A file of the cache, pinned: it stays until the descriptor, all its copies and all mappings made of it are gone.

        Returns:
            A descriptor; None where the file is not there, or is not `num_bytes` long and was removed.
        """
        path = self.folder / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            is_whole = False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if not is_at(descriptor, path):  # evicted between the two calls
                    continue
                if os.fstat(descriptor).st_size != num_bytes:
                    self.discard(name, descriptor)
                    return None
                is_whole = True
                with suppress(OSError):  # another user's file
                    os.utime(descriptor)
                return descriptor
            finally:
                if not is_whole:
                    os.close(descriptor)

    def fetch(
        self,
        name: str,
        num_bytes: int,
        fill: Callable[[int], object],
        *,
        urgent: Callable[[], bool],
        wanted: Callable[[], bool] = lambda: True,
        stopped: StopFlag,
    ) -> int:
        """A file of the cache, pinned; made where it is not there, by one process while the others wait.

        Args:
            name: of the file.
            num_bytes: its length.
            fill: writes the file through a descriptor; raises unless it is whole and right.
            urgent: whether a batch waits for the file. If not, it waits for room until others let theirs go.
            wanted: whether it is needed at all; asked while it waits.
            stopped: ends the waiting.

        Raises:
            Stopped: it was ended.
            NotWanted: it is not needed any more.
            DiskFullError: the disk is full.
        """
        while not stopped.is_set():
            if not wanted():
                raise NotWanted
            found = self.open(name, num_bytes)
            if found is None:
                found = self._make(self.folder / name, num_bytes, fill, urgent, stopped)
            if found is not None:
                return found
        raise Stopped

    def _make(
        self,
        path: Path,
        num_bytes: int,
        fill: Callable[[int], object],
        urgent: Callable[[], bool],
        stopped: StopFlag,
    ) -> int | None:
        """Make a file that is not there, and pin it; None, maybe after a pause, where it must be looked for again."""
        part = path.with_name(path.name + TEMPORARY_SUFFIX)
        descriptor = self._with_room(num_bytes, lambda: self._open_part(part))
        is_mine = is_made = False
        try:
            if not try_lock(descriptor):
                stopped.wait(_POLL_S)
                return None
            is_mine = is_at(descriptor, part)  # else it was finished, or given up, since it was opened
            if not is_mine or path.exists():
                return None
            if not self._reserve(descriptor, num_bytes, part, urgent):
                part.unlink(missing_ok=True)
                stopped.wait(_NO_ROOM_POLL_S)
                return None
            fill(descriptor)
            os.fsync(descriptor)  # a power cut must not leave a file of the right name and wrong bytes
            with self._locked():
                # Who emptied the cache meanwhile took the file along, and another process may have begun anew.
                if is_at(descriptor, part):
                    os.replace(part, path)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    is_made = True
            return descriptor if is_made else None
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if is_mine and is_at(
                descriptor, part
            ):  # before it is said what is free, and who might let go something
                part.unlink(missing_ok=True)
            raise self._disk_full(num_bytes) from error
        finally:
            if is_mine and not is_made and is_at(descriptor, part):
                part.unlink(missing_ok=True)
            if not is_made:
                os.close(descriptor)

    def _open_part(self, part: Path) -> int:
        self._make_folder()
        return os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def discard(self, name: str, descriptor: int) -> None:
        """Remove a file that is open and wrong, unless another one has taken its name."""

        def remove() -> None:
            with self._locked():
                if is_at(descriptor, self.folder / name):
                    (self.folder / name).unlink(missing_ok=True)

        self._with_room(1, remove)  # for the lock

    def read(self, name: str) -> bytes | None:
        """A small file of the cache; None where it is not there, or cannot be read."""
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file.

        Raises:
            DiskFullError: the disk is full.
        """

        def put() -> None:
            self._make_folder()
            write_atomically(self.folder / name, data)

        self._with_room(len(data), put)

    def used(self, name: str) -> None:
        """Say that a file was in use until now; what was used least recently goes first."""
        with suppress(OSError):
            os.utime(self.folder / name)

    def _with_room(self, num_bytes: int, make: Callable[[], T]) -> T:
        """What `make` gives; while the disk is full, evict what nobody uses, one by one.

        Raises:
            DiskFullError: the disk is full.
        """
        while True:
            try:
                return make()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if not self._evict_one():
                    raise self._disk_full(num_bytes) from error

    def _disk_full(self, num_bytes: int) -> DiskFullError:
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        return DiskFullError(
            f"{self.folder}: expected room for {num_bytes:,} bytes, found {shutil.disk_usage(there).free:,} bytes free, and "
            "nothing in the cache that is not in use; the disk is full, or a quota is. Make room "
            "there, or give Cache(folder=...) on another disk",
            may_pass=there == self.folder and any(is_shard(path) for _, _, path in self._entries()),
        )

    def _make_folder(self) -> None:
        """Also later on: somebody may have emptied the cache."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._make_folder()
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:  # not left to closing it: a process forked meanwhile has the file open, and would keep the lock
                fcntl.flock(file, fcntl.LOCK_UN)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file, the least recently used first."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.name != ".lock":
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return sorted(found)

    def _reserve(self, descriptor: int, num_bytes: int, part: Path, urgent: Callable[[], bool]) -> bool:
        """Make room for a download and take it; False where there is none and nobody waits for it."""
        with self._locked():
            entries = [entry for entry in self._entries() if entry[2] != part]
            total = sum(size for _, size, _ in entries)
            left = iter([entry for entry in entries if may_go(entry[2], entry[0])])
            while total + num_bytes > self.max_bytes and (entry := next(left, None)) is not None:
                total -= self._evict(entry[2], entry[1])
            if total + num_bytes > self.max_bytes:
                # Two runs that pin all of the budget would wait for each other for ever.
                if not urgent():
                    return False
                self._counters.add(over_budget=1)
            while True:
                try:
                    os.posix_fallocate(descriptor, 0, num_bytes)
                    return True
                except OSError as error:
                    if error.errno in _NO_RESERVING:
                        os.ftruncate(descriptor, num_bytes)
                        return True
                    if error.errno not in _FULL:
                        raise
                    os.ftruncate(descriptor, 0)
                    if not any(self._evict(path, size) for _, size, path in left):
                        if not urgent():
                            return False
                        raise

    def _evict_one(self) -> bool:
        """Remove the file that was used least recently, of those that nobody uses; False where there is none."""
        try:
            with self._locked():
                return any(
                    self._evict(path, size) for used, size, path in self._entries() if may_go(path, used)
                )
        except OSError as error:  # there is not even room for the lock
            if error.errno not in _FULL:
                raise
            return False

    def _evict(self, path: Path, num_bytes: int) -> int:
        """Remove a file that nobody uses, or downloads; returns the bytes that this frees."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # gone, or another user's
            return 0
        try:
            if not try_lock(descriptor):
                return 0
            path.unlink()
            if path.suffix == ".tar":
                path.with_suffix(".idx").unlink(missing_ok=True)
                self._counters.add(evictions=1)
            return num_bytes
        except OSError:
            return 0
        finally:
            os.close(descriptor)
