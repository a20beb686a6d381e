"""Packs an image collection into shards: plan, independent shard tasks, manifest.

    list -> plan -> [ read, decode, resize, encode, attach labels, write, receipt ] x shards -> manifest

A shard task depends on the plan alone, so the bytes are the same for any number of workers, and a run that
was killed continues: finished shards have a receipt, which a second run of the same plan trusts.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .classes import class_list_sha256
from .errors import DataError, SoftshardError, UsageError
from .files import TEMPORARY_SUFFIX, hold_folder, write_atomically
from .images import pixel_stack
from .listing import Listing
from .manifest import LabelMapInfo, Manifest, save_sidecar
from .pack_plan import SIZE_SAMPLE, PackOptions, make_job, mean_sample_bytes, plan_source
from .plan import Plan, some
from .progress import progress_bar
from .schema import LEDGER_NAME, PLAN_NAME, RECEIPTS_DIR, TREE_NAME
from .shard_task import (
    BadInput,
    Job,
    PlannedShard,
    ShardTask,
    make_shard,
    read_receipt,
)
from .storage import open_storage
from .tree import LabelTree
from .writer import ShardRecord

ALWAYS_ALLOWED_BAD = 10


@dataclass(frozen=True)
class PackSummary:
    """What a run did. `read == packed + bad` always holds.

    Attributes:
        read: images that the plan named.
        packed: samples in the shards.
        bad: inputs in the ledger.
        dropped: (folder, images) left out by the plan.
        without_images: names of the class list without any image.
        ignored: files that are not images by their suffix.
        manifests: split name to manifest.
    """

    read: int
    packed: int
    bad: int
    dropped: tuple[tuple[str, int], ...]
    without_images: tuple[str, ...]
    ignored: tuple[str, ...]
    manifests: dict[str, Manifest]


def pack(
    source: str | Path,
    destination: str | Path,
    options: PackOptions | None = None,
    *,
    class_names: Sequence[str] | None = None,
    tree: LabelTree | None = None,
    workers: int | None = None,
) -> PackSummary:
    """Pack an image collection into `destination/train` and, where asked for, `destination/val`.

    Args:
        source: folder, tar, file list or WebDataset, local or any fsspec URL; see `sources`.
        destination: a new folder, or that of an earlier run of the same plan, which is continued.
        options: see PackOptions.
        class_names: the class list; by default the tree's classes, or the folders that are kept.
        tree: label tree whose hierarchical label vectors are packed; its classes are the class list.
        workers: processes; by default one a core.

    Returns:
        What was read, packed and left out.

    Raises:
        DataError: too many bad inputs, or nothing to pack.
        UsageError: `destination` holds another run, lies inside the source or is no local folder, or another
            process is writing there.
    """
    options = options or PackOptions()
    if workers is not None and workers < 1:
        raise UsageError(f"workers: expected 1 or more, found {workers}")
    destination = _local_folder(destination)
    storage = open_storage(source)
    if not storage.remote and destination.resolve().is_relative_to(Path(storage.root).resolve()):
        raise UsageError(
            f"{destination}: expected a folder outside {storage.name}, which would take the shards for a class"
        )
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination}: expected a new folder, found a file")
    listing, plan = plan_source(source, options, class_names, tree)
    destination.mkdir(parents=True, exist_ok=True)
    with hold_folder(destination):
        job = make_job(listing, plan, options, tree)
        samples_per_shard = _settle_plan(destination, plan, options, job)
        tasks = _shard_tasks(destination, plan, samples_per_shard)
        limit = max(ALWAYS_ALLOWED_BAD, int(options.max_bad * plan.num_samples))
        _run_tasks(tasks, job, workers or len(os.sched_getaffinity(0)), plan.num_samples, limit)
        return _finish(destination, plan, options, job, tasks, tree, listing)


def _local_folder(path: str | Path) -> Path:
    if "://" in str(path):
        raise UsageError(
            f"{path}: expected a local folder, found a URL; pack to a local folder and copy that"
        )
    return Path(path)


def _settle_plan(destination: Path, plan: Plan, options: PackOptions, job: Job) -> int:
    """Write `plan.json`, or compare it with the one of an earlier run; returns the samples of a shard."""
    path = destination / PLAN_NAME
    stack = pixel_stack()
    if path.exists():
        try:
            earlier = json.loads(path.read_bytes())
            plan_sha256, earlier_stack = earlier["sha256"], earlier["pixel_stack"]
            samples_per_shard, map_shape = int(earlier["samples_per_shard"]), earlier["map_shape"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected the plan of an earlier run, found: {error!r}; it is damaged. "
                "Pack into a new folder"
            ) from error
        if plan_sha256 != plan.sha256:
            raise UsageError(
                f"{destination}: expected the plan {plan.sha256[:12]} of this source and these options, "
                f"found {plan_sha256[:12]} of an earlier run; the source or an option has changed. "
                "Pack into a new folder"
            )
        if samples_per_shard < 1:
            raise DataError(
                f"{path}: expected at least 1 sample per shard, found {samples_per_shard}; it is damaged. "
                "Pack into a new folder"
            )
        if earlier_stack != stack:
            raise UsageError(
                f"{destination}: expected the pixel stack {earlier_stack} of the earlier run, found {stack}; "
                "the bytes would differ. Install those versions, or pack into a new folder"
            )
        if map_shape != (list(job.map_shape) if job.map_shape else None):
            raise UsageError(
                f"{destination}: expected label maps of [K, P, Q] {map_shape} as in the earlier run, found "
                f"{list(job.map_shape or ())}. Give the same maps, or pack into a new folder"
            )
        return samples_per_shard
    ours = {".lock", PLAN_NAME + TEMPORARY_SUFFIX}  # of a run that was killed before it had a plan
    if unexpected := [entry.name for entry in destination.iterdir() if entry.name not in ours]:
        raise UsageError(f"{destination}: expected an empty or new folder, found {some(sorted(unexpected))}")
    samples_per_shard = options.shard_samples or _estimate_samples(plan, options, job)
    content = {
        "sha256": plan.sha256,
        "samples_per_shard": samples_per_shard,
        "map_shape": job.map_shape,
        "pixel_stack": stack,
        "options": options.to_json(),
        "samples": {split.name: len(split) for split in plan.splits},
        "dropped": [list(item) for item in plan.dropped],
    }
    write_atomically(path, json.dumps(content, indent=1).encode("ascii"))
    return samples_per_shard


def _estimate_samples(plan: Plan, options: PackOptions, job: Job) -> int:
    """Samples that fill a shard, by the mean size of a few."""
    size = mean_sample_bytes(plan, options, job)
    return max(1, round(options.shard_bytes / size)) if size else SIZE_SAMPLE


def _shard_tasks(destination: Path, plan: Plan, samples_per_shard: int) -> list[PlannedShard]:
    tasks = []
    for split in plan.splits:
        folder = destination / split.name
        (folder / RECEIPTS_DIR).mkdir(parents=True, exist_ok=True)
        for number, (start, stop) in enumerate(split.shard_bounds(samples_per_shard)):
            tasks.append(PlannedShard(folder, f"{split.name}-{number:06d}.tar", split, start, stop))
    return tasks


def _run_tasks(tasks: list[PlannedShard], job: Job, workers: int, num_samples: int, limit: int) -> None:
    """Make the shards that have no receipt yet; raises when more than `limit` inputs are bad."""
    bad: list[BadInput] = []

    def count(receipt: dict[str, Any]) -> None:
        bad.extend(BadInput(**item) for item in receipt["bad"])
        bar.update(receipt["read"])
        if len(bad) > limit:
            raise DataError(_too_many(bad, limit, tasks[0].folder.parent))

    with progress_bar(num_samples, "pack", "img") as bar:
        missing = []
        for task in tasks:
            receipt = read_receipt(task, job.plan_sha256)
            if receipt is None:
                missing.append(task)
            else:
                count(receipt)
        workers = min(workers, len(missing))
        if workers <= 1:
            threads = cv2.getNumThreads()
            cv2.setNumThreads(0)
            try:
                for task in missing:
                    count(make_shard(job, task.task()))
            finally:
                cv2.setNumThreads(threads)
            return
        # Spawned, not forked: a fork of a process with threads (OpenCV's, a notebook's) can deadlock.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
        try:
            queue = iter(missing)
            running: set[Future[dict[str, Any]]] = set()
            while True:
                # Two tasks a worker: enough that none waits, few enough that the plan is not copied whole.
                while len(running) < 2 * workers and (task := next(queue, None)) is not None:
                    running.add(pool.submit(_make_shard_in_worker, task.task()))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    count(future.result())
        except BrokenProcessPool as error:
            raise SoftshardError(
                "pack: expected its processes to live, found one that died (killed, out of memory, or started "
                "by a script that calls pack outside of `if __name__ == '__main__':`); finished shards are "
                "kept. Run it again to continue, with fewer workers if memory was short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _too_many(bad: list[BadInput], limit: int, destination: Path) -> str:
    write_ledger(destination / LEDGER_NAME, bad)
    shown = "; ".join(f"{item.reason} [{item.kind}]" for item in bad[:5])
    return (
        f"{destination}: expected at most {limit} bad inputs, found {len(bad)}: {shown}; all are in "
        f"{destination / LEDGER_NAME}. Mend or remove them and pack into a new folder, or run again with a "
        "larger --max-bad to go on without them"
    )


def write_ledger(path: Path, bad: Sequence[BadInput]) -> None:
    """Write the ledger of bad inputs, a JSON object a line."""
    write_atomically(path, "".join(json.dumps(asdict(item)) + "\n" for item in bad).encode("ascii"))


_worker_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _worker_job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # one process a core; OpenCV's own threads would only get in each other's way
    _worker_job = job


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever, and write beside the run that continues."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_shard_in_worker(task: ShardTask) -> dict[str, Any]:
    assert _worker_job is not None
    return make_shard(_worker_job, task)


def _finish(
    destination: Path,
    plan: Plan,
    options: PackOptions,
    job: Job,
    tasks: list[PlannedShard],
    tree: LabelTree | None,
    listing: Listing,
) -> PackSummary:
    """Gather the receipts into sidecars, ledger and manifests, the manifests last."""
    bad: list[BadInput] = []
    manifests: dict[str, Manifest] = {}
    read = 0
    for split in plan.splits:
        folder = destination / split.name
        records, classes = [], [np.empty(0, np.int32)]
        for task in tasks:
            if task.folder != folder:
                continue
            receipt = read_receipt(task, plan.sha256)
            if receipt is None:
                raise DataError(
                    f"{folder / task.name}: expected the shard just made, found none or another; run again"
                )
            read += receipt["read"]
            bad.extend(BadInput(**item) for item in receipt["bad"])
            classes.append(np.array(receipt["classes"], np.int32))
            if receipt["record"]:
                records.append(ShardRecord(**receipt["record"]))
        if not records:
            raise DataError(
                f"{folder}: expected samples, found none that could be read; see the reasons: "
                f"{some([item.reason for item in bad])}"
            )
        if tree is not None:
            tree.save(folder / TREE_NAME)
        map_info = None
        if job.map_shape is not None:
            top, rows, columns = job.map_shape
            map_info = LabelMapInfo(top, rows, columns, job.num_classes)
        manifests[split.name] = Manifest(
            name=split.name,
            components=job.suffixes,
            class_names=plan.class_names,
            classes_sha256=class_list_sha256(plan.class_names),
            tree_sha256=tree.fingerprint if tree else None,
            num_levels=tree.num_levels if tree else 0,
            label_maps=map_info,
            recipe=options.to_json(),
            pixel_stack=pixel_stack(),
            sidecar_sha256=save_sidecar(folder, np.concatenate(classes)),
            shards=tuple(records),
        )
    write_ledger(destination / LEDGER_NAME, bad)
    for name, manifest in manifests.items():
        for leftover in (destination / name).rglob(f"*{TEMPORARY_SUFFIX}"):  # of a run that was killed
            leftover.unlink()
        manifest.save(destination / name)
    return PackSummary(
        read=read,
        packed=sum(manifest.num_samples for manifest in manifests.values()),
        bad=len(bad),
        dropped=plan.dropped,
        without_images=plan.without_images,
        ignored=listing.ignored,
        manifests=manifests,
    )
