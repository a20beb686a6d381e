"""Read-time relabelling, with the trees that people use."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.classes import load_class_list
from softshard.shards.errors import DataError, UsageError
from softshard.shards.relabel import relabel, restrict_tree
from softshard.shards.tree import LabelTree

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")
FALL11, WINTER21 = "imagenet-21k-p-fall11", "imagenet-21k-p-winter21"
PAIRS = [("swan", "bird"), ("bird", "animal"), ("fish", "animal"), ("oak", "tree"), ("tree", "plant")]
OLD = ("swan", "fish", "oak", "bird", "animal", "tree", "plant")


@pytest.fixture
def old_tree():
    return LabelTree.from_table(["swan", "fish", "oak"], PAIRS)


def test_another_order_is_a_permutation(old_tree):
    assert old_tree.classes == OLD
    found = relabel(OLD, OLD[::-1], old_tree=old_tree)
    assert found.class_map.dtype == np.int32
    assert found.class_map.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert found.dropped == found.merged == found.without_source == ()
    assert found.vectors.dtype == np.int16
    # The chains stay, only the numbers change: swan is bird is animal.
    assert [found.tree.classes[found.tree.level_classes[k][i]] for k, i in enumerate(found.vectors[6])] == [
        "animal",
        "bird",
        "swan",
    ]
    assert not found.is_identity
    assert relabel(OLD, OLD).is_identity
    with pytest.raises(ValueError, match="read-only"):
        found.class_map[0] = 1


def test_a_subset_drops_the_others_and_keeps_their_levels(old_tree):
    found = relabel(OLD, ["oak", "swan", "animal"], old_tree=old_tree)
    assert found.class_map.tolist() == [1, -1, 0, -1, 2, -1, -1]
    assert found.dropped == ("fish", "bird", "tree", "plant")
    assert found.tree.parents.tolist() == [-1, 2, -1]
    assert found.vectors.tolist() == [[0, -1], [1, 0], [1, -1]]


def test_a_subset_without_a_tree_has_no_vectors():
    found = relabel(OLD, ["oak", "swan"])
    assert (found.tree, found.vectors) == (None, None)
    assert found.class_names == ("oak", "swan")
    assert found.class_map.tolist() == [1, -1, 0, -1, -1, -1, -1]


def test_fine_classes_merge_into_the_nearest_class_that_is_left(old_tree):
    found = relabel(OLD, ["plant", "animal", "bird"], old_tree=old_tree, to_ancestor=True)
    assert found.class_map.tolist() == [2, 1, 0, 2, 1, 0, 0]
    assert found.merged == (("swan", "bird"), ("fish", "animal"), ("oak", "plant"), ("tree", "plant"))
    assert found.dropped == ()
    assert found.summary().splitlines() == [
        "from 7 classes to 3",
        "  merged into an ancestor: 4: swan -> bird, fish -> animal, oak -> plant, tree -> plant",
    ]


def test_inner_nodes_of_a_subset_can_stay_classes(old_tree):
    found = relabel(OLD, ["swan", "fish", "oak"], old_tree=old_tree, inner="branching")
    assert found.class_names == ("swan", "fish", "oak", "animal")
    assert found.class_map.tolist() == [0, 1, 2, -1, 3, -1, -1]
    assert found.tree.num_listed == 3


def test_another_tree_gives_names_numbers_and_vectors(old_tree):
    new = LabelTree.from_table(None, [("swan", "white"), ("fish", "grey"), ("wolf", "grey")])
    found = relabel(OLD, new, old_tree=old_tree)
    assert found.tree is new
    assert found.class_names == ("swan", "fish", "wolf", "white", "grey")
    assert found.class_map.tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert found.without_source == ("wolf",)
    assert found.vectors is new.vectors()


def test_several_paths_stay_several():
    old = LabelTree.from_table(
        ["x", "y"], [("y", "x"), ("x", "b"), ("x", "d"), ("b", "a")], parents="all-paths"
    )
    found = relabel(old.classes, ["y", "d", "a"], old_tree=old)
    assert found.vectors.tolist() == [[[0, 0], [1, 0]], [[0, -1], [-1, -1]], [[1, -1], [-1, -1]]]
    merged = relabel(old.classes, ["d", "a"], old_tree=old, to_ancestor=True)
    # x is one step below d and two below a; b only below a.
    assert dict(merged.merged) == {"x": "d", "y": "d", "b": "a"}


@needs_timm
def test_fall11_read_with_the_tree_of_winter21():
    old = LabelTree.from_wordnet(load_class_list(FALL11), parents="published")
    new = LabelTree.from_wordnet(load_class_list(WINTER21), parents="published")
    found = relabel(old.classes, new, old_tree=old)
    assert len(found.dropped) == 771
    assert found.without_source == ()
    assert sorted(set(found.class_map.tolist())) == list(range(-1, 10450))
    for i, j in enumerate(found.class_map.tolist()):
        assert j < 0 or old.classes[i] == new.classes[j]
    merged = relabel(old.classes, new, old_tree=old, to_ancestor=True)
    assert len(merged.merged) + len(merged.dropped) == 771
    for name, above in merged.merged[:50]:
        chain, node = [], old.parents[old.class_index[name]]
        while node >= 0:
            chain.append(old.classes[node])
            node = old.parents[node]
        assert above == next(ancestor for ancestor in chain if ancestor in new.class_index)


@needs_timm
def test_imagenet_1k_without_a_tree_merges_along_wordnet():
    classes = load_class_list("imagenet-1k")
    found = relabel(classes, ["n02084071", "n01503061", "n02121620"], to_ancestor=True)  # dog, bird, cat
    counts = np.bincount(found.class_map[found.class_map >= 0])
    # ImageNet-1K has 118 breeds of dogs, 59 birds, and 13 cats (5 domestic, 8 others with cougar and lynx).
    assert counts.tolist()[:2] == [118, 59]
    assert len(found.dropped) == 1000 - counts.sum()


@needs_timm
def test_a_flat_tree_goes_on_in_wordnet_above_its_roots():
    classes = load_class_list("imagenet-1k")
    with pytest.warns(UserWarning, match="one level"):
        flat = LabelTree.from_wordnet(classes)
    coarse = ["n02084071", "n01503061", "n00015388"]  # dog, bird, animal
    found = relabel(classes, coarse, old_tree=flat, to_ancestor=True)
    assert found.class_map.tolist() == relabel(classes, coarse, to_ancestor=True).class_map.tolist()
    assert found.tree.parents.tolist() == [2, 2, -1]
    with pytest.raises(DataError, match="found 3 of 3 that it has nothing for"):
        relabel(classes, coarse, old_tree=flat)


def test_the_way_beyond_the_roots_never_leads_back_into_the_tree():
    # A user who put the animal below the dog: WordNet says the opposite.
    old = LabelTree.from_table(None, [("n00015388", "n02084071"), ("n02121620", "n00015388")])
    found = relabel(old.classes, ["n02084071"], old_tree=old, to_ancestor=True)
    assert found.class_map.tolist() == [0, 0, 0]


def test_a_mistyped_class_is_an_error_and_all_are_named(old_tree):
    with pytest.raises(DataError, match="expected classes of the data set, found 2 of 3 that it has nothing for: "
                       "'swann', 'ook'; correct the names"):  # fmt: skip
        relabel(OLD, ["swann", "fish", "ook"], old_tree=old_tree)
    found = relabel(OLD, ["swann", "fish", "ook"], old_tree=old_tree, allow_missing=True)
    assert found.without_source == ("swann", "ook")
    assert "without samples: 2: swann, ook" in found.summary()


@pytest.mark.parametrize(
    ("new", "options", "error", "message"),
    [
        ([], {}, UsageError, "expected new classes, found none"),
        (["oak", "fish", "oak"], {}, DataError, "expected distinct new classes, found twice: 'oak'"),
        (
            ["oak"],
            {"inner": "all"},
            UsageError,
            "expected the data set's tree where inner nodes become classes",
        ),
        (["elm"], {"allow_missing": True}, UsageError, "found none of its 7 among 1"),
    ],
)
def test_a_wrong_call_says_so(new, options, error, message):
    with pytest.raises(error, match=message):
        relabel(OLD, new, **options)


def test_another_data_sets_tree_is_refused(old_tree):
    with pytest.raises(
        DataError, match=r"relabel: expected the tree of the class list .* another data set's"
    ):
        relabel(OLD[::-1], OLD, old_tree=old_tree)
    with pytest.raises(UsageError, match="found none of its 7"):
        relabel(OLD, LabelTree.from_table(None, [("a", "b")]))
    with pytest.raises(UsageError, match="inner: expected one of"):
        relabel(OLD, ["oak"], old_tree=old_tree, inner="some")


def test_the_fingerprint_is_of_names_tree_and_table(old_tree):
    found = {
        relabel(OLD, ["bird", "fish"], old_tree=old_tree).fingerprint,
        relabel(OLD, ["fish", "bird"], old_tree=old_tree).fingerprint,
        relabel(OLD, ["bird", "fish"]).fingerprint,
        relabel(OLD, ["bird", "fish"], old_tree=old_tree, to_ancestor=True).fingerprint,
    }
    assert len(found) == 4
    again = relabel(OLD, ["bird", "fish"], old_tree=old_tree)
    assert again.fingerprint in found


@given(st.lists(st.sampled_from(OLD), min_size=2, unique=True), st.booleans())
def test_any_subset_keeps_who_is_above_whom(names, to_ancestor):
    old = LabelTree.from_table(["swan", "fish", "oak"], PAIRS)
    found = relabel(OLD, names, old_tree=old, to_ancestor=to_ancestor)

    def above(tree, name):
        chain, node = [name], int(tree.parents[tree.class_index[name]])
        while node >= 0:
            chain.append(tree.classes[node])
            node = int(tree.parents[node])
        return chain

    for name in names:
        assert above(found.tree, name) == [node for node in above(old, name) if node in names]
    for i, name in enumerate(OLD):
        left = [node for node in above(old, name) if node in names]
        expected = left[:1] if to_ancestor else [name] * (name in names)
        assert [found.class_names[found.class_map[i]]] * int(found.class_map[i] >= 0) == expected


def test_a_restricted_tree_keeps_names_and_cut(old_tree):
    cut = LabelTree.from_table(["swan", "fish", "oak"], PAIRS, levels=2)
    small = restrict_tree(cut, ["swan", "animal"])
    assert (small.max_levels, small.names, small.num_listed) == (2, ("swan", "animal"), 2)
    assert small.rule.source == f"the tree {cut.fingerprint}"
    assert restrict_tree(old_tree, OLD).fingerprint == old_tree.fingerprint
