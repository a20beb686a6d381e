"""The counts of data sets as one page: samples per class, level occupancy, bytes per component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .html import Page
from .soft_labels import soft_labels_text
from .text_limits import counted

_ENDS = 10  # classes listed from either end
_MOST_POINTS = 400  # of a curve; more would not show on a page


def stats_page(results: Sequence[dict[str, Any]]) -> Page:
    """Show what `data_set_stats` counted.

    Args:
        results: one dict a data set.
    """
    single = len(results) == 1
    page = Page(f"Data set {results[0]['dataset']}" if single else "Data sets")
    for stats in results:
        if not single:
            page.heading(f"Data set {stats['dataset']}")
        _add_data_set(page, stats)
    return page


def _add_data_set(page: Page, stats: dict[str, Any]) -> None:
    classes = stats["classes"]
    counts = sorted(stats["samples_per_class"].items(), key=lambda item: (-item[1], item[0]))
    page.key_values(
        {
            "samples": f"{stats['samples']:,}",
            "shards": f"{stats['shards']:,}",
            "bytes": f"{stats['bytes']:,} ({stats['bytes_per_sample']:,.0f} a sample)",
            "classes with samples": f"{classes['with_samples']:,} of {classes['listed']:,}",
            "samples of a class": f"{classes['smallest']:,} to {classes['largest']:,}, "
            f"median {classes['median']:,g}",
            "fingerprint": stats["fingerprint"],
        }
    )
    page.heading("Samples per class", 3)
    page.line_chart(
        "Classes from the largest to the smallest",
        {"samples": _sorted_curve([count for _, count in counts])},
        x_label="class, by rank",
        y_label="samples",
        y_range=(0, 1),
        reference={"median": classes["median"]},
    )
    if classes["smallest"] == classes["largest"]:
        page.paragraph(f"Every class with samples has {classes['largest']:,}.")
    elif len(counts) <= 2 * _ENDS:
        page.table(["class", "samples"], counts, caption="All classes with samples")
    else:
        page.table(["class", "samples"], counts[:_ENDS], caption=f"The {_ENDS} largest classes")
        page.table(["class", "samples"], counts[: -_ENDS - 1 : -1], caption=f"The {_ENDS} smallest classes")
    if classes["listed"] > classes["with_samples"]:
        missing = classes["listed"] - classes["with_samples"]
        page.paragraph(
            f"Without samples here: {counted(missing, 'class')} of the list. Inner nodes of the tree need none, and a "
            "filtered set keeps its whole list."
        )
    if levels := stats.get("levels"):
        page.heading("Levels of the label tree", 3)
        page.paragraph(
            "Level 0 is the most general. A sample has a target on its own class's level and on every level "
            "with one of its ancestors."
        )
        page.bar_chart(
            "Samples with a target, by level",
            {
                f"{level['level']}: {counted(level['classes'], 'class')}": level["samples_with_target"]
                for level in levels
            },
            x_label="samples",
        )
        page.bar_chart(
            "Samples labelled on the level itself, by level",
            {str(level["level"]): level["samples_labelled_here"] for level in levels},
            x_label="samples",
        )
    page.heading("Bytes per component", 3)
    shares = dict(stats["component_bytes"])
    # What is left of the tars: 512 bytes a member for its header, and filling up to the next 512.
    shares["tar"] = stats["bytes"] - sum(shares.values())
    page.bar_chart(
        "Bytes a sample",
        {name: total / stats["samples"] for name, total in shares.items()},
        x_label="bytes; tar: headers and padding",
    )
    if maps := stats.get("label_maps"):
        page.paragraph(
            f"Label maps: the {maps['top']} best classes on {maps['rows']} x {maps['columns']} cells."
        )
    for title, text in soft_labels_text(stats.get("soft_labels", {})).items():
        page.paragraph(f"{title.capitalize()}: {text}.")
    if teacher := stats.get("teacher"):
        origin = teacher["origin"]
        page.paragraph(
            f"Stored teacher: {origin['model'] if origin else 'of unknown origin'}; of each level its "
            f"{' + '.join(map(str, teacher['kept_per_level']))} best classes are kept."
        )


def _sorted_curve(counts: Sequence[int]) -> list[tuple[float, float]]:
    """(rank from 1, samples); thinned evenly where there are many classes, both ends kept."""
    num = len(counts)
    if num <= _MOST_POINTS:
        return [(rank + 1, count) for rank, count in enumerate(counts)]
    ranks = [i * (num - 1) // (_MOST_POINTS - 1) for i in range(_MOST_POINTS)]
    return [(rank + 1, counts[rank]) for rank in ranks]
