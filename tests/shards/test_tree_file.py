"""tree.json and its fingerprint: what was saved is read; nothing else is."""

import json

import numpy as np
import pytest
from toy_tree import TOY, TOY_PAIRS

from softshard.shards.errors import DataError, UsageError
from softshard.shards.relations import INNER_RULES
from softshard.shards.tree import LabelTree


@pytest.mark.parametrize("inner", INNER_RULES)
def test_a_saved_tree_reads_back(tmp_path, inner):
    tree = LabelTree.from_wordnet(["n02084071", "animal", "n02121620"], inner=inner, levels=2)
    tree.save(tmp_path / "tree.json")
    read = LabelTree.load(str(tmp_path / "tree.json"))
    assert read.to_json() == tree.to_json() == json.loads((tmp_path / "tree.json").read_text())
    assert np.array_equal(read.vectors(), tree.vectors())
    assert read.rule == tree.rule
    assert read.rule.source.startswith("WordNet 3.0, data.noun sha256 fea17d2f")


def test_a_tree_reads_back_from_a_url(toy):
    toy.save("memory://trees/tree.json")
    assert LabelTree.load("memory://trees/tree.json").fingerprint == toy.fingerprint


def test_the_fingerprint_never_changes(toy):
    assert toy.fingerprint == "5ca53b052dffd00999004e59b124c5b1f4a6c28bfb6816a1caaa30faae04fb11"


def test_the_fingerprint_is_of_classes_parents_and_levels(toy):
    renamed = LabelTree.from_table(["a" if n == "oak" else n for n in TOY], [*TOY_PAIRS[:-1], ("a", "tree")])
    moved = LabelTree.from_table(TOY, [*TOY_PAIRS[:-1], ("oak", "plant")])
    cut = LabelTree.from_table(TOY, TOY_PAIRS, levels=2)
    uncut = LabelTree.from_table(TOY, TOY_PAIRS, levels=3, source="elsewhere")
    assert len({tree.fingerprint for tree in (toy, renamed, moved, cut)}) == 4
    assert uncut.fingerprint == toy.fingerprint


def test_a_newer_minor_version_is_read_and_a_newer_major_version_refused(toy):
    content = {**toy.to_json(), "version": [1, 7], "colour": "green"}
    assert LabelTree.from_json(content).fingerprint == toy.fingerprint
    content["version"] = [2, 0]
    with pytest.raises(
        DataError, match=r"^t\.json: expected version 1\.x, found 2\.0; it was written by a newer softshard"
    ):
        LabelTree.from_json(content, where="t.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "other", "expected a label tree"),
        ("version", 1, r"expected a version \[major, minor\]"),
        ("fingerprint", "0" * 64, "fingerprint: expected .*, found 0000"),
        ("fingerprint", None, "fingerprint: expected as"),
        ("parents", [-1, 0, 1, 1, -1, 4, 4], "fingerprint: expected"),
        ("parents", [-1, 0, 1, 1, -1, 4, 7], "parents: expected -1 to 6, found 7"),
        ("parents", [-1, 0, 1, 1, -1, 4, -2], "parents: expected as"),
        ("parents", [-1, 0, 1, 1, -1, 4, 2**40], "parents: expected as"),
        ("parents", [-1, 0, 1, 1, -1, 4, True], "parents: expected as"),
        ("parents", [-1, 0, 1, 1, -1, 4], "expected a name and a parent for each of 7 classes"),
        ("parents", [-1, 0, 1, 1, -1, 6, 5], "tree -> oak -> tree is a cycle"),
        ("parents", [1, 0, 1, 1, -1, 6, 5], "animal -> vertebrate -> animal is a cycle; 1 more"),
        ("classes", ["animal"] * 7, "expected distinct names, found twice: 'animal'"),
        ("classes", [1, 2, 3, 4, 5, 6, 7], "classes: expected as"),
        (
            "classes",
            ["a\nb", *TOY[1:]],
            r"expected names of one line without control characters, found 'a\\nb'",
        ),
        ("classes", ["", *TOY[1:]], "expected names of one line without control characters, found ''"),
        ("classes", ["\ud800", *TOY[1:]], r"found '\\ud800'"),
        ("names", ["\x1b[31mred", *TOY[1:]], r"without control characters, found '\\x1b\[31mred'"),
        ("num_listed", 2**31, "num_listed: expected as"),
        ("max_levels", -1, "max_levels: expected as"),
        ("classes", [], "expected classes, found none"),
        ("names", ["one"], "found 1 name"),
        ("num_listed", 8, "num_listed: expected 1 to 7, found 8"),
        ("max_levels", 0, "levels: expected 1 or more"),
        ("rule", {"parents": "first"}, "rule: expected as"),
        ("rule", {"parents": "first", "inner": "none", "source": "\x1b[2J"}, "rule: expected as"),
    ],
)
def test_a_broken_tree_is_refused(toy, field, value, message):
    content = {**toy.to_json(), field: value}
    with pytest.raises(DataError, match=message) as caught:
        LabelTree.from_json(content, where="t.json")
    assert str(caught.value).startswith("t.json: ")


def test_every_missing_field_of_a_tree_is_refused(toy):
    for field in toy.to_json():
        content = toy.to_json()
        del content[field]
        with pytest.raises(DataError, match=r"^t\.json: "):
            LabelTree.from_json(content, where="t.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format": 1}'])
def test_a_file_that_is_no_tree_is_refused(tmp_path, content):
    path = tmp_path / "tree.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tree\.json: expected"):
        LabelTree.load(path)


def test_a_file_that_is_too_large_is_refused(tmp_path, toy, monkeypatch):
    toy.save(tmp_path / "tree.json")
    monkeypatch.setattr("softshard.shards.tree.MAX_TREE_BYTES", 100)
    with pytest.raises(DataError, match="expected at most 100 bytes, found more"):
        LabelTree.load(tmp_path / "tree.json")


def test_a_missing_tree_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        LabelTree.load(tmp_path / "nowhere.json")
