"""How similar classes are: by WordNet, a tree, text and a confusion matrix, and what these are read from."""

import hashlib

import fsspec
import numpy as np
import pytest

from softshard.shards import DataError, LabelTree, UsageError
from softshard.shards.information_content import load_counts
from softshard.shards.similarities import Measures, Similarities
from softshard.shards.text_overlap import DEFINITION_SHARE, TextOverlap, words_of

DOG, CAT, OAK = "n02084071", "n02121620", "n12268246"
CLASSES = (DOG, CAT, OAK)
WUP = Measures({"wup": 1.0})


def test_the_label_itself_is_as_similar_as_can_be_by_every_measure(tmp_path):
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    np.save(tmp_path / "c.npy", confusion)
    shares = dict.fromkeys(("path", "wup", "lch", "lin", "jcn", "confusion"), 1.0)
    measures = Measures(shares, information_content="counts", confusion=str(tmp_path / "c.npy"))
    found = Similarities(CLASSES, measures, counts=np.array([3, 4, 5]))
    for name in shares:
        for i in range(3):
            row = found.measure(name, i)
            assert row[i] == 1
            assert (row >= 0).all()
            assert (row <= 1).all()
    assert found.measure("path", 0)[1] == 0.2
    assert found.measure("wup", 0)[1] == pytest.approx(0.857, abs=5e-4)
    assert found.measure("lch", 0)[1] == pytest.approx(np.log(38 / 5) / np.log(38))
    assert found.measure("confusion", 0).tolist() == [1, 0.25, 0]
    assert found.measure("confusion", 2).tolist() == [0, 0, 1]


def test_a_sum_is_the_mean_by_shares_and_a_product_the_powers():
    one, other = (Similarities(CLASSES, Measures({name: 1.0})).scores(0) for name in ("wup", "path"))
    both = {"wup": 3.0, "path": 1.0}
    np.testing.assert_allclose(
        Similarities(CLASSES, Measures(both)).scores(0), 0.75 * one + 0.25 * other, rtol=1e-6
    )
    np.testing.assert_allclose(
        Similarities(CLASSES, Measures(both, combine="product")).scores(0), one**3 * other, rtol=1e-6
    )


def test_text_is_combined_with_the_label_as_any_other_measure():
    text = "My cat sleeps"
    alone = Similarities(CLASSES, Measures({"text": 1.0})).scores(0, text)
    assert alone[1] == 1  # a name of the class
    label = Similarities(CLASSES, Measures({"wup": 2.0, "path": 1.0}))
    for combine in ("sum", "product"):
        measures = Measures({"wup": 2.0, "text": 1.0, "path": 1.0}, combine=combine)
        found = Similarities(CLASSES, measures).scores(0, text)
        if combine == "sum":
            np.testing.assert_allclose(found, (3 * label.scores(0) + alone) / 4, rtol=1e-6)
        else:
            rows = [label.measure(name, 0) for name in ("wup", "path")]
            np.testing.assert_allclose(found, rows[0] ** 2 * rows[1] * alone, rtol=1e-6)


def test_siblings_that_wordnet_ties_are_told_apart_by_text():
    names = ("n02123045", "n02123394")  # tabby, Persian cat
    ties = Similarities((CAT, *names), Measures({"wup": 1.0})).scores(0)
    assert ties[1] == ties[2]
    scores = Similarities((CAT, *names), Measures({"wup": 0.7, "text": 0.3})).scores(
        0, "a Persian cat on a sofa"
    )
    assert scores[2] > scores[1]


def test_classes_that_wordnet_does_not_know_are_all_named():
    with pytest.raises(DataError) as caught:
        Similarities(("xyzzy", DOG, "plugh"), WUP)
    assert "'xyzzy'" in str(caught.value)
    assert "'plugh'" in str(caught.value)
    assert "--tree" in str(caught.value)


def test_a_tree_is_the_hierarchy_of_its_classes():
    tree = LabelTree.from_table(None, [("cat", "animal"), ("dog", "animal"), ("oak", "plant")])
    scores = Similarities(tree.classes, Measures({"path": 1.0}), tree).scores(tree.classes.index("cat"))
    near = dict(zip(tree.classes, scores.tolist(), strict=True))
    assert near == pytest.approx({"cat": 1, "animal": 1 / 2, "dog": 1 / 3, "plant": 1 / 4, "oak": 1 / 5})


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("wup,foo", {}, "expected measures of path, wup"),
        ("wup=x", {}, "expected measures such as wup=0.7,text=0.3, found 'wup=x'"),
        ("wup=0", {}, "expected measures with shares above 0"),
        ("wup=nan", {}, "expected measures with shares above 0"),
        ("", {}, "expected measures of path"),
        ("lin", {}, "information content: expected a file where a measure reads it, found no file"),
        (
            "wup",
            {"confusion": "c.npy"},
            "confusion: expected a file where a measure reads it, found a file, and no",
        ),
        ("wup", {"combine": "max"}, "combine: expected one of sum, product"),
    ],
)
def test_measures_that_cannot_be_are_refused(text, options, says):
    with pytest.raises(UsageError) as caught:
        Measures.parse(text, **options)
    assert says in str(caught.value)


def test_words_are_lower_case_without_the_commonest():
    assert words_of("The Big-Cat of É, 2 cats's") == ["big", "cat", "é", "2", "cats"]


def test_a_class_overlaps_by_its_best_phrase():
    overlap = TextOverlap([["big cat", "lion"], ["house cat"], ["oak"]], {2: "a big tree"})
    assert overlap.scores("LION!")[0] == 1
    assert overlap.scores("a big, big cat")[0] == 1
    assert overlap.scores("nothing of it").tolist() == [0, 0, 0]
    assert overlap.scores("").tolist() == [0, 0, 0]
    assert overlap.scores("tree: big")[2] == pytest.approx(DEFINITION_SHARE)
    shared, rare = np.log(1 + 3 / 2), np.log(1 + 3)
    np.testing.assert_allclose(
        overlap.scores("cat")[:2], [shared / (shared + shared), shared / (shared + rare)]
    )


def test_files_behind_urls_are_recorded_by_their_content(tmp_path):
    content = b"class," + b",".join(name.encode() for name in CLASSES) + b"\n"
    for i, name in enumerate(CLASSES):
        row = ["9" if i == j else "1" for j in range(len(CLASSES))]
        content += ",".join([name, *row]).encode() + b"\n"
    fsspec.filesystem("memory").pipe("/weigh/confusion.csv", content)
    measures = Measures({"confusion": 1.0}, confusion="memory://weigh/confusion.csv")
    said = Similarities(CLASSES, measures).to_json()
    assert said["confusion"] == hashlib.sha256(content).hexdigest()
    (tmp_path / "confusion.csv").write_bytes(content)
    assert (
        Measures({"confusion": 1.0}, confusion=str(tmp_path / "confusion.csv")).to_json()
        == measures.to_json()
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello\n", "begins with 'wnver', found 'hello'"),
        ("wnver::x\n1740n\n", "line 2: expected an offset with n or v, and a count, found '1740n'"),
        ("wnver::x\n1740n nan ROOT\n", "line 2"),
        ("wnver::x\n1740n -1 ROOT\n", "line 2"),
        ("wnver::x\n1740n 5\n", "expected the count of a root of nouns, found none"),
    ],
)
def test_information_content_that_is_none_is_refused(tmp_path, text, says):
    (tmp_path / "ic.dat").write_text(text)
    with pytest.raises(DataError) as caught:
        load_counts(str(tmp_path / "ic.dat"))
    assert says in str(caught.value)


def test_information_content_is_read_as_nltk_reads_it(tmp_path):
    (tmp_path / "ic.dat").write_text("wnver::x\n1740n 10 ROOT\n2084071n 2.5\n5v 7 ROOT\n")
    assert load_counts(str(tmp_path / "ic.dat")) == ({1740: 10, 2084071: 2.5}, 10)
