"""One shard of a packing run, made from the plan alone, and the receipt that a resume trusts."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from .components import encode_levels
from .errors import DataError, ImageError
from .files import write_atomically
from .images import ImageRecipe, store_image
from .labelmap import read_map_header
from .manifest import canonical_json
from .schema import CLS, HIER, JPG, LMAP, META, MIB, RECEIPTS_DIR
from .writer import ShardWriter

_MAX_FILE_BYTES = 512 * MIB


@dataclass(frozen=True)
class BadInput:
    """A line of the ledger: an input that is not in the shards, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to make one shard."""

    folder: Path
    name: str
    paths: Sequence[str]
    classes: Sequence[int]
    keys: Sequence[str]


@dataclass(frozen=True)
class Job:
    """What all the shard tasks of a run have in common; sent to each worker once."""

    root: Path
    plan_sha256: str
    image: ImageRecipe
    label_maps: Path | None
    map_shape: tuple[int, int, int] | None
    num_classes: int
    vectors: np.ndarray | None  # int16 [C, L]

    @property
    def suffixes(self) -> tuple[str, ...]:
        hier = (HIER.suffix,) if self.vectors is not None else ()
        lmap = (LMAP.suffix,) if self.label_maps is not None else ()
        return (JPG.suffix, CLS.suffix, *hier, *lmap, META.suffix)


def make_shard(job: Job, task: ShardTask) -> dict[str, Any]:
    """Make one shard and its receipt."""
    bad: list[BadInput] = []
    classes: list[int] = []
    writer = ShardWriter(task.folder / task.name, job.suffixes)
    try:
        for path, index, key in zip(task.paths, task.classes, task.keys, strict=True):
            try:
                parts = make_sample(job, path, index)
            except (ImageError, OSError) as error:
                kind = error.kind if isinstance(error, ImageError) else "unreadable"
                bad.append(BadInput(path, kind, str(error)))
                continue
            writer.write(key, parts)
            classes.append(index)
        record = None
        if classes:
            record = writer.close()
        else:
            writer.abort()
    except BaseException:
        writer.abort()
        raise
    receipt = {
        "plan": job.plan_sha256,
        "read": len(task.paths),
        "record": record.to_json() if record else None,
        "classes": classes,
        "bad": [asdict(item) for item in bad],
    }
    write_atomically(_receipt_path(task), canonical_json(receipt))
    return receipt


def _receipt_path(task: ShardTask) -> Path:
    return task.folder / RECEIPTS_DIR / f"{task.name}.json"


def read_receipt(task: ShardTask, plan_sha256: str) -> dict[str, Any] | None:
    """A finished shard's receipt, or None where the shard is still to be made."""
    try:
        receipt = json.loads(_receipt_path(task).read_bytes())
        if receipt["plan"] != plan_sha256:
            return None
        record, _, _, _ = (receipt[name] for name in ("record", "read", "classes", "bad"))
        shard = task.folder / task.name
        whole = record is None or (
            shard.stat().st_size == record["bytes"] and shard.with_suffix(".idx").is_file()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if whole else None


def make_sample(job: Job, path: str, index: int) -> dict[str, bytes]:
    """Read one image and attach its labels: component suffix to bytes."""
    file = job.root / path
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise ImageError(f"{path}: expected a file, found a pipe, socket or device", kind="not-a-file")
    size = status.st_size
    if size > _MAX_FILE_BYTES:
        raise ImageError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes, found {size}", kind="too-large")
    stored = store_image(file.read_bytes(), job.image, path)
    parts = {
        JPG.suffix: stored.jpeg,
        CLS.suffix: str(index).encode("ascii"),
        # A file name need not be UTF-8, but readers insist that text is: such bytes are spelled out.
        META.suffix: msgpack.packb(
            {"path": path.encode("utf-8", "backslashreplace").decode(), "size": list(stored.original_hw)}
        ),
    }
    if job.vectors is not None:
        parts[HIER.suffix] = encode_levels(job.vectors[index])
    if job.label_maps is not None:
        parts[LMAP.suffix] = _read_map(job, path)
    return parts


def _read_map(job: Job, path: str) -> bytes:
    assert job.label_maps is not None
    file = map_path(job.label_maps, path)
    if not file.is_file():
        raise ImageError(f"{path}: expected a label map {file.name}, found none", kind="no-label-map")
    data = read_map_file(file)
    try:
        header = read_map_header(data, str(file))
    except DataError as error:
        raise ImageError(str(error), kind="bad-label-map") from error
    if header.shape != job.map_shape or header.num_classes != job.num_classes:
        raise ImageError(
            f"{file}: expected [K, P, Q] {list(job.map_shape or ())} over {job.num_classes} classes, found "
            f"{list(header.shape)} over {header.num_classes}",
            kind="bad-label-map",
        )
    return data


def read_map_file(file: Path) -> bytes:
    """A label map's file; of one that is too long no more than it takes to say so."""
    with open(file, "rb") as stream:
        return stream.read(LMAP.max_bytes + 1)


def map_path(folder: Path, image_path: str) -> Path:
    """Where an image's label map lies: `<class>/<stem>.lmap`."""
    return folder / (image_path.rpartition(".")[0] + ".lmap")
