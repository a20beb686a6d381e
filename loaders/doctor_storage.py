"""A data set: whether it is there, whole enough to be opened, and how its server answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ..shards.errors import MissingExtraError, SoftshardError
from ..shards.manifest import Manifest
from ..shards.retries import failure
from ..shards.schema import MANIFEST_NAME, MIB
from ..shards.storage import RemoteStorage, is_remote, public_name
from ..shards.text_limits import counted
from .doctor_finding import NOTE, WRONG, Finding

T = TypeVar("T")

_REQUESTS = 5  # whose median is the latency
_RANGE = (1, 17)  # bytes of the manifest that are asked for
_READ_BYTES = 8 * MIB  # of a shard, for the speed
_SLOW_MS = 500.0
_VERIFY = "softshard verify {}"


def check_data_set(data_set: str) -> list[Finding]:
    """What can be told of a data set with a few requests; nothing is asked twice, and no password is named."""
    if not is_remote(data_set):
        return _manifest(data_set)[0]
    try:
        storage = RemoteStorage(data_set)
    except MissingExtraError as error:
        return [
            Finding(
                "storage",
                str(error).partition(". Run: ")[0],
                WRONG,
                f"pip install 'softshard[{error.extra}]'",
            )
        ]
    except SoftshardError as error:
        return [
            Finding("storage", str(error), WRONG, "give a path, or a URL such as s3://bucket/folder/train")
        ]
    findings = _reach(storage)
    if findings[0].state == WRONG:
        return findings
    found, manifest = _manifest(data_set)
    if manifest is not None and manifest.shards and findings[1].state != WRONG:
        found.append(_first_shard(storage, manifest))
    return [*findings, *found]


def _reach(storage: RemoteStorage) -> list[Finding]:
    """How fast it answers, and whether with a range; that it does not answer, alone."""
    manifest = storage.at(MANIFEST_NAME)
    try:
        milliseconds = [
            1000 * _timed(lambda: storage.filesystem.cat_file(manifest, start=0, end=1))[0]
            for _ in range(_REQUESTS)
        ]
        part = storage.filesystem.cat_file(manifest, start=_RANGE[0], end=_RANGE[1])
    except Exception as error:  # what the file systems' libraries raise
        fix = "see that the address is that of DST/train or DST/val, its manifest.json is there, and the keys are right"
        return [Finding("storage", failure(storage.where(MANIFEST_NAME), error), WRONG, fix)]
    median = statistics.median(milliseconds)
    answers = Finding("storage", f"{storage.name}: answers in {median:.1f} ms (median of {_REQUESTS})")
    if median >= _SLOW_MS:
        fix = "use a bucket of the region that the machines are in; Cache(ahead=...) fetches further ahead"
        answers = replace(answers, state=NOTE, fix=fix)
    if len(part) == _RANGE[1] - _RANGE[0]:
        return [answers, Finding("ranges", "answered: broken downloads continue")]
    found = f"expected {_RANGE[1] - _RANGE[0]} bytes of a range, found {len(part):,}"
    fix = "use a server that answers range requests (nginx, rclone serve http, an object store)"
    return [answers, Finding("ranges", found, WRONG, fix)]


def _manifest(data_set: str) -> tuple[list[Finding], Manifest | None]:
    try:
        manifest = Manifest.load(data_set)
    except SoftshardError as error:
        return [
            Finding(
                "manifest",
                str(error),
                WRONG,
                "give the folder with manifest.json (DST/train); Loader indexes somebody else's tars itself",
            )
        ], None
    except OSError as error:
        return [
            Finding("manifest", f"{public_name(data_set)}: {error.strerror}", WRONG, "see its permissions")
        ], None
    found = (
        f"{counted(manifest.num_samples, 'sample')} of {counted(manifest.num_classes, 'class')} in "
        f"{counted(len(manifest.shards), 'shard')}"
    )
    return [Finding("manifest", found)], manifest


def _first_shard(storage: RemoteStorage, manifest: Manifest) -> Finding:
    shard = manifest.shards[0]
    size = min(_READ_BYTES, shard.bytes)
    try:
        length = storage.filesystem.info(storage.at(shard.name))["size"]
        seconds, data = _timed(lambda: storage.filesystem.cat_file(storage.at(shard.name), start=0, end=size))
    except Exception as error:  # what the file systems' libraries raise
        return Finding(
            shard.name, failure(storage.where(shard.name), error), WRONG, _VERIFY.format(storage.name)
        )
    if length != shard.bytes or len(data) != size:
        found = f"{length:,} bytes, expected {shard.bytes:,}: the copy is not whole"
        return Finding(shard.name, found, WRONG, _VERIFY.format(storage.name))
    return Finding(shard.name, f"there; {size / seconds / 1e6:,.0f} MB/s over one connection")


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
