"""What a tar of somebody else holds, read from its headers: keys, where the JPEGs lie, labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.files import canonical_json, sha256_hex, write_atomically
from ..shards.index import ShardIndex
from ..shards.retries import patiently
from ..shards.schema import JPG, split_member_name
from ..shards.source_tars import plain_name, tar_members
from ..shards.source_webdataset import read_label
from ..shards.storage import RemoteStorage
from .cache import Cache

JPEGS = ("jpg", "jpeg")
_OTHER_IMAGES = ("png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
# What file systems of fsspec say that changes with a file.
_TAGS = (
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "generation",
    "md5Hash",
    "created",
)
_INDEX_VERSION = 1
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_TARS = 1_000_000


@dataclass(frozen=True)
class Tar:
    """A tar, and what tells it from what was there before.

    Attributes:
        name: below the data set's folder.
        num_bytes: its size.
        key: SHA-256 of its place, size and time or tag.
    """

    name: str
    num_bytes: int
    key: str


@dataclass(frozen=True)
class TarIndex:
    """What a tar holds.

    Attributes:
        keys: of its samples.
        offsets: int64 [N], where each JPEG begins.
        sizes: int64 [N], its bytes.
        labels: of each sample, a class index or name as text; empty where it has none.
        num_skipped: samples without an image.
    """

    keys: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: tuple[str, ...]
    num_skipped: int

    def to_bytes(self) -> bytes:
        packed = msgpack.packb(
            (
                _INDEX_VERSION,
                self.keys,
                self.offsets.astype("<i8").tobytes(),
                self.sizes.astype("<i8").tobytes(),
                self.labels,
                self.num_skipped,
            )
        )
        assert packed is not None
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> TarIndex:
        """Raises ValueError where they are something else."""
        version, keys, offsets, sizes, labels, num_skipped = msgpack.unpackb(data)
        index = cls(
            tuple(keys),
            np.frombuffer(offsets, "<i8"),
            np.frombuffer(sizes, "<i8"),
            tuple(labels),
            num_skipped,
        )
        if version != _INDEX_VERSION or {len(index.offsets), len(index.sizes), len(labels)} != {len(keys)}:
            raise ValueError("not an index of this version")
        return index

    def labelled(self) -> TarIndex:
        """The samples that have a label."""
        rows = [i for i, label in enumerate(self.labels) if label]
        return TarIndex(
            tuple(self.keys[i] for i in rows),
            self.offsets[rows],
            self.sizes[rows],
            tuple(self.labels[i] for i in rows),
            self.num_skipped,
        )

    @property
    def shard_index(self) -> ShardIndex:
        return ShardIndex((JPG.suffix,), self.keys, self.offsets[:, None], self.sizes[:, None])


def split_braces(dataset: str | Path) -> tuple[str | Path, list[str]] | None:
    """A tar, or a pattern of them such as `s3://bucket/train-{000000..000012}.tar`, as folder and names.

    Returns:
        The folder before the first brace, and names below it; None where it does not end in `.tar`.

    Raises:
        UsageError: a brace that is not closed, or too many tars.
    """
    text = str(dataset)
    if not text.endswith(".tar"):
        return None
    cut = text.partition("{")[0].rpartition("/")[0]
    names = expand_braces(text[len(cut) :].removeprefix("/"), text)
    return (cut, names) if "://" in cut else (Path(cut or ("/" if text.startswith("/") else ".")), names)


def expand_braces(pattern: str, where: str) -> list[str]:
    """`a{0..2}` and `a{0,1,2}` as names, as WebDataset and shells read them; leading zeros stay."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inner, closed, tail = rest.partition("}")
    if not closed or "{" in inner:
        raise UsageError(f"{where}: expected braces such as {{000000..000012}} or {{a,b}}, found {pattern!r}")
    if found := _RANGE.fullmatch(inner):
        first, last = found.groups()
        if not 0 <= int(last) - int(first) < _MAX_TARS:
            raise UsageError(
                f"{where}: expected a range upwards of at most {_MAX_TARS:,} tars, found {inner!r}"
            )
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        middles = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        middles = inner.split(",")
    tails = expand_braces(tail, where)
    if len(middles) * len(tails) > _MAX_TARS:
        raise UsageError(f"{where}: expected at most {_MAX_TARS:,} tars, found more")
    return [head + middle + end for middle in middles for end in tails]


def identify(folder: str | Path, name: str) -> Tar:
    """Size and time, or tag, of a tar.

    Raises:
        DataError: it is not there, or its server does not tell its size.
    """
    if isinstance(folder, Path):
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: expected a tar, found: {error.strerror}; give the tars that are there"
            ) from None
        facts: list[Any] = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
        return Tar(name, status.st_size, sha256_hex(canonical_json(facts)))
    storage = RemoteStorage(folder)
    where = storage.where(name)
    storage.filesystem.invalidate_cache()
    try:
        details = patiently(lambda: storage.filesystem.info(storage.at(name)), where)
    except FileNotFoundError:
        raise DataError(f"{where}: expected a tar, found nothing there") from None
    if not isinstance(details.get("size"), int):
        raise DataError(
            f"{where}: expected a server that tells a file's size, found none. Copy the tars first"
        )
    tags = [str(details[tag]) for tag in _TAGS if details.get(tag)]
    return Tar(name, details["size"], sha256_hex(canonical_json([where, details["size"], *tags])))


def index_tar(file: BinaryIO, where: str) -> TarIndex:
    """Read a tar's headers, and its labels.

    Raises:
        DataError: not a whole tar; an image that is no JPEG; a label that is no class; a key used twice.
    """
    found: list[tuple[str, int, int, str]] = []
    key, jpeg, label, other = "", None, "", ""
    num_skipped, seen = 0, set()

    def end() -> None:
        nonlocal num_skipped
        if jpeg is None and other:
            raise DataError(
                f"{where}: sample {key!r}: expected a JPEG ({', '.join(JPEGS)}), found {other!r}. The loader decodes JPEGs "
                "alone; softshard pack SRC DST makes them of other images"
            )
        if jpeg is None:
            num_skipped += bool(key)
            return
        if key in seen:
            raise DataError(f"{where}: sample {key!r}: expected each key once in a tar, found it again")
        seen.add(key)
        found.append((key, *jpeg, label))

    for member in tar_members(file, where):
        if (name := plain_name(member)) is None:
            continue
        # Names in no known encoding: Python's stand-ins for their bytes can be written nowhere.
        new_key, suffix = split_member_name(name.encode("utf-8", "backslashreplace").decode())
        if new_key != key:
            end()
            key, jpeg, label, other = new_key, None, "", ""
        if suffix in JPEGS and jpeg is None:
            if member.size > JPG.max_bytes:
                raise DataError(
                    f"{where}: {name!r}: expected at most {JPG.max_bytes} bytes, found {member.size}"
                )
            jpeg = member.offset_data, member.size
        elif suffix in _OTHER_IMAGES:
            other = suffix
        elif suffix in ("cls", "json") and (suffix == "cls" or not label):
            try:
                label = read_label(file, member, suffix) or label
                label.encode()  # class names are written down as UTF-8
            except UnicodeEncodeError:
                raise DataError(
                    f"{where}: {name!r}: expected a class name that UTF-8 can write, found {label!r}. Mend the label, or "
                    "leave the sample out"
                ) from None
            except ValueError as error:
                raise DataError(f"{where}: {name!r}: {error}") from None
    end()
    keys, offsets, sizes, labels = zip(*found, strict=True) if found else ((), (), (), ())
    return TarIndex(keys, np.array(offsets, np.int64), np.array(sizes, np.int64), labels, num_skipped)


class IndexFolder:
    """Indexes of tars, in the cache's folder but not of its budget: some 100 bytes a sample."""

    def __init__(self, cache: Cache) -> None:
        self._folder = cache.path / "indexes"

    def get(self, tar: Tar, make: Callable[[], TarIndex]) -> TarIndex:
        """A tar's index, made where it is not there."""
        path = self._folder / f"{tar.key}.msgpack"
        try:
            return TarIndex.from_bytes(path.read_bytes())
        except (OSError, ValueError, TypeError):
            pass
        index = make()
        with suppress(OSError):  # a cache that cannot be written costs the time again, no more
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, index.to_bytes())
        return index
