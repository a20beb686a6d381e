"""Label maps beside a data set: attached to copies of its shards, or as side shards that are joined later.

A side shard holds only `lmap` members, under the keys and in the order of the shard of the same name. Side shards are
small, can be made where the images are not to be copied, and several sets of them (other teachers) can belong to one
data set. `label_maps.json` says which, is written last, and `join_label_maps` makes a full data set of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .destination import Destination, open_destination
from .errors import DataError, UsageError
from .files import canonical_json, join_url, read_limited, sha256_hex
from .images import pixel_stack
from .manifest import LabelMapInfo, Manifest
from .progress import progress_bar
from .reader import read_shard
from .receipts import read_receipts, settle_plan, write_receipt
from .schema import CLASSES_NAME, LMAP, MAX_MANIFEST_BYTES, PLAN_NAME, RECEIPTS_DIR, TREE_NAME, component_rank
from .writer import ShardRecord, ShardWriter

SIDE_NAME = "label_maps.json"
SIDE_FORMAT = "softshard-label-maps"
SIDE_VERSION = 1


@dataclass(frozen=True)
class SideMaps:
    """Label maps of a data set, in shards of their own.

    Attributes:
        name: of the data set.
        dataset_fingerprint: of the data set that they belong to.
        label_maps: geometry and teacher.
        shards: one record a shard, named like the data set's, in its order.
    """

    name: str
    dataset_fingerprint: str
    label_maps: LabelMapInfo
    shards: tuple[ShardRecord, ...]

    def save(self, folder: str | Path | Destination) -> None:
        """Write `label_maps.json`: the last file of a run."""
        content = {
            "format": SIDE_FORMAT,
            "version": SIDE_VERSION,
            "name": self.name,
            "dataset": self.dataset_fingerprint,
            "label_maps": {**vars(self.label_maps), "teacher": dict(self.label_maps.teacher)},
            "shards": [shard.to_json() for shard in self.shards],
        }
        open_destination(folder).write(SIDE_NAME, json.dumps(content, indent=1).encode("ascii"))

    @classmethod
    def load(cls, folder: str | Path) -> SideMaps:
        """Read `label_maps.json`.

        Raises:
            DataError: it is missing, damaged or of a newer version.
        """
        url = join_url(folder, SIDE_NAME)
        try:
            content = json.loads(read_limited(url, MAX_MANIFEST_BYTES))
            if content["format"] != SIDE_FORMAT:
                raise ValueError(f"format {content['format']!r}")
            if content["version"] != SIDE_VERSION:
                raise DataError(
                    f"{url}: expected version {SIDE_VERSION}, found {content['version']!r}; it was written by another "
                    "softshard. Run: pip install -U softshard"
                )
            return cls(
                content["name"],
                content["dataset"],
                LabelMapInfo(**content["label_maps"]),
                tuple(ShardRecord(**shard) for shard in content["shards"]),
            )
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: expected side shards of label maps, found no {SIDE_NAME}, which is written last. Run "
                "`softshard maps make --side` again: it continues"
            ) from error
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{url}: expected a description of side shards, found: {error!r}") from error


def join_label_maps(dataset: str | Path, side: str | Path, destination: str | Path) -> Manifest:
    """Write a data set with the samples of one and the label maps of its side shards. No image is decoded.

    Args:
        dataset: folder of the data set; label maps that it has are replaced.
        side: folder of side shards that were made of it.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.

    Returns:
        The manifest of the result.

    Raises:
        DataError: the side shards belong to another data set, or something is damaged.
        UsageError: the destination holds something else, or a source is a URL.
    """
    dataset, side = _local(dataset), _local(side)
    source, maps = Manifest.load(dataset), SideMaps.load(side)
    if maps.dataset_fingerprint != source.fingerprint:
        raise DataError(
            f"{side}: expected label maps of the data set {source.fingerprint[:12]} in {dataset}, found those of "
            f"{maps.dataset_fingerprint[:12]}. Make them for this data set: softshard maps make --side"
        )
    target = open_destination(destination)
    check_sidecars(dataset, source)
    content = {
        "join": {"dataset": source.fingerprint, "maps": [record.sha256 for record in maps.shards]},
        "label_maps": {**vars(maps.label_maps), "teacher": dict(maps.label_maps.teacher)},
    }
    target.make()
    with target.hold(), progress_bar(source.num_samples, "join", "img") as bar:
        plan_sha256, done = settle(target, content, source)
        for record, side_record in zip(source.shards, maps.shards, strict=True):
            if record.name not in done:
                check_hash(side / side_record.name, side_record)
                pairs = (
                    (sample.key, sample.parts[LMAP.suffix]) for sample in read_shard(side / side_record.name)
                )
                attach(target, dataset, record, components_with_maps(source), pairs, plan_sha256)
            bar.update(record.samples)
        return finish(target, dataset, source, maps.label_maps, plan_sha256)


def components_with_maps(manifest: Manifest) -> tuple[str, ...]:
    """The components of a data set once it has label maps."""
    return tuple(sorted({*manifest.components, LMAP.suffix}, key=lambda name: (component_rank(name), name)))


def encoder_versions() -> dict[str, str]:
    """Versions of what compresses label maps; another version may give other bytes."""
    stack = pixel_stack()
    return {package: stack[package] for package in ("lz4", "zstandard")}


def check_sidecars(dataset: Path, source: Manifest) -> None:
    """Refuse a data set without a file that is copied at the end.

    Raises:
        DataError: with the file's name.
    """
    for name in _sidecars(source):
        if not (dataset / name).is_file():
            raise DataError(
                f"{dataset / name}: expected a file of the data set, found none; it was not copied whole. "
                f"Run: softshard verify {dataset}"
            )


def settle(target: Destination, content: dict[str, Any], source: Manifest) -> tuple[str, set[str]]:
    """Write `plan.json`, or compare it with that of an earlier run; returns its SHA-256 and the shards that are done.

    Raises:
        UsageError: the destination holds something else, or the work of another call.
        DataError: the earlier plan is damaged.
    """
    plan_sha256 = sha256_hex(canonical_json(content))
    earlier = settle_plan(
        target, lambda: json.dumps({"sha256": plan_sha256, **content}, indent=1).encode("ascii")
    )
    if earlier is not None:
        try:
            found = json.loads(earlier)
            other = {key for key in content if found.get(key) != json.loads(json.dumps(content[key]))}
            found_sha256 = found["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{target.name}/{PLAN_NAME}: expected the plan of an earlier run, found: {error!r}; it is damaged. "
                "Write into a new folder"
            ) from error
        if found_sha256 != plan_sha256:
            raise UsageError(
                f"{target.name}: expected the plan {plan_sha256[:12]} of this call, found {found_sha256[:12]} of another "
                f"run ({', '.join(sorted(other)) or 'options'} differ). Write into a new folder"
            )
    target.folder(RECEIPTS_DIR).make()
    names = [record.name for record in source.shards]
    receipts = read_receipts(target, names, plan_sha256)
    return plan_sha256, {
        name for name, receipt in zip(names, receipts, strict=True) if receipt and receipt["record"]
    }


def attach(
    target: Destination,
    dataset: Path,
    record: ShardRecord,
    suffixes: Sequence[str],
    maps: Iterable[tuple[str, bytes]],
    plan_sha256: str,
) -> None:
    """Write one shard, with its receipt: the source's samples and a label map for each.

    Args:
        target: where to write.
        dataset: folder of the source.
        record: the source's shard.
        suffixes: components of the result; `lmap` alone writes a side shard.
        maps: key and encoded map of every sample, in the shard's order.
        plan_sha256: of the run.

    Raises:
        DataError: the shard is not what its manifest says, or the maps are of other samples.
    """
    path = dataset / record.name
    check_hash(path, record)
    source = iter(maps)
    with ShardWriter(target.at(record.name), suffixes) as writer:
        for sample in read_shard(path):
            key, data = next(source, ("", b""))
            if key != sample.key:
                raise DataError(
                    f"{record.name}: expected the label map of sample {sample.key!r} next, found that of {key!r}; the "
                    "maps belong to another data set"
                )
            parts = {**sample.parts, LMAP.suffix: data}
            writer.write(key, {suffix: parts[suffix] for suffix in suffixes})
    assert writer.record is not None
    write_receipt(target, record.name, {"plan": plan_sha256, "record": writer.record.to_json()})


def finish(
    target: Destination,
    dataset: Path,
    source: Manifest,
    label_maps: LabelMapInfo,
    plan_sha256: str,
    save: Callable[[tuple[ShardRecord, ...]], object] | None = None,
) -> Manifest:
    """Write what comes last: sidecars and manifest, or what `save` writes in their stead.

    Returns:
        The data set's manifest with label maps (which is not written where `save` is given).

    Raises:
        DataError: a shard is missing: the processes of the run did not write to one place.
    """
    receipts = read_receipts(target, [record.name for record in source.shards], plan_sha256)
    records = tuple(ShardRecord(**receipt["record"]) for receipt in receipts if receipt)
    if len(records) != len(source.shards):
        raise DataError(
            f"{target.name}: expected {len(source.shards)} shards, found {len(records)}; is it a place that all processes "
            "of the run share? Run the same command again: it continues"
        )
    made = replace(
        source,
        components=components_with_maps(source),
        label_maps=label_maps,
        pixel_stack={**source.pixel_stack, **encoder_versions()},
        shards=records,
    )
    target.remove_leftovers()
    if save is not None:
        save(records)
        return made
    for name in _sidecars(source):
        target.write(name, (dataset / name).read_bytes())
    made.save(target)
    return made


def check_hash(path: Path, record: ShardRecord) -> None:
    """Refuse a shard whose bytes have changed: they would be given a new and valid hash.

    Raises:
        DataError: missing, or of other bytes.
    """
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected a shard of the data set, found none. Copy the data set again"
        ) from error
    if found != record.sha256:
        raise DataError(
            f"{path}: expected SHA-256 {record.sha256[:12]}, found {found[:12]}; bytes have changed. "
            f"Run: softshard verify {path}"
        )


def _sidecars(manifest: Manifest) -> list[str]:
    return [CLASSES_NAME, *([TREE_NAME] if manifest.tree_sha256 else [])]


def _local(path: str | Path) -> Path:
    if "://" in str(path) or "::" in str(path):
        raise UsageError(f"{path}: expected a local folder, found a URL. Copy it here first")
    return Path(path)
