"""The page of `softshard inspect`: a section a sample, for somebody who asks whether the data are right."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..shards.errors import UsageError
from ..shards.html import Page
from ..shards.links import Inline
from ..shards.schema import HIER, KD, LMAP
from ..shards.shard_files import dataset_name
from ..shards.soft_labels import soft_labels_text
from ..shards.text_limits import counted
from .crops import Augment
from .inspect_figures import ClassNames
from .inspect_links import Places
from .inspect_lists import add_classes, add_shards, largest_classes
from .inspect_sample import add_sample, sample_title
from .inspect_views import Inspection, InspectOptions

DEFAULT_TOP = 5
MAX_LISTED = 100  # shards, and classes, on the page in a file
# Stored images are embedded as they are up to so many bytes each, and up to so many on the page.
MAX_STORED_BYTES, MAX_PAGE_STORED_BYTES = 2**20, 24 * 2**20


def inspect_page(found: Inspection, *, top: int = DEFAULT_TOP, more: Sequence[str] = ()) -> Page:
    """Draw what was found.

    Args:
        found: what `inspect_data_set` gave.
        top: classes of every target.
        more: further words of the command that makes the page, whose sections the caller adds.

    Returns:
        The page; the same data set and options give the same bytes.

    Raises:
        UsageError: `top` is below 1.
    """
    if top < 1:
        raise UsageError(f"inspect: expected 1 or more classes of a target, found {top}")
    page = Page(f"Samples of {found.dataset}")
    _add_summary(page, found, top, more)
    names = ClassNames(found)
    budget = min(MAX_STORED_BYTES, MAX_PAGE_STORED_BYTES // len(found.samples))
    for sample in found.samples:
        page.heading(sample_title(sample))
        add_sample(page, found, sample, names, top=top, budget=budget, places=Places())
    page.heading("Shards")
    add_shards(page, found, 0, MAX_LISTED, Places())
    if found.manifest.num_classes:
        page.heading("Classes")
        add_classes(page, found, names, largest_classes(found, MAX_LISTED), Places())
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


def data_set_facts(found: Inspection) -> dict[str, Inline]:
    """What the data set is."""
    manifest, tree, maps = found.manifest, found.tree, found.manifest.label_maps
    facts: dict[str, Inline] = {
        "data set": found.dataset,
        "fingerprint": manifest.fingerprint[:12],
        "samples": f"{manifest.num_samples:,} in {counted(len(manifest.shards), 'shard')}",
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
    if manifest.soft_labels is not None:
        facts.update(soft_labels_text(manifest.soft_labels.to_json()))
    return facts


def _add_summary(page: Page, found: Inspection, top: int, more: Sequence[str]) -> None:
    options = found.options
    epochs = f"epoch {options.epoch}"
    if options.num_crops > 1:
        epochs = f"epochs {options.epoch} to {options.epoch + options.num_crops - 1}"
    chosen = "asked for by key" if options.keys else f"those that epoch {options.epoch} begins with"
    facts = data_set_facts(found)
    facts["on this page"] = f"{len(found.samples)} samples, {chosen}"
    facts["crops"] = f"of {epochs}, seed {options.seed}; {augment_text(options.augment)}"
    facts["targets"] = found.targets if options.targets else f"{found.targets} (chosen for this data set)"
    page.key_values(facts)
    page.command(shlex.join([*shlex.split(command_line(found.dataset, options, top)), *more]))
    if missing := missing_parts(found):
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


def augment_text(augment: Augment) -> str:
    """Crop, size and flip in words."""
    names = ("color_jitter", "lighting", "cutout", "randaugment", "erasing", "mixup", "cutmix")
    further = [name.replace("_", " ") for name in names if getattr(augment, name)]
    then = f"; then {', '.join(further)}" if further else ""
    size = f"{augment.size} x {augment.size} pixels"
    if augment.scale is None:
        return f"the whole image, squished to {size}{then}"
    low, high = augment.scale
    return f"{low:.0%} to {high:.0%} of the area, {size}{', half of them mirrored' if augment.flip else ''}{then}"


def _teacher_text(teacher: Mapping[str, Any]) -> str:
    """What the manifest records of a teacher, but for nested parts; hashes are cut short."""
    plain = {name: value for name, value in teacher.items() if isinstance(value, str | int | float)}
    shown = (
        f"{name.replace('_', ' ')} {value[:12] if name.endswith('sha256') and isinstance(value, str) else value}"
        for name, value in plain.items()
    )
    return "; ".join(shown) or "not recorded"


def missing_parts(found: Inspection) -> list[str]:
    """What other data sets have, and how to add it."""
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
