"""Label trees of child,parent tables: their arrays, what is refused, and what people are shown."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tree import TOY, TOY_PAIRS

from softshard.shards.errors import DataError, UsageError
from softshard.shards.schema import HIER, MAX_LEVEL_CLASSES
from softshard.shards.tree import LabelTree
from softshard.shards.tree_limits import MAX_LEVELS


def slow_vectors(tree):
    """The definition, class by class: the oracle for `vectors`."""

    def chain(node):
        above = [node]
        while tree.parents[above[-1]] >= 0:
            above.append(int(tree.parents[above[-1]]))
        return above[::-1]

    chains = [chain(node) for node in range(len(tree.classes))]
    members = [[i for i, c in enumerate(chains) if len(c) == level + 1] for level in range(tree.num_levels)]
    return [
        [members[level].index(c[level]) if level < len(c) else -1 for level in range(tree.num_levels)]
        for c in chains
    ]


def test_parents_levels_and_vectors_of_the_papers_example(toy):
    assert toy.classes == TOY
    assert toy.parents.dtype == toy.levels.dtype == np.int32
    assert toy.parents.tolist() == [-1, 0, 1, 1, -1, 4, 5]
    assert toy.levels.tolist() == [0, 1, 2, 2, 0, 1, 2]
    assert [ids.tolist() for ids in toy.level_classes] == [[0, 4], [1, 5], [2, 3, 6]]
    assert all(ids.dtype == np.int64 for ids in toy.level_classes)
    assert toy.vectors().dtype == np.int16
    assert toy.vectors().tolist() == [
        [0, -1, -1],
        [0, 0, -1],
        [0, 0, 0],
        [0, 0, 1],
        [1, -1, -1],
        [1, 1, -1],
        [1, 1, 2],
    ]


def test_arrays_are_read_only(toy):
    for array in (toy.parents, toy.levels, toy.vectors(), *toy.level_classes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_inner_nodes_of_a_table_are_classes_after_the_listed_ones():
    tree = LabelTree.from_table(["oak", "fish"], TOY_PAIRS)
    assert tree.classes == ("oak", "fish", "vertebrate", "animal", "tree", "plant")
    assert tree.num_listed == 2
    assert tree.parents.tolist() == [4, 2, 3, -1, 5, -1]


def test_without_classes_the_leaves_are_listed():
    tree = LabelTree.from_table(None, TOY_PAIRS)
    assert tree.classes[: tree.num_listed] == ("bird", "fish", "oak")


def test_everything_wrong_with_a_table_is_said_at_once():
    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "d"), ("e", "f"), ("e", "g"), ("e", "f")]
    with pytest.raises(DataError) as caught:
        LabelTree.from_table(["a", "x", "y"], pairs)
    lines = str(caught.value).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "table: 'e' has two parents, 'f' and 'g'",
        "table: class 'x': expected in the table, found nowhere",
        "table: class 'y': expected in the table, found nowhere",
        "table: 'a' -> 'b' -> 'c' -> 'a' is a cycle",
        "table: 'd' -> 'd' is a cycle",
    ]


def test_a_flat_table_warns():
    with pytest.warns(UserWarning, match="^softshard: the label tree has one level, of 2 classes"):
        LabelTree.from_table(None, [("a", ""), ("b", "")])


def test_a_class_list_with_a_name_twice_is_refused():
    with pytest.raises(DataError, match="expected distinct names, found twice: 'oak'"):
        LabelTree.from_table(["oak", "fish", "oak"], TOY_PAIRS)


def test_a_csv_gives_the_same_tree(tmp_path, toy):
    path = tmp_path / "relations.csv"
    rows = "".join(f"{child}, {parent}\r\n" for child, parent in TOY_PAIRS)
    path.write_bytes(b"\xef\xbb\xbfchild,parent\r\n" + rows.encode() + b"\r\n")
    tree = LabelTree.from_file(path, classes=TOY)
    assert tree.fingerprint == toy.fingerprint
    assert tree.rule.source == str(path)
    assert LabelTree.from_file(path, TOY, levels=2).num_levels == 2


def test_every_wrong_row_of_a_csv_is_named(tmp_path):
    path = tmp_path / "relations.csv"
    path.write_text("bird,animal\nfish\n,animal\na,b,c\n")
    with pytest.raises(DataError) as caught:
        LabelTree.from_file(path)
    assert str(caught.value).splitlines() == [
        f"{path}: line 2: expected `child,parent`, found 'fish'",
        f"{path}: line 3: expected `child,parent`, found ',animal'",
        f"{path}: line 4: expected `child,parent`, found 'a,b,c'",
    ]


def test_a_missing_csv_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        LabelTree.from_file(tmp_path / "nowhere.csv")


def test_a_level_that_no_int16_can_count_is_refused():
    pairs = [(f"c{i}", "root") for i in range(MAX_LEVEL_CLASSES + 1)]
    with pytest.raises(DataError, match=r"level 1: expected at most 32767 classes, found 32768"):
        LabelTree.from_table(None, pairs)
    assert LabelTree.from_table(None, pairs[1:]).vectors().max() == MAX_LEVEL_CLASSES - 1


def test_a_chain_that_no_label_vector_can_hold_is_refused():
    pairs = [(f"c{i + 1}", f"c{i}") for i in range(MAX_LEVELS)]
    with pytest.raises(DataError, match=f"expected at most {MAX_LEVELS} levels"):
        LabelTree.from_table(None, pairs)
    tree = LabelTree.from_table(None, pairs[1:])
    assert tree.num_levels == MAX_LEVELS
    assert 128 + tree.vectors()[0].nbytes <= HIER.max_bytes


def test_a_level_left_out_is_shown_as_such():
    tree = LabelTree.from_table(TOY, TOY_PAIRS, levels=2)
    assert "oak  (class 6, level left out)" in tree.show("oak")
    assert tree.show("oak").endswith("vector: [1, 1]")


def test_a_class_that_is_not_there_is_a_wrong_call(toy):
    with pytest.raises(UsageError, match="expected one of its 7 classes, by name or wnid, found 'blorp'"):
        toy.show("blorp")


def test_the_summary_names_rule_levels_and_fingerprint(toy):
    assert toy.summary().splitlines() == [
        "parents table, inner all, from table",
        "7 classes: 7 listed, 0 inner nodes",
        "3 levels of 2 2 3 classes",
        f"fingerprint {toy.fingerprint}",
    ]
    with pytest.warns(UserWarning, match="class"):
        assert "\n1 level of 1 class\n" in LabelTree.from_table(["oak"], [("oak", "")]).summary()
    assert "levels left out: 3 classes" in LabelTree.from_table(TOY, TOY_PAIRS, levels=2).summary()


@st.composite
def tables(draw):
    """(listed classes, pairs, levels) of a random forest, its names in no order."""
    size = draw(st.integers(1, 24))
    names = draw(st.permutations([f"c{i}" for i in range(size)]))
    above = [draw(st.integers(-1, i - 1)) for i in range(size)]
    pairs = draw(st.permutations([(names[i], names[p] if p >= 0 else "") for i, p in enumerate(above)]))
    listed = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return listed, pairs, draw(st.none() | st.integers(1, 6))


@given(tables())
def test_vectors_of_any_tree_agree_with_the_definition(table):
    listed, pairs, levels = table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = LabelTree.from_table(listed, pairs, levels=levels)
    parent_of = dict(pairs)
    assert tree.vectors().tolist() == slow_vectors(tree)
    assert tree.classes[: tree.num_listed] == tuple(listed)
    assert [tree.classes[p] if p >= 0 else "" for p in tree.parents] == [parent_of[n] for n in tree.classes]
    assert LabelTree.from_json(json.loads(json.dumps(tree.to_json()))).fingerprint == tree.fingerprint
