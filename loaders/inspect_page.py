"""The page of `softshard inspect`: a section a sample, for somebody who asks whether the data are right."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..shards.errors import UsageError
from ..shards.figures import Figure
from ..shards.html import Page
from ..shards.schema import HIER, KD, LMAP
from ..shards.shard_files import dataset_name
from .crops import Augment
from .inspect_figures import ClassNames, crop_figure, map_figures, stored_figure
from .inspection import Inspection, InspectOptions, SampleView

DEFAULT_TOP = 5
CARD_REM = 15  # four of them beside each other on a wide page
# Stored images are embedded as they are up to so many bytes each, and up to so many on the page.
MAX_STORED_BYTES, MAX_PAGE_STORED_BYTES = 2**20, 24 * 2**20


def inspect_page(found: Inspection, *, top: int = DEFAULT_TOP) -> Page:
    """Draw what was found.

    Args:
        found: what `inspect_data_set` gave.
        top: classes of every target.

    Returns:
        The page; the same data set and options give the same bytes.

    Raises:
        UsageError: `top` is below 1.
    """
    if top < 1:
        raise UsageError(f"inspect: expected 1 or more classes of a target, found {top}")
    page = Page(f"Samples of {found.dataset}")
    _add_summary(page, found, top)
    names = ClassNames(found)
    budget = min(MAX_STORED_BYTES, MAX_PAGE_STORED_BYTES // len(found.samples))
    for sample in found.samples:
        _add_sample(page, found, sample, names, top, budget)
    return page


def command_line(dataset: str, options: InspectOptions, top: int = DEFAULT_TOP) -> str:
    """The command that makes the page again, with the options that are not the default."""
    default, augment = InspectOptions(), options.augment
    words = ["softshard", "inspect", dataset]
    if any(key.startswith("-") for key in options.keys):
        words += [f"--keys={key}" for key in options.keys]
    elif options.keys:
        words += ["--keys", *options.keys]
    for name, value, usual in (
        ("--samples", default.num_samples if options.keys else options.num_samples, default.num_samples),
        ("--seed", options.seed, default.seed),
        ("--epoch", options.epoch, default.epoch),
        ("--crops", options.num_crops, default.num_crops),
        ("--side", options.side and dataset_name(options.side), default.side),
        ("--targets", options.targets, default.targets),
        ("--top", top, DEFAULT_TOP),
        ("--size", augment.size, default.augment.size),
    ):
        if value != usual:
            words += [name, str(value)]
    if augment.scale is not None and augment.scale != default.augment.scale:
        words += ["--scale", *map(str, augment.scale)]
    return shlex.join(words)


def _add_summary(page: Page, found: Inspection, top: int) -> None:
    manifest, tree, maps, options = found.manifest, found.tree, found.manifest.label_maps, found.options
    epochs = f"epoch {options.epoch}"
    if options.num_crops > 1:
        epochs = f"epochs {options.epoch} to {options.epoch + options.num_crops - 1}"
    chosen = "asked for by key" if options.keys else f"those that epoch {options.epoch} begins with"
    facts: dict[str, object] = {
        "data set": found.dataset,
        "fingerprint": manifest.fingerprint[:12],
        "samples": f"{manifest.num_samples:,} in {len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}",
        "classes": f"{manifest.num_classes:,}",
        "components": " ".join(manifest.components),
    }
    if tree is not None:
        sizes = " ".join(f"{size:,}" for size in tree.level_sizes[: tree.num_levels])
        facts["label tree"] = (
            f"{tree.num_levels} levels of {sizes} classes; fingerprint {tree.fingerprint[:12]}"
        )
    if maps is not None:
        facts["label maps"] = (
            f"the {maps.top} best of {maps.num_classes:,} classes in {maps.rows} rows x {maps.columns} columns of cells"
        )
        facts["teacher"] = _teacher_text(maps.teacher)
    facts["on this page"] = f"{len(found.samples)} samples, {chosen}"
    facts["crops"] = f"of {epochs}, seed {options.seed}; {_augment_text(options.augment)}"
    facts["targets"] = found.targets if options.targets else f"{found.targets} (chosen for this data set)"
    page.key_values(facts)
    page.command(command_line(found.dataset, options, top))
    if missing := _missing(found):
        page.paragraph("Not in this data set: " + "; ".join(missing) + ".")
    if damaged := sum(bool(sample.problems) for sample in found.samples):
        page.paragraph(
            f"Damaged: {damaged} of these {len(found.samples)} samples; their sections say what is wrong. softshard "
            "verify --decode checks all."
        )
    page.paragraph(
        "Crops are those that a Loader with this seed cuts in these epochs, and images and targets those of its "
        "batches. A crop marked ↔ is mirrored left to right. Bars are the target's largest probabilities; ✓ marks the "
        "image's own class, which is added where it is not among them."
    )


def _augment_text(augment: Augment) -> str:
    size = f"{augment.size} x {augment.size} pixels"
    if augment.scale is None:
        return f"the whole image, squished to {size}"
    low, high = augment.scale
    return f"{low:.0%} to {high:.0%} of the area, {size}{', half of them mirrored' if augment.flip else ''}"


def _teacher_text(teacher: Mapping[str, Any]) -> str:
    """What the manifest records of a teacher, but for nested parts; hashes are cut short."""
    plain = {name: value for name, value in teacher.items() if isinstance(value, str | int | float)}
    shown = (
        f"{name.replace('_', ' ')} {value[:12] if name.endswith('sha256') and isinstance(value, str) else value}"
        for name, value in plain.items()
    )
    return "; ".join(shown) or "not recorded"


def _missing(found: Inspection) -> list[str]:
    components, maps = found.manifest.components, found.manifest.label_maps
    lines = []
    if HIER.suffix not in components:
        lines.append("a label tree, and with it levels (softshard tree build, softshard reshard --tree)")
    if LMAP.suffix not in components:
        lines.append("label maps, and with them targets of crops (softshard maps make)")
    elif maps is not None and maps.num_classes != found.manifest.num_classes:
        lines.append(
            f"targets of crops: the label maps are over the teacher's {maps.num_classes:,} classes (training pools them "
            "with LabelPooling(class_map=...))"
        )
    if KD.suffix not in components:
        lines.append("a distillation teacher's levels (kd)")
    return lines


def _add_sample(
    page: Page, found: Inspection, sample: SampleView, names: ClassNames, top: int, budget: int
) -> None:
    page.heading(sample.key or f"Sample {sample.number:,}, which cannot be read")
    for problem in sample.problems:
        page.warning(problem)
    page.key_values(_facts(found, sample, names))
    figures: list[Figure] = []
    if (stored := stored_figure(sample, names, budget)) is not None:
        figures.append(stored)
    figures += [crop_figure(number, crop, sample, names, top) for number, crop in enumerate(sample.crops, 1)]
    if figures:
        page.figures(figures, card_rem=CARD_REM)
    if sample.label_map is not None and sample.image is not None:
        page.heading("Label map", 3)
        page.figures(map_figures(sample.image, sample.label_map, names), card_rem=CARD_REM)
    if sample.teacher is not None and found.tree is not None:
        page.heading("Distillation teacher", 3)
        page.table(["level", "best class", "probability", "own class"], _teacher_rows(found, sample, names))


def _facts(found: Inspection, sample: SampleView, names: ClassNames) -> dict[str, object]:
    facts: dict[str, object] = {}
    if sample.meta is not None:
        facts["original"] = sample.meta.get("path", "not recorded")
    if sample.class_index is not None:
        known = sample.class_index < found.manifest.num_classes
        name = names.title(sample.class_index) if known else "not in the class list"
        facts["class"] = f"{sample.class_index}, {name}"
    if found.tree is not None and sample.levels is not None and not sample.problems:
        paths = level_paths(found, sample)
        facts["path in the tree" if len(paths) == 1 else "paths in the tree"] = "; ".join(
            " › ".join(f"{level} {names.short(index)}" for level, index in path) for path in paths
        )
    if sample.image is not None and sample.jpeg is not None:
        height, width = sample.image.shape[:2]
        facts["stored"] = f"{width} x {height} pixels, {len(sample.jpeg):,} bytes"
        original = (sample.meta or {}).get("size")
        if original and list(original) != [height, width]:
            facts["stored"] = f"{facts['stored']}; the original had {original[1]} x {original[0]} pixels"
    facts["place"] = f"sample {sample.number:,} of the data set, in {sample.shard}"
    return facts


def level_paths(found: Inspection, sample: SampleView) -> list[list[tuple[int, int]]]:
    """(level, class index) along each stored hierarchical label vector, from the root down."""
    if found.tree is None or sample.levels is None:
        return []
    rows = sample.levels.reshape(-1, sample.levels.shape[-1])
    return [
        [(k, int(found.tree.level_classes[k][place])) for k, place in enumerate(row.tolist()) if place >= 0]
        for row in rows
        if (row >= 0).any()
    ]


def _teacher_rows(found: Inspection, sample: SampleView, names: ClassNames) -> list[list[object]]:
    assert found.tree is not None
    assert sample.teacher is not None
    own: dict[int, set[int]] = {}
    for path in level_paths(found, sample):
        for level, index in path:
            own.setdefault(level, set()).add(index)
    rows: list[list[object]] = []
    for level, (place, probability) in enumerate(zip(*sample.teacher, strict=True)):
        best = int(found.tree.level_classes[level][place])
        mine = own.get(level, set())
        said = "✓" if best in mine else ", ".join(names.short(index) for index in sorted(mine)) or "none"
        rows.append([level, names.short(best), float(probability), said])
    return rows
