"""Where shards are written: a local folder, or a prefix of a bucket behind any fsspec URL.

Nothing half-written is ever seen under its final name. Locally a file is written under a temporary name, flushed
and renamed; in a bucket it is one PUT or a multipart upload, which appears when it is complete. (An upload that
is killed leaves parts that no reader sees but a bucket's owner pays for: a lifecycle rule that aborts incomplete
multipart uploads removes them.) A shard bound for a bucket is staged in an unnamed file in the folder for
temporary files (`TMPDIR`), which goes with the process, and uploaded from there, so that memory holds no shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .errors import UsageError, naming
from .files import LOCK_NAME, TEMPORARY_SUFFIX, hold_folder, split_url, write_atomically
from .retries import http_status, patiently
from .schema import LISTING_NAME, PLAN_NAME
from .staged_files import RenamedFile, StagedFile, UploadedFile
from .storage import LocalStorage, RemoteStorage, open_storage, public_name, read_at_most, within_limit

# A file appears there when it is whole; elsewhere (sftp, hdfs, smb) it grows under its own name.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "r2", "memory")
_PRECONDITION_FAILED = 412  # the status of a write that was to make a file anew

T = TypeVar("T")


class Destination(Protocol):
    """A folder to write to. It can be sent to another process."""

    name: str  # as messages name it: without user, password and query
    base: str  # its last part
    remote: bool

    def folder(self, name: str) -> Destination:
        """A folder below this one."""
        ...

    def at(self, name: str) -> str:
        """The path or URL of a file in the folder, which `ShardWriter` and others open."""
        ...

    def make(self) -> None:
        """Make the folder where it is missing; a bucket needs none."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """A context that keeps other runs out. A bucket has no locks: there `create` of the plan decides."""
        ...

    def sizes(self) -> dict[str, int]:
        """Name and bytes of the files right in the folder; hidden ones and those of other runs too."""
        ...

    def foreign(self) -> list[str]:
        """Names in the folder that no run leaves behind before it has a plan, in lexical order."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it is larger than `limit` bytes, or the store is away.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, over one that was there."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it is there; returns whether the file is now this one.

        Where the store knows conditional writes, all runs at the same moment find the same file afterwards.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        ...

    def stage(self, name: str) -> StagedFile:
        """A file to write that gets its name later."""
        ...

    def remove_leftovers(self) -> None:
        """Remove temporary files of runs that were killed, here and in the folders below."""
        ...


def open_destination(where: str | Path | Destination) -> Destination:
    """The destination that a path or URL names; nothing is made or read yet.

    Raises:
        UsageError: fsspec does not know the protocol, or cannot write with it.
        MissingExtraError: its package is not installed.
    """
    if not isinstance(where, (str, Path)):
        return where
    storage = open_storage(where)
    if isinstance(storage, LocalStorage):
        return LocalDestination(Path(storage.root))
    protocol = str(where).partition("://")[0].lower()
    if protocol not in _OBJECT_STORES:
        raise UsageError(
            f"{storage.name}: expected a folder or a bucket to write to (protocols {', '.join(_OBJECT_STORES)}), found "
            f"{protocol!r}, where a file is seen before it is whole or which is only read from. Write to one of those, "
            "and copy the finished folder"
        )
    return RemoteDestination(str(where))


def write_file(path: str | Path, data: bytes) -> None:
    """Write a small file to a path or any fsspec URL; it appears whole, in a folder that is made where it is missing.

    Raises:
        UsageError: see `open_destination`; or a file stands where the folder should be.
    """
    folder, name = split_url(path)
    target = open_destination(folder)
    try:
        target.make()
    except UsageError as error:
        raise UsageError(f"{public_name(str(path))}: cannot be written: {error}") from None
    target.write(name, data)


class LocalDestination:
    """A local folder (or one that all machines of a cluster share)."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.base = path.resolve().name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalDestination) and self.path == other.path

    def folder(self, name: str) -> LocalDestination:
        return LocalDestination(self.path / name)

    def at(self, name: str) -> str:
        return str(self.path / name)

    def _check_no_file(self) -> None:
        if self.path.is_file():
            raise UsageError(f"{self.name}: expected a folder, found a file")
        if self.path.is_symlink() and not self.path.exists():
            raise UsageError(
                f"{self.name}: expected a folder, found a link to {os.readlink(self.path)!r}, which is not there. Make "
                "that folder, or remove the link"
            )

    def make(self) -> None:
        self._check_no_file()
        self.path.mkdir(parents=True, exist_ok=True)

    def hold(self) -> AbstractContextManager[None]:
        return hold_folder(self.path)

    def sizes(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def foreign(self) -> list[str]:
        self._check_no_file()
        try:
            return sorted(name for name in os.listdir(self.path) if not _is_early(name))
        except FileNotFoundError:
            return []

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str, limit: int) -> bytes:
        with naming(self.path / name), open(self.path / name, "rb") as file:
            return within_limit(read_at_most(file, limit), limit, str(self.path / name))

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)

    def create(self, name: str, data: bytes) -> bool:
        # Runs keep each other out by the folder's lock.
        if (self.path / name).exists():
            return (self.path / name).read_bytes() == data
        self.write(name, data)
        return True

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def stage(self, name: str) -> StagedFile:
        return RenamedFile(self.path / name)

    def remove_leftovers(self) -> None:
        for leftover in self.path.rglob(f"*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)


class RemoteDestination:
    """A prefix of a bucket, or whatever an fsspec URL names."""

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = public_name(self.url)
        self.base = self.name.rpartition("/")[2]
        self._storage = RemoteStorage(self.url)  # refuses a protocol that is not known or not installed

    def __repr__(self) -> str:
        return f"RemoteDestination({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteDestination) and self.url == other.url

    def __reduce__(self) -> Any:  # a file system has threads and connections of its own
        return RemoteDestination, (self.url,)

    def folder(self, name: str) -> RemoteDestination:
        return RemoteDestination(f"{self.url}/{name}")

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def make(self) -> None:
        pass

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sizes(self) -> dict[str, int]:
        return {name: size for name, (kind, size) in self._entries().items() if kind == "file"}

    def foreign(self) -> list[str]:
        return sorted(name for name in self._entries() if not _is_early(name))

    def _inside(self, name: str) -> tuple[Any, str]:
        return self._storage.filesystem, f"{self._storage.path.rstrip('/')}/{name}"

    def _entries(self) -> dict[str, tuple[str, int]]:
        filesystem, path = self._storage.filesystem, self._storage.path.rstrip("/")

        def listed() -> dict[str, tuple[str, int]]:
            filesystem.invalidate_cache()  # of what this process has seen: others write here too
            found = filesystem.ls(path, detail=True)
            names = {str(entry["name"]).rstrip("/"): entry for entry in found}
            return {
                name.rpartition("/")[2]: (entry["type"], int(entry["size"] or 0))
                for name, entry in names.items()
                if name.strip("/") != path.strip("/")  # an object store may name the folder itself
            }

        try:
            return self._try("read", "", listed)
        except FileNotFoundError:
            return {}

    def has(self, name: str) -> bool:
        filesystem, path = self._inside(name)

        def found() -> bool:
            filesystem.invalidate_cache()
            return filesystem.exists(path)

        return self._try("read", name, found)

    def read(self, name: str, limit: int) -> bytes:
        filesystem, path = self._inside(name)

        def content() -> bytes:
            with filesystem.open(path, "rb") as file:
                return file.read(limit + 1)

        return within_limit(self._try("read", name, content), limit, f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        filesystem, path = self._inside(name)
        self._try("written", name, lambda: filesystem.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        filesystem, path = self._inside(name)

        def created() -> bool:
            try:
                filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                pass
            except Exception as error:
                if http_status(error) != _PRECONDITION_FAILED:
                    raise
            # Not every store that knows the condition keeps it when two ask at once, and the answer to an earlier
            # attempt may have been lost: what is there decides.
            filesystem.invalidate_cache()
            return filesystem.cat_file(path) == data

        return self._try("written", name, created)

    def remove(self, name: str) -> None:
        filesystem, path = self._inside(name)

        def removed() -> None:
            with suppress(FileNotFoundError):
                filesystem.rm_file(path)

        self._try("removed", name, removed)

    def stage(self, name: str) -> StagedFile:
        return UploadedFile(partial(self.upload, name))

    def upload(self, name: str, local_path: str) -> None:
        """Copy a local file into the folder; it appears whole."""
        filesystem, path = self._inside(name)
        self._try("written", name, lambda: filesystem.put_file(local_path, path))

    def remove_leftovers(self) -> None:
        pass  # nothing has a name before it is whole

    def _try(self, done: str, name: str, call: Callable[[], T]) -> T:
        where = f"{self.name}/{name}" if name else self.name
        try:
            return patiently(call, where, done)
        except FileNotFoundError:
            if done == "read":
                raise
            raise UsageError(
                f"{where}: cannot be {done}: the bucket is not there. Make it first, or give another"
            ) from None


def _is_early(name: str) -> bool:
    """Whether a run may leave a file of this name before it has a plan."""
    unfinished = name.startswith((PLAN_NAME, LISTING_NAME)) and name.endswith(TEMPORARY_SUFFIX)
    return name in (LOCK_NAME, LISTING_NAME) or unfinished
