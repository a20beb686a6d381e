"""Keeps the listing of a source of tars until a run is finished, so that a run that continues need not list again.

Listing ImageNet-21K's class tars reads 14 million headers that lie 100 kB apart: hours on a hard disk, and as long
again after every reboot. Class folders are listed in minutes, so theirs is not kept.

    "softlist" | bytes of the header (8, little-endian) | header, JSON | arrays | SHA-256 of all before it

A listing counts only while every tar of the source (or the list) has the size and time that it had.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .classes import class_list_sha256
from .destination import Destination
from .errors import StorageError
from .files import canonical_json, sha256_hex
from .listing import ClassFolder, Listing, Spans
from .names import Names, name_bytes, name_text
from .schema import LISTING_NAME, MAX_LISTING_BYTES
from .source_lists import LIST_SUFFIXES, folder_of_list
from .storage import LocalStorage, RemoteStorage, Storage, open_storage, public_name

_MAGIC = b"softlist"
_VERSION = 1
# What a store says of a file besides its size; whichever it has.
_TIMES = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "Last-Modified")


class KeptListing:
    """The listing of a source, kept where the run writes.

    Args:
        destination: where the run writes.
        source: path or URL.
        class_names: the class list that numbers are looked up in, or None.
    """

    def __init__(
        self, destination: Destination, source: str | Path, class_names: Sequence[str] | None
    ) -> None:
        self._destination = destination
        self._storage = open_storage(source)
        self._stamp = source_stamp(self._storage)
        self._labels = class_list_sha256(class_names) if class_names is not None else ""

    def load(self) -> Listing | None:
        """What an earlier run kept, or None where it is of another source or time, or damaged.

        Raises:
            StorageError: the destination is away.
        """
        if self._stamp is None:
            return None
        try:
            data = memoryview(self._destination.read(LISTING_NAME, MAX_LISTING_BYTES))
            (size,) = struct.unpack_from("<8xQ", data)
            body = data[: len(data) - 32]
            if data[:8] != _MAGIC or hashlib.sha256(body).digest() != bytes(data[len(body) :]):
                return None
            header = json.loads(bytes(data[16 : 16 + size]))
            if (header["version"], header["stamp"], header["labels"]) != (
                _VERSION,
                self._stamp,
                self._labels,
            ):
                return None
        except StorageError:  # listing for hours would not help
            raise
        except (FileNotFoundError, ValueError, struct.error, KeyError, RecursionError):
            return None
        arrays = _Arrays(body, 16 + size)
        parts = [tuple(_load_folder(entry, arrays) for entry in part) for part in header["parts"]]
        is_list = self._storage.name.lower().endswith(LIST_SUFFIXES)
        return Listing(
            root=header["root"],
            folders=parts[0],
            validation=parts[1],
            ignored=tuple(_text(name) for name in header["ignored"]),
            class_names=None if header["class_names"] is None else tuple(header["class_names"]),
            storage=folder_of_list(self._storage) if is_list else self._storage,
        )

    def save(self, listing: Listing) -> None:
        """Keep a listing; nothing is kept of a source that is always listed again."""
        if self._stamp is None or not self._may_be_kept(listing):
            return
        staged = self._destination.stage(LISTING_NAME)
        try:
            digest = hashlib.sha256()
            for piece in _pieces(listing, self._stamp, self._labels):
                digest.update(piece)
                staged.file.write(piece)
            staged.file.write(digest.digest())
            staged.publish()
        finally:
            staged.discard()

    def _may_be_kept(self, listing: Listing) -> bool:
        folders = (*listing.folders, *listing.validation)
        if self._storage.is_folder():  # tars may lie beside class folders, whose stamp is nothing
            return all(folder.spans is not None for folder in folders)
        if any(folder.metadata is not None and folder.metadata.in_file for folder in folders):
            return False  # gigabytes of text, which would come back into memory
        # A list may name files by URLs with passwords or signatures, which stay in memory.
        return not any(public_name(name) != name for folder in folders for name in folder.files)


def source_stamp(storage: Storage) -> str | None:
    """What changes when a source of tars or a list does; None for sources that are always listed again.

    Sizes and times of modification (or entity tags) of the tars in the folder, or of the one file that the source is.
    """
    folders: list[str | None] = [None]
    if storage.is_folder():
        names = {entry.name for entry in storage.entries() if entry.is_folder}
        folders = ["", *(name for name in ("train", "val") if name in names)]
    return _digest(storage, [stamp for folder in folders for stamp in _stamps(storage, folder, ".tar")])


def folders_stamp(storage: Storage, folders: Mapping[str, str]) -> str | None:
    """What changes when a file right in one of these folders of a source does; None where a time is not known.

    Args:
        storage: the source.
        folders: folder to the ending of the files that count there; with an empty one all do.
    """
    return _digest(storage, [stamp for item in folders.items() for stamp in _stamps(storage, *item)])


def _digest(storage: Storage, stamps: list[str | None]) -> str | None:
    if not stamps or None in stamps:
        return None
    return sha256_hex(name_bytes("\n".join([storage.name, *filter(None, stamps)])))


def _stamps(storage: Storage, folder: str | None, suffix: str) -> list[str | None]:
    """Name, size and time of every file in a folder whose name ends so, or with None of the source, a file; None where a
    time is missing.
    """
    if isinstance(storage, LocalStorage):
        paths = [storage.root]
        if folder is not None:
            entries = os.scandir(os.path.join(storage.root, folder))
            # A link to nothing is no file: it counts when there is one.
            paths = sorted(
                entry.path for entry in entries if entry.name.endswith(suffix) and os.path.exists(entry.path)
            )
        found = [(path, os.stat(path)) for path in paths]
        return [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in found]
    assert isinstance(storage, RemoteStorage)
    details = storage.details(folder)
    if folder is not None:
        details = [info for info in details if str(info["name"]).endswith(suffix)]
    stamps: list[str | None] = []
    for info in sorted(details, key=lambda info: str(info["name"])):
        time = next((info[key] for key in _TIMES if info.get(key)), None)
        stamps.append(None if time is None else f"{info['name']} {info.get('size')} {time}")
    return stamps


def _pieces(listing: Listing, stamp: str, labels: str) -> Iterator[bytes]:
    parts = (listing.folders, listing.validation)
    header = canonical_json(
        {
            "version": _VERSION,
            "stamp": stamp,
            "labels": labels,
            "root": str(listing.root),
            "class_names": listing.class_names,
            "ignored": [_latin(name) for name in listing.ignored],
            "parts": [[_folder_header(folder) for folder in part] for part in parts],
        }
    )
    yield _MAGIC + struct.pack("<Q", len(header)) + header
    for part in parts:
        for folder in part:
            yield from _names_pieces(folder.names)
            if folder.spans is not None:
                for array in (folder.spans.which, folder.spans.blocks, folder.spans.sizes):
                    yield array.astype("<i8").tobytes()
            if folder.metadata is not None:
                yield from _names_pieces(folder.metadata)


def _folder_header(folder: ClassFolder) -> dict[str, Any]:
    header: dict[str, Any] = {
        "name": _latin(folder.name),
        "path": _latin(folder.path),
        "files": _names_header(folder.names),
    }
    if folder.spans is not None:
        header["containers"] = [_latin(name) for name in folder.spans.containers]
        header["which"] = len(folder.spans.which)
    if folder.metadata is not None:
        header["metadata"] = _names_header(folder.metadata)
    return header


def _load_folder(header: dict[str, Any], arrays: _Arrays) -> ClassFolder:
    files = arrays.names(header["files"])
    spans = None
    if "containers" in header:
        which, blocks, sizes = (arrays.integers(n) for n in (header["which"], len(files), len(files)))
        spans = Spans.of(tuple(_text(name) for name in header["containers"]), which, blocks, sizes)
    metadata = arrays.names(header["metadata"]) if "metadata" in header else None
    return ClassFolder(_text(header["name"]), _text(header["path"]), files, spans, metadata)


def _names_header(names: Names) -> list[Any]:
    return [len(names), len(names.middles), names.prefix.decode("latin-1"), names.suffix.decode("latin-1")]


def _names_pieces(names: Names) -> Iterator[bytes]:
    yield names.lengths.astype("<i8").tobytes()
    yield names.middles


class _Arrays:
    """Takes arrays off the front of what is left of a file."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at

    def integers(self, num: int) -> np.ndarray:
        array = np.frombuffer(self._data, "<i8", num, self._at)
        self._at += 8 * num
        return array

    def names(self, header: list[Any]) -> Names:
        num, num_bytes, prefix, suffix = header
        lengths = self.integers(num)
        self._at += num_bytes
        middles = bytes(self._data[self._at - num_bytes : self._at])
        return Names.of(prefix.encode("latin-1"), suffix.encode("latin-1"), lengths, middles)


def _latin(name: str) -> str:
    """Text whose every character is one byte of the name, which need not be UTF-8."""
    return name_bytes(name).decode("latin-1")


def _text(latin: str) -> str:
    return name_text(latin.encode("latin-1"))
