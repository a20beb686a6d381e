"""Difficulties from either form of file, and every kind of score that must not be used."""

import json

import numpy as np
import pytest

from softshard.shards import DataError, UsageError
from softshard.shards.difficulty import read_difficulty
from softshard.shards.score_file import score_header, score_line

FINGERPRINT = "f" * 64


@pytest.mark.parametrize(
    ("name", "text", "says_halves"),
    [
        ("s.csv", "key,score\na_1,0.25\nb_2,1\n", False),
        ("s.csv", "\ufeffKey,Probability\r\na_1,0.25\r\n\r\nb_2,1\r\n", False),
        ("s.tsv", "key\tscore\thalf\ttrained_on\na_1\t0.25\t0\t1\nb_2\t1\t1\t0\n", True),
        (
            "s.jsonl",
            str(score_header(fingerprint=FINGERPRINT, samples=2)).replace("'", '"')
            + "\n"
            + score_line("a_1", 0, 0.25, 0)
            + score_line("b_2", 1, 1.0, 1),
            True,
        ),
    ],
)
def test_scores_are_found_by_key(tmp_path, name, text, says_halves):
    (tmp_path / name).write_bytes(text.encode())
    scores = read_difficulty(str(tmp_path / name), FINGERPRINT)
    np.testing.assert_array_equal(scores.of(["b_2", "none", "a_1"]), [1, np.nan, 0.25])
    assert scores.says_halves == says_halves


def test_scores_of_other_labels_are_refused(tmp_path):
    """What is hard to tell among some groups may be easy among others; the data set's own classes do for any choice."""
    for of, chosen in (("a" * 64, "a" * 64), (None, "b" * 64), (None, None)):
        header = score_header(fingerprint=FINGERPRINT, samples=1, labels=of)
        (tmp_path / "s.jsonl").write_text(json.dumps(header) + "\n" + score_line("a_1", 0, 0.25, 0))
        assert read_difficulty(str(tmp_path / "s.jsonl"), FINGERPRINT, chosen).labels == of
    header = score_header(fingerprint=FINGERPRINT, samples=1, labels="a" * 64)
    (tmp_path / "s.jsonl").write_text(json.dumps(header) + "\n" + score_line("a_1", 0, 0.25, 0))
    for chosen, shown in (("b" * 64, "or of those of --classes, bbbbbbbbbbbb"), (None, "own classes")):
        way_out = "tree or a class list can be used for no choice: score again"
        found = rf"{shown}, found those of other labels, aaaaaaaaaaaa: .*{way_out}"
        with pytest.raises(DataError, match=found):
            read_difficulty(str(tmp_path / "s.jsonl"), FINGERPRINT, chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,score\na,0.5,1\nb\n", r"line 2: expected 2 cells, found 3\n.*line 3: expected 2 cells, found 1"),
        ("key,score\na,high\n", r"line 2: 'a': expected a probability from 0 to 1, found 'high'"),
        ("key,score\na,1.01\nb,nan\n", r"line 2: .*found '1.01'\n.*line 3: .*found 'nan'"),
        ("key,score\n,0.5\n", r"line 2: expected a key, found an empty cell"),
        ("name,score\na,0.5\n", r"line 1: expected the columns key and score"),
        ("key,score,half\na,0.5,1\n", r"both half and trained_on or neither"),
        ("key,score,half,trained_on\na,0.5,1,1\n", r"trained on half 1, which the image is in"),
        ("key,score,half,trained_on\na,0.5,1,2\n", r"expected half and trained_on to be 0 or 1, found '1' and '2'"),
        ("key,score\na,0.5\na,0.6\n", r"line 3: expected each key once, found 'a' again"),
        ("key,score\n", r"expected a line for each image, found none"),
        ("", r"line 1: expected the columns key and score"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_their_lines(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_difficulty(str(tmp_path / "s.csv"), FINGERPRINT)


def test_a_table_with_nothing_but_mistakes_names_twenty(tmp_path):
    (tmp_path / "s.csv").write_text("key,score\n" + "a,2\n" * 50)
    with pytest.raises(DataError) as error:
        read_difficulty(str(tmp_path / "s.csv"), FINGERPRINT)
    assert len(str(error.value).splitlines()) == 20


def test_scores_of_another_ending_are_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match=r"found the ending '\.txt'"):
        read_difficulty(str(tmp_path / "s.txt"), FINGERPRINT)
