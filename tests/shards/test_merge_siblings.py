"""Merging siblings bottom-up: partitions, exact numbers, no overshooting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import LabelTree, UsageError
from softshard.shards.classes import load_class_list
from softshard.shards.merge_siblings import ancestor_tree, merge_siblings

PAIRS = [("x", "z"), ("y", "z"), ("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "y")]
LEAVES = ("a", "b", "c", "d", "e")


def families(merged):
    return {group.name: group.members for group in merged.groups}


@pytest.fixture(scope="module")
def tree():
    return LabelTree.from_table(LEAVES, PAIRS)


def test_the_deepest_families_come_first_and_none_that_would_overshoot(tree):
    assert families(merge_siblings(tree, 5)) == {name: (name,) for name in LEAVES}
    four = merge_siblings(tree, 4)
    assert families(four) == {"a": ("a",), "b": ("b",), "c": ("c",), "y": ("d", "e")}
    assert four.notes == ()
    assert families(merge_siblings(tree, 2)) == {"x": ("a", "b", "c"), "y": ("d", "e")}
    assert families(merge_siblings(tree, 1)) == {"z": LEAVES}


def test_what_cannot_be_met_is_reported_or_met_with_part_of_a_family():
    star = LabelTree.from_table(LEAVES, [(leaf, "root") for leaf in LEAVES])
    merged = merge_siblings(star, 3)
    assert len(merged.groups) == 5
    assert merged.notes == (
        "5 classes are left and not 3: merging the 5 below root would leave 1. With --exact only some of these are merged",
    )
    exact = merge_siblings(star, 3, exact=True)
    assert sorted(map(len, families(exact).values())) == [1, 1, 3]
    assert len(families(exact)["root-part"]) == 3
    assert exact.notes == ("of the 5 classes below root, 3 were merged",)
    others = {families(merge_siblings(star, 3, seed, exact=True))["root-part"] for seed in range(20)}
    assert len(others) > 3


def test_a_parent_that_is_a_class_itself_is_merged_with_its_children():
    tree = LabelTree.from_table(["x", "a", "b"], [("a", "x"), ("b", "x"), ("x", "z"), ("z", "")])
    assert families(merge_siblings(tree, 1)) == {"x": ("x", "a", "b")}
    exact = families(merge_siblings(tree, 2, exact=True))
    assert sorted(len(found) for found in exact.values()) == [1, 2]
    assert "x-part" in exact


def test_roots_are_not_merged_with_each_other():
    tree = LabelTree.from_table(["a", "b", "c"], [("a", "x"), ("b", "x"), ("c", "y")])
    merged = merge_siblings(tree, 1, exact=True)
    assert families(merged) == {"x": ("a", "b"), "c": ("c",)}
    assert merged.notes == ("2 classes are left and not 1: the tree has as many roots",)


@st.composite
def trees(draw):
    num = draw(st.integers(2, 30))
    above = [draw(st.integers(-1, i - 1)) for i in range(num)]
    listed = draw(st.sets(st.integers(0, num - 1), min_size=1))
    pairs = [(f"n{i}", f"n{parent}" if parent >= 0 else "") for i, parent in enumerate(above)]
    return LabelTree.from_table([f"n{i}" for i in sorted(listed)], pairs)


@pytest.mark.filterwarnings("ignore:.*has one level")
@given(trees(), st.data(), st.integers(0, 2**64 - 1))
def test_every_class_is_in_one_group_and_never_fewer_are_left_than_asked_for(tree, data, seed):
    num = data.draw(st.integers(1, tree.num_listed))
    for exact in (False, True):
        merged = merge_siblings(tree, num, seed, exact=exact)
        names = [member for group in merged.groups for member in group.members]
        assert sorted(names) == sorted(tree.classes[: tree.num_listed])
        assert len({group.name for group in merged.groups}) == len(merged.groups) >= num
        assert merged == merge_siblings(tree, num, seed, exact=exact)
        num_roots = int((tree.parents < 0).sum())
        if exact:
            assert len(merged.groups) == max(num, with_classes(tree, num_roots))
        if len(merged.groups) > num:
            assert merged.notes


def with_classes(tree, num_roots):
    """Roots with a listed class at or below them."""
    found = set()
    for node in range(tree.num_listed):
        while tree.parents[node] >= 0:
            node = int(tree.parents[node])
        found.add(node)
    assert len(found) <= num_roots
    return len(found)


@pytest.mark.parametrize("num", [0, 6])
def test_a_number_that_cannot_be_is_refused(tree, num):
    with pytest.raises(UsageError, match="expected 1 to 5 classes"):
        merge_siblings(tree, num)


def test_imagenets_classes_merge_into_subtrees_of_wordnet():
    pytest.importorskip("timm")
    names = load_class_list("imagenet-1k")
    tree = ancestor_tree(names)
    for num in (200, 100, 20, 10):
        merged = merge_siblings(tree, num)
        assert len(merged.groups) == num
        for group in merged.groups:
            if len(group.members) > 1:  # all of the classes below the node that names it, and no others
                assert set(group.members) == below(tree, group.name)


def below(tree, name):
    node = tree.class_index[name]
    found = set()
    for leaf in range(tree.num_listed):
        above = leaf
        while above >= 0 and above != node:
            above = int(tree.parents[above])
        if above == node:
            found.add(tree.classes[leaf])
    return found


def test_which_inner_nodes_a_tree_of_wordnets_has_makes_no_difference():
    names = ["n02085620", "n02123045", "n01443537", "n04070727", "n02504458"]
    trees = [LabelTree.from_wordnet(names, inner=inner) for inner in ("branching", "all")]
    expected = merge_siblings(ancestor_tree(names), 3)
    assert len(expected.groups) == 3
    for tree in trees:
        assert merge_siblings(ancestor_tree(names, tree), 3) == expected
    levels = ancestor_tree(names).levels
    assert np.max(levels) > 10  # depths are WordNet's own
