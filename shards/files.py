"""Small files, read and written whole, and their fingerprints."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .errors import DataError, UsageError, naming
from .storage import open_storage, public_name, read_at_most, within_limit

TEMPORARY_SUFFIX = ".part"
LOCK_NAME = ".lock"  # of `hold_folder`
_NAME_BYTES = 255  # of Linux's file systems
_BUFFER_BYTES = 1 << 18
_MOST_HASHED = 2**33  # bytes; whoever read the file had a limit of its own


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def join_url(folder: str | Path, name: str) -> str:
    """A file's path or URL inside a data set."""
    return f"{str(folder).rstrip('/')}/{name}"


def split_url(path: str | Path) -> tuple[str, str]:
    """A file's folder and name, of a path or URL."""
    folder, slash, name = str(path).rpartition("/")
    return folder or slash or ".", name


def read_limited(url: str, limit: int) -> bytes:
    """Read a whole small file from a path or any fsspec URL; a store that is away for a moment is asked again.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is larger than `limit` bytes, or its server is away.
    """
    # Not by fsspec, to which a folder `a::b` is one file system inside another.
    storage = open_storage(url)
    if storage.remote:
        data = storage.read("", 0, None, limit)
    else:
        with naming(storage.root), storage.open() as file:
            data = read_at_most(file, limit)
    return within_limit(data, limit, public_name(url))


def parse_json(data: bytes | str, where: str) -> Any:
    """A file's JSON.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON, found: {error}; the file is damaged, or another") from error


def check_version(version: object, supported: tuple[int, int], where: str) -> tuple[int, int]:
    """The version of a file's format.

    Raises:
        DataError: it is none, or its major part is newer than what is supported.
    """
    if not isinstance(version, list) or len(version) != 2 or not all(map(is_count, version)):
        raise DataError(f"{where}: expected a version [major, minor], found {version!r:.60}")
    major, minor = version
    if major > supported[0]:
        raise DataError(
            f"{where}: expected version {supported[0]}.x, found {major}.{minor}; it was written by a newer softshard. "
            "Run: pip install -U softshard"
        )
    return major, minor


def are_texts(value: object) -> bool:
    """Whether a value of JSON is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_count(value: object) -> bool:
    """Whether a value of JSON is a whole number from 0 that an int32 holds."""
    return type(value) is int and 0 <= value < 2**31  # not isinstance: True is an int


def file_record(url: str) -> dict[str, str]:
    """Name and SHA-256 of a file that something was made by."""
    name = public_name(url).rstrip("/").rpartition("/")[2]
    return {"name": name, "sha256": sha256_hex(read_limited(url, _MOST_HASHED))}


def read_text(url: str, limit: int) -> str:
    """Read a text that a user names: UTF-8 with or without a byte-order mark, from any fsspec URL.

    Raises:
        UsageError: it cannot be read.
        DataError: it is larger than `limit` bytes, or not UTF-8; or its server is away.
    """
    try:
        content = read_limited(url, limit)
    except OSError as error:
        # A remote file's error has no number, and names the file itself.
        reason = f"{url}: cannot be read; {error.strerror}" if error.strerror else str(error)
        raise UsageError(reason) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{public_name(url)}: expected UTF-8 text, found byte {content[error.start]:#04x}"
        ) from error


def table_rows(url: str, limit: int) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of a table's rows that are not blank: comma-separated, in a `.tsv` by tabs.

    Raises:
        UsageError, DataError: as `read_text`.
        DataError: it is no such table.
    """
    text, where = read_text(url, limit), public_name(url)
    delimiter = "\t" if where.lower().endswith(".tsv") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}: expected CSV; {error}") from error


class _NamedFile(io.FileIO):
    """A local file whose errors say which it is: what the system says of a full disk does not."""

    def write(self, data: Any, /) -> int:
        with naming(self.name):
            return super().write(data) or 0


def open_named(path: Path, mode: Literal["w", "a"] = "w") -> BinaryIO:
    """A local file to write to, anew or at its end; an error while it is written names it."""
    return io.BufferedWriter(_NamedFile(path, mode), _BUFFER_BYTES)  # type: ignore[return-value]


def temporary_beside(path: Path) -> Path:
    """Where to write a file that gets its name when it is whole.

    Not one name for all: two workers of a cluster may write the same file with the same bytes, one of them for a run
    that it has lost.
    """
    suffix = f".{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    name = path.name
    while len(os.fsencode(name)) > _NAME_BYTES - len(suffix):
        name = name[:-1]  # a whole character
    return path.with_name(name + suffix)


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a small local file so that it appears whole or not at all, and stays.

    What is no file of a disk (`/dev/stdout`, a pipe) is written to: replaced, it would be gone for everybody.

    Args:
        path: where to.
        data: all of it.
        mode: who may read and write it; None is as the process makes files.
    """
    if _is_stream(path):
        path.write_bytes(data)
        return
    temporary = temporary_beside(path)
    try:
        with naming(path, temporary):
            with open(temporary, "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user names: whole, where a link leads, and with the mode that it had.

    In a folder that takes no new files, one that is there is written over.
    """
    # A pipe or a device, also behind a link; a folder says that it is one.
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    if path.is_symlink() and not _is_stream(path):
        path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    try:
        write_atomically(path, data, mode)
    except PermissionError:
        if mode is None:
            raise
        with naming(path):
            path.write_bytes(data)


def _is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, or one of the names that a process has for its own open files."""
    if str(path.absolute().parent) in ("/dev", "/dev/fd", "/proc/self/fd"):
        return True
    try:
        mode = path.lstat().st_mode  # a link is replaced as ever, wherever it leads
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename, and wait until the folder is on disk.

    No file may survive a power cut that an earlier one does not: a manifest its shards, a receipt its shard.
    """
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while writing there; the operating system drops it when the process dies.

    Raises:
        UsageError: another process holds it.
    """
    with open(folder / LOCK_NAME, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder}: another softshard is writing there. Wait for it, or stop it"
            ) from error
        yield
