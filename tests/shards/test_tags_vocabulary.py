"""Counting images and choosing a vocabulary, against a counter of all in memory."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.errors import DataError, UsageError
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.tags_vocabulary import DocumentCounts, check_cuts, choose_vocabulary

TERMS = st.text(st.sampled_from("ab é'"), min_size=1, max_size=4).map(str.strip).filter(bool)
BLOCKS = st.lists(st.dictionaries(TERMS, st.integers(1, 5), max_size=8), max_size=12)


@given(BLOCKS, st.integers(1, 20))
def test_counts_that_spill_to_disk_are_those_of_a_counter(blocks, limit):
    expected = Counter()
    with DocumentCounts(limit) as counts:
        for block in blocks:
            counts.add(block)
            expected.update(block)
        for block in blocks[:2]:  # what stood there twice is taken back
            counts.add({term: -count for term, count in block.items()})
            expected.subtract(block)
        assert list(counts.items()) == sorted((term, n) for term, n in expected.items() if n)


def test_spilled_runs_are_gone_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with DocumentCounts(2) as counts:
        counts.add({"a": 1, "b": 1, "c": 1})
        assert len(list(tmp_path.rglob("run-*"))) == 1
        assert list(counts.items()) == [("a", 1), ("b", 1), ("c", 1)]
    assert list(tmp_path.iterdir()) == []


@given(
    st.dictionaries(TERMS, st.integers(1, 30), max_size=30),
    st.integers(1, 10),
    st.integers(1, 10),
    st.floats(0.01, 1),
)
def test_a_vocabulary_is_the_most_frequent_between_the_cuts(counts, size, min_images, max_share):
    chosen = choose_vocabulary(
        sorted(counts.items()), num_images=30, size=size, min_images=min_images, max_share=max_share
    )
    between = [(t, n) for t, n in counts.items() if n >= min_images and n <= max_share * 30]
    best = sorted(between, key=lambda item: (-item[1], item[0]))[:size]
    assert list(chosen.images.items()) == best
    assert chosen.num_terms == len(counts)
    cut = chosen.num_too_common + chosen.num_too_rare + chosen.num_beyond
    assert len(chosen.images) + cut == len(counts)
    assert chosen.num_too_rare == sum(n < min_images for n in counts.values())


def test_a_vocabulary_is_written_and_read(tmp_path):
    images = {"big cat": 7, "café": 3, "grass": 3}
    vocabulary = Vocabulary(tuple(images), tuple(images.values()))
    assert vocabulary.to_bytes().decode() == "tag\timages\nbig cat\t7\ncafé\t3\ngrass\t3\n"
    path = tmp_path / "v.tsv"
    path.write_bytes(vocabulary.to_bytes())
    assert Vocabulary.load(path) == vocabulary
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Vocabulary.load(path) == vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a vocabulary that begins with 'tag\\\\timages', found ''"),
        (b"cat\t1\n", "expected a vocabulary that begins with"),
        (b"tag\timages\n", "expected 1 to 1,048,576 tags, found 0"),
        (b"tag\timages\ncat\t1\ncat\t2\n", "line 3: 'cat' stands on line 2 already"),
        (b"tag\timages\ncat\n", "line 2: expected a tag, a tab and a number, found \\['cat'\\]"),
        (b"tag\timages\n cat\t1\n", "line 2: expected a tag, a tab and a number"),
        (b"tag\timages\ncat\t-1\n", "line 2: expected a tag, a tab and a number"),
        (b"tag\timages\n\t1\n", "line 2: expected a tag"),
        ("tag\timages\ncat\t²\n".encode(), "line 2: expected a tag, a tab and a number"),
        (b"tag\timages\ncat\t1\tb\n", "line 2: expected a tag, a tab and a number"),
        (b"tag\timages\ncaf\xe9\t1\n", "expected UTF-8 text, found byte 0xe9"),
    ],
)
def test_a_bad_vocabulary_says_which_line(tmp_path, content, message):
    path = tmp_path / "v.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Vocabulary.load(path)


@pytest.mark.parametrize("cuts", [(0, 1, 0.5), (2**20 + 1, 1, 0.5), (1, 0, 0.5), (1, 1, 0.0), (1, 1, 1.5)])
def test_cuts_that_leave_nothing_are_refused(cuts):
    with pytest.raises(UsageError, match="expected a vocabulary size from 1 to 1,048,576"):
        check_cuts(*cuts)
