"""One sample on a page of `softshard inspect`: what is stored of it, what the loader makes of it, what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

from ..shards.figures import Figure
from ..shards.html import Page
from ..shards.links import Inline
from ..shards.schema import CLS, HIER, JPG, KD, LMAP, META, SOFT
from ..shards.soft_labels import TAGS, WEIGHTS
from ..shards.text_limits import shortened
from .inspect_figures import ClassNames, crop_figure, map_figures, stored_figure
from .inspect_links import Places
from .inspect_views import Inspection, SampleView

CARD_REM = 15  # four of them beside each other on a wide page
MAX_SHOWN_CHARACTERS = 2000  # of what a data set's maker may write at any length: paths, other metadata
MAX_SOFT_ROWS = 50
_SOFT_TITLES = {TAGS: "Tags", WEIGHTS: "Class weights", "pseudo": "Pseudo labels"}


def sample_title(sample: SampleView) -> str:
    return sample.key or f"Sample {sample.number:,}, which cannot be read"


def add_sample(
    page: Page,
    found: Inspection,
    sample: SampleView,
    names: ClassNames,
    *,
    top: int,
    budget: int,
    places: Places,
) -> None:
    """Add all that is known of a sample, below its heading.

    Args:
        page: that it is added to.
        found: what the sample's data set is.
        sample: as the Inspector gives it.
        names: of classes.
        top: classes of every target.
        budget: bytes of the stored image that are embedded as they are.
        places: links.
    """
    for problem in sample.problems:
        page.warning(problem)
    page.key_values(_facts(found, sample, names, places))
    figures: list[Figure] = []
    if (stored := stored_figure(sample, names, budget)) is not None:
        figures.append(stored)
    figures += [crop_figure(number, crop, sample, names, top) for number, crop in enumerate(sample.crops, 1)]
    if figures:
        page.figures(figures, card_rem=CARD_REM)
    if sample.label_map is not None and sample.image is not None:
        page.heading("Label map", 3)
        page.figures(map_figures(sample.image, sample.label_map, names), card_rem=CARD_REM)
    for kind, labels in sample.soft.items():
        _add_soft(page, found, kind, labels, names, places)
    if sample.teacher is not None and found.tree is not None:
        page.heading("Distillation teacher", 3)
        page.table(["level", "best class", "probability", "own class"], _teacher_rows(found, sample, names))
    if sample.component_bytes:
        rows = [
            (suffix, num_bytes, _content(found, suffix, sample))
            for suffix, num_bytes in sample.component_bytes.items()
        ]
        page.heading("Components", 3)
        page.table(["component", "bytes", "content"], rows)


def _facts(found: Inspection, sample: SampleView, names: ClassNames, places: Places) -> dict[str, Inline]:
    facts: dict[str, Inline] = {}
    if sample.meta is not None:
        facts["original"] = shortened(str(sample.meta.get("path", "not recorded")), MAX_SHOWN_CHARACTERS)
    if sample.class_index is not None:
        known = sample.class_index < found.manifest.num_classes
        facts["class"] = f"{sample.class_index}, not in the class list"
        if known:
            title = f"{sample.class_index}, {names.title(sample.class_index)}"
            facts["class"] = places.label(sample.class_index, title)
    if found.tree is not None and sample.levels is not None and not sample.problems:
        paths = level_paths(found, sample)
        facts["path in the tree" if len(paths) == 1 else "paths in the tree"] = _joined(
            "; ",
            [
                _joined(
                    " › ", [places.label(index, f"{level} {names.short(index)}") for level, index in path]
                )
                for path in paths
            ],
        )
    if sample.image is not None and sample.jpeg is not None:
        height, width = sample.image.shape[:2]
        facts["stored"] = f"{width} x {height} pixels, {len(sample.jpeg):,} bytes"
        original = (sample.meta or {}).get("size")
        if original and list(original) != [height, width]:
            facts["stored"] = f"{facts['stored']}; the original had {original[1]} x {original[0]} pixels"
    shards = [record.name for record in found.manifest.shards]
    shard = places.shard(shards.index(sample.shard), sample.shard) if sample.shard in shards else sample.shard
    facts["place"] = (f"sample {sample.number:,} of the data set, in ", shard)
    return facts


def _joined(between: str, parts: list[Inline]) -> Inline:
    return tuple(part for i, each in enumerate(parts) for part in ((between, each) if i else (each,)))


def _content(found: Inspection, suffix: str, sample: SampleView) -> str:
    """What a component says, in one line; its problems stand above."""
    if suffix == JPG.suffix and sample.image is not None:
        return f"{sample.image.shape[1]} x {sample.image.shape[0]} pixels"
    if suffix == CLS.suffix and sample.class_index is not None:
        return f"class {sample.class_index}"
    if suffix == HIER.suffix and sample.levels is not None:
        return str(sample.levels.tolist())
    if suffix == LMAP.suffix and sample.label_map is not None:
        kept, rows, columns = sample.label_map.ids.shape
        return f"the {kept} best classes in {rows} rows x {columns} columns"
    if suffix == META.suffix and sample.meta is not None:
        shown = {name: value for name, value in sample.meta.items() if name not in (TAGS, WEIGHTS)}
        return shortened(json.dumps(shown, ensure_ascii=False, default=repr), MAX_SHOWN_CHARACTERS)
    if suffix == SOFT.suffix and "pseudo" in sample.soft:
        return f"pseudo labels of {len(sample.soft['pseudo'])} classes"
    if suffix == KD.suffix and sample.teacher is not None:
        return f"a teacher's best classes on {len(sample.teacher[0])} levels"
    return "not read"


def _add_soft(
    page: Page,
    found: Inspection,
    kind: str,
    labels: Any,
    names: ClassNames,
    places: Places,
) -> None:
    """A table of tags, class weights or pseudo labels, the heaviest first."""
    page.heading(_SOFT_TITLES[kind], 3)
    if not labels:
        page.paragraph("None.")
        return
    if kind == TAGS:
        page.paragraph(
            shortened(", ".join(found.vocabulary[index] for index, _ in labels), MAX_SHOWN_CHARACTERS)
        )
        return
    heaviest = sorted(labels, key=lambda label: -label[1])[:MAX_SOFT_ROWS]
    left_out = len(labels) - len(heaviest)
    page.table(
        ["class", "weight"],
        [(places.label(index, names.title(index)), weight) for index, weight in heaviest],
        caption=f"{left_out:,} lighter ones are left out" if left_out else "",
    )


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
