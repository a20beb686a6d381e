import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards.classes import load_class_list
from softshard.shards.errors import DataError, UsageError
from softshard.shards.relations import INNER_RULES, ONE_PARENT_RULES, PARENT_RULES
from softshard.shards.schema import HIER, MAX_LEVEL_CLASSES
from softshard.shards.tree import LabelTree
from softshard.shards.tree_limits import MAX_LEVELS
from softshard.shards.wordnet import wordnet

FALL11, WINTER21 = "imagenet-21k-p-fall11", "imagenet-21k-p-winter21"
SWAN = "n01858441"
IS_A = Path(__file__).parents[2].parent / "shared" / "data" / "wordnet.is_a.txt"

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")

# The example of Ridnik et al.: chains [0] [1,0] [2,1,0] [3,1,0] [4] [5,4] [6,5,4].
TOY = ("animal", "vertebrate", "bird", "fish", "plant", "tree", "oak")
TOY_PAIRS = [
    ("vertebrate", "animal"),
    ("bird", "vertebrate"),
    ("fish", "vertebrate"),
    ("tree", "plant"),
    ("oak", "tree"),
]


@pytest.fixture
def toy():
    return LabelTree.from_table(TOY, TOY_PAIRS)


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


# ---- The published numbers


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
@pytest.mark.parametrize(
    ("class_list", "tail_sums"),
    [(FALL11, (11221, 10919, 9541, 7441, 4836, 2632, 1261, 545, 255, 109, 27, 1))],
)
def test_classes_at_or_below_each_level_of_the_published_tree(class_list, tail_sums):
    sizes = LabelTree.from_wordnet(load_class_list(class_list), parents="published").level_sizes
    assert tuple(sum(sizes[level:]) for level in range(len(sizes))) == tail_sums


@needs_timm
def test_301_classes_of_fall11_have_several_parents():
    assert sum(len(wordnet().hypernyms(wnid)) > 1 for wnid in load_class_list(FALL11)) == 301


@pytest.mark.shared
@needs_timm
@pytest.mark.skipif(not IS_A.is_file(), reason="needs wordnet.is_a.txt in ../shared/data")
@pytest.mark.parametrize("class_list", [FALL11, WINTER21])
def test_published_trees_agree_with_the_list_they_were_made_from(class_list):
    classes = load_class_list(class_list)
    last_line = {child: parent for parent, child in map(str.split, IS_A.read_text().splitlines())}
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


# ---- WordNet, small


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


# ---- Tables


def test_the_toy_tree(toy):
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


# ---- JSON


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


# ---- For people


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


def test_a_level_left_out_is_shown_as_such():
    tree = LabelTree.from_table(TOY, TOY_PAIRS, levels=2)
    assert "oak  (class 6, level left out)" in tree.show("oak")
    assert tree.show("oak").endswith("vector: [1, 1]")


def test_a_class_is_found_by_the_wnid_of_its_noun_and_by_another_lemma():
    tree = LabelTree.from_wordnet(["tabby cat", "animal", "n02084071"])
    assert tree.find("n02123045") == tree.find("tabby_cat") == [0]
    assert tree.find("domestic dog") == [2]


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
    assert "levels left out: 3 classes" in LabelTree.from_table(TOY, TOY_PAIRS, levels=2).summary()


# ---- Properties


@st.composite
def tables(draw):
    """(listed classes, pairs, levels) of a random forest, its names in no order."""
    size = draw(st.integers(1, 24))
    names = draw(st.permutations([f"c{i}" for i in range(size)]))
    above = [draw(st.integers(-1, i - 1)) for i in range(size)]
    pairs = draw(st.permutations([(names[i], names[p] if p >= 0 else "") for i, p in enumerate(above)]))
    listed = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return listed, pairs, draw(st.none() | st.integers(1, 6))


@settings(deadline=None)
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


@settings(deadline=None)
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
