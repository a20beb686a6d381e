"""The label tree as a page to look at: its counts, a picture, and every class to unfold.

A small tree is drawn with all its names. A large one is drawn as columns of bars, a column a level, the height of a
bar in proportion to the classes below it; what would be too thin to see is left white.
"""

from __future__ import annotations

from .escape import escape
from .html import NUM_COLORS, Page
from .text_limits import counted
from .tree import LabelTree
from .tree_stats import tree_stats
from .tree_text import children_of_classes, count_below, roots, title, walk

MAX_PAGE_CLASSES = 30_000  # browsers still open such an outline within a second or two
MAX_DRAWN_LEAVES = 80  # of a drawing with names

_ROW_PX = 18
_CHARACTER_PX = 6.9  # of the page's 12-pixel SVG text, on average
_BARS_HEIGHT = 900
_PAGE_PX = 1040  # what fits beside each other on a page
_THINNEST_PX = 0.8
_FEW_TOPS = 3  # are shown unfolded
_LABEL_PX = 13  # height of a bar from which on its name is printed


def tree_page(tree: LabelTree, top: int | None = None, *, depth: int | None = None) -> tuple[Page, int]:
    """Draw a tree, or the branch of a class.

    Args:
        tree: the tree.
        top: class index of the branch's top, None for all roots.
        depth: levels below the top (or the roots) that are shown, None for all.

    Returns:
        The page, and the number of classes that it leaves out: those below `depth`, and where more than
        `MAX_PAGE_CLASSES` are left, whole levels from the deepest up.
    """
    children = children_of_classes(tree)
    tops = roots(tree) if top is None else [top]
    num_below = count_below(tree)
    total = sum(1 + num_below[node] for node in tops)
    depth, shown = _fitting_depth(children, tops, len(tree.level_sizes) if depth is None else depth)
    page = Page("Label tree" if top is None else f"Label tree: {title(tree, top)}")
    stats = tree_stats(tree)
    several = {}
    if stats["several_parents"]:
        several = {
            "several parents": f"{counted(stats['several_parents'], 'class')}, "
            f"{counted(stats['num_paths'], 'path')} at most"
        }
    page.key_values(
        {
            "classes": f"{stats['classes']:,} ({stats['listed']:,} listed, "
            f"{counted(stats['inner_nodes'], 'inner node')}, {counted(stats['leaves'], 'leaf', 'leaves')})",
            "levels": f"{stats['num_levels']} of {stats['depth']}",
            "children": f"{stats['children']['smallest']} to {stats['children']['largest']}, "
            f"mean {stats['children']['mean']:.2f}",
            **several,
            "rule": f"parents {tree.rule.parents}, inner {tree.rule.inner}, from {tree.rule.source}",
            "fingerprint": tree.fingerprint,
        }
    )
    if shown < total:
        page.paragraph(
            f"{shown:,} of {counted(total, 'class')} are shown, down to {counted(depth, 'level')} below the "
            f"{'roots' if top is None else 'top'}. For the others draw a branch, or another depth."
        )
    page.heading("Picture")
    leaves = sum(1 for node, steps in walk(children, tops, depth) if not children[node] or steps == depth)
    if leaves <= MAX_DRAWN_LEAVES:
        _draw_names(page, tree, children, tops, depth)
    else:
        _draw_bars(page, tree, children, num_below, tops, depth)
    if top is None:
        page.heading("Levels")
        page.bar_chart(
            "Classes per level",
            {f"level {level['level']}": level["classes"] for level in stats["levels"]},
            x_label="classes",
        )
    page.heading("All classes" if shown == total else "Classes")
    page.paragraph("Open a class to see those below it; the number counts all of them.")
    labels, steps_of = [], []
    for node, steps in walk(children, tops, depth):
        below = f"{num_below[node]:,}" if num_below[node] else ""
        labels.append(
            (tree.names[node], "" if tree.names[node] == tree.classes[node] else tree.classes[node], below)
        )
        steps_of.append(steps)
    page.outline(labels, steps_of, num_open=1 if len(tops) <= _FEW_TOPS else 0)
    return page, total - shown


def _fitting_depth(children: list[list[int]], tops: list[int], depth: int) -> tuple[int, int]:
    """The depth down to which the page shows classes, and how many these are."""
    layer, shown = tops, 0
    for steps in range(depth + 1):
        if shown and (not layer or shown + len(layer) > MAX_PAGE_CLASSES):
            return steps - 1, shown
        shown += len(layer)
        layer = [child for node in layer for child in children[node]]
    return depth, shown


def _draw_names(page: Page, tree: LabelTree, children: list[list[int]], tops: list[int], depth: int) -> None:
    """Every class with its name: a column a level, a row a leaf, curves from parents to children."""
    nodes = list(walk(children, tops, depth))
    column_px: dict[int, float] = {}
    for node, steps in nodes:
        width = 50 + _CHARACTER_PX * len(_short(tree.names[node]))
        column_px[steps] = max(column_px.get(steps, 0.0), width)
    left = {steps: 8 + sum(column_px[s] for s in range(steps)) for steps in column_px}
    row = 0
    y: dict[int, float] = {}
    for node, steps in nodes:
        if not children[node] or steps == depth:
            y[node] = _ROW_PX * (row + 1)
            row += 1
    for node, _ in reversed(nodes):
        if node not in y:
            below = [y[child] for child in children[node]]
            y[node] = (below[0] + below[-1]) / 2
    step_of = dict(nodes)
    edges, marks = [], []
    for node, steps in nodes:
        name = _short(tree.names[node])
        for place, parent in enumerate(tree.all_parents[node]):
            if parent in y:
                # From the end of the parent's name to the child's mark.
                x0 = left[step_of[parent]] + 18 + _CHARACTER_PX * len(_short(tree.names[parent]))
                x1, middle = left[steps], left[steps] - 16
                style = "edge dashed" if place else "edge"
                edges.append(
                    f'<path class="{style}" d="M{x0:.0f} {y[parent]:.1f}H{middle - 12:.0f}'
                    f'C{middle:.0f} {y[parent]:.1f} {middle:.0f} {y[node]:.1f} {x1:.0f} {y[node]:.1f}"/>'
                )
        tooltip = escape(title(tree, node))
        marks.append(
            f'<g><title>{tooltip}</title><circle class="f{steps % NUM_COLORS}" cx="{left[steps] + 3:.0f}" '
            f'cy="{y[node]:.1f}" r="3.5"/><text class="value" x="{left[steps] + 11:.0f}" y="{y[node] + 4:.1f}">'
            f"{escape(name)}</text></g>"
        )
    page.drawing(
        "A column is a level" + (", a dashed line a further parent" if len(tree.other_parents) else ""),
        width=sum(column_px.values()) + 8,
        height=_ROW_PX * (row + 1),
        body="".join(edges + marks),
    )


def _draw_bars(
    page: Page, tree: LabelTree, children: list[list[int]], num_below: list[int], tops: list[int], depth: int
) -> None:
    """A bar for every class, beside the bars of its children."""
    num_columns = 1 + max(steps for _, steps in walk(children, tops, depth))
    column_px = min(max(_PAGE_PX // num_columns, 80), 160)
    unit = _BARS_HEIGHT / sum(1 + num_below[node] for node in tops)
    top_px: dict[int, float] = {}
    offset = 0.0
    for node in sorted(tops, key=lambda node: -num_below[node]):
        top_px[node] = offset
        offset += unit * (1 + num_below[node])
    bars: list[str] = []
    waiting = [(node, 0) for node in tops]
    while waiting:
        node, steps = waiting.pop()
        height = unit * (1 + num_below[node])
        if height < _THINNEST_PX:
            continue
        x, y = steps * column_px, top_px[node]
        tooltip = f"{title(tree, node)}, level {int(tree.levels[node])}: {num_below[node]:,} below"
        name = _short(tree.names[node], int((column_px - 14) / _CHARACTER_PX))
        text = (
            f'<text x="{x + 5}" y="{y + min(height / 2, 30) + 4:.1f}">{escape(name)}</text>'
            if height >= _LABEL_PX
            else ""
        )
        bars.append(
            f'<g class="bar"><title>{escape(tooltip)}</title><rect class="f{steps % NUM_COLORS}" x="{x}" '
            f'y="{y:.1f}" width="{column_px - 1}" height="{max(height - 0.5, 0.6):.1f}"/>{text}</g>'
        )
        if steps < depth:
            offset = top_px[node]
            for child in sorted(children[node], key=lambda child: -num_below[child]):
                top_px[child] = offset
                offset += unit * (1 + num_below[child])
                waiting.append((child, steps + 1))
    page.drawing(
        "A column is a level, a bar a class, its height the classes below it; point at a bar for its name",
        width=num_columns * column_px,
        height=_BARS_HEIGHT,
        body="".join(bars),
    )


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
