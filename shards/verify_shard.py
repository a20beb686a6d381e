"""Checks one shard of a data set: its bytes, its members, its index, and every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from .components import decode_class, decode_levels, decode_meta
from .errors import DataError
from .files import sha256_hex
from .gather import key_hashes
from .index import ShardIndex, build_index, index_name, parse_index, tar_members
from .jpeg import raise_if_memory_ran_out, read_jpeg_header
from .labelmap import decode_label_map, read_map_header
from .manifest import LabelMapInfo
from .names import Names
from .schema import CLS, HIER, JPG, KD, KEY_PATTERN, LMAP, META, SOFT
from .shard_files import ShardFile, dataset_name, inside, open_shard, read_index
from .soft_labels import KINDS, TAGS, SoftLabelInfo, decode_soft_labels
from .teacher_levels import check_teacher_levels, decode_teacher_levels, read_teacher_header
from .text_limits import counted
from .writer import ShardRecord


@dataclass(frozen=True)
class Expected:
    """What the manifest promises of every sample.

    Attributes:
        dataset: the data set's folder or URL.
        components: component suffixes, in order.
        num_classes: a class index is below it.
        label_maps: geometry of the label maps, or None.
        vectors: int16 [C, ...], the hierarchical label vector of every class, or None.
        level_sizes: classes of each of the L levels, or None without a tree.
        decode: decode every image, rather than its header.
        soft_labels: tags, class weights and pseudo labels that samples have, or None.
    """

    dataset: str | Path
    components: tuple[str, ...]
    num_classes: int
    label_maps: LabelMapInfo | None
    vectors: np.ndarray | None
    level_sizes: tuple[int, ...] | None
    decode: bool
    soft_labels: SoftLabelInfo | None = None

    def where(self, name: str) -> str:
        """A file of the data set, as messages name it."""
        return dataset_name(inside(self.dataset, name))


@dataclass(frozen=True)
class ShardToCheck:
    """One shard.

    Attributes:
        record: what the manifest says of it.
        classes: int32 [samples] of the sidecar, or None where that is damaged.
    """

    record: ShardRecord
    classes: np.ndarray | None


@dataclass
class ShardFindings:
    """What a shard is.

    Attributes:
        found: whether there is such a file.
        samples: samples looked at.
        keys: of all samples that were found.
        key_hashes: uint64 [keys].
        problems: every problem, as `where: expected, found`.
    """

    found: bool = True
    samples: int = 0
    keys: Names = field(default_factory=Names)
    key_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    problems: list[str] = field(default_factory=list)


def check_shard(expected: Expected, shard: ShardToCheck) -> ShardFindings:
    """Read a shard once and check all of it."""
    findings = ShardFindings()
    record = shard.record
    try:
        with open_shard(expected.dataset, record) as file:
            _check_file(expected, shard, file, findings)
    except FileNotFoundError:
        findings.found = False
        findings.problems.append(
            f"{expected.where(record.name)}: expected a shard of {record.bytes} bytes, found none. Copy it again, or "
            "pack again"
        )
    except OSError as error:  # a disk that has begun to fail, say: the other shards are checked all the same
        findings.problems.append(
            f"{expected.where(record.name)}: expected a shard that can be read, found: {error.strerror or error}. Copy it "
            "again, or pack again"
        )
    except DataError as error:  # the server is away
        findings.problems.append(str(error))
    return findings


def _check_file(expected: Expected, shard: ShardToCheck, file: ShardFile, findings: ShardFindings) -> None:
    record, problems = shard.record, findings.problems
    name, classes = expected.where(record.name), shard.classes
    if file.size != record.bytes:
        cut = f"{file.size}; the shard is cut short" if file.size < record.bytes else "more"
        problems.append(f"{name}: expected {record.bytes} bytes, found {cut}. Copy it again, or pack again")
    elif file.sha256 != record.sha256:
        problems.append(
            f"{name}: expected SHA-256 {record.sha256[:12]}, found {file.sha256[:12]}; bytes have changed"
        )
    try:
        index = build_index(list(tar_members(file.file, name)), name)
    except DataError as error:
        problems.append(str(error))
        return
    findings.keys, findings.key_hashes = Names(index.keys), key_hashes(index.keys)
    if index.suffixes != expected.components:
        problems.append(
            f"{name}: expected components {list(expected.components)}, found {list(index.suffixes)}"
        )
        return
    if len(index.keys) != record.samples:
        problems.append(f"{name}: expected {counted(record.samples, 'sample')}, found {len(index.keys):,}")
        classes = None
    _check_idx(expected, record, index, file.size, problems)
    findings.samples = len(index.keys)
    for i, key in enumerate(index.keys):
        where = f"{name}: sample {key!r}"
        if not KEY_PATTERN.fullmatch(key):
            problems.append(f"{where}: expected a key of letters, digits, '_' and '-'")
        parts = _read_parts(file.file, index, i)
        check_sample(where, parts, expected, None if classes is None else int(classes[i]), problems)


def _read_parts(file: BinaryIO, index: ShardIndex, i: int) -> dict[str, bytes]:
    parts = {}
    for j, suffix in enumerate(index.suffixes):
        file.seek(int(index.offsets[i, j]))
        parts[suffix] = file.read(int(index.sizes[i, j]))
    return parts


def _check_idx(
    expected: Expected, record: ShardRecord, index: ShardIndex, tar_bytes: int, problems: list[str]
) -> None:
    name = expected.where(index_name(record.name))
    try:
        text = read_index(expected.dataset, record, len(expected.components))
    except FileNotFoundError:
        problems.append(f"{name}: expected the shard's index, found none. Copy it again, or pack again")
        return
    except OSError as error:
        problems.append(
            f"{name}: expected an index that can be read, found: {error.strerror or error}. Copy it again, or pack again"
        )
        return
    except DataError as error:
        problems.append(str(error))
        return
    if sha256_hex(text) != record.index_sha256:
        problems.append(f"{name}: expected SHA-256 {record.index_sha256[:12]}, found {sha256_hex(text)[:12]}")
    try:
        found = parse_index(text.decode("utf-8", "replace"), name, tar_bytes)
    except DataError as error:
        problems.append(str(error))
        return
    same = found.suffixes == index.suffixes and found.keys == index.keys
    if not same or (found.offsets != index.offsets).any() or (found.sizes != index.sizes).any():
        problems.append(
            f"{name}: expected the members of {record.name}, found others; it is another shard's index"
        )


def check_sample(
    where: str, parts: dict[str, bytes], expected: Expected, sidecar_class: int | None, problems: list[str]
) -> None:
    """Check one sample's components.

    Args:
        where: shard and sample, for messages.
        parts: component suffix to bytes.
        expected: what the manifest promises.
        sidecar_class: the class in `classes.npy`, or None where that is damaged.
        problems: what is found is added here.
    """

    def check(step: Callable[[], None]) -> None:
        try:
            step()
        except DataError as error:
            problems.append(str(error))

    def check_jpeg() -> None:
        header = read_jpeg_header(parts[JPG.suffix], f"{where}, component 'jpg'")
        if not header.baseline or header.components != 3:
            raise DataError(f"{where}, component 'jpg': expected a baseline RGB JPEG, found another kind")
        if expected.decode:
            try:
                simplejpeg.decode_jpeg(parts[JPG.suffix], "RGB", strict=True)
            except ValueError as error:
                raise_if_memory_ran_out(error, where)
                raise DataError(f"{where}, component 'jpg': expected a whole JPEG, found: {error}") from error

    def check_labels() -> None:
        index = decode_class(parts[CLS.suffix], where)
        num = expected.num_classes
        if index >= num:
            raise DataError(f"{where}, component 'cls': expected a class below {num}, found {index}")
        if sidecar_class is not None and index != sidecar_class:
            raise DataError(
                f"{where}, component 'cls': expected class {sidecar_class} as in classes.npy, found {index}"
            )
        if HIER.suffix in parts:
            vector = decode_levels(parts[HIER.suffix], where)
            if expected.vectors is not None and not np.array_equal(vector, expected.vectors[index]):
                raise DataError(
                    f"{where}, component 'hier.npy': expected {expected.vectors[index].tolist()} for class "
                    f"{index}, found {vector.tolist()}"
                )

    def check_map() -> None:
        name = f"{where}, component 'lmap'"
        header = read_map_header(parts[LMAP.suffix], name)
        info = expected.label_maps
        if info is None:
            raise DataError(f"{name}: expected label maps described in the manifest, found no such entry")
        wanted = (info.top, info.rows, info.columns)
        if header.shape != wanted or header.num_classes != info.num_classes:
            raise DataError(
                f"{name}: expected [K, P, Q] {list(wanted)} over {info.num_classes} classes, found "
                f"{list(header.shape)} over {header.num_classes}"
            )
        _, ids = decode_label_map(parts[LMAP.suffix], name)
        if (np.diff(np.sort(ids, axis=0), axis=0) == 0).any():
            raise DataError(f"{name}: expected distinct class ids in each cell, found one twice")

    def check_teacher() -> None:
        name = f"{where}, component 'kd'"
        if expected.level_sizes is None:
            read_teacher_header(parts[KD.suffix], name)
            return
        ids, probabilities = decode_teacher_levels([parts[KD.suffix]], expected.level_sizes, [name])
        check_teacher_levels(ids[0], probabilities[0], expected.level_sizes, name)

    def check_meta() -> None:
        meta = decode_meta(parts[META.suffix], where)
        size = meta.get("size")
        fine = (
            isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        )
        if not fine or not isinstance(meta.get("path"), str):
            raise DataError(f"{where}, component 'msgpack': expected `path` and `size`, found {meta!r:.80}")

    def check_soft(kind: str, info: SoftLabelInfo) -> None:
        data = parts[SOFT.suffix if kind == "pseudo" else META.suffix]
        num_ids = info.num_tags if kind == TAGS else expected.num_classes
        decode_soft_labels(kind, [data], num_ids, lambda _: where)

    check(check_jpeg)
    check(check_labels)
    if LMAP.suffix in parts:
        check(check_map)
    if KD.suffix in parts:
        check(check_teacher)
    check(check_meta)
    if (info := expected.soft_labels) is not None:
        for kind in filter(info.has, KINDS):
            check(partial(check_soft, kind, info))
