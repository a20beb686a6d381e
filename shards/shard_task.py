"""One shard of a packing run, made from the plan alone, and the receipt that a resume trusts."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .components import encode_levels
from .destination import Destination
from .errors import DataError, ImageError, StorageError, UsageError
from .images import ImageRecipe, pixel_stack, store_image
from .labelmap import read_map_header
from .listing import Location
from .pack_soft import SoftColumns
from .plan import PlannedSample, SplitPlan
from .receipts import write_receipt
from .schema import CLS, HIER, JPG, LMAP, META, MIB
from .soft_labels import encode_meta
from .storage import Storage, is_remote, open_storage, public_name
from .writer import ShardWriter

_MAX_FILE_BYTES = 512 * MIB
_OF_ONE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)
RECEIPT_KEYS = ("name", "plan", "read", "record", "classes", "bad")


@dataclass(frozen=True)
class BadInput:
    """A line of the ledger: an input that is not in the shards, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to make one shard."""

    folder: Destination
    name: str
    samples: Sequence[PlannedSample]


@dataclass(frozen=True)
class PlannedShard:
    """A shard to come; its samples are looked up when its turn comes."""

    folder: Destination
    name: str
    split: SplitPlan
    start: int
    stop: int

    def task(self) -> ShardTask:
        return ShardTask(self.folder, self.name, self.split.samples(self.start, self.stop))


@dataclass(frozen=True)
class Job:
    """What all the shard tasks of a run have in common; sent to each worker once."""

    storage: Storage
    plan_sha256: str
    pixel_stack: Mapping[str, str]
    image: ImageRecipe
    label_maps: Path | None
    map_shape: tuple[int, int, int] | None
    num_classes: int
    vectors: np.ndarray | None  # int16 [C, L], or [C, A, L]
    soft: SoftColumns | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        hier = (HIER.suffix,) if self.vectors is not None else ()
        lmap = (LMAP.suffix,) if self.label_maps is not None else ()
        return (JPG.suffix, CLS.suffix, *hier, *lmap, META.suffix)


def make_shard(job: Job, task: ShardTask) -> dict[str, Any]:
    """Make one shard and its receipt: an object with RECEIPT_KEYS, and counts of soft labels where there are any.

    Raises:
        UsageError: this machine has another pixel stack than the run.
        DataError: the source or the destination is away.
    """
    if (stack := pixel_stack()) != dict(job.pixel_stack):
        raise UsageError(
            f"{task.name}: expected the pixel stack {dict(job.pixel_stack)} of the run, found {stack} on "
            f"{socket.gethostname()}; the bytes would differ. Install the same versions on every machine"
        )
    bad: list[BadInput] = []
    classes: list[int] = []
    counts: Counter[str] = Counter()
    writer = ShardWriter(task.folder.at(task.name), job.suffixes)
    try:
        for sample in task.samples:
            try:
                parts = make_sample(job, sample, counts)
            except ImageError as error:
                bad.append(BadInput(sample.path, error.kind, str(error)))
                continue
            except OSError as error:
                if not _is_of_one_file(error, job.storage):
                    raise StorageError(
                        f"{public_name(sample.path)}: cannot be read: {error}; the disk or this machine is in trouble, not "
                        "the image. What is finished is kept: run the same command again to continue"
                    ) from error
                bad.append(BadInput(sample.path, "unreadable", str(error)))
                continue
            writer.write(sample.key, parts)
            classes.append(sample.class_index)
        record = None
        if classes:
            record = writer.close()
        else:
            writer.abort()
    except BaseException:
        writer.abort()
        raise
    receipt = {
        "name": task.name,
        "plan": job.plan_sha256,
        "read": len(task.samples),
        "record": record.to_json() if record else None,
        "classes": classes,
        "bad": [asdict(item) for item in bad],
        **({"soft": dict(counts)} if job.soft else {}),
    }
    write_receipt(task.folder, task.name, receipt)
    return receipt


def _is_of_one_file(error: OSError, storage: Storage) -> bool:
    """Whether an error is about one input, which goes into the ledger, and not about the place where all of them are."""
    if error.errno is not None and error.errno not in _OF_ONE_FILE:
        return False
    return storage.remote or os.path.exists(storage.root)


def make_sample(job: Job, sample: PlannedSample, counts: Counter[str] | None = None) -> dict[str, bytes]:
    """Read one image and attach its labels: component suffix to bytes; `counts` is told what soft labels lack."""
    path, index = sample.path, sample.class_index
    stored = store_image(read_image(job.storage, sample.location, path), job.image, path)
    # A file name need not be UTF-8, but readers insist that text is: such bytes are spelled out.
    meta: dict[str, Any] = {
        "path": path.encode("utf-8", "backslashreplace").decode(),
        "size": list(stored.original_hw),
    }
    row = json.loads(sample.metadata) if sample.metadata else {}
    found: Counter[str] = Counter()
    soft = job.soft.take(row, path, found) if job.soft else {}
    if row:
        meta["metadata"] = row
    try:
        packed_meta = encode_meta({**meta, **soft})
    except (ValueError, OverflowError) as error:  # JSON has larger numbers, and halves of characters
        raise ImageError(
            f"{path}: expected metadata that MessagePack can hold, found: {error}", kind="bad-metadata"
        ) from error
    if len(packed_meta) > META.max_bytes:
        raise ImageError(
            f"{path}: expected at most {META.max_bytes} bytes of metadata, found {len(packed_meta)}",
            kind="bad-metadata",
        )
    parts = {JPG.suffix: stored.jpeg, CLS.suffix: str(index).encode("ascii"), META.suffix: packed_meta}
    if job.vectors is not None:
        parts[HIER.suffix] = encode_levels(job.vectors[index])
    if job.label_maps is not None:
        parts[LMAP.suffix] = _read_map(job, path)
    if counts is not None:
        counts.update(found)
    return parts


def read_image(storage: Storage, location: Location, path: str) -> bytes:
    """One image file's bytes, wherever they lie: the only place where a source's images are read.

    Raises:
        ImageError: too large, or the tar ends before the image does.
        OSError: not there, or not readable.
        DataError: the server of a remote source is away.
    """
    if is_remote(location.file):
        storage, location = open_storage(location.file), location._replace(file="")
    data = storage.read(location.file, location.offset, location.size, _MAX_FILE_BYTES)
    size = len(data) if location.size is None else location.size
    if size > _MAX_FILE_BYTES:
        raise ImageError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes, found more", kind="too-large")
    if len(data) != size:
        raise ImageError(
            f"{path}: expected {size} bytes at byte {location.offset} of {public_name(location.file)!r}, found "
            f"{len(data)}; the tar was cut short since it was listed",
            kind="truncated",
        )
    return data


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
            f"{list(header.shape)} over {header.num_classes}"
            + (
                ""
                if header.num_classes == job.num_classes
                else "; its teacher knew another class list. Pack with that list: --classes"
            ),
            kind="bad-label-map",
        )
    return data


def read_map_file(file: Path) -> bytes:
    """A label map's file; of one that is too long no more than it takes to say so."""
    with open(file, "rb") as stream:
        return stream.read(LMAP.max_bytes + 1)


def map_path(folder: Path, image_path: str) -> Path:
    """Where an image's label map lies: at the image's path below the source, ending in `.lmap`."""
    # The path in a list may be absolute; a map's never is.
    return folder / (image_path.rpartition(".")[0].lstrip("/") + ".lmap")
