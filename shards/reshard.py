"""Makes a data set of existing ones: other shard sizes or order, merged, fewer classes, other components.

    check destination and sources -> index and hash their samples -> check what is added -> order
      -> [ gather, add, write, receipt ] x shards -> manifest

Components are copied byte by byte: no image is decoded. Memory holds a shard of the result for every worker and
some 60 bytes for every sample (some 110 where label maps are added). Shard by shard the result depends on the
sources, on what is added and on the options alone, so a run that was killed continues, and the manifest comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .attach import Added, check_maps, check_tree
from .classes import class_list_sha256
from .destination import Destination, open_destination
from .gather import SampleTable, index_samples
from .joined_rows import join_rows
from .ledger import write_ledger
from .manifest import Manifest, load_tree, sample_classes, save_sidecar
from .pack_soft import load_how, soft_columns, soft_info
from .parallel import in_threads, num_workers
from .philox import PURPOSE_RESHARD, permutation
from .progress import progress_bar
from .receipts import check_free, read_receipts, settle_content, write_receipt
from .reshard_plan import (
    ReshardOptions,
    check_fit,
    check_keys,
    kept_samples,
    result_name,
    shard_bounds,
    with_keys,
)
from .schema import HIER, KD, LMAP, RECEIPTS_DIR, SOFT, TREE_NAME, VOCABULARY_NAME, sorted_suffixes
from .shard_files import dataset_path
from .shard_task import BadInput
from .soft_labels import KINDS, TAGS, WEIGHTS, SoftLabelInfo
from .stored_vocabulary import load_vocabulary
from .writer import ShardRecord, ShardWriter

_MOST_WORKERS = 2  # by default: each holds a shard in memory

Sources = Sequence[tuple[str | Path, Manifest]]


@dataclass(frozen=True)
class _Run:
    """What all the shards of a run have in common."""

    destination: Destination
    name: str
    sources: Sources
    options: ReshardOptions
    table: SampleTable
    added: Added

    @property
    def suffixes(self) -> list[str]:
        """Components of the result."""
        copied = set(self.sources[0][1].components) - set(self.options.left_out)
        return sorted_suffixes(copied | set(self.added.suffixes))

    def origin(self) -> dict[str, Any]:
        """What the new manifest says of its origin."""
        return {
            **self.options.to_json(),
            "added": self.added.to_json(),
            "sources": [
                {
                    "name": manifest.name,
                    "fingerprint": manifest.fingerprint,
                    "samples": manifest.num_samples,
                    "recipe": dict(manifest.recipe),
                    "pixel_stack": dict(manifest.pixel_stack),
                }
                for _, manifest in self.sources
            ],
        }


def reshard(
    datasets: Sequence[str | Path],
    destination: str | Path,
    options: ReshardOptions | None = None,
    *,
    workers: int | None = None,
) -> Manifest:
    """Write a new data set with the samples of existing ones.

    Args:
        datasets: folders or URLs of data sets with the same class list, tree, components and label-map geometry
            (those of components that are dropped or replaced may differ).
        destination: a new folder or prefix of a bucket, or that of an earlier run of the same call, which is
            continued.
        options: see ReshardOptions.
        workers: threads, each with a shard of the result in memory; by default one a core, two at most.

    Returns:
        The manifest of the result.

    Raises:
        DataError: the data sets do not fit together, share keys or are damaged, or label maps are missing or bad
            (every problem is named, and nothing has been written); or a server is away.
        UsageError: the destination holds something else, or another process is writing there.
    """
    options = options or ReshardOptions()
    workers = min(num_workers(None), _MOST_WORKERS) if workers is None else num_workers(workers)
    folders = [dataset_path(dataset) for dataset in datasets]
    target = open_destination(destination)
    check_free(target)
    sources = [(folder, Manifest.load(folder)) for folder in folders]
    name = result_name([manifest for _, manifest in sources], target, options)
    check_fit(sources, options)
    if options.tree is not None:
        first = sources[0][1]
        maps_stay = LMAP.suffix in first.components and LMAP.suffix not in options.left_out
        check_tree(options.tree, first, maps_stay)
    classes = np.concatenate([sample_classes(folder, manifest) for folder, manifest in sources])
    kept = kept_samples(sources[0][1], classes, options)
    with progress_bar(sum(manifest.num_bytes for _, manifest in sources), "check sources", "B") as bar:
        with_paths = any((options.label_maps, options.tags, options.weights))
        table = index_samples(sources, options.left_out, bar.update, workers=workers, with_paths=with_paths)
    kept = with_keys(table, kept, None if options.subset is None else options.subset.keys)
    check_keys(table, kept)
    if options.subset is not None:
        folder, first = sources[0]
        added = Added.relabelled(options.subset.relabelling(first.class_names, load_tree(folder, first)))
        classes = added.new_classes(classes)
    else:
        added = _check_added(options, table, kept, _class_names(sources[0][1], options), workers)
    if options.shuffle is not None:
        kept = kept[permutation(options.shuffle, PURPOSE_RESHARD, 0, 0, len(kept))]
    sample_bytes = table.kept_bytes + added.tar_bytes(len(table.kept_bytes))
    bounds = shard_bounds(sample_bytes[kept], options)
    shards = {f"{name}-{i:06d}.tar": kept[start:stop] for i, (start, stop) in enumerate(bounds)}
    run = _Run(target, name, sources, options, table, added)
    target.make()
    with target.hold():
        plan_sha256 = settle_content(target, {"name": name, "reshard": run.origin()})
        target.folder(RECEIPTS_DIR).make()
        receipts = dict(zip(shards, read_receipts(target, list(shards), plan_sha256), strict=True))
        missing = [shard_name for shard_name, receipt in receipts.items() if receipt is None]
        make = partial(_make_shard, run, shards, plan_sha256)
        num_done = len(kept) - sum(len(shards[shard_name]) for shard_name in missing)
        with progress_bar(len(kept), "reshard", "img", num_done) as bar:
            for shard_name, receipt in zip(missing, in_threads(make, missing, workers), strict=True):
                receipts[shard_name] = receipt
                bar.update(len(shards[shard_name]))
        records = [ShardRecord(**receipt["record"]) for receipt in receipts.values() if receipt is not None]
        _write_missing(run, kept)
        return _finish(run, records, classes[kept])


def _class_names(manifest: Manifest, options: ReshardOptions) -> tuple[str, ...]:
    """The class list of the result: a subset's own; a tree may number inner nodes after the data set's classes."""
    if options.subset is not None:
        return options.subset.class_names
    return manifest.class_names if options.tree is None else options.tree.classes


def _check_added(
    options: ReshardOptions, table: SampleTable, kept: np.ndarray, class_names: tuple[str, ...], workers: int
) -> Added:
    maps, rows = None, []
    if options.label_maps is not None:
        with progress_bar(len(kept), "check label maps", "map") as bar:
            maps = check_maps(options.label_maps, table, kept, len(class_names), workers, bar.update)
    for file, kind in ((options.tags, TAGS), (options.weights, WEIGHTS)):
        if file is None:
            continue
        how = load_how(file, kind)
        vocabulary, weights = (options.vocabulary, None) if kind == TAGS else (None, how)
        columns, info = soft_columns(vocabulary, weights, class_names), soft_info(vocabulary, weights, how)
        assert columns is not None  # one of vocabulary and weights is given
        assert info is not None
        with progress_bar(None, f"check {kind}", "B") as bar:
            rows.append(join_rows(file, columns, info, table, kept, bar.update))
    return Added(options.tree, maps, tuple(rows))


def _soft_labels(run: _Run) -> SoftLabelInfo | None:
    """What the result's manifest says of tags, weights and pseudo labels."""
    info = _common_soft_labels([manifest for _, manifest in run.sources])
    if SOFT.suffix not in run.suffixes:
        info = replace(info, pseudo=None)
    for rows in run.added.rows:
        new = rows.info
        info = (
            replace(info, weights=new.weights)
            if rows.kind == WEIGHTS
            else replace(info, num_tags=new.num_tags, vocabulary_sha256=new.vocabulary_sha256, tags=new.tags)
        )
    return info if info.to_json() else None


def _common_soft_labels(manifests: Sequence[Manifest]) -> SoftLabelInfo:
    """What data sets say of their soft labels; where they were made in different ways, all of these in their order."""
    infos = [manifest.soft_labels or SoftLabelInfo() for manifest in manifests]
    first = infos[0]
    hows: dict[str, Any] = {}
    for kind in KINDS:
        found = [getattr(info, kind) for info in infos]
        if any(how != found[0] for how in found):
            hows[kind] = {"sources": found}
    return replace(first, **hows)


def _write_missing(run: _Run, kept: np.ndarray) -> None:
    """Put every sample that a list says nothing of into the ledger."""
    if not run.added.rows:
        return
    missing = []
    for rows in run.added.rows:
        reason = f"{rows.file.name}: expected a row with its {rows.kind}, found none"
        for number in kept[~rows.has(kept)].tolist():
            missing.append(BadInput(run.table.path(number), f"no-{rows.kind}", reason))
    write_ledger(run.destination, missing)


def _make_shard(run: _Run, shards: dict[str, np.ndarray], plan_sha256: str, name: str) -> dict[str, Any]:
    """Write one shard and its receipt."""
    numbers = shards[name]
    with ShardWriter(run.destination.at(name), run.suffixes) as writer:
        samples = run.table.read(numbers, run.options.left_out)
        for number, sample in zip(numbers.tolist(), samples, strict=True):
            writer.write(sample.key, run.added.to(sample, number, run.table, name))
    assert writer.record is not None
    receipt = {"plan": plan_sha256, "record": writer.record.to_json()}
    write_receipt(run.destination, name, receipt)
    return receipt


def _finish(run: _Run, records: Sequence[ShardRecord], classes: np.ndarray) -> Manifest:
    """Write tree, sidecar and manifest, the manifest last."""
    folder, first = run.sources[0]
    suffixes = run.suffixes
    tree = run.added.tree or (load_tree(folder, first) if HIER.suffix in suffixes else None)
    if tree is not None:
        tree.save(run.destination.at(TREE_NAME))
    soft_labels = _soft_labels(run)
    if soft_labels is not None and (sha256 := soft_labels.vocabulary_sha256) is not None:
        vocabulary = run.options.vocabulary or load_vocabulary(folder, sha256)
        run.destination.write(VOCABULARY_NAME, vocabulary.to_bytes())
    label_maps = run.added.maps.info if run.added.maps is not None else first.label_maps
    manifests = [manifest for _, manifest in run.sources]
    class_names = _class_names(first, run.options)
    result = Manifest(
        name=run.name,
        components=tuple(suffixes),
        class_names=class_names,
        classes_sha256=class_list_sha256(class_names),
        tree_sha256=tree.fingerprint if tree else None,
        num_levels=tree.num_levels if tree else 0,
        label_maps=label_maps if LMAP.suffix in suffixes else None,
        recipe={**_common([m.recipe for m in manifests]), "reshard": run.origin()},
        pixel_stack=_stacks([m.pixel_stack for m in manifests]),
        sidecar_sha256=save_sidecar(run.destination, classes),
        shards=tuple(records),
        teacher=first.teacher if KD.suffix in suffixes else None,
        soft_labels=soft_labels,
    )
    run.destination.remove_leftovers()
    result.save(run.destination)
    return result


def _common(recipes: Sequence[Any]) -> dict[str, Any]:
    """What all recipes say alike, such as the stored size; the rest stands with each source."""
    first = recipes[0]
    return {
        key: value
        for key, value in first.items()
        if key != "reshard" and all(key in recipe and recipe[key] == value for recipe in recipes)
    }


def _stacks(stacks: Sequence[Any]) -> dict[str, str]:
    """Every version that made some of the stored bytes."""
    packages = dict.fromkeys(package for stack in stacks for package in stack)
    return {
        package: ", ".join(sorted({stack[package] for stack in stacks if package in stack}))
        for package in packages
    }
