"""One self-contained HTML page: headings, tables, figures with probabilities, line and bar charts.

Everything is inline (styles, SVG charts, images as `data:` addresses), so that the file can be mailed or kept
beside a data set and looks the same years later. All text is escaped. Nothing here runs a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from .escape import escape
from .figures import Figure, figure_card
from .files import write_output
from .links import Field, Inline, Link, form_html, inline_html, nav_html

NUM_COLORS = 6  # series colours in STYLE; a seventh series repeats the first one dashed
CHART_WIDTH, CHART_HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 14, 46  # margins around the plot area, for ticks and axis labels
BAR_ROW_PX = 24
MAX_MARKED_POINTS = 60  # beyond this many points in a line the marks would hide it

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--card:#f3f2ef;--ink:#1c1b19;--soft:#65635d;--rule:#dcdad4;
--c0:#0b67a8;--c1:#c8500a;--c2:#0b8560;--c3:#a8487f;--c4:#93700a;--c5:#4a55b8}
@media(prefers-color-scheme:dark){:root{--bg:#191918;--card:#242422;--ink:#eceae5;--soft:#a5a29a;--rule:#3b3a37;
--c0:#62b0e8;--c1:#f0905a;--c2:#4cc39b;--c3:#e394c0;--c4:#dcb84c;--c5:#9ba4f2}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 4rem;max-width:68rem;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .75rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h3{font-size:1.02rem;margin:1.6rem 0 .4rem}p{max-width:44rem;margin:.5rem 0 1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.6rem 0 1.2rem;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
td{max-width:min(34rem,75vw);overflow-wrap:break-word}
th{font-weight:600;color:var(--soft)}.num{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.25rem;margin:.6rem 0 1.2rem}
dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
pre{background:var(--card);border-radius:6px;padding:.75rem 1rem;overflow-x:auto;font-size:.88rem;
line-height:1.45}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--least)),1fr));gap:1rem;
margin:.8rem 0 1.4rem}
figure{margin:0}.card{background:var(--card);border-radius:8px;padding:.75rem}
.pictures{display:flex;gap:.5rem;align-items:flex-start}
.pictures img{flex:1 1 0;min-width:0;height:auto;max-height:11rem;object-fit:contain;border-radius:4px}
.pictures .cells{image-rendering:pixelated}
figcaption{font-size:.88rem;color:var(--soft);margin-top:.45rem;overflow-wrap:anywhere}
.bars{margin-top:.5rem;font-size:.84rem;display:grid;grid-template-columns:minmax(5rem,40%) 1fr max-content;
gap:.15rem .6rem;align-items:center}.bars span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.track{height:.6rem;background:var(--rule);border-radius:3px;overflow:hidden}
.track i{display:block;height:100%;background:var(--c0)}.bars .own{font-weight:600}.track .own{background:var(--c1)}
.card .picture{display:block;width:100%;height:auto;max-height:24rem;border-radius:4px}
.mark{font-weight:700;font-size:20px;stroke:#000;stroke-width:3px;paint-order:stroke}
.warning{border-left:4px solid var(--c1);padding-left:.75rem}
.chart{max-width:44rem;margin:.8rem 0 1.4rem}.chart svg{display:block;width:100%;height:auto}
.chart figcaption{font-weight:600;color:var(--ink);margin:0 0 .25rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;margin:.1rem 0 .3rem;padding:0;
font-size:.86rem}
.legend svg{display:inline-block;width:24px;height:10px;margin-right:.4rem;vertical-align:middle}
.drawing{margin:.8rem 0 1.4rem}.drawing figcaption{margin:0 0 .5rem}.drawing svg{display:block}
.edge{fill:none;stroke:var(--soft);stroke-width:1.2;opacity:.5}.bar rect{opacity:.28}.bar:hover rect{opacity:.6}
svg .bar text{fill:var(--ink)}
.outline{font-size:.92rem}.outline details>*{margin-left:1.3rem}.outline summary{cursor:pointer;margin-left:0!important}
a{color:var(--c0)}a:focus-visible,input:focus-visible,button:focus-visible,summary:focus-visible{
outline:2px solid var(--c1);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;margin:0 0 1rem;padding:0;
font-size:.92rem}nav [aria-current]{font-weight:600;color:var(--ink);text-decoration:none}
form{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:end;margin:.6rem 0 1.2rem;font-size:.92rem}
label{color:var(--soft)}input{display:block;font:inherit;color:var(--ink);background:var(--card);
border:1px solid var(--soft);border-radius:6px;padding:.3rem .5rem;min-width:0;width:15rem;max-width:100%}
input[type=number]{width:7rem}
button{font:inherit;color:var(--bg);background:var(--c0);border:0;border-radius:6px;padding:.4rem .9rem;cursor:pointer}
.outline div div,.outline>div{padding-left:1.05rem}.outline small{color:var(--soft);margin-left:.35rem}
svg text{fill:var(--soft);font-size:12px}svg .value{fill:var(--ink)}
.rule{stroke:var(--rule)}.axis{stroke:var(--soft)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:6 4}
.reference{stroke:var(--soft);stroke-dasharray:2 4}.reference.dashed{stroke-dasharray:9 4}
""" + "".join(f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}" for i in range(NUM_COLORS))


class Page:
    """Collects the parts of a page in reading order.

    Args:
        title: the document's title and first heading.
        nav: HTML above the title, as `nav_html` makes it.
    """

    def __init__(self, title: str, *, nav: str = "") -> None:
        self.title = title
        self.nav = nav
        self._parts: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        if level not in (2, 3):
            raise ValueError(f"heading level: expected 2 or 3, found {level}; the title is the only level 1")
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: Inline) -> None:
        self._parts.append(f"<p>{inline_html(text)}</p>")

    def links(self, links: Sequence[Link], label: str) -> None:
        """Links beside each other; `label` says to screen readers what they are."""
        self._parts.append(nav_html(links, label))

    def form(self, fields: Sequence[Field], button: str, action: str) -> None:
        """See `form_html`."""
        self._parts.append(form_html(fields, button, action))

    def warning(self, text: str) -> None:
        """A paragraph that stands out: something is wrong."""
        self._parts.append(f'<p class="warning">{escape(text)}</p>')

    def command(self, text: str) -> None:
        """A block of commands or other text to show as it is."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def key_values(self, pairs: Mapping[str, Inline]) -> None:
        rows = "".join(f"<dt>{escape(key)}</dt><dd>{inline_html(value)}</dd>" for key, value in pairs.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Inline]], *, caption: str = "") -> None:
        """A table; a column that holds only numbers is set flush right.

        Raises:
            ValueError: a row is not as long as the header.
        """
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"table row {number}: expected {len(header)} cells, found {len(row)}")
        columns = [_column_texts([row[column] for row in rows]) for column in range(len(header))]
        styles = [' class="num"' if numeric else "" for _, numeric in columns]
        head = "".join(
            f'<th scope="col"{style}>{escape(name)}</th>' for name, style in zip(header, styles, strict=True)
        )
        body = ""
        for row in zip(*(texts for texts, _ in columns), strict=True):
            cells = (f"<td{style}>{inline_html(text)}</td>" for text, style in zip(row, styles, strict=True))
            body += f"<tr>{''.join(cells)}</tr>"
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figures(self, figures: Sequence[Figure], *, card_rem: float = 19) -> None:
        """A grid of cards, as many to a row as fit.

        Args:
            figures: the cards.
            card_rem: the least width of a card, in sizes of the page's letters.
        """
        cards = "".join(figure_card(figure) for figure in figures)
        self._parts.append(f'<div class="grid" style="--least:{card_rem:g}rem">{cards}</div>')

    def line_chart(
        self,
        title: str,
        series: Mapping[str, Sequence[tuple[float, float]]],
        *,
        x_label: str,
        y_label: str,
        y_range: tuple[float, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        """Lines over a common pair of axes.

        Args:
            title: shown above the chart and read out by screen readers.
            series: (x, y) points by name, in order of x; points that are not finite are left out.
            x_label: name and unit of x.
            y_label: name and unit of y.
            y_range: what the y axis must show, such as (0, 1); the data widens it.
            reference: horizontal dashed lines by name, such as chance.
        """
        self._parts.append(_line_chart(title, series, x_label, y_label, y_range, reference or {}))

    def bar_chart(self, title: str, values: Mapping[str, float], *, x_label: str) -> None:
        """Horizontal bars from zero, one for each name, in the given order.

        Raises:
            ValueError: a value is negative or not finite.
        """
        self._parts.append(_bar_chart(title, values, x_label))

    def drawing(self, title: str, *, width: float, height: float, body: str) -> None:
        """A picture of one's own, as wide as the page at most; a wider one can be scrolled.

        Args:
            title: shown above the picture and read out by screen readers.
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            body: SVG elements. The caller has escaped all text in them.
        """
        self._parts.append(
            f'<figure class="drawing"><figcaption>{escape(title)}</figcaption><div class="scroll">'
            f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'aria-label="{escape(title)}">{body}</svg></div></figure>'
        )

    def outline(
        self, entries: Sequence[tuple[str, str, str]], depths: Sequence[int], *, num_open: int = 0
    ) -> None:
        """A list to unfold, every entry below the last one before it that is less deep.

        Args:
            entries: (text, softer text, number or other text at the end); the last two may be empty.
            depths: 0 for the outermost entries; none is more than one deeper than the entry before it.
            num_open: depths that are unfolded at first.

        Raises:
            ValueError: a depth that leaves a step out.
        """
        parts: list[str] = []
        open_depths = 0
        for place, ((text, soft, end), depth) in enumerate(zip(entries, depths, strict=True)):
            if not 0 <= depth <= (depths[place - 1] + 1 if place else 0):
                raise ValueError(f"outline entry {place}: expected a depth one deeper at most, found {depth}")
            parts.append("</details>" * (open_depths - depth))
            open_depths = min(open_depths, depth)
            label = escape(text) + "".join(f" <small>{escape(more)}</small>" for more in (soft, end) if more)
            if place + 1 < len(depths) and depths[place + 1] > depth:
                parts.append(f"<details{' open' if depth < num_open else ''}><summary>{label}</summary>")
                open_depths = depth + 1
            else:
                parts.append(f"<div>{label}</div>")
        self._parts.append(f'<div class="outline">{"".join(parts)}{"</details>" * open_depths}</div>')

    def render(self) -> str:
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{self.nav}<h1>{escape(self.title)}</h1>\n{body}\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        # A file's name need not be text: half a character shows as a question mark.
        write_output(path, self.render().encode("utf-8", errors="replace"))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high], about `count` steps."""
    largest = max(abs(low), abs(high))
    # One value, or a span so small beside it that neighbouring ticks would be the same float.
    if high - low <= max(1e-9 * largest, 1e-200):
        margin = 0.1 * largest if largest > 1e-200 else 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((factor for factor in (1, 2, 5) if raw <= factor * power), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded to the step's own digits: 3 * 0.1 would print as 0.30000000000000004.
    digits = max(0, -math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def _number_text(value: float) -> str:
    return f"{value:,.10g}" if abs(value) < 1e9 else f"{value:.6g}"


def _bar_text(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= value < 1e10 else f"{value:,.4g}"


def _column_texts(cells: Sequence[Inline]) -> tuple[Sequence[Inline], bool]:
    """What a table column prints, and whether it holds only numbers. Floats get the same decimals."""
    numbers = [cell for cell in cells if isinstance(cell, Real) and not isinstance(cell, bool)]
    texts = [f"{number:,}" if isinstance(number, Integral) else f"{number:.4g}" for number in numbers]
    if not numbers or len(numbers) < len(cells):
        return cells, False
    if not any(isinstance(number, Integral) for number in numbers) and "e" not in "".join(texts):
        decimals = max(len(text.partition(".")[2]) for text in texts)
        texts = [f"{number:.{decimals}f}" for number in numbers]
    return texts, True


def _legend_item(style: str, name: str) -> str:
    line = f'<line class="{style}" x1="0" x2="24" y1="5" y2="5"/>'
    return f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{line}</svg>{escape(name)}</li>'


def _chart_frame(title: str, legend: str, height: float, body: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend}'
        f'<svg viewBox="0 0 {CHART_WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg></figure>"
    )


def _line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None,
    reference: Mapping[str, float],
) -> str:
    points = {
        name: [(float(x), float(y)) for x, y in line if math.isfinite(x) and math.isfinite(y)]
        for name, line in series.items()
    }
    xs = [x for line in points.values() for x, _ in line] or [0.0, 1.0]
    ys = [y for line in points.values() for _, y in line] + [*reference.values(), *(y_range or ())] or [
        0.0,
        1.0,
    ]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs), 8), nice_ticks(min(ys), max(ys))
    # The x axis ends where the data ends; an empty stretch behind the last step would look like missing data.
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (x_ticks[0], x_ticks[-1])
    plot_width, plot_height = CHART_WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM
    right, bottom = LEFT + plot_width, TOP + plot_height

    def to_x(x: float) -> float:
        return LEFT + plot_width * (x - x_low) / (x_high - x_low)

    def to_y(y: float) -> float:
        return bottom - plot_height * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    body, legend = [], []
    for tick in y_ticks:
        y = to_y(tick)
        body.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number_text(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x, text = to_x(tick), _number_text(tick)
            body.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    body.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for number, (name, line) in enumerate(points.items()):
        color = number % NUM_COLORS
        dashed = " dashed" if number // NUM_COLORS % 2 else ""
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line)
        body.append(f'<polyline class="line s{color}{dashed}" points="{path}"/>')
        if len(line) <= MAX_MARKED_POINTS:
            body.extend(
                f'<circle class="f{color}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3">'
                f"<title>{escape(name)}: {x:.6g}, {y:.4g}</title></circle>"
                for x, y in line
            )
        legend.append(_legend_item(f"line s{color}{dashed}", name))
    for number, (name, value) in enumerate(reference.items()):
        style = "reference dashed" if number % 2 else "reference"
        y = to_y(value)
        body.append(f'<line class="{style}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Named in the legend with their values: two close lines would print their names on each other.
        legend.append(_legend_item(style, f"{name} ({value:.3g})"))
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    body.append(
        f'<text x="{middle_x:g}" y="{CHART_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    body.append(
        f'<text x="14" y="{middle_y:g}" text-anchor="middle" transform="rotate(-90 14 {middle_y:g})">'
        f"{escape(y_label)}</text>"
    )
    return _chart_frame(title, f'<ul class="legend">{"".join(legend)}</ul>', CHART_HEIGHT, "".join(body))


def _bar_chart(title: str, values: Mapping[str, float], x_label: str) -> str:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"bar {name!r}: expected a finite number from 0 up, found {value}")
    ticks = nice_ticks(0.0, max(values.values(), default=1.0) or 1.0)
    label_px, value_px = 150, 76
    plot_width = CHART_WIDTH - label_px - value_px
    bottom = TOP + BAR_ROW_PX * len(values)
    body = []
    for tick in ticks:
        x = label_px + plot_width * tick / ticks[-1]
        body.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number_text(tick)}</text>')
    for row, (name, value) in enumerate(values.items()):
        y, width = TOP + BAR_ROW_PX * row, plot_width * value / ticks[-1]
        # About 20 characters fit beside the bars; the whole name stands in the tooltip.
        short = name if len(name) <= 20 else name[:19] + "…"
        body.append(
            f"<g><title>{escape(name)}: {value:.6g}</title>"
            f'<text class="value" x="{label_px - 8}" y="{y + 16}" text-anchor="end">{escape(short)}</text>'
            f'<rect class="f0" x="{label_px}" y="{y + 4}" width="{width:.1f}" height="{BAR_ROW_PX - 8}"/>'
            f'<text class="value" x="{label_px + width + 6:.1f}" y="{y + 16}">{_bar_text(value)}</text></g>'
        )
    middle = label_px + plot_width / 2
    body.append(f'<text x="{middle:g}" y="{bottom + 36}" text-anchor="middle">{escape(x_label)}</text>')
    return _chart_frame(title, "", bottom + BOTTOM, "".join(body))
