"""`softshard tags show`: the nearest concepts of a class with their weights, as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UsageError
from .html import Page
from .similarities import Similarities, class_words
from .text_limits import counted
from .tree import LabelTree
from .weigh import WeighOptions, image_weights

_MOST_BARS = 30
FELL_BACK = "no class scores, so that an image with this label gets its label alone"


@dataclass(frozen=True)
class Neighbour:
    """A class that a label gives weight to.

    Attributes:
        name: of the class.
        words: what it is called.
        weight: that an image of the label gets.
        measures: what each measure says by itself.
        fell_back: whether no class scored, so that an image of the label gets its label alone.
    """

    name: str
    words: str
    weight: float
    measures: dict[str, float]
    fell_back: bool = False


def neighbours(
    similarities: Similarities,
    label: str,
    options: WeighOptions,
    *,
    text: str = "",
    tree: LabelTree | None = None,
) -> list[Neighbour]:
    """The classes that a label gives weight to, the largest first; the label alone, with 1, where none scores.

    Args:
        similarities: of the classes.
        label: name of one of them.
        options: what becomes of scores.
        text: of an image, where text counts.
        tree: hierarchy of the classes, for their names.

    Raises:
        UsageError: there is no such class.
    """
    names = similarities.class_names
    if label not in names:
        raise UsageError(f"{label!r}: expected a class of the list, such as {names[0]!r}, found none")
    i = names.index(label)
    words = class_words(names, tree)[0]
    classes, weights, fell_back = image_weights(similarities, i, text, options)
    rows = {name: similarities.measure(name, i, text) for name in similarities.measures.shares}
    return [
        Neighbour(
            names[j], words[j][0], weight, {name: float(row[j]) for name, row in rows.items()}, fell_back
        )
        for j, weight in zip(classes.tolist(), weights.tolist(), strict=True)
    ]


def weights_page(
    similarities: Similarities,
    labels: Sequence[str],
    options: WeighOptions,
    *,
    text: str = "",
    tree: LabelTree | None = None,
) -> Page:
    """A page with a chart and a table for every label.

    Raises:
        UsageError: a label that is no class.
    """
    page = Page("Nearest concepts and their weights")
    page.key_values(
        {
            "classes": f"{len(similarities.class_names):,}",
            "measures": ", ".join(
                f"{name} x {share:g}" for name, share in similarities.measures.shares.items()
            ),
            "options": json.dumps(options.to_json(), sort_keys=True),
            **({"text": text} if text else {}),
        }
    )
    for label in labels:
        found = neighbours(similarities, label, options, text=text, tree=tree)
        words = class_words([label], tree)[0][0][0]
        page.heading(label if words == label else f"{label} {words}")
        page.paragraph(
            FELL_BACK.capitalize() + "."
            if found[0].fell_back
            else f"An image with this label gives weight to {counted(len(found), 'class')}"
            + (f"; the first {_MOST_BARS} are shown." if len(found) > _MOST_BARS else ".")
        )
        shown = found[:_MOST_BARS]
        # Two classes may be called alike.
        bars = {
            f"{each.words} ({each.name})" if each.words != each.name else each.name: each.weight
            for each in shown
        }
        page.bar_chart(f"Weights of {words}", bars, x_label="weight")
        by = list(shown[0].measures)
        page.table(
            ["class", "called", "weight", *by],
            [[each.name, each.words, each.weight, *each.measures.values()] for each in shown],
        )
    return page
