"""Reading a source, local or behind any fsspec URL: entries of a folder, seekable files, ranges of bytes.

Whatever names a remote source in a message, ledger or plan goes through `public_name` first: user names,
passwords and signed queries stay in memory.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote

from .errors import DataError, ImageError, MissingExtraError, StorageError, UsageError, naming
from .retries import credentials_of, failure, http_status, patiently

_OPEN_FILES = 64  # tars that a worker keeps open
_READ_BYTES = 4096  # of a file's buffer; fsspec reads ahead below it
_PIPE_BYTES = 1 << 20  # read at a time
_EXTRAS = {
    "http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure",
}  # fmt: skip
# Of each extra; fsspec names it in prose alone.
_MODULES = {"http": "aiohttp", "s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}
_NO_LOG = logging.NullHandler()  # one: a logger takes each handler once
_FILE_SUFFIXES = frozenset(
    {".tar", ".csv", ".tsv", ".jsonl", ".ndjson", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}
)
_REMOTE = re.compile(r"^([a-z0-9+.-]+::)*[a-z0-9+.-]+://", re.IGNORECASE)
# Nested tars and signed links: each part of `simplecache::https://u:p@host/x?sig` is a URL of its own.
_USERINFO = re.compile(r"(://)[^/?#]*@")
_QUERY = re.compile(r"[?#].*?(?=::|$)", re.DOTALL)


def _renew_event_loop() -> None:
    """In a forked process: the thread of fsspec's event loop stayed behind, and older fsspecs wait for it for ever."""
    # A name of fsspec's own that it may drop; one that did would have mended this.
    if (reset_lock := getattr(sys.modules.get("fsspec.asyn"), "reset_lock", None)) is not None:
        reset_lock()


os.register_at_fork(after_in_child=_renew_event_loop)


class Entry(NamedTuple):
    """Something in a folder."""

    name: str
    is_folder: bool


class Storage(Protocol):
    """A source's files, named by paths below its root (or by absolute paths and URLs)."""

    root: str
    remote: bool

    @property
    def name(self) -> str:
        """The root as messages name it."""
        ...

    def entries(self, path: str = "") -> list[Entry]:
        """What is in a folder, hidden entries left out, in lexical order."""
        ...

    def is_folder(self) -> bool: ...

    def open(self, path: str = "") -> BinaryIO:
        """A seekable file; the root itself by default."""
        ...

    def read(self, path: str, offset: int, size: int | None, limit: int) -> bytes:
        """`size` bytes at `offset`, or the whole file; of one that is longer than `limit`, limit + 1 bytes."""
        ...


def is_remote(source: str | Path) -> bool:
    """Whether a source is a URL of another place than this machine's file system."""
    return bool(_REMOTE.match(str(source))) and not str(source).lower().startswith("file://")


def public_name(url: str) -> str:
    """A URL without user, password, query and fragment; a path stays as it is."""
    if not _REMOTE.match(url):
        return url
    return _QUERY.sub("", _USERINFO.sub(r"\1", url))


def open_storage(source: str | Path) -> Storage:
    """The storage that a path or URL names; nothing is read yet.

    Raises:
        UsageError: fsspec does not know the protocol, or misses credentials.
        StorageError: its library misses them, or a server that it asks at once is away.
        MissingExtraError: its package is not installed.
    """
    text = str(source)
    if is_remote(text):
        return RemoteStorage(text)
    path = unquote(text[len("file://") :]) if text.lower().startswith("file://") else text
    # Of `--classes=~/list`, which a shell leaves as it is. `~ann` is a folder here.
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)
    return LocalStorage(path)


def read_at_most(file: BinaryIO, limit: int) -> bytes:
    """All of an open local file; of one that is longer than `limit`, limit + 1 bytes.

    CPython first allocates as much as it is asked for, so that it is asked for no more than there is, once; a pipe does
    not say how much that is, and a file may have grown.
    """
    wanted = os.fstat(file.fileno()).st_size + 1
    pieces, left = [], limit + 1
    while left > 0 and (piece := file.read(min(left, wanted))):
        pieces.append(piece)
        left -= len(piece)
        wanted = _PIPE_BYTES
    return b"".join(pieces)


def within_limit(data: bytes, limit: int, where: str) -> bytes:
    """What was read of a small file.

    Raises:
        DataError: there is more than `limit` bytes of it.
    """
    if len(data) > limit:
        raise DataError(f"{where}: expected at most {limit} bytes, found more; is it another file?")
    return data


def _is_folder(entry: os.DirEntry, folder: str) -> bool:
    """Whether an entry is a folder to go into; a link back to a folder on the way, endless, is not."""
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link to itself: for the ledger, when it is read
        return False
    if not entry.is_symlink():
        return True
    here = Path(os.path.abspath(folder))
    return os.path.realpath(entry.path) not in {os.path.realpath(parent) for parent in (here, *here.parents)}


class LocalStorage:
    """A local folder or file."""

    remote = False

    def __init__(self, root: str) -> None:
        self.root = root
        self._open: OrderedDict[str, int] = OrderedDict()

    @property
    def name(self) -> str:
        return self.root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStorage) and self.root == other.root

    def __reduce__(self) -> Any:  # open files stay in their process
        return LocalStorage, (self.root,)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def entries(self, path: str = "") -> list[Entry]:
        folder = os.path.join(self.root, path)
        with os.scandir(folder) as found:
            entries = [Entry(e.name, _is_folder(e, folder)) for e in found if not e.name.startswith(".")]
        return sorted(entries)

    def is_folder(self) -> bool:
        if not os.path.exists(self.root):
            raise UsageError(f"{self.root}: expected a file or folder, found nothing; is the path right?")
        return os.path.isdir(self.root)

    def open(self, path: str = "") -> BinaryIO:
        return open(os.path.join(self.root, path) if path else self.root, "rb")

    def read(self, path: str, offset: int, size: int | None, limit: int) -> bytes:
        file = os.path.join(self.root, path) if path else self.root
        if size is None:
            if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait for ever
                raise ImageError(
                    f"{path}: expected a file, found a pipe, socket or device", kind="not-a-file"
                )
            with naming(file), open(file, "rb") as stream:
                return read_at_most(stream, limit)
        with naming(file):
            return os.pread(self._descriptor(file), min(size, limit + 1), offset)

    def _descriptor(self, file: str) -> int:
        """An open tar; the one unused for longest is closed when there are too many."""
        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[file]


class RemoteStorage:
    """A folder or file behind an fsspec URL."""

    remote = True

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # late: it takes as long to import as all of the command line

        self.root = url
        protocol = url.partition(":")[0].lower()
        if protocol in ("grpc", "grpc+tls"):
            raise UsageError(
                f"{self.name}: expected a folder or URL with shards, found servers of softshard serve, which give batches "
                "alone. Give the folder or URL that they were started with"
            )
        try:
            self._filesystem, self._path = url_to_fs(url)
        except ImportError as error:
            if protocol not in _EXTRAS:
                raise UsageError(
                    f"{self.name}: expected the package with which fsspec reads {protocol}://, found: {error}. Install "
                    "what that names"
                ) from None
            module = ImportError(str(error), name=error.name or _MODULES[_EXTRAS[protocol]])
            raise MissingExtraError(f"a {protocol}:// address", _EXTRAS[protocol], module) from error
        except (ValueError, TypeError) as error:  # the latter of arguments that a protocol wants
            if "Must provide either" in str(error):  # adlfs, which wants some before it is asked for anything
                raise UsageError(
                    f"{self.name}: expected credentials{credentials_of(url)}, found none"
                ) from None
            raise UsageError(
                f"{self.name}: expected a path or a URL that fsspec knows, found: {error}"
            ) from None
        except Exception as error:  # ocifs looks for credentials at once, sftp for its server
            raise StorageError(failure(self.name, error, "opened")) from None
        # What gcsfs logs is in the error, too; without a handler it would write it, traceback and all, to stderr.
        logging.getLogger("gcsfs").addHandler(_NO_LOG)
        self._quoted = protocol in ("http", "https")  # a listing's links are quoted, names are not

    @property
    def name(self) -> str:
        return public_name(self.root)

    @property
    def filesystem(self) -> Any:
        """fsspec's file system."""
        return self._filesystem

    @property
    def path(self) -> str:
        """The root as the file system names it."""
        return self._path

    def __repr__(self) -> str:
        return f"RemoteStorage({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStorage) and self.root == other.root

    def __reduce__(self) -> Any:  # a file system has threads and connections of its own
        return RemoteStorage, (self.root,)

    def at(self, path: str) -> str:
        """A file below the root as the file system names it."""
        if not path:
            return self._path
        if _REMOTE.match(path):
            return path
        return f"{self._path.rstrip('/')}/{quote(path) if self._quoted else path}"

    def _folder_at(self, path: str) -> str:
        return self.at(path).rstrip("/") + ("/" if self._quoted else "")

    def where(self, path: str) -> str:
        """A file below the root as messages name it."""
        return public_name(f"{self.name.rstrip('/')}/{path}" if path else self.name)

    def entries(self, path: str = "") -> list[Entry]:
        folder = self.at(path).rstrip("/")
        listed = self._folder_at(path)
        # A file system keeps every listing: it would not see what came since, and fill the memory.
        self._filesystem.invalidate_cache()
        try:
            found = patiently(lambda: self._filesystem.ls(listed, detail=True), self.where(path))
        except FileNotFoundError as error:
            raise DataError(str(error)) from None
        self._filesystem.invalidate_cache()
        entries = []
        for item in found:
            url = str(item["name"])
            name = url.rstrip("/").rpartition("/")[2]
            # An HTML listing links to other places too, and an object store names the folder itself.
            inside = url.rstrip("/").rpartition("/")[0].rstrip("/").endswith(folder.lstrip("/"))
            if self._quoted:
                inside = inside and "?" not in url
                name = unquote(name)
            if inside and name and not name.startswith("."):
                entries.append(Entry(name, item["type"] == "directory" or url.endswith("/")))
        return sorted(set(entries))

    def is_folder(self) -> bool:
        if self._quoted:
            # A web server tells by its listing alone.
            return os.path.splitext(self._path.partition("?")[0])[1].lower() not in _FILE_SUFFIXES
        self._filesystem.invalidate_cache()
        try:
            kind = patiently(lambda: self._filesystem.info(self._path)["type"], self.name)
        except FileNotFoundError:
            raise UsageError(f"{self.name}: expected images, found nothing") from None
        return kind == "directory"

    def details(self, folder: str | None) -> list[dict[str, Any]]:
        """What the store says of the files in a folder, or with None of the root, a file: name, size and, under
        names that differ, a time or tag.
        """
        self._filesystem.invalidate_cache()
        if folder is None:  # no listing: a web server would send all of the file
            return [patiently(lambda: self._filesystem.info(self._path), self.name)]
        listed = self._folder_at(folder)
        return patiently(lambda: self._filesystem.ls(listed, detail=True), self.where(folder))

    def open(self, path: str = "") -> BinaryIO:
        where = self.where(path)
        try:
            # Reading ahead by 5 MiB gets many headers with a request; skipping it saves nothing over images.
            file = patiently(lambda: self._filesystem.open(self.at(path), "rb"), where)
        except FileNotFoundError as error:
            raise DataError(str(error)) from None
        if not file.seekable():
            raise DataError(
                f"{where}: expected a server that answers range requests, found one that does not; copy the file "
                "and give its path"
            )
        return io.BufferedReader(_PatientFile(file, where), _READ_BYTES)  # type: ignore[return-value]

    def read(self, path: str, offset: int, size: int | None, limit: int) -> bytes:
        end = offset + min(limit + 1, limit + 1 if size is None else size)
        if end == offset:
            return b""
        data = patiently(lambda: self._range(self.at(path), offset, end), self.where(path))
        if size is None:
            return data[: limit + 1]
        if len(data) > end - offset:
            raise DataError(
                f"{self.where(path)}: expected {end - offset} bytes of a range, found {len(data)}; the server does "
                "not answer range requests. Copy the file and give its path"
            )
        return data

    def _range(self, path: str, start: int, end: int) -> bytes:
        try:
            return self._filesystem.cat_file(path, start=start, end=end)
        except Exception as error:
            if http_status(error) == 416:  # nothing lies there: an empty file, or one cut short
                return b""
            raise


class _PatientFile(io.RawIOBase):
    """An open file of a server that may be away for a while."""

    def __init__(self, file: Any, where: str) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = patiently(lambda: self._file.read(len(buffer)), self._where)
        except FileNotFoundError as error:  # it was there when it was opened
            raise StorageError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
