"""Somebody else's WebDataset: tars without a manifest, indexed when the loader is built.

A sample is a JPEG (`jpg` or `jpeg`) and, where it has one, a class (`cls`, or a field of `json`, as `softshard pack` reads
them). What each tar holds is kept in the cache, under the tar's place, size and time or tag, so that it is read once.

    {000000..000012}.tar, folder, tar  ->  names  ->  one index a tar  ->  a Manifest without hashes, classes

There is no hash to compare anything with: a tar that has changed since it was indexed is known by its size, time or tag
alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..shards.classes import class_list_sha256
from ..shards.errors import DataError
from ..shards.files import sha256_hex
from ..shards.index import ShardIndex
from ..shards.manifest import Manifest
from ..shards.parallel import in_threads
from ..shards.progress import progress_bar
from ..shards.schema import CLS, JPG
from ..shards.source_labels import name_classes
from ..shards.storage import public_name
from ..shards.text_limits import counted
from ..shards.writer import ShardRecord
from .cache import Cache
from .download import Downloads
from .faults import ALWAYS_ALLOWED_BAD, Faults
from .fetch import OpenShard, ShardBytes, ShardFiles
from .remote import RemoteShards
from .stop_flag import StopFlag
from .tar_index import JPEGS, IndexFolder, Tar, TarIndex, identify, index_tar


class OtherTars:
    """The tars of one data set, indexed.

    Args:
        folder: as `dataset_path` gives it.
        names: of the tars, below it.
        cache: where indexes are kept, and remote tars.

    Raises:
        DataError: see `identify` and `index_tar`; no sample; many samples without a class among others.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], cache: Cache) -> None:
        self.folder, self.cache, self._indexes = folder, cache, IndexFolder(cache)
        self.where = public_name(str(folder))
        self.tars = list(in_threads(lambda name: identify(folder, name), names, cache.num_fetchers))
        records, labels = [], []
        num_skipped = 0
        indexes = self._all_indexes()
        self._num_unlabelled = self._count_unlabelled(indexes)
        for tar, index in zip(self.tars, map(self._served, indexes), strict=True):
            # No hash of the tar is known: what decides the order and the crops is in the index.
            content = sha256_hex(index.to_bytes())
            records.append(ShardRecord(tar.name, len(index.keys), tar.num_bytes, content, content))
            labels.append(index.labels)
            num_skipped += index.num_skipped
        if not sum(record.samples for record in records):
            raise DataError(f"{self.where}: expected samples with a JPEG ({', '.join(JPEGS)}), found none")
        self._label_ids, self.class_names = self._name_classes(labels)
        self.classes = np.fromiter(
            (self._label_ids.get(label, -1) for label in chain.from_iterable(labels)), np.int32
        )
        self.manifest = Manifest(
            name="tars",
            components=(JPG.suffix, CLS.suffix),
            class_names=self.class_names,
            classes_sha256=class_list_sha256(self.class_names),
            tree_sha256=None,
            num_levels=0,
            label_maps=None,
            recipe={},
            pixel_stack={},
            sidecar_sha256="",
            # A tar without samples has no place in an order.
            shards=tuple(record for record in records if record.samples),
        )
        self.tars = [tar for tar, record in zip(self.tars, records, strict=True) if record.samples]
        self._warn(num_skipped)

    def _count_unlabelled(self, indexes: Sequence[TarIndex]) -> int:
        """Samples without a class that are left out since nearly all have one.

        Raises:
            DataError: more of them than a loader leaves out of a data set of ours.
        """
        counts = [index.labels.count("") for index in indexes]
        missing, num = sum(counts), sum(len(index.labels) for index in indexes)
        if missing == num:
            return 0
        if missing > max(min(ALWAYS_ALLOWED_BAD, num // 2), int(Faults.max_bad * num)):
            tar = next(tar.name for tar, count in zip(self.tars, counts, strict=True) if count)
            raise DataError(
                f"{self.where}: expected a class (cls or json) in every sample or in none, found {missing:,} of {num:,} "
                f"samples without one, the first in {tar}. Run: softshard pack SRC DST, which leaves them out"
            )
        return missing

    def _served(self, index: TarIndex) -> TarIndex:
        return index.labelled() if self._num_unlabelled else index

    def _all_indexes(self) -> list[TarIndex]:
        if isinstance(self.folder, Path):
            return [self._indexes.get(tar, lambda tar=tar: self._index_local(tar)) for tar in self.tars]
        shards = _FetchedTars(str(self.folder), _listed(self.tars), self.tars, self.cache)
        downloads = shards.downloads(StopFlag())

        def get(number: int) -> TarIndex:
            tar = self.tars[number]

            def make() -> TarIndex:
                descriptor, _ = shards.pinned(number, downloads, urgent=lambda: True, wanted=lambda: True)
                with os.fdopen(descriptor, "rb") as file:
                    return index_tar(file, f"{self.where}/{tar.name}")

            return self._indexes.get(tar, make)

        # Whole tars, not their headers: 10,000 samples of three members would be 30,000 requests, against 32 for 256 MB,
        # and the bytes are what training asks for next.
        found = []
        with progress_bar(len(self.tars), f"{self.where}: fetching and indexing tars", "tar") as bar:
            for index in in_threads(get, range(len(self.tars)), self.cache.num_fetchers):
                found.append(index)
                bar.update()
        return found

    def _index_local(self, tar: Tar) -> TarIndex:
        with _opened(path := Path(self.folder) / tar.name) as file:
            index = index_tar(file, str(path))
        _check_unchanged(self.folder, tar)
        return index

    def _name_classes(self, labels: list[tuple[str, ...]]) -> tuple[dict[str, int], tuple[str, ...]]:
        """Label -> class, and the class list: numbers, or sorted names."""
        distinct = set(chain.from_iterable(labels))
        if distinct == {""}:
            return {}, ()
        names, numbered = name_classes(distinct, None, self.where)
        class_names = numbered or tuple(sorted(set(names.values())))
        numbers = {name: number for number, name in enumerate(class_names)}
        return {label: numbers[name] for label, name in names.items()}, class_names

    def _warn(self, num_skipped: int) -> None:
        classes = (
            "without classes (batch.classes is -1)"
            if not self.class_names
            else f"with {counted(len(self.class_names), 'class')}"
        )
        left_out = ((num_skipped, "a JPEG"), (self._num_unlabelled, "a class"))
        skipped = "".join(
            f" Left out: {counted(num, 'sample')} without {what}." for num, what in left_out if num
        )
        warnings.warn(
            f"{self.where}: {counted(len(self.tars), 'tar')} without a manifest, "
            f"{counted(len(self.classes), 'sample')} {classes}.{skipped} "
            "Not checked: hashes, and whether tars are missing; class numbers are those found in the tars, EXIF orientation "
            "is not applied. softshard pack SRC DST makes a data set where all this is known",
            stacklevel=5,
        )

    def index(self, number: int, descriptor: int) -> tuple[ShardIndex, np.ndarray]:
        """An open tar's index, and its samples' classes.

        Raises:
            DataError: it is not in the cache any more, and cannot be made again.
        """
        tar = self.tars[number]

        def make() -> TarIndex:
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return index_tar(file, f"{self.where}/{tar.name}")

        found = self._served(self._indexes.get(tar, make))
        classes = np.array([self._label_ids.get(label, -1) for label in found.labels], np.int64)
        return found.shard_index, classes

    def shards(self) -> LocalTars | RemoteTars:
        """The tars, opened when they are needed."""
        return LocalTars(self) if isinstance(self.folder, Path) else RemoteTars(self)


class _FetchedTars(RemoteShards):
    """Somebody else's tars behind a URL: nobody knows their hashes."""

    def __init__(self, url: str, manifest: Manifest, tars: Sequence[Tar], cache: Cache) -> None:
        super().__init__(url, manifest, cache)
        self._fetched = tars

    def _key(self, number: int) -> str:
        return self._fetched[number].key

    def _known_sha256(self, number: int) -> str | None:
        return None

    def _is_right(self, number: int, sha256: str) -> bool:
        _check_unchanged(self._url, self._fetched[number])  # after the download: it is not in between two
        return True


def _listed(tars: Sequence[Tar]) -> Manifest:
    """Names and sizes alone: what fetching needs before the tars are indexed."""
    shards = tuple(ShardRecord(tar.name, 0, tar.num_bytes, tar.key, "") for tar in tars)
    return Manifest("tars", (), (), "", None, 0, None, {}, {}, "", shards)


class LocalTars(ShardFiles):
    """Somebody else's tars in a local folder."""

    def __init__(self, tars: OtherTars) -> None:
        super().__init__(tars.folder, tars.manifest)
        self._tars = tars

    def _map(self, number: int) -> OpenShard:
        tar = self._tars.tars[number]
        path = self._folder / tar.name
        with _opened(path) as file:
            _check_unchanged(self._folder, tar)  # what is open still has the name
            return OpenShard(path, ShardBytes(file.fileno()), *self._tars.index(number, file.fileno()))


class RemoteTars(_FetchedTars):
    """Somebody else's tars behind a URL, indexed."""

    def __init__(self, tars: OtherTars) -> None:
        super().__init__(str(tars.folder), tars.manifest, tars.tars, tars.cache)
        self._tars = tars

    def _index(
        self, number: int, descriptor: int, downloads: Downloads
    ) -> tuple[ShardIndex, np.ndarray | None]:
        return self._tars.index(number, descriptor)


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"{path}: expected a tar that can be read, found: {error.strerror}. Copy it again"
        ) from error


def _check_unchanged(folder: str | Path, tar: Tar) -> None:
    if identify(folder, tar.name).key != tar.key:
        raise DataError(
            f"{public_name(str(folder))}/{tar.name}: expected the tar that was indexed, found another size or time; it has "
            "changed. Build the loader again; or its server gives another time or tag each time: copy the tars"
        )
