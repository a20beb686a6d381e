"""Checks a data set against its manifest and lists every problem, not the first.

With hashes, members, JPEG headers (or every pixel), class indices, hierarchical label vectors against the
tree, label-map headers, shapes and ids, and counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from .components import decode_class, decode_levels, decode_meta
from .errors import DataError, SoftshardError, UsageError
from .files import sha256_hex
from .index import ShardIndex, build_index, parse_index, scan_tar
from .jpeg import read_jpeg_header
from .labelmap import decode_label_map, read_map_header
from .manifest import Manifest, load_sidecar, load_tree
from .progress import progress_bar
from .schema import CLASSES_NAME, CLS, HIER, JPG, KEY_PATTERN, LMAP, MANIFEST_NAME, META


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        shards: shards looked at.
        samples: samples looked at.
        problems: every problem, as `where: expected, found`.
    """

    shards: int = 0
    samples: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Expected:
    """What the manifest promises of every sample."""

    manifest: Manifest
    vectors: np.ndarray | None  # int16 [C, L] or [C, A, L]


def data_set_folders(path: str | Path) -> list[Path]:
    """The data sets at a path: the folder itself, or those in it (`pack` makes `train` and `val`).

    Raises:
        DataError: neither has a manifest.
        UsageError: the path is a URL.
    """
    path = _local(path)
    if (path / MANIFEST_NAME).exists():
        return [path]
    folders = sorted(entry.parent for entry in path.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise DataError(
            f"{path}: expected a data set (a folder with {MANIFEST_NAME}), found none; packing has not "
            "finished, or the path is another one"
        )
    return folders


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise UsageError(f"{path}: expected a local path, found a URL; copy the data set here first")
    return Path(path)


def verify(dataset: str | Path, *, decode: bool = False) -> VerifyReport:
    """Check a data set, a folder of data sets, or one shard of a data set.

    Args:
        dataset: folder, or a `.tar` beside its manifest.
        decode: decode every image and label map, rather than their headers.

    Returns:
        Counts and every problem found.

    Raises:
        DataError: there is no data set. (A manifest that cannot be read is a problem in the report.)
    """
    path = _local(dataset)
    report = VerifyReport()
    only = path.name if path.suffix == ".tar" else None
    if only is None:
        # A data set whose manifest was lost, in a copy that was interrupted say, must not pass unseen.
        for folder in sorted({tar.parent for tar in path.glob("*/*.tar")}):
            if not (folder / MANIFEST_NAME).exists():
                report.problems.append(
                    f"{folder}: expected {MANIFEST_NAME} beside its shards, found none. Copy it again, or pack again"
                )
    for folder in [path.parent] if only else data_set_folders(path):
        try:
            manifest = Manifest.load(folder)
        except DataError as error:
            report.problems.append(str(error))
        else:
            _verify_folder(folder, manifest, only, decode, report)
    return report


def _verify_folder(
    folder: Path, manifest: Manifest, only: str | None, decode: bool, report: VerifyReport
) -> None:
    problems = report.problems
    sidecar = tree = None
    try:
        sidecar = load_sidecar(folder, manifest)
        found = sha256_hex((folder / CLASSES_NAME).read_bytes())
        if found != manifest.sidecar_sha256:
            problems.append(
                f"{folder.name}/{CLASSES_NAME}: expected SHA-256 {manifest.sidecar_sha256[:12]}, "
                f"found {found[:12]}"
            )
    except DataError as error:
        problems.append(str(error))
    try:
        tree = load_tree(folder, manifest)
    except SoftshardError as error:  # a tree that is not there is a wrong call elsewhere
        problems.append(f"{folder.name}: {error}")
    if tree is not None and tree.classes != manifest.class_names:
        problems.append(
            f"{folder.name}: expected the tree's classes to be the manifest's class list, found others"
        )
        tree = None
    expected = _Expected(manifest, tree.vectors() if tree is not None else None)
    names = [shard.name for shard in manifest.shards]
    if only is not None and only not in names:
        problems.append(f"{only}: expected a shard of {folder.name}'s manifest, found no such name there")
        return
    if only is None:
        strays = sorted(entry.name for entry in folder.glob("*.tar") if entry.name not in names)
        problems.extend(
            f"{stray}: expected only the manifest's shards, found this one too" for stray in strays
        )
    keys: dict[str, str] = {}
    start = 0
    with progress_bar(manifest.num_samples, f"verify {manifest.name}", "img") as bar:
        for shard in manifest.shards:
            if only is None or shard.name == only:
                classes = sidecar[start : start + shard.samples] if sidecar is not None else None
                index = _verify_shard(folder, shard.name, expected, classes, decode, report)
                for key in index.keys if index else ():
                    if key in keys:
                        problems.append(
                            f"{shard.name}: sample {key!r}: expected each key once, also in {keys[key]}"
                        )
                    keys[key] = shard.name
                bar.update(shard.samples)
            start += shard.samples


def _verify_shard(
    folder: Path,
    name: str,
    expected: _Expected,
    classes: np.ndarray | None,
    decode: bool,
    report: VerifyReport,
) -> ShardIndex | None:
    record = next(shard for shard in expected.manifest.shards if shard.name == name)
    path = folder / name
    problems = report.problems
    if not path.is_file():
        problems.append(
            f"{name}: expected a shard of {record.bytes} bytes, found none. Copy it again, or pack again"
        )
        return None
    report.shards += 1
    size = path.stat().st_size
    if size != record.bytes:
        cut = "; the shard is cut short" if size < record.bytes else ""
        problems.append(
            f"{name}: expected {record.bytes} bytes, found {size}{cut}. Copy it again, or pack again"
        )
    else:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.sha256:
            problems.append(
                f"{name}: expected SHA-256 {record.sha256[:12]}, found {digest[:12]}; bytes have changed"
            )
    try:
        index = build_index(scan_tar(path), name)
    except DataError as error:
        problems.append(str(error))
        return None
    if index.suffixes != expected.manifest.components:
        problems.append(
            f"{name}: expected components {list(expected.manifest.components)}, found {list(index.suffixes)}"
        )
        return index
    if len(index.keys) != record.samples:
        problems.append(f"{name}: expected {record.samples} samples, found {len(index.keys)}")
        classes = None
    _verify_idx(path.with_suffix(".idx"), index, record.index_sha256, size, problems)
    report.samples += len(index.keys)
    with open(path, "rb") as file:
        for i, key in enumerate(index.keys):
            where = f"{name}: sample {key!r}"
            if not KEY_PATTERN.fullmatch(key):
                problems.append(f"{where}: expected a key of letters, digits, '_' and '-'")
            parts = {}
            for j, suffix in enumerate(index.suffixes):
                file.seek(int(index.offsets[i, j]))
                parts[suffix] = file.read(int(index.sizes[i, j]))
            _verify_sample(
                where, parts, expected, None if classes is None else int(classes[i]), decode, problems
            )
    return index


def _verify_idx(path: Path, index: ShardIndex, sha256: str, tar_bytes: int, problems: list[str]) -> None:
    if not path.is_file():
        problems.append(f"{path.name}: expected the shard's index, found none")
        return
    text = path.read_bytes()
    if sha256_hex(text) != sha256:
        problems.append(f"{path.name}: expected SHA-256 {sha256[:12]}, found {sha256_hex(text)[:12]}")
    try:
        found = parse_index(text.decode("utf-8", "replace"), path.name, tar_bytes)
    except DataError as error:
        problems.append(str(error))
        return
    same = found.suffixes == index.suffixes and found.keys == index.keys
    if not same or (found.offsets != index.offsets).any() or (found.sizes != index.sizes).any():
        problems.append(
            f"{path.name}: expected the members of {path.stem}.tar, found others; it is another shard's index"
        )


def _verify_sample(
    where: str,
    parts: dict[str, bytes],
    expected: _Expected,
    sidecar_class: int | None,
    decode: bool,
    problems: list[str],
) -> None:
    def check(step: Callable[[], None]) -> None:
        try:
            step()
        except DataError as error:
            problems.append(str(error))

    def check_jpeg() -> None:
        header = read_jpeg_header(parts[JPG.suffix], f"{where}, component 'jpg'")
        if not header.baseline or header.components != 3:
            raise DataError(f"{where}, component 'jpg': expected a baseline RGB JPEG, found another kind")
        if decode:
            try:
                simplejpeg.decode_jpeg(parts[JPG.suffix], "RGB", strict=True)
            except ValueError as error:
                raise DataError(f"{where}, component 'jpg': expected a whole JPEG, found: {error}") from error

    def check_labels() -> None:
        index = decode_class(parts[CLS.suffix], where)
        num = expected.manifest.num_classes
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
        info = expected.manifest.label_maps
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

    def check_meta() -> None:
        meta = decode_meta(parts[META.suffix], where)
        size = meta.get("size")
        fine = (
            isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        )
        if not fine or not isinstance(meta.get("path"), str):
            raise DataError(f"{where}, component 'msgpack': expected `path` and `size`, found {meta!r:.80}")

    check(check_jpeg)
    check(check_labels)
    if LMAP.suffix in parts:
        check(check_map)
    check(check_meta)
