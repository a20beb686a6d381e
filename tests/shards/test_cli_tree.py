"""`softshard tree`: stats, check, export and show, and the pages that they write."""

import importlib.util
import json

import pytest
from html_elements import Elements

from softshard.shards.classes import load_class_list
from softshard.shards.errors import UsageError
from softshard.shards.html import Page
from softshard.shards.tree import LabelTree
from softshard.shards.tree_check import Difference, compare_classes, compare_trees
from softshard.shards.tree_page import tree_page
from softshard.shards.tree_stats import format_tree_stats, tree_stats
from softshard.shards.tree_text import find_one, outline

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")
FALL11, WINTER21 = "imagenet-21k-p-fall11", "imagenet-21k-p-winter21"
PAIRS = [("swan", "bird"), ("bird", "animal"), ("fish", "animal"), ("oak", "plant"), ("rock", "")]


@pytest.fixture
def tree():
    return LabelTree.from_table(None, PAIRS)


@pytest.fixture
def tree_file(tree, tmp_path):
    tree.save(tmp_path / "tree.json")
    return tmp_path / "tree.json"


# ---- build


def test_the_classes_of_a_yaml_are_its_leaves(run, tmp_path):
    (tmp_path / "own.yaml").write_text("animal: {bird: [swan], fish: }\nplant: [oak]\nrock:\n")
    code, out, err = run("tree", "build", "--relations", tmp_path / "own.yaml", "-o", tmp_path / "t.json")
    assert (code, err) == (0, "")
    assert "7 classes: 4 listed, 3 inner nodes\n3 levels of 3 3 1 classes" in out
    code, _, err = run("tree", "build", "-o", tmp_path / "u.json")
    assert code == 2
    assert "expected --classes LIST, found none" in err


def test_several_parents_need_a_rule(run, tmp_path):
    (tmp_path / "own.csv").write_text("x,a\nx,b\n")
    arguments = ["tree", "build", "--relations", tmp_path / "own.csv", "-o", tmp_path / "t.json"]
    code, _, err = run(*arguments)
    assert code == 1
    assert "--parents first|last|longest|shortest|all-paths" in err
    code, out, _ = run(*arguments, "--parents", "all-paths")
    assert code == 0
    assert "label vectors [2, 2]" in out
    assert LabelTree.load(tmp_path / "t.json").vectors().tolist()[0] == [[0, 0], [1, 0]]


# ---- show


def test_the_whole_tree_is_shown_as_far_as_it_fits(tree):
    assert outline(tree).splitlines() == [
        "rock", "animal", "  fish", "  bird", "    swan", "plant", "  oak",
    ]  # fmt: skip
    assert outline(tree, lines=3).splitlines() == ["rock", "animal: 3 below", "plant: 1 below"]
    assert outline(tree, lines=2).splitlines() == [
        "rock",
        "animal: 3 below",
        "and 2 more classes of 7; raise --lines, lower --depth, or name a branch",
    ]
    assert outline(tree, tree.class_index["animal"], depth=1).splitlines() == [
        "animal", "  fish", "  bird: 1 below",
    ]  # fmt: skip
    for wrong in ({"lines": 0}, {"depth": -1}):
        with pytest.raises(UsageError, match="expected a depth from 0 and lines from 1"):
            outline(tree, **wrong)


def test_show_prints_a_class_a_branch_or_the_tree(run, tree_file, tree):
    assert run("tree", "show", tree_file, "bird")[1] == tree.show("bird") + "\n"
    code, out, _ = run("tree", "show", tree_file, "animal", "--depth", "0")
    assert (code, out) == (0, "animal: 3 below\n")
    code, out, _ = run("tree", "show", tree_file, "--lines", "3")
    assert code == 0
    assert out == f"{tree.summary()}\n\nrock\nanimal: 3 below\nplant: 1 below\n"


def test_parents_that_the_rule_passed_over_are_shown():
    classes = ["n00015388", "n01317541", "n02083346", "n02084071"]  # animal, domestic animal, canine, dog
    for rule, line in (
        ("first", "parents not chosen by 'first': n01317541 domestic animal"),
        ("last", "parents not chosen by 'last': n02083346 canine"),
        ("published", "parents not chosen by 'published': n02083346 canine"),
    ):
        assert f"\n  {line}\n" in LabelTree.from_wordnet(classes, parents=rule).show("dog")
    assert "not chosen" not in LabelTree.from_wordnet(classes, parents="all-paths").show("dog")
    # Only the domestic animal counts for `longest`, the canine is not listed.
    assert "not chosen by 'longest': n02083346 canine" in LabelTree.from_wordnet(
        ["n00015388", "n01317541", "n02084071"], parents="longest"
    ).show("dog")


def test_a_noun_for_several_classes_names_them():
    tree = LabelTree.from_wordnet(
        ["n01503061", "n04212282", "n00015388"]
    )  # a bird, and the bird of badminton
    with pytest.raises(
        UsageError, match="expected the name of one class, found 'bird' for n01503061 bird, n04212282"
    ):
        find_one(tree, "bird")


# ---- stats


def test_the_counts_of_a_small_tree(tree):
    stats = tree_stats(tree)
    assert {name: stats[name] for name in ("classes", "listed", "inner_nodes", "leaves", "roots", "depth")} == {
        "classes": 7, "listed": 4, "inner_nodes": 3, "leaves": 4, "roots": 3, "depth": 3,
    }  # fmt: skip
    assert stats["lone_roots"] == ["rock"]
    assert stats["largest_root"] == {"name": "animal", "classes_below": 3}
    assert [(level["classes"], level["leaves"]) for level in stats["levels"]] == [(3, 1), (3, 2), (1, 1)]
    assert stats["single_class_levels"] == [2]
    assert stats["children"] == {"smallest": 1, "mean": 1.333, "largest": 2, "largest_name": "animal"}
    assert (stats["several_parents"], stats["several_hypernyms"]) == (0, None)
    assert "level 2       1 class, 1 leaf (a single class: nothing to tell apart)" in format_tree_stats(stats)


@needs_timm
def test_the_counts_of_imagenet_21k_p():
    classes = load_class_list(FALL11)
    stats = tree_stats(LabelTree.from_wordnet(classes, levels=11, parents="published"))
    assert stats["several_hypernyms"] == 301
    assert stats["parents_not_chosen"] == 301
    assert [level["classes"] for level in stats["levels"]] == [
        302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1,
    ]  # fmt: skip
    assert (stats["depth"], stats["num_levels"], stats["single_class_levels"]) == (12, 11, [11])
    assert sum(level["leaves"] for level in stats["levels"]) == stats["leaves"]
    assert "1 class, 1 leaf (left out of the label vectors; a single class" in format_tree_stats(stats)
    several = tree_stats(LabelTree.from_wordnet(classes, parents="all-paths"))
    assert (several["several_parents"], several["num_paths"], several["parents_not_chosen"]) == (200, 5, 0)
    assert "200 classes with several parents here; 5 paths at most" in format_tree_stats(several)


def test_stats_are_printed_as_json_or_text(run, tree_file, tree):
    code, out, _ = run("tree", "stats", tree_file, "--json")
    assert (code, json.loads(out)) == (0, tree_stats(tree))
    assert run("tree", "stats", tree_file)[1].startswith("7 classes: 4 listed, 3 inner nodes; 4 leaves\n")


# ---- check


def test_a_list_of_all_or_of_the_listed_classes_is_right(tree):
    assert compare_classes(tree, tree.classes, "list") == []
    assert compare_classes(tree, tree.classes[:4], "list") == []


def test_every_difference_of_a_class_list_is_named(tree):
    found = compare_classes(tree, ["fish", "swan", "elm", "rock"], "list")
    assert found[:-1] == [
        Difference("list: 1 class of the tree missing", ("oak",)),
        Difference("list: 1 class not in the tree", ("elm",)),
        Difference(
            "list: 2 of 3 common classes in another order",
            ("expected 'swan', found 'fish'", "expected 'fish', found 'swan'"),
        ),
    ]
    assert found[-1].what.startswith("list: expected the class list ")


def test_every_difference_of_a_tree_is_named(tree):
    other = LabelTree.from_table(
        tree.classes, [*PAIRS[:2], ("fish", "bird"), ("oak", ""), ("plant", "oak"), ("rock", "")], levels=2
    )
    found = compare_trees(tree, other, "other.json")
    assert [difference.what for difference in found[:-1]] == [
        "other.json: expected 3 levels, found 2",
        "other.json: 3 classes with another parent",
    ]
    assert found[1].places == (
        "fish: expected animal, found bird",
        "oak: expected plant, found a root",
        "plant: expected a root, found oak",
    )
    assert compare_trees(tree, LabelTree.from_table(tree.classes, PAIRS, source="elsewhere"), "same") == []


@needs_timm
def test_check_tells_fall11_from_winter21(run, tmp_path):
    for name in (FALL11, WINTER21):
        LabelTree.from_wordnet(load_class_list(name), parents="published").save(tmp_path / f"{name}.json")
    arguments = ["tree", "check", tmp_path / f"{FALL11}.json"]
    assert run(*arguments, "--classes", FALL11, "--tree", arguments[-1])[0] == 0
    code, out, _ = run(*arguments, "--classes", WINTER21)
    assert code == 1
    assert f"{WINTER21}: 771 classes of the tree missing" in out
    assert "    and 751 more (--json names all)" in out
    code, out, _ = run(*arguments, "--tree", tmp_path / f"{WINTER21}.json", "--json")
    result = json.loads(out)
    assert (code, result["ok"]) == (1, False)
    assert len(result["differences"][0]["places"]) == 771


def test_a_data_set_is_compared_with_its_own_tree(run, tmp_path, packed_once, table_tree, memory):
    table_tree.save(tmp_path / "right.json")
    for place in (packed_once, memory(packed_once)):
        code, out, _ = run("tree", "check", tmp_path / "right.json", "--dataset", place)
        assert (code, out) == (0, f"tree {table_tree.fingerprint[:12]}: no differences\n")
    moved = [("bird", "animal"), ("dog", "plant"), ("oak", "plant")]
    LabelTree.from_table(table_tree.classes, moved).save(tmp_path / "wrong.json")
    code, out, _ = run("tree", "check", tmp_path / "wrong.json", "--dataset", packed_once)
    assert code == 1
    for split in ("train", "val"):
        assert (
            f"{packed_once / split}: 1 class with another parent\n    dog: expected plant, found animal"
            in out
        )


# ---- export


def test_export_writes_what_build_reads(run, tmp_path, tree_file, tree):
    for suffix in ("csv", "yaml"):
        run("tree", "export", tree_file, "--format", "classes", "-o", tmp_path / "classes.txt")
        code, out, err = run("tree", "export", tree_file, "--format", suffix, "-o", tmp_path / f"t.{suffix}")
        assert (code, out, err) == (0, "", "")
        build = [
            "tree",
            "build",
            "--classes",
            tmp_path / "classes.txt",
            "--relations",
            tmp_path / f"t.{suffix}",
        ]
        assert run(*build, "-o", tmp_path / "again.json")[0] == 0
        assert LabelTree.load(tmp_path / "again.json").fingerprint == tree.fingerprint
    assert run("tree", "export", tree_file, "--format", "csv")[1].startswith("child,parent\nswan,bird\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--format", "xml"],
        ["--branch", "bird", "--format", "csv"],
        ["--html", "x.html", "-o", "x.csv"],
        ["--html", "x.html", "--depth", "-1"],
        ["--html", "x.html", "--branch", "blorp"],
    ],
)
def test_a_wrong_export_is_a_wrong_call(run, tree_file, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("tree", "export", tree_file, *arguments)
    assert (code, out) == (2, "")
    assert "expected" in err or "usage:" in err
    assert not (tmp_path / "x.html").exists()


def test_a_name_that_is_no_utf8_is_exported_nowhere(run, tmp_path):
    LabelTree.from_table(None, [("caf\udce9", "food")]).save(tmp_path / "t.json")
    code, _, err = run("tree", "export", tmp_path / "t.json", "--format", "csv", "-o", tmp_path / "t.csv")
    assert code == 1
    assert "expected class names in UTF-8" in err


# ---- the page


def elements_of(html):
    """Of a page that loads nothing and runs nothing."""
    found = Elements(html)
    names = {name for _, attributes in found.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href")]
    return found


def test_a_small_tree_is_drawn_with_all_its_names():
    pairs = [*PAIRS, ("swan", "<script>pet</script>"), ("rose & thorn", "plant")]
    tree = LabelTree.from_table(None, pairs, parents="all-paths")
    page, left_out = tree_page(tree)
    found = elements_of(page.render())
    assert left_out == 0
    assert not found.named("script")
    # In the picture, in its tooltip and in the list.
    for name in tree.classes:
        assert found.texts.count(name) >= 2
    assert len(found.named("path")) == len(tree.parents[tree.parents >= 0]) + len(tree.other_parents)
    assert page.render().count('class="edge dashed"') == 1
    assert len(found.named("details")) == 3


def test_a_branch_and_a_depth_limit_the_page(tree):
    page, left_out = tree_page(tree, tree.class_index["animal"], depth=1)
    found = elements_of(page.render())
    assert left_out == 1
    assert "swan" not in found.texts
    assert "oak" not in found.texts
    assert any("3 of 4 classes are shown, down to 1 level below the top" in text for text in found.texts)


@needs_timm
def test_the_page_of_imagenet_21k_p_holds_every_class_and_stays_small():
    tree = LabelTree.from_wordnet(load_class_list(FALL11))
    page, left_out = tree_page(tree)
    html = page.render()
    assert left_out == 0
    assert len(html) < 2_000_000
    found = elements_of(html)
    assert set(tree.classes) <= set(found.texts)
    assert len(found.named("rect")) < 5000  # a bar too thin to see is not drawn


def test_a_page_of_too_many_classes_leaves_out_whole_levels(run, tmp_path, monkeypatch, tree_file, tree):
    monkeypatch.setattr("softshard.shards.tree_page.MAX_PAGE_CLASSES", 6)
    assert tree_page(tree)[1] == 1
    code, out, err = run("tree", "export", tree_file, "--html", tmp_path / "t.html")
    assert (code, out) == (0, "")
    assert "left out of the page, which would open slowly: 1 class of the deepest levels" in err
    assert "6 of 7 classes are shown" in (tmp_path / "t.html").read_text()


def test_an_outline_that_skips_a_step_is_refused():
    with pytest.raises(ValueError, match="outline entry 1: expected a depth one deeper at most, found 2"):
        Page("x").outline([("a", "", ""), ("b", "", "")], [0, 2])
