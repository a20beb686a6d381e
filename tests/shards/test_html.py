import base64
import itertools
import re

import cv2
import numpy as np
import pytest
from html_elements import Elements
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.figures import Drawing, Figure
from softshard.shards.html import CHART_HEIGHT, CHART_WIDTH, Page, nice_ticks
from softshard.shards.links import Field, Link, nav_html
from softshard.shards.pictures import apply_colormap, as_rgb, draw_box, image_data_uri, overlay_map

HOSTILE = """<script>alert("x")</script> & 'quoted'"""
NUMBERS = st.floats(-1e12, 1e12)


def full_page(text: str = "text") -> Page:
    page = Page(text)
    page.heading(text)
    page.heading(text, 3)
    page.paragraph(text)
    page.command(text)
    page.key_values({text: text})
    page.table([text, "count"], [[text, 1], [text, 2]], caption=text)
    grey, rgb = np.zeros((40, 30), np.uint8), np.full((80, 90, 3), 128, np.uint8)
    page.figures([Figure([grey, rgb], text, [(text, 0.75), ("other", 0.25)])])
    page.line_chart(
        text, {text: [(0, 1), (1, 0.5)], "b": []}, x_label=text, y_label=text, reference={text: 0.1}
    )
    page.bar_chart(text, {text: 3.0, "none": 0.0}, x_label=text)
    return page


def test_every_text_is_escaped():
    html = full_page(HOSTILE).render()
    assert "<script" not in html
    assert "alert(&quot;x&quot;)" in html
    assert Elements(html).text.count(HOSTILE) >= 14


@pytest.mark.parametrize("character", ["\u202e", "\u2067", "\0", "\x1b"])
def test_characters_that_control_the_text_beside_them_are_shown(character):
    html = full_page(f"cat{character}gpj.exe").render()
    assert character not in html
    assert html.count(f"cat\\u{ord(character):04x}gpj.exe") >= 14


def test_letters_of_right_to_left_scripts_and_their_marks_stay_as_they_are():
    assert "\u05d0\u200f & \t\n" in Elements(full_page("\u05d0\u200f & \t\n").render()).text


def test_tags_are_balanced_and_the_page_refers_to_nothing_outside():
    html = full_page().render()
    elements = Elements(html)
    assert all((image["src"] or "").startswith("data:image/") for image in elements.named("img"))
    assert len(elements.named("img")) == 2
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements.elements}
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_pictures_and_charts_have_text_for_screen_readers():
    elements = Elements(full_page("name").render())
    assert all(image["alt"] == "name" for image in elements.named("img"))
    assert (
        sum(svg.get("role") == "img" and svg.get("aria-label") == "name" for svg in elements.named("svg"))
        == 2
    )


def test_a_drawing_stands_in_a_card_and_the_own_class_is_marked_by_more_than_colour():
    page = Page("t")
    page.figures([Figure([Drawing(30, 20, "<rect/>")], HOSTILE, [("a", 0.5), (HOSTILE, 0.25)], own=1)])
    elements = Elements(page.render())
    (svg,) = elements.named("svg")
    assert (svg["viewbox"], svg["role"], svg["aria-label"]) == ("0 0 30 20", "img", HOSTILE)
    assert f"✓ {HOSTILE}" in elements.text
    assert "✓ a" not in elements.text
    assert f"{HOSTILE}: the image's own class" in [span.get("title") for span in elements.named("span")]


def test_links_and_forms_are_escaped_named_and_stay_on_the_server():
    page = Page("t", nav=nav_html([Link("One", "/"), Link(HOSTILE, "/two?a=1&b=2")], "Pages", current="/"))
    page.paragraph(("before ", Link(HOSTILE, "/x?q=%22"), " after"))
    page.key_values({"key": Link("value", "#place")})
    page.table(["a", "b"], [[Link(HOSTILE, "/row"), 3]])
    page.form([Field("q", HOSTILE, '"><script>'), Field("n", "Number", "7", True)], "Go", "/search")
    page.figures(
        [Figure([], HOSTILE, href="/sample/1"), Figure([np.zeros((4, 4), np.uint8)], "p", href="/p")]
    )
    html = page.render()
    elements = Elements(html)
    assert "<script" not in html
    assert [link["href"] for link in elements.named("a")] == [
        *("/", "/two?a=1&b=2", "/x?q=%22", "#place", "/row", "/sample/1", "/p")
    ]
    assert [link.get("aria-current") for link in elements.named("a")][:2] == ["page", None]
    assert [field["value"] for field in elements.named("input")] == ['"><script>', "7"]
    assert len(elements.named("label")) == 2
    (form,) = elements.named("form")
    assert (form["method"], form["action"]) == ("get", "/search")
    assert '<td class="num">3</td>' in html


@pytest.mark.parametrize(
    "href", ["javascript:alert(1)", "//evil.example/", "https://evil.example/", "x.html", ""]
)
def test_a_link_that_leaves_the_page_is_refused(href):
    with pytest.raises(ValueError, match="expected an address that begins with / or #"):
        Link("x", href)


def test_write_gives_one_utf8_file(tmp_path):
    full_page("Größe").write(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "Größe" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_number_columns_are_flush_right_with_equal_decimals():
    page = Page("t")
    page.table(["name", "top-1", "steps"], [["a", 0.9, 1200], ["b", 0.8312, np.int64(7)]])
    html = page.render()
    assert '<td class="num">0.9000</td><td class="num">1,200</td>' in html
    assert "<td>a</td>" in html


def test_a_table_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="table row 1: expected 2 cells, found 3"):
        Page("t").table(["a", "b"], [[1, 2], [1, 2, 3]])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_bar_that_cannot_be_drawn_is_refused(value):
    with pytest.raises(ValueError, match="bar 'moon'"):
        Page("t").bar_chart("t", {"moon": value}, x_label="n")


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8), max_size=8), st.lists(NUMBERS, max_size=2))
def test_line_chart_stays_inside_its_view_box(lines, references):
    page = Page("t")
    page.line_chart(
        "chart",
        {f"line {number}": sorted(line) for number, line in enumerate(lines)},
        x_label="step",
        y_label="loss",
        reference={f"reference {number}": value for number, value in enumerate(references)},
    )
    elements = Elements(page.render())
    for attributes in elements.named("polyline"):
        for point in (attributes["points"] or "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= CHART_WIDTH
            assert 0 <= y <= CHART_HEIGHT
    for attributes in [*elements.named("text"), *elements.named("line")]:
        for name, limit in (
            ("x", CHART_WIDTH),
            ("x1", CHART_WIDTH),
            ("y", CHART_HEIGHT),
            ("y1", CHART_HEIGHT),
        ):
            assert 0 <= float(attributes.get(name) or 0) <= limit


@given(st.lists(st.floats(0, 1e12), max_size=12))
def test_bar_chart_stays_inside_its_view_box(values):
    page = Page("t")
    page.bar_chart("chart", {f"bar {number}": value for number, value in enumerate(values)}, x_label="n")
    elements = Elements(page.render())
    height = float((elements.named("svg")[0]["viewbox"] or "").split()[3])
    assert len(elements.named("rect")) == len(values)
    for bar in elements.named("rect"):
        assert float(bar["x"] or 0) + float(bar["width"] or 0) <= CHART_WIDTH
        assert float(bar["y"] or 0) + float(bar["height"] or 0) <= height


def test_points_that_are_not_finite_are_left_out():
    page = Page("t")
    page.line_chart("c", {"a": [(0, 1.0), (1, float("nan")), (2, 3.0)]}, x_label="x", y_label="y")
    assert len(Elements(page.render()).named("circle")) == 2
    assert "nan" not in page.render()


@given(NUMBERS, NUMBERS)
def test_ticks_enclose_the_range_in_equal_round_steps(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert all(before < after for before, after in itertools.pairwise(ticks))


def test_ticks_print_without_rounding_noise():
    assert nice_ticks(0.0, 0.9) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(0.0, 0.45) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_overlay_paints_the_cell_that_lies_over_each_pixel(height, width, rows, columns):
    image = np.zeros((height, width, 1), np.uint8)
    map_PQ = np.random.default_rng(0).random((rows, columns))
    painted = overlay_map(image, map_PQ, alpha=1.0)
    assert painted.shape == (height, width, 3)
    row, column = height // 2, width // 3
    cell = map_PQ[int((row + 0.5) / height * rows + 1e-9), int((column + 0.5) / width * columns + 1e-9)]
    assert painted[row, column].tolist() == apply_colormap(np.array(cell)).tolist()


def test_cells_without_a_number_are_left_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    painted = overlay_map(image, np.array([[np.nan, 0.5]]), alpha=1.0)
    assert np.array_equal(painted[:, :3], image[:, :3])
    assert (painted[:, 3:] == apply_colormap(np.array(0.5))).all()


def test_overlay_without_weight_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(overlay_map(image, np.ones((2, 3)), alpha=0.0), image)


def test_colormap_grows_lighter_from_dark_blue_to_yellow():
    colours = apply_colormap(np.linspace(-0.5, 1.5, 41)).astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= 0).all()
    assert colours[0].tolist() == [68, 1, 84]
    assert colours[-1].tolist() == [253, 231, 37]


def test_box_is_drawn_on_a_copy_where_its_fractions_say():
    image = np.full((100, 200), 90, np.uint8)
    boxed = draw_box(image, (0.25, 0.1, 0.75, 0.9), color=(255, 0, 0))
    assert (image == 90).all()
    red_y, red_x = np.nonzero((boxed == (255, 0, 0)).all(axis=2))
    assert (red_x.min(), red_x.max(), red_y.min(), red_y.max()) == (50, 150, 10, 90)
    assert boxed[50, 100].tolist() == [90, 90, 90]


def test_a_box_at_the_border_stays_inside():
    assert draw_box(np.zeros((10, 10, 3), np.uint8), (0.0, 0.0, 1.0, 1.0)).shape == (10, 10, 3)


def test_small_images_survive_exactly_in_their_data_uri():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", image_data_uri(image)).groups()
    assert kind == "png"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[:, :, ::-1], image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.float32), "expected dtype uint8, found float32"),
        (np.zeros((4, 4, 4), np.uint8), r"found \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"found \[0, 4, 3\]"),
    ],
)
def test_arrays_that_are_not_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(image)
