"""What a run leaves for the one that continues it: its plan, and a receipt for every finished shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .destination import LOCK_NAME, Destination
from .errors import UsageError
from .files import canonical_json
from .index import index_name
from .plan import some
from .schema import MAX_PLAN_BYTES, MAX_RECEIPT_BYTES, PLAN_NAME, RECEIPTS_DIR

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
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return receipt if whole else None

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, shard_names))


def _receipt_name(shard_name: str) -> str:
    return f"{shard_name}.json"
