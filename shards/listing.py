"""What every source gives: classes with the names of their images and, inside tars, where their bytes lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from .names import Names
from .schema import TAR_BLOCK_BYTES
from .storage import LocalStorage, Storage

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
)
_REMOTE_LISTERS = 16  # threads

T = TypeVar("T")
Item = TypeVar("Item")


Seen = Callable[[int], object]  # told of how many more images were found


def not_seen(num: int) -> None:
    """A `Seen` that nobody looks at."""


def in_order(storage: Storage, call: Callable[[Item], T], items: Sequence[Item]) -> Iterator[T]:
    """`call` for every item, in their order: one after the other, or many at once where each waits for a server."""
    if not storage.remote:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(_REMOTE_LISTERS) as pool:
        try:
            yield from pool.map(call, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


class Location(NamedTuple):
    """Where an image's bytes are.

    Attributes:
        file: a file of the source's storage.
        offset: its first byte there.
        size: bytes, or None for all of the file.
    """

    file: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, eq=False)
class Spans:
    """Where the images of one class lie inside tars.

    Attributes:
        containers: the tars.
        which: integer [N], a place in `containers`; or [1] where all lie in one.
        blocks: integer [N], where the data begin, in blocks of 512 bytes (data in a tar begin at one).
        sizes: integer [N], bytes.
    """

    containers: tuple[str, ...]
    which: np.ndarray
    blocks: np.ndarray
    sizes: np.ndarray

    @classmethod
    def pack(cls, locations: Sequence[Location]) -> Spans:
        """Pack locations, in arrays no wider than they need to be."""
        containers = {location.file: None for location in locations}
        places = {file: i for i, file in enumerate(containers)}
        which = [places[location.file] for location in locations] if len(places) > 1 else [0]
        offsets = np.array([location.offset for location in locations], np.int64)
        sizes = np.array([location.size for location in locations], np.int64)
        if (offsets % TAR_BLOCK_BYTES).any():
            raise ValueError("a tar member's data begin at a block")
        return cls.of(tuple(containers), np.array(which), offsets // TAR_BLOCK_BYTES, sizes)

    @classmethod
    def of(
        cls, containers: tuple[str, ...], which: np.ndarray, blocks: np.ndarray, sizes: np.ndarray
    ) -> Spans:
        """Spans of arrays of any integer type."""
        return cls(containers, _narrow(which), _narrow(blocks), _narrow(sizes))

    def __getitem__(self, i: int) -> Location:
        which = self.which[i] if len(self.which) > 1 else self.which[0]
        return Location(self.containers[which], int(self.blocks[i]) * TAR_BLOCK_BYTES, int(self.sizes[i]))


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in 32 bits where they fit."""
    return values.astype(np.uint32 if values.max(initial=0) < 2**32 else np.int64)


@dataclass(frozen=True)
class ClassFolder:
    """One class's files.

    Attributes:
        name: the class.
        path: what stands before the files' names in their paths, without a final `/`; may be empty.
        files: names of the images, with `/`, in lexical order.
        spans: where they lie inside tars; None where each is a file of its own, at its path.
        metadata: a JSON object for each image, where the source has more to say of it.
    """

    name: str
    path: str
    files: Sequence[str]
    spans: Spans | None = None
    metadata: Names | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.files, Names):
            object.__setattr__(self, "files", Names(self.files))

    @property
    def names(self) -> Names:
        """`files`, packed."""
        assert isinstance(self.files, Names)
        return self.files

    def file_path(self, i: int) -> str:
        """The i-th image's path below the source."""
        return f"{self.path}/{self.files[i]}" if self.path else self.files[i]

    def location(self, i: int) -> Location:
        """Where the i-th image's bytes are."""
        return Location(self.file_path(i)) if self.spans is None else self.spans[i]


@dataclass(frozen=True)
class Listing:
    """An image collection.

    Attributes:
        root: the source, as messages name it (no password or token in it).
        folders: one a class, in lexical order (code points, whatever the locale).
        validation: the class folders of the validation part, where the source is split already; else empty.
        ignored: what is there and is not packed, in lexical order.
        class_names: the class list, where the source itself numbers its classes; else None.
        storage: where to read; by default the local folder `root`.
    """

    root: str | os.PathLike[str]
    folders: tuple[ClassFolder, ...]
    validation: tuple[ClassFolder, ...] = ()
    ignored: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    storage: Storage | None = None

    @property
    def num_files(self) -> int:
        return sum(len(folder.files) for folder in (*self.folders, *self.validation))

    @property
    def files(self) -> Storage:
        """Where to read."""
        return self.storage if self.storage is not None else LocalStorage(str(self.root))
