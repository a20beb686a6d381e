"""Packs an image collection into shards: plan, independent shard tasks, manifest.

    list -> plan -> [ read, decode, resize, encode, attach labels, write, receipt ] x shards -> manifest

A shard task depends on the plan alone, so the bytes are the same for any number of workers, and a run that
was killed continues: finished shards have a receipt, which a second run of the same plan trusts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .classes import class_list_sha256
from .destination import Destination, LocalDestination, RemoteDestination, open_destination
from .earlier_plan import check_earlier_plan, told
from .engine_local import run_locally
from .errors import DataError, UsageError, check_choice
from .ledger import bad_limit, too_many, write_ledger
from .listing import Listing
from .listing_file import KeptListing
from .manifest import LabelMapInfo, Manifest, save_sidecar
from .pack_plan import PackOptions, estimate_shard, make_job, plan_source
from .pack_soft import soft_info
from .parallel import ENGINES, num_workers
from .plan import Plan
from .progress import progress_bar
from .receipts import check_free, read_receipts, remove_receipt, settle_plan
from .schema import LISTING_NAME, MANIFEST_NAME, PLAN_NAME, RECEIPTS_DIR, TREE_NAME, VOCABULARY_NAME
from .shard_task import RECEIPT_KEYS, BadInput, Job, PlannedShard
from .storage import open_storage
from .text_limits import some
from .tree import LabelTree
from .writer import ShardRecord


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
        shards_kept: shards that an earlier run had made.
        soft: of tags and weights: `unknown_tags` that the vocabulary lacks, images `without_tags`, `without_weights`.
    """

    read: int
    packed: int
    bad: int
    dropped: tuple[tuple[str, int], ...]
    without_images: tuple[str, ...]
    ignored: tuple[str, ...]
    manifests: dict[str, Manifest]
    shards_kept: int = field(default=0, compare=False)
    soft: Mapping[str, int] = field(default_factory=dict)


def pack(
    source: str | Path,
    destination: str | Path,
    options: PackOptions | None = None,
    *,
    class_names: Sequence[str] | None = None,
    tree: LabelTree | None = None,
    workers: int | None = None,
    engine: str = "local",
    retry_bad: bool = False,
) -> PackSummary:
    """Pack an image collection into `destination/train` and, where asked for, `destination/val`.

    Args:
        source: folder, tar, file list or WebDataset, local or any fsspec URL; see `sources`.
        destination: a new folder or prefix of a bucket (any fsspec URL), or that of an earlier run of the same
            plan, which is continued.
        options: see PackOptions.
        class_names: the class list; by default the tree's classes, or the folders that are kept.
        tree: label tree whose hierarchical label vectors are packed; its classes are the class list.
        workers: shards made at once; by default one a core, of the machine or of the cluster.
        engine: `local` for processes of this machine. `ray`: on the Ray that this process is connected to, else on
            the cluster that the environment variable RAY_ADDRESS names, else on a Ray of this machine, for as long
            as it takes. The machines of a cluster see the source, the destination and the label maps under the
            same names, in a bucket or in folders that they share, and have the same versions installed.
        retry_bad: make shards again that bad inputs were left out of. A run that continues trusts names, not
            bytes: this is for inputs that were mended in place.

    Returns:
        What was read, packed and left out.

    Raises:
        DataError: too many bad inputs, nothing to pack, or a server is away.
        UsageError: `destination` holds another run or lies inside the source, or another process is writing
            there; no cluster at RAY_ADDRESS, or a machine of it that does not see a folder or has another pixel stack.
        MissingExtraError: the engine is `ray`, which is not installed.
        SoftshardError: processes died again and again; the shards that are finished stay.
    """
    options = options or PackOptions()
    num_workers(workers)  # refuses less than one
    check_choice("engine", engine, ENGINES)
    if engine == "ray":
        from .engine_ray import import_ray

        import_ray()  # before anything is written
    target = open_destination(destination)
    _check_apart(source, target)
    check_free(target)
    numbered = None if options.subset is not None else tree.classes if tree is not None else class_names
    kept = KeptListing(target, source, numbered)
    earlier = kept.load()
    listing, plan = plan_source(source, options, class_names, tree, earlier)
    target.make()
    with target.hold():
        # A plan that is there may be another one, whose listing must stay.
        begins = not target.has(PLAN_NAME)
        if earlier is None and begins:
            kept.save(listing)
        job = make_job(listing, plan, options, tree)
        samples_per_shard = _settle_plan(target, plan, options, job, tree)
        if earlier is None and not begins:
            kept.save(listing)
        shards = _planned_shards(target, plan, samples_per_shard)
        limit = bad_limit(options.max_bad, plan.num_samples)
        receipts, num_kept = _make_shards(
            target, shards, job, engine, workers, plan.num_samples, limit, retry_bad
        )
        summary = _finish(target, plan, options, job, receipts, tree, listing)
        return replace(summary, shards_kept=num_kept)


def _check_apart(source: str | Path, destination: Destination) -> None:
    """Refuse to write into the source, where a second run would take the shards for a class."""
    storage = open_storage(source)
    if storage.remote and isinstance(destination, RemoteDestination):
        inside = f"{destination.url}/".startswith(f"{storage.root.rstrip('/')}/")
    elif not storage.remote and isinstance(destination, LocalDestination):
        inside = destination.path.resolve().is_relative_to(Path(storage.root).resolve())
    else:
        return
    if inside:
        raise UsageError(
            f"{destination.name}: expected a folder outside {storage.name}, which would take the shards for a class"
        )


def _settle_plan(
    destination: Destination, plan: Plan, options: PackOptions, job: Job, tree: LabelTree | None
) -> int:
    """Write `plan.json`, or compare it with the one of an earlier run; returns the samples of a shard."""
    samples_per_shard = 0

    def content() -> bytes:
        nonlocal samples_per_shard
        samples_per_shard = options.shard_samples or estimate_shard(plan, options, job)[0]
        values = {
            "sha256": plan.sha256,
            "samples_per_shard": samples_per_shard,
            "map_shape": job.map_shape,
            "pixel_stack": dict(job.pixel_stack),
            "options": told(options, plan, tree),
            "samples": {split.name: len(split) for split in plan.splits},
            "dropped": [list(item) for item in plan.dropped],
        }
        return json.dumps(values, indent=1).encode("ascii")

    earlier = settle_plan(destination, content)
    if earlier is None:
        return samples_per_shard
    return check_earlier_plan(destination.name, earlier, plan, job, told(options, plan, tree))


def _planned_shards(destination: Destination, plan: Plan, samples_per_shard: int) -> list[PlannedShard]:
    shards = []
    for split in plan.splits:
        folder = destination.folder(split.name)
        folder.make()
        folder.folder(RECEIPTS_DIR).make()
        for number, (start, stop) in enumerate(split.shard_bounds(samples_per_shard)):
            shards.append(PlannedShard(folder, f"{split.name}-{number:06d}.tar", split, start, stop))
    return shards


def _make_shards(
    destination: Destination,
    shards: list[PlannedShard],
    job: Job,
    engine: str,
    workers: int | None,
    num_samples: int,
    limit: int,
    retry_bad: bool,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Make the shards that have no receipt yet.

    Returns:
        All receipts, by the shard's name, and how many of them were there.

    Raises:
        DataError: more than `limit` inputs are bad.
    """
    receipts: dict[str, dict[str, Any]] = {}
    bad: list[BadInput] = []

    def count(receipt: dict[str, Any]) -> None:
        # Of 14 million samples, Python's own numbers would take half a gigabyte.
        receipt["classes"] = np.array(receipt["classes"], np.int32)
        receipts[receipt["name"]] = receipt
        bad.extend(BadInput(**item) for item in receipt["bad"])
        if len(bad) > limit:
            raise DataError(too_many(bad, limit, destination))

    missing = []
    for folder, planned in groupby(shards, lambda shard: shard.folder):
        planned = list(planned)
        names = [shard.name for shard in planned]
        earlier = read_receipts(folder, names, job.plan_sha256, RECEIPT_KEYS)
        for shard, receipt in zip(planned, earlier, strict=True):
            if receipt is None or (retry_bad and receipt["bad"]):
                missing.append(shard)
            else:
                count(receipt)
    num_kept = len(receipts)
    if not missing:
        return receipts, num_kept
    for folder in {shard.folder.name: shard.folder for shard in missing}.values():
        folder.remove(MANIFEST_NAME)  # no longer complete
    if retry_bad:
        for shard in missing:
            remove_receipt(shard.folder, shard.name)
    done = sum(receipt["read"] for receipt in receipts.values())
    # Closed here and now: an error's trace would keep its tasks running when the folder's lock is gone.
    with (
        progress_bar(num_samples, "pack", "img", initial=done) as bar,
        closing(_run(engine, job, missing, workers)) as made,
    ):
        for receipt in made:
            bar.update(receipt["read"])
            count(receipt)
    return receipts, num_kept


def _run(
    engine: str, job: Job, shards: list[PlannedShard], workers: int | None
) -> Generator[dict[str, Any], None, None]:
    if engine == "ray":
        from .engine_ray import run_on_ray

        return run_on_ray(job, shards, workers)
    return run_locally(job, shards, min(num_workers(workers), len(shards)))


def _finish(
    destination: Destination,
    plan: Plan,
    options: PackOptions,
    job: Job,
    receipts: Mapping[str, dict[str, Any]],
    tree: LabelTree | None,
    listing: Listing,
) -> PackSummary:
    """Gather the receipts into sidecars, ledger and manifests, the manifests last."""
    bad: list[BadInput] = []
    manifests: dict[str, Manifest] = {}
    read, soft = 0, Counter[str]()
    for split in plan.splits:
        folder = destination.folder(split.name)
        records, classes = [], [np.empty(0, np.int32)]
        for name in sorted(name for name in receipts if name.startswith(f"{split.name}-")):
            receipt = receipts[name]
            read += receipt["read"]
            soft.update(receipt.get("soft", {}))
            bad.extend(BadInput(**item) for item in receipt["bad"])
            classes.append(receipt["classes"])
            if receipt["record"]:
                records.append(ShardRecord(**receipt["record"]))
        sizes = folder.sizes()
        if lost := [record.name for record in records if sizes.get(record.name) != record.bytes]:
            raise DataError(
                f"{folder.name}: expected the shards just made, found none or others for {some(lost)}; is it a "
                "place that all processes and machines of the run share? Then run again"
            )
        if not records:
            raise DataError(
                f"{folder.name}: expected samples, found none that could be read; see the reasons: "
                f"{some([item.reason for item in bad], 5)}"
            )
        if tree is not None:
            tree.save(folder.at(TREE_NAME))
        if options.vocabulary is not None:
            folder.write(VOCABULARY_NAME, options.vocabulary.to_bytes())
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
            pixel_stack=dict(job.pixel_stack),
            sidecar_sha256=save_sidecar(folder, np.concatenate(classes)),
            shards=tuple(records),
            soft_labels=soft_info(options.vocabulary, options.weights, options.tags),
        )
    write_ledger(destination, bad)
    destination.remove_leftovers()
    for name, manifest in manifests.items():
        manifest.save(destination.folder(name))
    destination.remove(LISTING_NAME)
    return PackSummary(
        read=read,
        packed=sum(manifest.num_samples for manifest in manifests.values()),
        bad=len(bad),
        dropped=plan.dropped,
        without_images=plan.without_images,
        ignored=listing.ignored,
        manifests=manifests,
        soft=dict(soft),
    )
