"""Similarities in a hierarchy: NLTK's values, and those of a walk from class to class."""

import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards import LabelTree
from softshard.shards.concept_graph import (
    ConceptGraph,
    contents_of_counts,
    contents_of_file,
    tree_graph,
    wordnet_graph,
)
from softshard.shards.wordnet import wordnet

DOG, CAT, ENTITY = "n02084071", "n02121620", "n00001740"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "nltk_data"


def test_dog_and_cat_are_as_similar_as_methods_says():
    graph = wordnet_graph([DOG, CAT])
    assert graph.path(0).tolist() == [1, 0.2]
    assert graph.wup(0)[1] == pytest.approx(0.857, abs=5e-4)
    assert graph.wup(0)[0] == 26 / 28  # NLTK's: domestic animals are nearer to the root than canines
    assert graph.depth == 19
    assert graph.lch(0)[1] == pytest.approx(-math.log(5 / 38))
    assert graph.lch(0)[0] == pytest.approx(math.log(38))


def test_wordnets_sisters_are_tied():
    (warbler,) = wordnet().senses("New World warbler")
    sisters = [wnid for wnid in wordnet() if warbler in wordnet().hypernyms(wnid)]
    assert len(sisters) >= 5
    graph = wordnet_graph(sisters)
    for i in range(len(sisters)):
        others = np.delete(graph.wup(i), i)
        np.testing.assert_allclose(others, 0.933, atol=5e-4)


# Chains and several parents, small enough to walk


def walk_up(parents, node):
    """Every ancestor with all lengths of ways to it, by plain recursion."""
    found = {node: [0]}
    for parent in parents[node]:
        for ancestor, lengths in walk_up(parents, parent).items():
            found.setdefault(ancestor, []).extend(1 + length for length in lengths)
    return found


def depths(parents, node):
    ways = [
        length
        for ancestor, lengths in walk_up(parents, node).items()
        if not parents[ancestor]
        for length in lengths
    ]
    return min(ways), max(ways)


def walked_distance(parents, one, other):
    up, across = walk_up(parents, one), walk_up(parents, other)
    return min(min(up[node]) + min(across[node]) for node in up.keys() & across.keys())


def walked_wup(parents, one, other):
    common = walk_up(parents, one).keys() & walk_up(parents, other).keys()
    deepest = max(depths(parents, node)[0] for node in common)
    subsumers = sorted((node for node in common if depths(parents, node)[0] == deepest), key=str)
    subsumer = one if one in subsumers else subsumers[0]
    depth = depths(parents, subsumer)[1] + 1
    ways = [walked_distance(parents, node, subsumer) + depth for node in (one, other)]
    return 2.0 * depth / sum(ways)


@settings(max_examples=60)
@given(st.data())
def test_every_pair_of_a_small_hierarchy_is_as_the_walk_says(data):
    num = data.draw(st.integers(1, 9))
    parents = {0: []}
    for node in range(1, num):
        parents[node] = data.draw(st.lists(st.integers(0, node - 1), min_size=1, max_size=3, unique=True))
    nodes = data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=6))
    counts = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(nodes), max_size=len(nodes))))
    graph = ConceptGraph(nodes, parents.__getitem__)
    contents = contents_of_counts(graph, counts)
    whole = counts.sum() + len(counts)
    sums = dict.fromkeys(graph.nodes, 0)
    for count, below in zip(counts.tolist(), nodes, strict=True):
        for node in walk_up(parents, below):
            sums[node] += count + 1
    content = {node: -math.log(total / whole) for node, total in sums.items()}
    for i, one in enumerate(nodes):
        path, wup, lin, jcn = (
            graph.path(i),
            graph.wup(i),
            graph.lin(i, contents),
            graph.jcn_distance(i, contents),
        )
        for j, other in enumerate(nodes):
            assert path[j] == 1 / (1 + walked_distance(parents, one, other))
            assert wup[j] == walked_wup(parents, one, other)
            shared = max(
                content[node] for node in walk_up(parents, one).keys() & walk_up(parents, other).keys()
            )
            both = content[one] + content[other]
            if one == other:
                assert (lin[j], jcn[j]) == (1, 0)
            else:
                assert lin[j] == pytest.approx(2 * shared / both if both else 0, abs=1e-12)
                assert jcn[j] == pytest.approx(max(0, both - 2 * shared), abs=1e-12)


def test_a_tree_of_several_roots_has_one_above_them():
    tree = LabelTree.from_table(None, [("cat", "animal"), ("dog", "animal"), ("oak", "plant")])
    graph = tree_graph(tree)
    place = tree.classes.index
    row = graph.distances(place("cat"))
    assert [int(row[place(name)]) for name in ("cat", "dog", "animal", "plant", "oak")] == [0, 2, 1, 3, 4]


@pytest.fixture(scope="module")
def nltk_wordnet():
    pytest.importorskip("nltk")
    if not SHARED.is_dir():
        pytest.skip("needs WordNet of NLTK in ../shared/data/nltk_data")
    import nltk

    nltk.data.path.insert(0, os.fspath(SHARED))
    from nltk.corpus import wordnet as corpus

    corpus.ensure_loaded()
    corpus._max_depth |= {
        "n": 19,
        ("n", False): 19,
    }  # which NLTK looks for in nine seconds; how it keeps it is its own
    yield corpus
    nltk.data.path.remove(os.fspath(SHARED))


def some_wnids():
    """Nouns of all kinds, many of them with several parents."""
    wnids = [*wordnet()]
    chosen = random.Random(7).sample(wnids, 25)
    several = [wnid for wnid in wnids if len(wordnet().hypernyms(wnid)) > 1]
    return [DOG, CAT, ENTITY, *chosen, *random.Random(8).sample(several, 20)]


def test_the_values_are_nltks(nltk_wordnet):
    wnids = some_wnids()
    graph = wordnet_graph(wnids)
    synsets = [nltk_wordnet.synset_from_pos_and_offset("n", int(wnid[1:])) for wnid in wnids]
    assert [wordnet().sense_name(wnid) for wnid in wnids] == [synset.name() for synset in synsets]
    for i, one in [*enumerate(synsets)][::6]:
        path, wup, lch = graph.path(i), graph.wup(i), graph.lch(i)
        for j, other in enumerate(synsets):
            assert path[j] == one.path_similarity(other)
            assert wup[j] == pytest.approx(one.wup_similarity(other), rel=1e-15), (one, other)
            assert lch[j] == pytest.approx(one.lch_similarity(other), rel=1e-14, abs=1e-14)


def test_lin_and_jiang_conrath_are_nltks(nltk_wordnet):
    wnids = some_wnids()
    graph = wordnet_graph(wnids)
    synsets = [nltk_wordnet.synset_from_pos_and_offset("n", int(wnid[1:])) for wnid in wnids]
    generator = np.random.default_rng(3)
    counts = generator.integers(1, 100, len(wnids)).astype(float)
    sums = dict(zip(graph.nodes, graph.add_up(counts), strict=True))
    offsets = {int(wnid[1:]): value for wnid, value in sums.items()}
    contents = contents_of_file(graph, offsets, counts.sum())
    theirs = {"n": {**offsets, 0: counts.sum()}}
    for i in range(0, len(wnids), 5):
        lin, jcn = graph.lin(i, contents), graph.jcn_distance(i, contents)
        for j in range(len(wnids)):
            if wnids[i] == wnids[j] or ENTITY in (wnids[i], wnids[j]):
                continue
            assert lin[j] == pytest.approx(
                synsets[i].lin_similarity(synsets[j], theirs), rel=1e-12, abs=1e-12
            )
            similarity = synsets[i].jcn_similarity(synsets[j], theirs)
            assert 1 / max(jcn[j], 1e-300) == pytest.approx(similarity, rel=1e-6) or jcn[j] < 1e-9
