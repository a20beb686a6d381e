"""What a run leaves for the one that continues it: its plan, and a receipt for every finished shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .destination import Destination
from .errors import DataError, StorageError, UsageError
from .files import LOCK_NAME, canonical_json, sha256_hex
from .index import index_name
from .schema import MAX_PLAN_BYTES, MAX_RECEIPT_BYTES, PLAN_NAME, RECEIPTS_DIR
from .text_limits import some

_READERS = 16  # threads; a bucket answers many at once


def check_free(destination: Destination) -> None:
    """Refuse a folder with something else in it, or one that is written to, before sources are read for hours.

    Raises:
        UsageError: it is not empty and no run has begun there, or another process is writing there.
    """
    if not destination.has(PLAN_NAME) and (others := _unexpected(destination)):
        raise UsageError(f"{destination.name}: expected an empty or new folder, found {some(others)}")
    if destination.has(LOCK_NAME):  # nobody holds a lock that is not there, and a folder may stay as it is
        with destination.hold():
            pass


def _unexpected(destination: Destination) -> Sequence[str]:
    """What stands in a folder without a plan; nothing where another run has just written the plan."""
    others = destination.foreign()
    return [] if others and destination.has(PLAN_NAME) else others


def settle_plan(destination: Destination, make_plan: Callable[[], bytes]) -> bytes | None:
    """Write `plan.json` where there is none; returns None, or the plan that was there.

    Args:
        destination: where the run writes.
        make_plan: called at most once, and only where there is no plan: it may take a while.

    Raises:
        UsageError: there is no plan, but there is something else.
    """
    plan: bytes | None = None
    while True:
        try:
            return destination.read(PLAN_NAME, MAX_PLAN_BYTES)
        except FileNotFoundError:
            pass
        if unexpected := _unexpected(destination):
            raise UsageError(f"{destination.name}: expected an empty or new folder, found {some(unexpected)}")
        plan = plan or make_plan()
        if destination.create(PLAN_NAME, plan):
            return None
        # Another run was faster: its plan decides.


def settle_content(destination: Destination, content: Mapping[str, Any]) -> str:
    """Write `plan.json` of all that decides a run, or compare it with that of an earlier run; returns its SHA-256.

    Raises:
        UsageError: the destination holds something else, or the work of another call.
        DataError: the earlier plan is damaged.
    """
    plan_sha256 = sha256_hex(canonical_json(content))
    text = json.dumps({"sha256": plan_sha256, **content}, indent=1).encode("ascii")
    earlier = settle_plan(destination, lambda: text)
    if earlier is None:
        return plan_sha256
    try:
        found = json.loads(earlier)
        other = _differing(found, json.loads(json.dumps(content)))
        found_sha256 = str(found["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{destination.name}/{PLAN_NAME}: expected the plan of an earlier run, found: {error!r}; it is damaged. "
            "Write into a new folder"
        ) from error
    if found_sha256 != plan_sha256:
        raise UsageError(
            f"{destination.name}: expected the plan {plan_sha256[:12]} of this call, found {found_sha256[:12]} of another "
            f"run ({', '.join(other) or 'options'} differ). Write into a new folder"
        )
    return plan_sha256


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Keys of a plan whose values differ, those inside an object as `object.key`, in order."""
    names = []
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            inner = value.keys() | other.keys()
            names += [f"{key}.{name}" for name in inner if value.get(name) != other.get(name)]
        elif value != other:
            names.append(key)
    return sorted(names)


def write_receipt(folder: Destination, shard_name: str, receipt: Mapping[str, Any]) -> None:
    """Say that a shard is finished; it must have its name by now.

    Args:
        folder: where the shard is.
        shard_name: its file name.
        receipt: a JSON object with `plan`, the SHA-256 of the run's plan, and `record`, the shard's
            `ShardRecord` or None where no sample of it could be read.
    """
    folder.folder(RECEIPTS_DIR).write(_receipt_name(shard_name), canonical_json(receipt))


def remove_receipt(folder: Destination, shard_name: str) -> None:
    """Say that a shard is to be made again; before any file of it changes, or a kill would leave two halves."""
    folder.folder(RECEIPTS_DIR).remove(_receipt_name(shard_name))


def read_receipts(
    folder: Destination, shard_names: Sequence[str], plan_sha256: str, keys: Sequence[str] = ()
) -> list[dict[str, Any] | None]:
    """The receipts of shards, in the order of their names; None where a shard is still to be made.

    Args:
        folder: where the shards are.
        shard_names: the plan's.
        plan_sha256: of the run; a receipt of another plan counts for nothing.
        keys: what a receipt must hold besides `plan` and `record`; a damaged one counts for nothing.

    Raises:
        StorageError: the store is away.
    """
    receipts = folder.folder(RECEIPTS_DIR)
    sizes, written = folder.sizes(), receipts.sizes()

    def read(shard_name: str) -> dict[str, Any] | None:
        if _receipt_name(shard_name) not in written:
            return None
        try:
            receipt = json.loads(receipts.read(_receipt_name(shard_name), MAX_RECEIPT_BYTES))
            if receipt["plan"] != plan_sha256 or any(key not in receipt for key in keys):
                return None
            record = receipt["record"]
            # A shard of nothing but bad inputs has no file.
            whole = record is None or (
                sizes.get(shard_name) == record["bytes"] and index_name(shard_name) in sizes
            )
        except StorageError:  # the shards of a store that is away are not to be made again
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return receipt if whole else None

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, shard_names))


def _receipt_name(shard_name: str) -> str:
    return f"{shard_name}.json"
