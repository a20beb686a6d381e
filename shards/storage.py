"""Reading a source, local or behind any fsspec URL: entries of a folder, seekable files, ranges of bytes.

Whatever names a remote source in a message, ledger or plan goes through `public_name` first: user names,
passwords and signed queries stay in memory.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote

from fsspec.core import url_to_fs

from .errors import DataError, ImageError, MissingExtraError, UsageError

_OPEN_FILES = 64  # tars that a worker keeps open
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
_FILE_SUFFIXES = frozenset(
    {".tar", ".csv", ".tsv", ".jsonl", ".ndjson", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}
)
_REMOTE = re.compile(r"^([a-z0-9+.-]+::)*[a-z0-9+.-]+://", re.IGNORECASE)
# Nested tars and signed links: each part of `simplecache::https://u:p@host/x?sig` is a URL of its own.
_USERINFO = re.compile(r"(://)[^/?#]*@")
_QUERY = re.compile(r"[?#].*?(?=::|$)", re.DOTALL)


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
        UsageError: fsspec does not know the protocol.
        MissingExtraError: its package is not installed.
    """
    text = str(source)
    if not is_remote(text):
        return LocalStorage(unquote(text[len("file://") :]) if text.lower().startswith("file://") else text)
    return RemoteStorage(text)


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

    __hash__ = None  # type: ignore[assignment]

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
            raise UsageError(f"{self.root}: expected a folder of class folders, found nothing")
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
            with open(file, "rb") as stream:
                return stream.read(limit + 1)
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
        self.root = url
        try:
            self._filesystem, self._path = url_to_fs(url)
        except ImportError as error:
            protocol = url.partition(":")[0]
            extra = {"http": "http", "https": "http", "gs": "gcs"}.get(protocol, protocol)
            module = ImportError(str(error), name=error.name or protocol)
            raise MissingExtraError(f"{protocol}:// sources", extra, module) from error
        except ValueError as error:
            raise UsageError(
                f"{self.name}: expected a path or a URL that fsspec knows, found: {error}"
            ) from None
        self._quoted = url.lower().startswith("http")  # a listing's links are quoted, names are not

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

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:  # a file system has threads and connections of its own
        return RemoteStorage, (self.root,)

    def _at(self, path: str) -> str:
        if not path:
            return self._path
        if _REMOTE.match(path):
            return path
        return f"{self._path.rstrip('/')}/{quote(path) if self._quoted else path}"

    def _failure(self, path: str, error: Exception) -> str:
        # The error's own text may hold the whole URL.
        where = f"{self.name.rstrip('/')}/{path}" if path else self.name
        detail = getattr(error, "status", None) or getattr(error, "errno", None) or ""
        return f"{public_name(where)}: cannot be read: {type(error).__name__} {detail}".rstrip()

    def entries(self, path: str = "") -> list[Entry]:
        folder = self._at(path).rstrip("/")
        try:
            found = self._filesystem.ls(folder + "/" if self._quoted else folder, detail=True)
        except Exception as error:
            raise DataError(self._failure(path, error)) from None
        entries = []
        for item in found:
            url = str(item["name"])
            name = url.rstrip("/").rpartition("/")[2]
            # An HTML listing links to other places too, and an object store names the folder itself.
            inside = url.rstrip("/").rpartition("/")[0].rstrip("/").endswith(folder.lstrip("/"))
            name = unquote(name) if self._quoted else name
            if inside and name and not name.startswith((".", "?")) and "?" not in url:
                entries.append(Entry(name, item["type"] == "directory" or url.endswith("/")))
        return sorted(set(entries))

    def is_folder(self) -> bool:
        try:
            if self._quoted:
                # A web server tells by its listing alone.
                return os.path.splitext(self._path.partition("?")[0])[1].lower() not in _FILE_SUFFIXES
            if not self._filesystem.exists(self._path):
                raise UsageError(f"{self.name}: expected images, found nothing")
            return self._filesystem.isdir(self._path)
        except UsageError:
            raise
        except Exception as error:
            raise DataError(self._failure("", error)) from None

    def info(self, path: str = "") -> dict[str, Any]:
        """What the store says of a file: its size and, under names that differ, its time or tag."""
        try:
            return self._filesystem.info(self._at(path))
        except Exception as error:
            raise DataError(self._failure(path, error)) from None

    def open(self, path: str = "") -> BinaryIO:
        try:
            # Reading ahead by 5 MiB gets many headers with a request; skipping it saves nothing over images.
            file = self._filesystem.open(self._at(path), "rb")
        except Exception as error:
            raise DataError(self._failure(path, error)) from None
        if not file.seekable():
            raise DataError(
                f"{public_name(self._at(path))}: expected a server that answers range requests, found one that "
                "does not; copy the file and give its path"
            )
        return file  # type: ignore[return-value]

    def read(self, path: str, offset: int, size: int | None, limit: int) -> bytes:
        end = offset + min(limit + 1, limit + 1 if size is None else size)
        for attempt in range(_ATTEMPTS):
            try:
                if end == offset:
                    return b""
                data = self._filesystem.cat_file(self._at(path), start=offset, end=end)
                if size is None:
                    return data[: limit + 1]
                if len(data) > end - offset:
                    raise DataError(
                        f"{public_name(self._at(path))}: expected {end - offset} bytes of a range, found "
                        f"{len(data)}; the server does not answer range requests"
                    )
                return data
            except FileNotFoundError as error:
                raise FileNotFoundError(self._failure(path, error)) from None
            except DataError:
                raise
            except Exception as error:
                if getattr(error, "status", None) == 416 and size is None:
                    return b""  # an empty file has no range
                # A server that is away is no fault of the image: the ledger is not for it.
                if attempt == _ATTEMPTS - 1:
                    raise DataError(
                        f"{self._failure(path, error)}; tried {_ATTEMPTS} times. What is finished is kept: run the "
                        "same command again to continue"
                    ) from None
                time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError("unreachable")
