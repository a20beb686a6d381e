"""Label trees from WordNet: the published numbers, and every rule on a few classes."""

import importlib.util
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.classes import load_class_list
from softshard.shards.errors import DataError, UsageError
from softshard.shards.relations import ONE_PARENT_RULES, PARENT_RULES
from softshard.shards.tree import LabelTree
from softshard.shards.wordnet import wordnet

FALL11, WINTER21 = "imagenet-21k-p-fall11", "imagenet-21k-p-winter21"
SWAN = "n01858441"
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")


@needs_timm
@pytest.mark.parametrize(
    ("class_list", "parents", "sizes"),
    [
        (FALL11, "first", (293, 1320, 2056, 2549, 2163, 1349, 716, 342, 212, 155, 60, 6)),
        (FALL11, "last", (306, 1339, 2137, 2618, 2199, 1372, 708, 284, 148, 83, 26, 1)),
        (FALL11, "published", (302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1)),
        (WINTER21, "published", (302, 1067, 1823, 2486, 2165, 1353, 710, 289, 146, 82, 26, 1)),
    ],
)
def test_classes_per_level_of_imagenet_21k_p(class_list, parents, sizes):
    tree = LabelTree.from_wordnet(load_class_list(class_list), parents=parents)
    assert tree.level_sizes == sizes
    assert tuple(map(len, tree.level_classes)) == sizes


@needs_timm
def test_the_swan_of_the_published_tree():
    tree = LabelTree.from_wordnet(load_class_list(FALL11), parents="published", levels=11)
    swan = tree.class_index[SWAN]
    assert tree.vectors()[swan].tolist() == [3, 56, 63, 129, 207, -1, -1, -1, -1, -1, -1]
    ancestors = [tree.names[tree.level_classes[k][i]] for k, i in enumerate([3, 56, 63, 129, 207])]
    assert ancestors == ["animal", "vertebrate", "bird", "aquatic bird", "swan"]


@needs_timm
def test_eleven_levels_leave_out_only_the_bucking_bronco():
    classes = load_class_list(FALL11)
    full = LabelTree.from_wordnet(classes, parents="published")
    cut = LabelTree.from_wordnet(classes, parents="published", levels=11)
    assert (full.num_levels, cut.num_levels) == (12, 11)
    assert np.array_equal(cut.vectors(), full.vectors()[:, :11])
    assert cut.level_sizes == full.level_sizes
    assert [full.names[i] for i in full.level_classes[11]] == ["bucking bronco"]
    assert cut.fingerprint != full.fingerprint
    assert cut.levels.tolist() == full.levels.tolist()


@needs_timm
def test_301_classes_of_fall11_have_several_parents():
    assert sum(len(wordnet().hypernyms(wnid)) > 1 for wnid in load_class_list(FALL11)) == 301


@pytest.mark.shared
@needs_timm
@pytest.mark.parametrize("class_list", [FALL11, WINTER21])
def test_published_trees_agree_with_the_list_they_were_made_from(class_list, is_a):
    classes = load_class_list(class_list)
    last_line = {child: parent for parent, child in map(str.split, is_a.read_text().splitlines())}
    index = {wnid: i for i, wnid in enumerate(classes)}
    expected = []
    for wnid in classes:
        above = last_line.get(wnid)
        while above is not None and above not in index:
            above = last_line.get(above)
        expected.append(-1 if above is None else index[above])
    assert LabelTree.from_wordnet(classes, parents="published").parents.tolist() == expected


@needs_timm
def test_imagenet_1k_is_flat_and_says_so():
    with pytest.warns(UserWarning, match=r"^softshard: .*one level, of 1000 classes.*inner='branching'"):
        tree = LabelTree.from_wordnet(load_class_list("imagenet-1k"))
    assert tree.level_sizes == (1000,)
    assert tree.vectors().tolist() == [[i] for i in range(1000)]


@needs_timm
@pytest.mark.parametrize("inner", ["branching", "all"])
def test_inner_nodes_give_imagenet_1k_levels(inner):
    tree = LabelTree.from_wordnet(load_class_list("imagenet-1k"), inner=inner)
    assert tree.num_levels > 10
    assert tree.classes[:1000] == load_class_list("imagenet-1k")
    assert list(tree.classes[1000:]) == sorted(tree.classes[1000:])
    children = np.bincount(tree.parents[tree.parents >= 0], minlength=len(tree.classes))
    assert children[1000:].min() >= (2 if inner == "branching" else 1)
    assert (len(tree.level_classes[0]) == 1) == (inner == "all")


@needs_timm
def test_longest_is_never_shallower_and_shortest_never_deeper():
    classes = load_class_list(FALL11)
    levels = {rule: LabelTree.from_wordnet(classes, parents=rule).levels for rule in PARENT_RULES}
    assert all((levels["longest"] >= levels[rule]).all() for rule in ("first", "last", "shortest"))
    assert all((levels["shortest"] <= levels[rule]).all() for rule in ("first", "last", "longest"))


def test_only_listed_ancestors_are_kept():
    # Vertebrate and chordate, between bird and animal, are not listed.
    tree = LabelTree.from_wordnet(["n00015388", "n01503061", SWAN])
    assert tree.parents.tolist() == [-1, 0, 1]
    assert tree.names == ("animal", "bird", "swan")
    assert tree.num_listed == 3


@pytest.mark.parametrize(("parents", "parent"), [("first", 0), ("last", 1), ("longest", 0), ("shortest", 0)])
def test_a_rule_decides_between_two_parents(parents, parent):
    # A dog is a canine (first pointer) and a domestic animal (second). Both are below the animal: both paths
    # keep two ancestors, so that the first wins for `longest` and `shortest`.
    tree = LabelTree.from_wordnet(["n02083346", "n01317541", "n00015388", "n02084071"], parents=parents)
    assert tree.parents[3] == parent


def test_longest_and_shortest_count_kept_ancestors_only():
    # Only the domestic animal is listed, so the dog's path over it is the longer one.
    classes = ["n01317541", "n00015388", "n02084071"]
    levels = {
        r: LabelTree.from_wordnet(classes, parents=r).levels[2] for r in ("first", "longest", "shortest")
    }
    assert levels == {"first": 1, "longest": 2, "shortest": 1}


def test_branching_adds_lowest_common_ancestors_and_nothing_else():
    # dog and wolf meet in canine, these and the cat in carnivore; the car meets them only in the root.
    dog, wolf, cat, car = "n02084071", "n02114100", "n02121620", "n02958343"
    tree = LabelTree.from_wordnet([car, wolf, cat, dog], inner="branching")
    assert tree.classes == (car, wolf, cat, dog, "n02075296", "n02083346")
    assert tree.names[4:] == ("carnivore", "canine")
    assert tree.parents.tolist() == [-1, 5, 4, 5, -1, 4]
    assert tree.vectors().tolist() == [[0, -1, -1], [1, 1, 0], [1, 0, -1], [1, 1, 1], [1, -1, -1], [1, 1, -1]]
    assert tree.num_listed == 4


def test_branching_leaves_a_listed_ancestor_its_place():
    dog, wolf, cat, canine = "n02084071", "n02114100", "n02121620", "n02083346"
    tree = LabelTree.from_wordnet([dog, canine, wolf, cat], inner="branching")
    assert tree.classes == (dog, canine, wolf, cat)  # carnivore would be a lone root over everything
    assert tree.parents.tolist() == [1, -1, 1, -1]


def test_all_adds_every_ancestor():
    dog = "n02084071"
    tree = LabelTree.from_wordnet([dog], inner="all")
    chain = [dog]
    while wordnet().hypernyms(chain[-1]):
        chain.append(wordnet().hypernyms(chain[-1])[0])
    assert tree.classes == (dog, *sorted(chain[1:]))
    assert tree.levels[0] == len(chain) - 1
    assert tree.names[0] == wordnet().lemmas(dog)[0]


def test_two_siblings_are_flat_and_no_inner_rule_is_praised():
    with pytest.warns(UserWarning, match=r"plain softmax there$"):
        LabelTree.from_wordnet(["n02084071", "n02114100"])  # canine is a lone root over both


def test_nouns_keep_their_names():
    tree = LabelTree.from_wordnet(["tabby cat", "animal", "n02084071"])
    assert tree.classes == ("tabby cat", "animal", "n02084071")
    assert tree.names == ("tabby cat", "animal", "dog")
    assert tree.parents.tolist() == [1, -1, 1]


def test_every_unknown_class_and_every_shared_synset_is_named():
    with pytest.raises(DataError) as caught:
        LabelTree.from_wordnet(["blorp", "cat", "n02121620", "n00000001"])
    text = str(caught.value)
    assert "class 'blorp': expected a wnid or a noun of WordNet 3.0, found neither" in text
    assert "classes 'cat' and 'n02121620': expected different synsets, found n02121620 twice" in text
    assert "class 'n00000001'" in text
    assert "child,parent table" in text


@pytest.mark.parametrize("option", [{"parents": "best"}, {"inner": "some"}, {"levels": 0}])
def test_a_wrong_option_is_a_wrong_call(option):
    with pytest.raises(UsageError, match="expected"):
        LabelTree.from_wordnet(["n02084071", "n00015388"], **option)


def test_no_classes_is_a_wrong_call():
    with pytest.raises(UsageError, match="expected classes, found none"):
        LabelTree.from_wordnet([])


def test_a_class_is_shown_with_its_chain_children_and_vector():
    tree = LabelTree.from_wordnet(["n00015388", "n01503061", SWAN, "n02084071"])
    assert (
        tree.show("swan")
        == tree.show(SWAN)
        == (
            "n01858441 swan: class 2, level 2\n"
            "  level  0  n00015388 animal  (class 0, index 0 of 1)\n"
            "  level  1    n01503061 bird  (class 1, index 0 of 2)\n"
            "  level  2      n01858441 swan  (class 2, index 0 of 1)\n"
            "  children: none\n"
            "  vector: [0, 0, 0]"
        )
    )
    assert "children: n01503061 bird, n02084071 dog" in tree.show("Animal")


def test_a_class_is_found_by_the_wnid_of_its_noun_and_by_another_lemma():
    tree = LabelTree.from_wordnet(["tabby cat", "animal", "n02084071"])
    assert tree.find("n02123045") == tree.find("tabby_cat") == [0]
    assert tree.find("domestic dog") == [2]


@given(
    st.lists(st.sampled_from(list(wordnet())), min_size=1, max_size=30, unique=True),
    st.sampled_from(ONE_PARENT_RULES),
)
def test_branching_nodes_are_the_lowest_common_ancestors_of_pairs(listed, parents):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = LabelTree.from_wordnet(listed, parents=parents, inner="branching")
        whole = LabelTree.from_wordnet(listed, parents=parents, inner="all")

    def chain(node):
        above = [node]
        while whole.parents[above[-1]] >= 0:
            above.append(int(whole.parents[above[-1]]))
        return above

    chains = [chain(i) for i in range(len(listed))]
    meetings = set()
    for i, one in enumerate(chains):
        for other in chains[:i]:
            if common := [node for node in one if node in set(other)]:
                meetings.add(whole.classes[common[0]])
    lone_root = {node for node in meetings if all(whole.class_index[node] in c for c in chains)}
    assert set(tree.classes[len(listed) :]) == meetings - lone_root - set(listed)
