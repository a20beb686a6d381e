"""Checks a data set against its manifest and lists every problem, not the first.

With hashes, members, JPEG headers (or every pixel), class indices, hierarchical label vectors against the
tree, label-map headers, shapes and ids, a teacher's levels, tags and weights, and counts. Every shard is read
once; one behind a URL is copied into a temporary file, one a worker at a time. The problems and their order are the
same for any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from .errors import DataError, SoftshardError
from .gather import alike
from .manifest import Manifest, check_sidecar, load_sidecar, load_tree
from .no_manifest import hint
from .parallel import in_processes, num_workers
from .progress import progress_bar
from .schema import KD, MANIFEST_NAME, MIB
from .shard_files import dataset_name, dataset_path, inside
from .storage import Entry, open_storage
from .stored_vocabulary import load_vocabulary
from .tree import LabelTree
from .verify_shard import Expected, ShardFindings, ShardToCheck, check_shard

# Bytes of a data set for which it is worth starting a process, which takes as long as checking these.
_BYTES_PER_PROCESS = 32 * MIB


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        shards: shards looked at.
        samples: samples looked at.
        problems: every problem, as `where: expected, found`.
    """

    shards: int = 0
    samples: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def data_set_folders(path: str | Path) -> list[str | Path]:
    """The data sets at a path or URL: the folder itself, or those in it (`pack` makes `train` and `val`).

    Returns:
        Paths, or URLs where `path` is one.

    Raises:
        DataError: neither has a manifest, or the server is away.
    """
    path = dataset_path(path)
    if _has_manifest(path):
        return [path]
    folders = [folder for folder in _folders(path) if _has_manifest(folder)]
    if not folders:
        raise DataError(
            f"{dataset_name(path)}: expected a data set (a folder with {MANIFEST_NAME}), found none; {hint(path)}"
        )
    return folders


def _has_manifest(folder: str | Path) -> bool:
    if isinstance(folder, Path):
        return (folder / MANIFEST_NAME).exists()
    try:
        return bool(open_storage(folder).read(MANIFEST_NAME, 0, None, 1))
    except FileNotFoundError:
        return False


def _entries(folder: str | Path) -> list[Entry]:
    """What is in a folder; nothing where there is no such folder, or a web server that does not list it."""
    try:
        return open_storage(folder).entries()
    except (OSError, DataError):
        return []


def _folders(path: str | Path) -> list[str | Path]:
    return [inside(path, entry.name) for entry in _entries(path) if entry.is_folder]


def _tars(folder: str | Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if not entry.is_folder and entry.name.endswith(".tar")]


def verify(dataset: str | Path, *, decode: bool = False, workers: int | None = None) -> VerifyReport:
    """Check a data set, a folder of data sets, or one shard of a data set.

    Args:
        dataset: folder, or a `.tar` beside its manifest; a path or any fsspec URL.
        decode: decode every image, rather than its header.
        workers: processes; by default one a core, fewer where the data set is small.

    Returns:
        Counts and every problem found.

    Raises:
        DataError: there is no data set. (A manifest that cannot be read is a problem in the report.)
        UsageError: fewer than one worker.
    """
    path = dataset_path(dataset)
    report = VerifyReport()
    folder, _, only = str(path).rpartition("/")
    if not only.endswith(".tar"):
        only = None
        report.problems += _lost_manifests(path)
        folders = data_set_folders(path)
    else:
        folders = [path.parent if isinstance(path, Path) else folder]
    for folder in folders:
        try:
            manifest = Manifest.load(folder)
        except DataError as error:
            report.problems.append(str(error))
        except OSError as error:
            report.problems.append(
                f"{dataset_name(inside(folder, MANIFEST_NAME))}: expected a file that can be read, found: "
                f"{error.strerror or error}. Copy it again, or pack again"
            )
        else:
            _verify_folder(folder, manifest, only, decode, workers, report)
    return report


def _lost_manifests(path: str | Path) -> list[str]:
    """Data sets whose manifest was lost, in a copy that was interrupted say: they must not pass unseen."""
    if not isinstance(path, Path) and _has_manifest(path):
        return []  # no list of every folder of a bucket
    return [
        f"{dataset_name(folder)}: expected {MANIFEST_NAME} beside its shards, found none. Copy it again, or pack again"
        for folder in _folders(path)
        if _tars(folder) and not _has_manifest(folder)
    ]


def _verify_folder(
    folder: str | Path,
    manifest: Manifest,
    only: str | None,
    decode: bool,
    workers: int | None,
    report: VerifyReport,
) -> None:
    problems = report.problems
    name = dataset_name(folder)
    sidecar = None
    try:
        sidecar = load_sidecar(folder, manifest)
        check_sidecar(folder, manifest)
    except DataError as error:
        problems.append(str(error))
    tree = _tree(folder, manifest, name, problems)
    if KD.suffix in manifest.components and manifest.tree_sha256 is None:
        problems.append(
            f"{name}: expected the label tree whose levels the component 'kd' is about, found none. Run: "
            "softshard reshard --tree, or --drop kd"
        )
    expected = Expected(
        dataset=folder,
        components=manifest.components,
        num_classes=manifest.num_classes,
        label_maps=manifest.label_maps,
        vectors=None if tree is None else tree.vectors(),
        level_sizes=None if tree is None else tree.level_sizes[: tree.num_levels],
        decode=decode,
        soft_labels=manifest.soft_labels,
    )
    if manifest.vocabulary_sha256 is not None:
        try:
            load_vocabulary(folder, manifest.vocabulary_sha256)
        except SoftshardError as error:  # a file that is not there is a wrong call elsewhere
            problems.append(str(error))
    names = [shard.name for shard in manifest.shards]
    if only is not None and only not in names:
        problems.append(f"{expected.where(only)}: expected a shard of the manifest, found no such name there")
        return
    if only is None:
        problems.extend(
            f"{expected.where(stray)}: expected only the manifest's shards, found this one too"
            for stray in sorted(set(_tars(folder)) - set(names))
        )
    starts = accumulate((shard.samples for shard in manifest.shards), initial=0)
    shards = [
        ShardToCheck(record, None if sidecar is None else np.array(sidecar[start : start + record.samples]))
        for record, start in zip(manifest.shards, starts, strict=False)
        if only is None or record.name == only
    ]
    findings = []
    with progress_bar(sum(shard.record.samples for shard in shards), f"verify {manifest.name}", "img") as bar:
        for shard, found in zip(
            shards, in_processes(check_shard, expected, shards, _num_processes(shards, workers)), strict=True
        ):
            report.shards += found.found
            report.samples += found.samples
            problems.extend(found.problems)
            findings.append(found)
            bar.update(shard.record.samples)
    problems.extend(_keys_used_again([expected.where(shard.record.name) for shard in shards], findings))


def _num_processes(shards: list[ShardToCheck], workers: int | None) -> int:
    most = num_workers(workers)
    if workers is None:
        most = min(most, 1 + sum(shard.record.bytes for shard in shards) // _BYTES_PER_PROCESS)
    return min(most, len(shards))


def _tree(folder: str | Path, manifest: Manifest, name: str, problems: list[str]) -> LabelTree | None:
    """The data set's tree; None where there is none, or it is damaged."""
    try:
        tree = load_tree(folder, manifest)
    except SoftshardError as error:  # a tree that is not there is a wrong call elsewhere
        problems.append(f"{name}: {error}")
        return None
    if tree is not None and tree.classes != manifest.class_names:
        problems.append(f"{name}: expected the tree's classes to be the manifest's class list, found others")
        return None
    return tree


def _keys_used_again(names: list[str], findings: list[ShardFindings]) -> list[str]:
    """Keys that more than one shard has; hashes are compared, so that few keys are unpacked."""
    # No shard and place for every sample: of a set of 14 million they would take 224 MB.
    counts = np.array([len(found.keys) for found in findings], np.int64)
    ends = np.cumsum(counts)
    again = np.sort(alike(np.concatenate([found.key_hashes for found in findings])))
    shards = np.searchsorted(ends, again, side="right")
    places = again - (ends - counts)[shards]
    first: dict[str, str] = {}
    problems = []
    for shard, place in zip(shards.tolist(), places.tolist(), strict=True):
        key = findings[shard].keys[place]
        if key in first:
            problems.append(f"{names[shard]}: sample {key!r}: expected each key once, also in {first[key]}")
        first[key] = names[shard]
    return problems
