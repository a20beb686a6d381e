"""Trees of all paths: against the definition, walked path by path."""

import importlib.util
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import ImageRecipe, PackOptions, pack, read_shard, verify
from softshard.shards.classes import load_class_list
from softshard.shards.components import decode_levels, encode_levels
from softshard.shards.errors import DataError
from softshard.shards.schema import HIER
from softshard.shards.stats import data_set_stats
from softshard.shards.tree import LabelTree
from softshard.shards.tree_paths import MAX_VECTOR_VALUES
from softshard.shards.wordnet import wordnet

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's wheel")
ANIMAL, DOMESTIC, CANINE, DOG, CAR = "n00015388", "n01317541", "n02083346", "n02084071", "n02958343"

# x has the parents b (below a) and d; y hangs below x.
DIAMOND = [("b", "a"), ("x", "b"), ("x", "d"), ("y", "x")]


def diamond(**options):
    return LabelTree.from_table(["x", "y"], DIAMOND, parents="all-paths", **options)


def nearest(wnid, kept):
    """Kept ancestors of a synset without any kept one between."""
    return {
        n for above in wordnet().hypernyms(wnid) for n in ({above} if above in kept else nearest(above, kept))
    }


def test_a_class_has_a_vector_for_each_path():
    tree = diamond()
    assert tree.classes == ("x", "y", "b", "a", "d")
    assert tree.level_sizes == (2, 1, 1, 1)
    assert tree.parents.tolist() == [2, 0, 3, -1, -1]
    assert tree.other_parents.tolist() == [[0, 4]]
    assert tree.num_paths == 2
    assert tree.vectors().dtype == np.int16
    assert tree.vectors().tolist() == [
        [[0, 0, 0, -1], [1, -1, 0, -1]],
        [[0, 0, 0, 0], [1, -1, 0, 0]],
        [[0, 0, -1, -1], [-1, -1, -1, -1]],
        [[0, -1, -1, -1], [-1, -1, -1, -1]],
        [[1, -1, -1, -1], [-1, -1, -1, -1]],
    ]
    assert tree.all_parents == ((2, 4), (0,), (3,), (), ())
    for array in (tree.vectors(), tree.other_parents):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_cut_leaves_distinct_paths():
    # Without level 1 the two paths of y still differ on level 0.
    assert diamond(levels=2).vectors()[1].tolist() == [[0, 0], [1, -1]]
    same_root = [("b", "a"), ("d", "a"), ("e", "d"), ("x", "b"), ("x", "e")]
    with pytest.warns(UserWarning, match="one level"):
        tree = LabelTree.from_table(None, same_root, parents="all-paths", levels=1)
    assert tree.vectors().tolist() == [[[0]], [[0]], [[0]], [[0]], [[0]]]


def test_a_parent_above_another_parent_says_nothing_new():
    tree = LabelTree.from_table(None, [("x", "a"), ("x", "b"), ("b", "a")], parents="all-paths")
    assert len(tree.other_parents) == 0
    assert tree.vectors().tolist() == [[0, 0, 0], [0, -1, -1], [0, 0, -1]]


def test_wordnets_dog_is_a_canine_and_a_domestic_animal():
    tree = LabelTree.from_wordnet([ANIMAL, DOMESTIC, CANINE, DOG, CAR], parents="all-paths")
    assert tree.vectors()[3].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert tree.vectors()[4].tolist() == [[1, -1, -1], [-1, -1, -1]]
    assert "further parents: n02083346 canine" in tree.show("dog")
    assert tree.show("dog").endswith("  vector: [0, 0, 0]\n  vector: [0, 1, 0]")
    assert "1 class with several parents; label vectors [2, 3]" in tree.summary()


@needs_timm
def test_all_paths_of_imagenet_21k_p():
    classes = load_class_list("imagenet-21k-p-fall11")
    tree = LabelTree.from_wordnet(classes, parents="all-paths")
    longest = LabelTree.from_wordnet(classes, parents="longest")
    assert tree.vectors().shape == (11221, 5, 12)
    assert tree.level_sizes == (267, 1196, 2022, 2589, 2233, 1404, 729, 344, 214, 155, 62, 6)
    assert np.array_equal(tree.levels, longest.levels)
    # 200 of the 301 classes with several hypernyms have several kept parents.
    several = [i for i, wnid in enumerate(classes) if len(wordnet().hypernyms(wnid)) > 1]
    assert len(several) == 301
    assert len(np.unique(tree.other_parents[:, 0])) == 200
    assert set(tree.other_parents[:, 0].tolist()) <= {
        i for i, wnid in enumerate(classes) if len(nearest(wnid, set(classes))) > 1
    }


def test_json_keeps_all_paths_and_the_fingerprint_counts_them():
    tree = diamond()
    content = json.loads(json.dumps(tree.to_json()))
    read = LabelTree.from_json(content)
    assert read.fingerprint == tree.fingerprint
    assert np.array_equal(read.vectors(), tree.vectors())
    del content["other_parents"]
    with pytest.raises(DataError, match="fingerprint: expected"):
        LabelTree.from_json(content)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("x", "other_parents: expected as"),
        ([[0]], "other_parents: expected as"),
        ([[0, -1]], "other_parents: expected as"),
        ([[0, 2**40]], "other_parents: expected as"),
        ([[0, True]], "other_parents: expected as"),
        ([[0, 5]], "other_parents: expected class indices 0 to 4, found 0 to 5"),
        ([[0, 1]], "expected another parent of class 0, on a level above its own, found 1"),  # a cycle
        ([[0, 0]], "expected another parent of class 0"),
        ([[0, 2]], "expected another parent of class 0"),  # the one it has
        ([[3, 4]], "expected another parent of class 3"),  # of a root
        ([[0, 4], [0, 4]], "expected every pair once"),
        ([[1, 4], [0, 4]], "expected every pair once, ascending"),
    ],
)
def test_hostile_further_parents_are_refused(pairs, message):
    with pytest.raises(DataError, match=message) as caught:
        LabelTree.from_json({**diamond().to_json(), "other_parents": pairs}, where="t.json")
    assert str(caught.value).startswith("t.json: ")


def test_more_paths_than_a_label_vector_holds_are_refused_before_they_are_made():
    # Thirty diamonds on top of each other: 2 ** 30 paths.
    pairs = [pair for i in range(30) for pair in ((f"l{i}", f"n{i}"), (f"r{i}", f"n{i}"))]
    pairs += [pair for i in range(30) for pair in ((f"n{i + 1}", f"l{i}"), (f"n{i + 1}", f"r{i}"))]
    with pytest.raises(
        DataError, match=r"class '\w+': expected at most 32 paths of 61 levels to a root, found 64"
    ):
        LabelTree.from_table(None, pairs, parents="all-paths")


@pytest.mark.parametrize("shape", [(1, 3), (5, 12), (2, MAX_VECTOR_VALUES // 2)])
def test_vectors_of_several_paths_fit_the_component(shape):
    vectors = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    data = encode_levels(vectors)
    assert len(data) <= HIER.max_bytes
    assert np.array_equal(decode_levels(data, "here"), vectors)
    with pytest.raises(
        DataError, match=r"component 'hier.npy': expected \d+ bytes, found \d+; it is damaged"
    ):
        decode_levels(data[:-2], "here")


def test_a_data_set_with_several_paths_is_packed_verified_and_counted(tmp_path, source):
    tree = LabelTree.from_table(
        ["bird", "dog", "oak"],
        [("bird", "animal"), ("dog", "animal"), ("dog", "pet"), ("oak", "plant")],
        parents="all-paths",
    )
    options = PackOptions(image=ImageRecipe(16), shard_samples=40)
    pack(source, tmp_path / "set", options, tree=tree, workers=1)
    folder = tmp_path / "set" / "train"
    for sample in read_shard(folder / "train-000000.tar"):
        vectors = decode_levels(sample.parts["hier.npy"], sample.key)
        assert np.array_equal(vectors, tree.vectors()[int(sample.parts["cls"])])
        assert vectors.shape == (2, 2)
    assert verify(folder).problems == []
    assert [level["samples_with_target"] for level in data_set_stats(folder)["levels"]] == [16, 16]


# (child, parent) numbers of graphs without cycles, each edge once.
EDGES = st.integers(1, 10).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, n), st.integers(0, n)).filter(lambda edge: edge[0] > edge[1]),
        max_size=20,
        unique=True,
    )
)


@given(EDGES, st.none() | st.integers(1, 4))
def test_vectors_of_any_graph_agree_with_its_paths(edges, levels):
    pairs = [(f"c{child}", f"c{parent}") for child, parent in edges] or [("c0", "")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = LabelTree.from_table(None, pairs, parents="all-paths", levels=levels)
    above = {name: {parent for child, parent in pairs if child == name and parent} for name in tree.classes}

    def ancestors(name):
        return above[name].union(*(ancestors(parent) for parent in above[name]))

    # Without edges that say nothing new.
    above = {
        name: {p for p in parents if not any(p in ancestors(other) for other in parents)}
        for name, parents in above.items()
    }

    def paths(name):
        return [[*path, name] for parent in above[name] for path in paths(parent)] or [[name]]

    level_of = {name: max(map(len, paths(name))) - 1 for name in tree.classes}
    members = [[n for n in tree.classes if level_of[n] == level] for level in range(tree.num_levels)]
    expected = []
    for name in tree.classes:
        rows = set()
        for path in paths(name):
            row = [-1] * tree.num_levels
            for node in path:
                if level_of[node] < tree.num_levels:
                    row[level_of[node]] = members[level_of[node]].index(node)
            rows.add(tuple(row))
        expected.append(rows)
    assert tree.levels.tolist() == [level_of[name] for name in tree.classes]
    vectors = tree.vectors().reshape(len(tree.classes), -1, tree.num_levels)
    assert vectors.shape[1] == max(map(len, expected))
    empty = (-1,) * tree.num_levels
    for rows, wanted in zip(vectors.tolist(), expected, strict=True):
        found = [tuple(row) for row in rows]
        assert set(found) - {empty} == wanted
        assert found[len(wanted) :] == [empty] * (len(found) - len(wanted))
    # The first path is the one along `parents`: no level left out.
    for node, row in enumerate(vectors[:, 0].tolist()):
        reached = min(int(tree.levels[node]) + 1, tree.num_levels)
        assert all(value >= 0 for value in row[:reached])


def test_branching_nodes_of_a_graph_part_listed_classes():
    # dog and cat meet in carnivore by one path and in domestic animal by another; nothing covers them both alike.
    tree = LabelTree.from_wordnet([DOG, "n02121808", CAR], parents="all-paths", inner="branching")
    names = dict(zip(tree.names, tree.classes, strict=True))
    assert {"carnivore", "domestic animal"} <= names.keys()  # a domestic cat is a domestic animal too
    below = {name: set() for name in tree.classes}
    for child, parents in enumerate(tree.all_parents):
        for parent in parents:
            below[tree.classes[parent]].add(tree.classes[child])
    assert all(len(below[name]) > 1 for name in tree.classes[3:])
