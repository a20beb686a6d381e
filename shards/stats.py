"""Counts of a data set: samples per class, level occupancy, bytes per component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .index import parse_index
from .manifest import Manifest, load_sidecar, load_tree


def data_set_stats(folder: str | Path) -> dict[str, Any]:
    """Count a data set; reads the manifest, the sidecar and the indexes, not the shards.

    Returns:
        A JSON-ready dict: samples, shards, bytes, bytes per component and per sample, samples per class
        (smallest, median, largest, empty classes), and per level of the tree its classes and the samples
        labelled there.

    Raises:
        DataError: manifest, sidecar, tree or an index is missing or damaged.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    classes = load_sidecar(folder, manifest)
    tree = load_tree(folder, manifest)
    counts = np.bincount(classes, minlength=manifest.num_classes)
    component_bytes = dict.fromkeys(manifest.components, 0)
    for shard in manifest.shards:
        path = (folder / shard.name).with_suffix(".idx")
        try:
            text = path.read_bytes().decode("ascii", "replace")
        except OSError as error:
            raise DataError(
                f"{path.name}: expected the index of {shard.name}, found none. Run: softshard verify {folder}"
            ) from error
        index = parse_index(text, path.name, shard.bytes)
        for suffix, total in zip(index.suffixes, index.sizes.sum(axis=0).tolist(), strict=True):
            component_bytes[suffix] = component_bytes.get(suffix, 0) + total
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
        result["label_maps"] = {**vars(manifest.label_maps), "teacher": dict(manifest.label_maps.teacher)}
    return result


def format_stats(stats: dict[str, Any]) -> str:
    """The counts as text for a terminal."""
    classes = stats["classes"]
    lines = [
        f"{stats['dataset']}: {stats['samples']:,} samples in {stats['shards']:,} shards, "
        f"{stats['bytes']:,} bytes",
        f"  bytes a sample  {stats['bytes_per_sample']:,} in the tar: "
        + ", ".join(f"{suffix} {size:,}" for suffix, size in stats["component_bytes_per_sample"].items()),
        f"  classes         {classes['with_samples']:,} of {classes['listed']:,} have samples; smallest "
        f"{classes['smallest']:,}, median {classes['median']:,g}, largest {classes['largest']:,} "
        f"({classes['largest_name']})",
    ]
    for level in stats.get("levels", []):
        lines.append(
            f"  level {level['level']:<9} {level['classes']:,} classes, {level['samples_with_target']:,} "
            f"samples with a target, {level['samples_labelled_here']:,} labelled here"
        )
    if "label_maps" in stats:
        maps = stats["label_maps"]
        lines.append(f"  label maps      top {maps['top']} on {maps['rows']} x {maps['columns']} cells")
    return "\n".join(lines)
