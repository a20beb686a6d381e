"""Makes a data set of existing ones: other shard sizes or order, merged, fewer classes, fewer components.

    check sources -> index and hash their samples -> order -> [ gather, write, receipt ] x shards -> manifest

Components are copied byte by byte: no image is decoded. Memory holds one shard of the result and some 60 bytes for
every sample. Shard by shard the result depends on the sources and the options alone, so a run that was killed
continues, and the manifest comes last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .destination import Destination, open_destination
from .errors import DataError, UsageError
from .files import canonical_json, sha256_hex
from .gather import SampleTable, index_samples
from .manifest import Manifest, load_sidecar, load_tree, save_sidecar
from .philox import PURPOSE_RESHARD, permutation
from .progress import progress_bar
from .receipts import read_receipts, settle_plan, write_receipt
from .schema import COMPONENT_BY_SUFFIX, HIER, LMAP, MIB, PLAN_NAME, RECEIPTS_DIR, TAR_BLOCK_BYTES, TREE_NAME
from .writer import ShardRecord, ShardWriter

_LISTED_PROBLEMS = 20
_MOST_SUSPECTS = 1000  # samples whose keys are read to name them


@dataclass(frozen=True)
class ReshardOptions:
    """What to change.

    Attributes:
        shard_bytes: wanted size of a shard.
        shard_samples: samples of a shard instead.
        classes: names of the classes whose samples are kept, or None for all. The class list stays whole
            and every index as it is: `cls`, label vectors and label maps all count in the data set's own
            list, models trained on the whole set can be evaluated on the part, and parts can be merged again.
        drop: components to leave out.
        shuffle: seed of a new global order, or None to keep the order.
        name: of the result and its shards; by default the sources' where they share one, else the
            destination folder's.
    """

    shard_bytes: int = 256 * MIB
    shard_samples: int | None = None
    classes: Sequence[str] | None = None
    drop: Sequence[str] = ()
    shuffle: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.shard_bytes < 1 or (self.shard_samples is not None and self.shard_samples < 1):
            raise UsageError(
                f"expected a shard of at least one byte or sample, found shard_bytes={self.shard_bytes}, "
                f"shard_samples={self.shard_samples}"
            )
        for suffix in self.drop:
            known = COMPONENT_BY_SUFFIX.get(suffix)
            if known and known.required:
                raise UsageError(
                    f"drop: expected an optional component, found {suffix!r}, which all sets have"
                )
        if self.shuffle is not None and not 0 <= self.shuffle < 2**64:
            raise UsageError(f"shuffle: expected a seed from 0 to 2**64 - 1, found {self.shuffle}")

    def to_json(self) -> dict[str, Any]:
        return {
            "shard_bytes": self.shard_bytes if self.shard_samples is None else None,
            "shard_samples": self.shard_samples,
            "classes": None if self.classes is None else list(self.classes),
            "drop": sorted(set(self.drop)),
            "shuffle": self.shuffle,
        }


def reshard(
    datasets: Sequence[str | Path], destination: str | Path, options: ReshardOptions | None = None
) -> Manifest:
    """Write a new data set with the samples of existing ones.

    Args:
        datasets: folders of data sets with the same class list, tree, components and label-map geometry.
        destination: a new folder, or that of an earlier run of the same call, which is continued.
        options: see ReshardOptions.

    Returns:
        The manifest of the result.

    Raises:
        DataError: the data sets do not fit together, share keys or are damaged; every problem is named.
        UsageError: the destination holds something else, or another process is writing there.
    """
    options = options or ReshardOptions()
    folders = [_local(dataset) for dataset in datasets]
    target = open_destination(destination)
    sources = [(folder, Manifest.load(folder)) for folder in folders]
    name = _name([manifest for _, manifest in sources], target, options)
    _check_fit(sources, options)
    classes = np.concatenate([load_sidecar(folder, manifest) for folder, manifest in sources])
    kept = _kept_samples(sources[0][1], classes, options)
    with progress_bar(sum(manifest.num_bytes for _, manifest in sources), "check sources", "B") as bar:
        table = index_samples(sources, options.drop, bar.update)
    _check_keys(table, kept)
    if options.shuffle is not None:
        kept = kept[permutation(options.shuffle, PURPOSE_RESHARD, 0, 0, len(kept))]
    bounds = _shard_bounds(table.kept_bytes[kept], options)
    shards = {f"{name}-{i:06d}.tar": samples for i, samples in enumerate(bounds)}
    target.make()
    with target.hold():
        plan_sha256 = _settle_plan(target, name, sources, options)
        target.folder(RECEIPTS_DIR).make()
        earlier = read_receipts(target, list(shards), plan_sha256)
        suffixes = [suffix for suffix in sources[0][1].components if suffix not in options.drop]
        records = []
        with progress_bar(len(kept), "reshard", "img") as bar:
            for (shard_name, (start, stop)), receipt in zip(shards.items(), earlier, strict=True):
                if receipt is None:
                    with ShardWriter(target.at(shard_name), suffixes) as writer:
                        for sample in table.read(kept[start:stop], options.drop):
                            writer.write(sample.key, sample.parts)
                    assert writer.record is not None
                    receipt = {"plan": plan_sha256, "record": writer.record.to_json()}
                    write_receipt(target, shard_name, receipt)
                records.append(ShardRecord(**receipt["record"]))
                bar.update(stop - start)
        return _finish(target, name, sources, options, records, classes[kept])


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise UsageError(f"{path}: expected a local path, found a URL; copy the data set here first")
    return Path(path)


def _check_fit(sources: Sequence[tuple[Path, Manifest]], options: ReshardOptions) -> None:
    """Refuse data sets that cannot be one, with everything that differs from the first."""
    if not sources:
        raise UsageError("expected a data set, found none")
    first_folder, first = sources[0]
    problems = [
        f"{folder}: expected a component {suffix!r} to drop, found {', '.join(manifest.components)}"
        for folder, manifest in sources
        for suffix in options.drop
        if suffix not in manifest.components
    ]
    same: list[tuple[str, Any]] = [
        ("the class list", lambda manifest: manifest.classes_sha256[:12]),
        ("components", lambda manifest: sorted(set(manifest.components) - set(options.drop))),
    ]
    # Label vectors are all that the tree says of a sample: without them, samples of two trees may be mixed.
    if HIER.suffix not in options.drop:
        same.append(("the label tree", lambda manifest: (manifest.tree_sha256 or "none")[:12]))
    if LMAP.suffix not in options.drop:
        same.append(("label maps", lambda manifest: manifest.label_maps and vars(manifest.label_maps)))
    for folder, manifest in sources[1:]:
        problems += [
            f"{folder}: expected {what} {value(first)} of {first_folder}, found {value(manifest)}"
            for what, value in same
            if value(manifest) != value(first)
        ]
    if problems:
        raise DataError("\n".join(problems))


def _kept_samples(manifest: Manifest, classes: np.ndarray, options: ReshardOptions) -> np.ndarray:
    """int64 numbers of the samples whose class is kept."""
    if options.classes is None:
        return np.arange(len(classes))
    index = {name: i for i, name in enumerate(manifest.class_names)}
    unknown = [name for name in options.classes if name not in index]
    if unknown:
        raise DataError(
            f"classes to keep: expected names of the class list {manifest.classes_sha256[:12]}, found "
            f"{len(unknown)} others: {_some(unknown)}"
        )
    wanted = np.zeros(manifest.num_classes, bool)
    wanted[[index[name] for name in options.classes]] = True
    kept = np.flatnonzero(wanted[classes])
    if not len(kept):
        raise DataError(f"{manifest.name}: expected samples of the classes to keep, found none")
    return kept


def _check_keys(table: SampleTable, kept: np.ndarray) -> None:
    """Refuse samples that share a key; hashes are compared first, so that no more keys are in memory."""
    hashes = table.key_hashes[kept]
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    if not equal.any():
        return
    alike = np.concatenate([[False], equal]) | np.concatenate([equal, [False]])
    suspects = kept[order[alike]][:_MOST_SUSPECTS]
    places: dict[str, list[str]] = {}
    for number, sample in zip(
        suspects.tolist(), table.read(suspects, tuple(COMPONENT_BY_SUFFIX)), strict=True
    ):
        shard = table.shards[int(np.searchsorted(table.starts, number, side="right")) - 1]
        places.setdefault(sample.key, []).append(str(shard))
    clashes = sorted(f"{key!r} in {' and '.join(where)}" for key, where in places.items() if len(where) > 1)
    if clashes:  # and not two keys of one hash
        raise DataError(
            f"expected each key once, found {int(equal.sum())} again: {_some(clashes, _LISTED_PROBLEMS)}; the "
            "data sets share samples, or were packed from folders with the same names. Leave one out, or pack "
            "their sources together"
        )


def _some(names: Sequence[str], num: int = 5) -> str:
    return ", ".join(names[:num]) + (f" and {len(names) - num} more" if len(names) > num else "")


def _shard_bounds(sample_bytes: np.ndarray, options: ReshardOptions) -> list[tuple[int, int]]:
    """(first, past the last) sample of each shard: near-equal bytes, or near-equal counts."""
    num = len(sample_bytes)
    if options.shard_samples is not None:
        shards = -(-num // options.shard_samples)
        cuts = [i * num // shards for i in range(shards + 1)]
    else:
        ends = np.cumsum(sample_bytes)
        total = int(ends[-1])
        room = max(1, options.shard_bytes - 2 * TAR_BLOCK_BYTES)
        shards = min(num, -(-total // room))
        cuts = [0, *(int(np.searchsorted(ends, i * total // shards)) for i in range(1, shards)), num]
    # A sample larger than a shard leaves its neighbours without any.
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop]


def _name(manifests: Sequence[Manifest], destination: Destination, options: ReshardOptions) -> str:
    names = {manifest.name for manifest in manifests}
    name = options.name or (names.pop() if len(names) == 1 else destination.base)
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"name: expected a file name, found {name!r}")
    return name


def _settle_plan(
    destination: Destination, name: str, sources: Sequence[tuple[Path, Manifest]], options: ReshardOptions
) -> str:
    """Write `plan.json`, or compare it with the one of an earlier run; returns its fingerprint."""
    content = {"name": name, "reshard": _done(sources, options)}
    plan_sha256 = sha256_hex(canonical_json(content))
    text = json.dumps({"sha256": plan_sha256, **content}, indent=1).encode("ascii")
    earlier = settle_plan(destination, lambda: text)
    if earlier is not None:
        try:
            found = json.loads(earlier)["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{destination.name}/{PLAN_NAME}: expected the plan of an earlier run, found: {error!r}; it is "
                "damaged"
            ) from error
        if found != plan_sha256:
            raise UsageError(
                f"{destination.name}: expected the plan {plan_sha256[:12]} of these data sets and options, found "
                f"{found[:12]} of another run. Write into a new folder"
            )
    return plan_sha256


def _done(sources: Sequence[tuple[Path, Manifest]], options: ReshardOptions) -> dict[str, Any]:
    """What the new manifest says of its origin."""
    return {
        **options.to_json(),
        "sources": [
            {
                "name": manifest.name,
                "fingerprint": manifest.fingerprint,
                "samples": manifest.num_samples,
                "recipe": dict(manifest.recipe),
                "pixel_stack": dict(manifest.pixel_stack),
            }
            for _, manifest in sources
        ],
    }


def _finish(
    destination: Destination,
    name: str,
    sources: Sequence[tuple[Path, Manifest]],
    options: ReshardOptions,
    records: Sequence[ShardRecord],
    classes: np.ndarray,
) -> Manifest:
    """Write tree, sidecar and manifest, the manifest last."""
    folder, first = sources[0]
    tree = None if HIER.suffix in options.drop else load_tree(folder, first)
    if tree is not None:
        tree.save(destination.at(TREE_NAME))
    manifests = [manifest for _, manifest in sources]
    result = Manifest(
        name=name,
        components=tuple(suffix for suffix in first.components if suffix not in options.drop),
        class_names=first.class_names,
        classes_sha256=first.classes_sha256,
        tree_sha256=tree.fingerprint if tree else None,
        num_levels=tree.num_levels if tree else 0,
        label_maps=None if LMAP.suffix in options.drop else first.label_maps,
        recipe={**_common([m.recipe for m in manifests]), "reshard": _done(sources, options)},
        pixel_stack=_stacks([m.pixel_stack for m in manifests]),
        sidecar_sha256=save_sidecar(destination, classes),
        shards=tuple(records),
    )
    destination.remove_leftovers()
    result.save(destination)
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
