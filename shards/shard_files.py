"""Whole shards, local or behind a URL: read front to back once, hashed, and kept in a file while they are looked at.

A shard behind a URL is read in ranges: one that fails is asked for again, the others are not.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import naming
from .files import join_url
from .index import index_name
from .schema import MIB
from .storage import Storage, is_remote, open_storage, public_name, within_limit
from .writer import ShardRecord

RANGE_BYTES = 8 * MIB  # of a request: enough that waiting for an answer costs little
_CHUNK_BYTES = MIB  # of a local file
_MAX_INDEX_FIELD_BYTES = 160  # of a component: suffix, offset, size, member name, and what parts them


class ShardFile(NamedTuple):
    """A shard whose every byte has been read once.

    Attributes:
        file: the shard, to seek and read in; a copy where the shard is behind a URL.
        size: bytes that were found, one more than expected where there are more.
        sha256: of these bytes, hex.
    """

    file: BinaryIO
    size: int
    sha256: str


def dataset_path(dataset: str | Path) -> str | Path:
    """A data set's URL as it is, its folder as a path (also that of a `file://` URL)."""
    return str(dataset).rstrip("/") if is_remote(dataset) else Path(open_storage(dataset).root)


def inside(dataset: str | Path, name: str) -> str | Path:
    """A file or folder in a data set's folder, of the same kind as `dataset`."""
    return dataset / name if isinstance(dataset, Path) else join_url(dataset, name)


def dataset_name(dataset: str | Path) -> str:
    """A data set as messages name it: without user, password and query."""
    return public_name(str(dataset))


def read_chunks(dataset: str | Path, name: str, num_bytes: int) -> Iterator[bytes]:
    """A file of a data set, front to back.

    Args:
        dataset: as `dataset_path` gives it.
        name: of the file.
        num_bytes: how long it should be; of a longer one `num_bytes` + 1 bytes are read.

    Raises:
        FileNotFoundError: it is not there.
        DataError: its server is away.
    """
    if isinstance(dataset, Path):
        left = num_bytes + 1
        with naming(dataset / name), open(dataset / name, "rb") as file:
            while chunk := file.read(min(_CHUNK_BYTES, left)):
                left -= len(chunk)
                yield chunk
        return
    storage = open_storage(dataset)
    at = 0
    while at < num_bytes:
        # The byte after the last is asked for with the last range: a range of its own may not begin at the end.
        left = num_bytes + 1 - at
        wanted = left if left <= RANGE_BYTES + 1 else RANGE_BYTES
        chunk = storage.read(name, at, wanted, wanted)
        at += len(chunk)
        yield chunk
        if len(chunk) < wanted and at < num_bytes and (not chunk or _ends_at(storage, name, at)):
            return


def _ends_at(storage: Storage, name: str, at: int) -> bool:
    """Whether a file ends where an answer ended; otherwise the answer was cut short on its way."""
    return len(storage.read(name, at - 1, 2, 2)) < 2


def hash_shard(
    dataset: str | Path, record: ShardRecord, progress: Callable[[int], object], copy: BinaryIO | None = None
) -> tuple[int, str]:
    """Read a shard once.

    Args:
        dataset: as `dataset_path` gives it.
        record: what the manifest says of the shard.
        progress: told of the bytes read.
        copy: where its bytes are written, too.

    Returns:
        (bytes, SHA-256); one byte more than the record's where the shard is longer.

    Raises:
        FileNotFoundError: it is not there.
        DataError: its server is away.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in read_chunks(dataset, record.name, record.bytes):
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
        size += len(chunk)
        progress(len(chunk))
    return size, digest.hexdigest()


def read_range(storage: Storage, name: str, offset: int, size: int) -> bytes:
    """Bytes of a file; an answer that was cut short on its way is completed.

    Returns:
        `size` bytes, fewer where the file ends before.

    Raises:
        FileNotFoundError: it is not there.
        DataError: its server is away.
    """
    data = storage.read(name, offset, size, size)
    while storage.remote and len(data) < size:
        more = storage.read(name, offset + len(data), size - len(data), size)
        if not more:
            break
        data += more
    return data


@contextmanager
def open_shard(
    dataset: str | Path, record: ShardRecord, progress: Callable[[int], object] = lambda _: None
) -> Iterator[ShardFile]:
    """Read a shard once, and have it as a local file.

    One behind a URL is copied into an unnamed file in the folder for temporary files (`TMPDIR`), which goes with
    the block, or the process.

    Raises:
        FileNotFoundError: it is not there.
        DataError: its server is away.
    """
    if isinstance(dataset, Path):
        with open(dataset / record.name, "rb") as file:
            size, sha256 = hash_shard(dataset, record, progress)
            yield ShardFile(file, size, sha256)
        return
    with tempfile.TemporaryFile() as file:
        size, sha256 = hash_shard(dataset, record, progress, file)
        file.seek(0)
        yield ShardFile(file, size, sha256)


def read_small(dataset: str | Path, name: str, limit: int) -> bytes:
    """A small file of a data set.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is larger than `limit` bytes, or its server is away.
    """
    data = open_storage(dataset).read(name, 0, None, limit)  # which quotes the name where a URL has to
    return within_limit(data, limit, dataset_name(inside(dataset, name)))


def read_index(dataset: str | Path, record: ShardRecord, num_components: int) -> bytes:
    """The text of a shard's `.idx`; errors as `read_small` raises them."""
    return read_small(
        dataset, index_name(record.name), 32 + record.samples * num_components * _MAX_INDEX_FIELD_BYTES
    )
