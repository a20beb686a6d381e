"""Small files, read and written whole, and their fingerprints."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from .errors import DataError, UsageError

TEMPORARY_SUFFIX = ".part"


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
    """Read a whole small file from any fsspec URL.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is larger than `limit` bytes.
    """
    with fsspec.open(url, "rb") as file:
        data = file.read(limit + 1)  # type: ignore[union-attr]
    if len(data) > limit:
        raise DataError(f"{url}: expected at most {limit} bytes, found more")
    return data


def read_text(url: str, limit: int) -> str:
    """Read a text that a user names: UTF-8 with or without a byte-order mark, from any fsspec URL.

    Raises:
        UsageError: it cannot be read.
        DataError: it is larger than `limit` bytes, or not UTF-8.
    """
    filesystem, inner_path = url_to_fs(url)
    try:
        content: bytes = filesystem.cat_file(inner_path, end=limit + 1)
    except OSError as error:
        raise UsageError(f"{url}: cannot be read; {error.strerror or error}") from error
    if len(content) > limit:
        raise DataError(f"{url}: expected at most {limit} bytes, found more; is it another file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: expected UTF-8 text, found byte {content[error.start]:#04x}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small local file so that it appears whole or not at all, and stays."""
    # Not one name for all: two workers of a cluster may write the same file, with the same bytes.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder}: another softshard is writing there. Wait for it, or stop it"
            ) from error
        yield
