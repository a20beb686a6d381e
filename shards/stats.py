"""Counts of a data set: samples per class, level occupancy, bytes per component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .index import index_name, parse_index
from .manifest import Manifest, load_sidecar, load_tree
from .parallel import in_threads
from .progress import progress_bar
from .schema import KD
from .shard_files import dataset_name, dataset_path, read_index
from .soft_labels import soft_labels_text
from .teacher_levels import num_kept
from .text_limits import counted
from .writer import ShardRecord

_READERS = 16  # requests to a server at a time


def data_set_stats(folder: str | Path) -> dict[str, Any]:
    """Count a data set; reads the manifest, the sidecar, the tree and the indexes, not the shards.

    Args:
        folder: folder or any fsspec URL.

    Returns:
        A JSON-ready dict: samples, shards, bytes, bytes per component and per sample, samples per class
        (smallest, median, largest, empty classes), and per level of the tree its classes and the samples
        labelled there.

    Raises:
        DataError: manifest, sidecar, tree or an index is missing or damaged, or the server is away.
    """
    folder = dataset_path(folder)
    manifest = Manifest.load(folder)
    classes = load_sidecar(folder, manifest)
    tree = load_tree(folder, manifest)
    counts = np.bincount(classes, minlength=manifest.num_classes)
    component_bytes = _component_bytes(folder, manifest)
    used = counts[counts > 0]
    result: dict[str, Any] = {
        "dataset": manifest.name,
        "fingerprint": manifest.fingerprint,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
        "bytes": manifest.num_bytes,
        "bytes_per_sample": round(manifest.num_bytes / manifest.num_samples, 1),
        "component_bytes": component_bytes,
        "component_bytes_per_sample": {
            suffix: round(total / manifest.num_samples, 1) for suffix, total in component_bytes.items()
        },
        "classes": {
            "listed": manifest.num_classes,
            "with_samples": int(used.size),
            "smallest": int(used.min()),
            "median": float(np.median(used)),
            "largest": int(used.max()),
            "largest_name": manifest.class_names[int(counts.argmax())],
        },
        "samples_per_class": {
            name: int(count) for name, count in zip(manifest.class_names, counts, strict=True) if count
        },
    }
    if tree is not None:
        own_level = np.bincount(tree.levels[classes], minlength=int(tree.levels.max()) + 1)
        # A class with several paths has a target on a level where one of them has.
        reaches = (tree.vectors().reshape(len(tree.classes), -1, tree.num_levels) >= 0).any(axis=1)
        with_target = counts @ reaches
        result["levels"] = [
            {
                "level": level,
                "classes": len(tree.level_classes[level]),
                "samples_with_target": int(with_target[level]),
                "samples_labelled_here": int(own_level[level]),
            }
            for level in range(tree.num_levels)
        ]
    if manifest.label_maps is not None:
        result["label_maps"] = manifest.label_maps.to_json()
    if manifest.soft_labels is not None:
        result["soft_labels"] = manifest.soft_labels.to_json()
    if KD.suffix in manifest.components:
        kept = [] if tree is None else list(num_kept(tree.level_sizes[: tree.num_levels]))
        origin = None if manifest.teacher is None else manifest.teacher.to_json()
        result["teacher"] = {"kept_per_level": kept, "origin": origin}
    return result


def _component_bytes(dataset: str | Path, manifest: Manifest) -> dict[str, int]:
    """Bytes of each component in the whole data set; the indexes of a few shards are read at a time."""

    def sizes(record: ShardRecord) -> dict[str, int]:
        name = index_name(record.name)
        try:
            text = read_index(dataset, record, len(manifest.components))
        except OSError as error:
            found = "none" if isinstance(error, FileNotFoundError) else error.strerror or error
            raise DataError(
                f"{name}: expected the index of {record.name}, found {found}. "
                f"Run: softshard verify {dataset_name(dataset)}"
            ) from error
        index = parse_index(text.decode("ascii", "replace"), name, record.bytes)
        return dict(zip(index.suffixes, index.sizes.sum(axis=0).tolist(), strict=True))

    totals = dict.fromkeys(manifest.components, 0)
    with progress_bar(len(manifest.shards), f"stats {manifest.name}", "shard") as bar:
        for of_shard in in_threads(sizes, manifest.shards, 1 if isinstance(dataset, Path) else _READERS):
            for suffix, num_bytes in of_shard.items():
                totals[suffix] = totals.get(suffix, 0) + num_bytes
            bar.update(1)
    return totals


def format_stats(stats: dict[str, Any]) -> str:
    """The counts as text for a terminal."""
    classes = stats["classes"]
    lines = [
        f"{stats['dataset']}: {counted(stats['samples'], 'sample')} in {counted(stats['shards'], 'shard')}, "
        f"{stats['bytes']:,} bytes",
        f"  bytes a sample  {stats['bytes_per_sample']:,} in the tar: "
        + ", ".join(f"{suffix} {size:,}" for suffix, size in stats["component_bytes_per_sample"].items()),
        f"  classes         {classes['with_samples']:,} of {classes['listed']:,} have samples; smallest "
        f"{classes['smallest']:,}, median {classes['median']:,g}, largest {classes['largest']:,} "
        f"({classes['largest_name']})",
    ]
    for level in stats.get("levels", []):
        lines.append(
            f"  level {level['level']:<9} {counted(level['classes'], 'class')}, "
            f"{counted(level['samples_with_target'], 'sample')} with a target, "
            f"{level['samples_labelled_here']:,} labelled here"
        )
    if "label_maps" in stats:
        maps = stats["label_maps"]
        lines.append(f"  label maps      top {maps['top']} on {maps['rows']} x {maps['columns']} cells")
    for title, text in soft_labels_text(stats.get("soft_labels", {})).items():
        lines.append(f"  {title:<15} {text}")
    if "teacher" in stats:
        kept, origin = stats["teacher"]["kept_per_level"], stats["teacher"]["origin"]
        who = (
            f"{origin['model']} of checkpoint {origin['checkpoint_sha256'][:12]}"
            if origin
            else "of unknown origin"
        )
        lines.append(f"  stored teacher  {who}, best {' + '.join(map(str, kept))} classes of the levels")
    return "\n".join(lines)
