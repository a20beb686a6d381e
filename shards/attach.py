"""What `reshard` adds to samples or replaces: label maps of a folder, label vectors of a tree, tags and weights of a list.

Every map is read and checked before anything is written, so that the result has them all or is not begun; its
64-bit hash (and its size: 16 bytes a sample in memory) makes sure that it is the same one later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from .classes import class_list_sha256
from .components import decode_class, decode_meta, encode_levels
from .errors import DataError, UsageError
from .gather import SampleTable
from .index import padded
from .joined_rows import JoinedRows
from .labelmap import read_map_header
from .manifest import LabelMapInfo, Manifest
from .parallel import in_threads
from .reader import Sample
from .relabel import Relabelling
from .schema import CLS, HIER, LMAP, META, SOFT, TAR_BLOCK_BYTES
from .shard_task import map_path, read_map_file
from .soft_labels import WEIGHTS, encode_meta, encode_pseudo_labels, merged_classes
from .text_limits import counted
from .tree import LabelTree

_MAPS_OF_A_TASK = 256  # maps that a thread checks at a time
_SPELLED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


@dataclass(frozen=True)
class AddedMaps:
    """Label maps that have been checked; N samples of the sources.

    Attributes:
        folder: where they lie.
        info: their geometry.
        sha256: of all of them, with the keys of their samples.
        sizes: int64 [N], bytes of each sample's map; 0 for samples that are left out.
        hashes: uint64 [N], 64 bits of each map's SHA-256.
    """

    folder: Path
    info: LabelMapInfo
    sha256: str
    sizes: np.ndarray
    hashes: np.ndarray

    def read(self, number: int, path: str) -> bytes:
        """A sample's map, by its number and original path.

        Raises:
            DataError: it is not the one that was checked.
        """
        file = _map_file(self.folder, path)
        try:
            data = read_map_file(file)
        except OSError as error:
            raise DataError(f"{file}: expected the label map that was checked, found: {error}") from error
        if _hash64(hashlib.sha256(data).digest()) != self.hashes[number]:
            raise DataError(
                f"{file}: expected the label map that was checked, found other bytes; it has changed meanwhile. "
                "Run it again, into a new folder"
            )
        return data


@dataclass(frozen=True)
class Added:
    """What is added to every sample.

    Attributes:
        tree: label tree whose vectors are added, or None.
        maps: label maps, or None.
        class_map: int32 [C_old], the new class of each of the sources', -1 where no sample is of it; None where
            they stay.
        rows: tags and class weights that `msgpack` gets.
    """

    tree: LabelTree | None = None
    maps: AddedMaps | None = None
    rows: tuple[JoinedRows, ...] = ()
    class_map: np.ndarray | None = None

    @classmethod
    def relabelled(cls, relabelling: Relabelling) -> Added:
        """Other classes, and the label vectors of their tree, where there is one."""
        return cls(relabelling.tree, class_map=relabelling.class_map)

    def new_classes(self, classes: np.ndarray) -> np.ndarray:
        """int32 [N]: the classes of samples, from those in the sources."""
        return classes if self.class_map is None else self.class_map[classes]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The components that are added, or replaced where samples have them."""
        hier = (HIER.suffix,) if self.tree is not None else ()
        return (*hier, *((LMAP.suffix,) if self.maps is not None else ()))

    def tar_bytes(self, num_samples: int) -> np.ndarray:
        """int64 [N]: bytes that each sample of the sources grows by in the tar."""
        added = np.zeros(num_samples, np.int64)
        if self.tree is not None:
            added += TAR_BLOCK_BYTES + padded(len(encode_levels(self.tree.vectors()[0])))
        if self.maps is not None:
            added += TAR_BLOCK_BYTES + padded(self.maps.sizes)
        for rows in self.rows:
            added += rows.sizes
        return added

    def to(self, sample: Sample, number: int, table: SampleTable, where: str) -> dict[str, bytes]:
        """A sample's components with those that are added."""
        parts = dict(sample.parts)
        if self.tree is not None or self.class_map is not None:
            index = self._class(parts[CLS.suffix], f"{where}: sample {sample.key!r}")
            if self.class_map is not None:
                parts[CLS.suffix] = str(index).encode("ascii")
                parts |= _over_classes(parts, self.class_map, f"{where}: sample {sample.key!r}")
            if self.tree is not None:
                parts[HIER.suffix] = encode_levels(self.tree.vectors()[index])
        if self.maps is not None:
            parts[LMAP.suffix] = self.maps.read(number, table.path(number))
        for rows in self.rows:
            parts[META.suffix] = rows.add(parts[META.suffix], number, f"{where}: sample {sample.key!r}")
        return parts

    def _class(self, data: bytes, where: str) -> int:
        """A sample's class in the result."""
        index = decode_class(data, where)
        if self.class_map is not None:
            new = int(self.class_map[index]) if index < len(self.class_map) else -1
            if new < 0:
                raise DataError(
                    f"{where}, component 'cls': expected a class that the subset keeps, as classes.npy says, found "
                    f"{index}; the data set is damaged. Run: softshard verify DATASET"
                )
            return new
        if self.tree is not None and index >= len(self.tree.classes):
            raise DataError(
                f"{where}, component 'cls': expected a class below {len(self.tree.classes)}, found {index}"
            )
        return index

    def to_json(self) -> dict[str, Any]:
        """What the plan says of it: fingerprints, not where it was found."""
        added: dict[str, Any] = {}
        if self.tree is not None:
            added[HIER.suffix] = {"tree": self.tree.fingerprint}
        if self.maps is not None:
            added[LMAP.suffix] = {"sha256": self.maps.sha256}
        for rows in self.rows:
            added[rows.kind] = {"sha256": rows.sha256, **dict(sorted(rows.counts.items()))}
        return added


def _over_classes(parts: Mapping[str, bytes], class_map: np.ndarray, where: str) -> dict[str, bytes]:
    """The components that hold class weights or pseudo labels, over other classes."""
    changed = {}
    if META.suffix in parts:
        meta = decode_meta(parts[META.suffix], where)
        if WEIGHTS in meta:
            named = f"{where}, component {META.suffix!r}, {WEIGHTS}"
            weights = merged_classes(meta[WEIGHTS], class_map, named)
            changed[META.suffix] = encode_meta(meta | {WEIGHTS: weights})
    if SOFT.suffix in parts:
        named = f"{where}, component {SOFT.suffix!r}"
        try:
            pair = msgpack.unpackb(parts[SOFT.suffix])
        except (ValueError, msgpack.UnpackException) as error:
            raise DataError(f"{named}: expected MessagePack, found: {error}") from error
        ids, weights = merged_classes(pair, class_map, named)
        changed[SOFT.suffix] = encode_pseudo_labels(ids, weights, int(class_map.max()) + 1)
    return changed


def check_tree(tree: LabelTree, manifest: Manifest, maps_stay: bool) -> None:
    """Refuse a tree of other classes; inner nodes that it numbers after the data set's classes are welcome.

    Args:
        tree: to be added.
        manifest: of the data set.
        maps_stay: whether samples have label maps that are kept, over the classes as they are.

    Raises:
        DataError: the tree's classes are not the data set's class list; fingerprints of both are named.
    """
    if tree.classes == manifest.class_names:
        return
    if tree.classes[: manifest.num_classes] != manifest.class_names:
        raise DataError(
            f"label tree {tree.fingerprint[:12]}: expected the class list {manifest.classes_sha256[:12]} of "
            f"{manifest.num_classes} classes that the data set has, found {class_list_sha256(tree.classes)[:12]} of "
            f"{len(tree.classes)}; build the tree from that list. Run: softshard tree build --classes DATASET"
        )
    if maps_stay:
        inner_nodes = counted(len(tree.classes) - manifest.num_classes, "inner node")
        raise DataError(
            f"label tree {tree.fingerprint[:12]}: expected the {manifest.num_classes} classes that the label maps are "
            f"over, found {inner_nodes} beside them; add --drop lmap and make the maps again, or build the tree with "
            "--inner none"
        )


class _FoundMap(NamedTuple):
    file: Path
    shape: tuple[int, int, int]
    size: int
    sha256: bytes


def check_maps(
    folder: Path,
    table: SampleTable,
    numbers: np.ndarray,
    num_classes: int,
    workers: int,
    progress: Callable[[int], object],
) -> AddedMaps:
    """Read and check the label map of every sample, as `pack` does.

    Args:
        folder: laid out as for `pack`: a map lies at its image's original path, with the ending `.lmap`.
        table: the samples, with their original paths.
        numbers: int64 [n], ascending: which samples get a map.
        num_classes: C of the data set's class list.
        workers: threads.
        progress: told of the maps looked at.

    Raises:
        UsageError: there is no such folder.
        DataError: maps are missing, damaged or of another geometry; every one is named.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of <class>/<stem>.lmap files, found none")
    sizes = np.zeros(len(table.offsets), np.int64)
    hashes = np.zeros(len(table.offsets), np.uint64)
    digest = hashlib.sha256()
    shape: tuple[int, int, int] | None = None
    num_missing = 0
    problems: list[str] = []
    batches = [numbers[at : at + _MAPS_OF_A_TASK] for at in range(0, len(numbers), _MAPS_OF_A_TASK)]

    def look(batch: np.ndarray) -> list[_FoundMap | DataError | FileNotFoundError]:
        return list(_each_map(folder, table, num_classes, batch))

    for batch, results in zip(batches, in_threads(look, batches, workers), strict=True):
        for number, found in zip(batch.tolist(), results, strict=True):
            if isinstance(found, _FoundMap) and found.shape != (shape := shape or found.shape):
                found = DataError(
                    f"{found.file}: expected [K, P, Q] {list(shape)} as the first map has, found {list(found.shape)}"
                )
            if not isinstance(found, _FoundMap):
                num_missing += isinstance(found, FileNotFoundError)
                problems.append(str(found))
                continue
            sizes[number], hashes[number] = found.size, _hash64(found.sha256)
            digest.update(int(table.key_hashes[number]).to_bytes(8, "big") + found.sha256)
        progress(len(batch))
    if num_missing == len(numbers):
        raise DataError(
            f"{folder}: expected label maps of {len(numbers)} samples, found none; the names are the images' "
            f"original paths with another ending, such as {map_path(folder, table.path(int(numbers[0])))}"
        )
    if problems:
        raise DataError(
            "\n".join(problems)
            + f"\n{folder}: expected a label map for each of {len(numbers)} samples, found {len(problems)} missing "
            "or bad; nothing has been written. Make these maps, or leave their classes out (--classes)"
        )
    assert shape is not None
    return AddedMaps(folder, LabelMapInfo(*shape, num_classes), digest.hexdigest(), sizes, hashes)


def _each_map(
    folder: Path, table: SampleTable, num_classes: int, numbers: np.ndarray
) -> Iterator[_FoundMap | DataError | FileNotFoundError]:
    for number in numbers.tolist():
        path = table.path(number)
        try:
            file = _map_file(folder, path)
            data = read_map_file(file)
            header = read_map_header(data, str(file))
        except (FileNotFoundError, NotADirectoryError):
            yield FileNotFoundError(f"{path}: expected a label map {map_path(folder, path)}, found none")
        except OSError as error:
            yield DataError(f"{path}: expected a label map, found: {error}")
        except DataError as error:
            yield error
        else:
            if header.num_classes != num_classes:
                yield DataError(
                    f"{file}: expected a label map over {num_classes} classes, found {header.num_classes}; the "
                    "teacher's class list is another one"
                )
            else:
                yield _FoundMap(file, header.shape, len(data), hashlib.sha256(data).digest())


def _map_file(folder: Path, path: str) -> Path:
    """Where a sample's map lies.

    Raises:
        DataError: the path, which a data set from elsewhere may have made up, climbs out of the folder.
    """
    if ".." in path.split("/"):
        raise DataError(f"{path}: expected an image's path below its source, found one that leaves it")
    file = map_path(folder, path)
    if _SPELLED_BYTE.search(path) and not file.exists():
        # Bytes that are not UTF-8 are spelled out in a sample's path, and as they are in a file's.
        file = map_path(folder, _SPELLED_BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), path))
    return file


def _hash64(sha256: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(sha256[:8], "big"))
