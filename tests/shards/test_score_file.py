"""Files of scores: both forms, and every kind of score that must not be used."""

import json

import numpy as np
import pytest

from softshard.shards import DataError, UsageError
from softshard.shards.score_file import read_scores

HEADER = {"softshard": "scores", "version": 1, "dataset": "train", "fingerprint": "f" * 64, "halves": {}}
ROWS = [
    {"key": "a_1", "class": 0, "probability": 0.25, "half": 0, "trained_on": 1},
    {"key": "b_2", "class": 1, "probability": 1, "half": 1, "trained_on": 0},
]


def write(tmp_path, header, rows, end="\n"):
    file = tmp_path / "scores.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in (header, *rows)]
    file.write_bytes("".join(line + end for line in lines).encode())
    return str(file)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_scores_are_found_by_key(tmp_path, end):
    scores = read_scores(write(tmp_path, HEADER, ROWS, end), "f" * 64)
    np.testing.assert_array_equal(scores.of(["b_2", "none", "a_1"]), np.float32([1, np.nan, 0.25]))
    assert scores.says_halves
    assert scores.header["dataset"] == "train"


@pytest.mark.parametrize(
    ("name", "text", "says_halves"),
    [
        ("s.csv", "key,score\na_1,0.25\nb_2,1\n", False),
        ("s.csv", "\ufeffKey,Probability\r\na_1,0.25\r\n\r\nb_2,1\r\n", False),
        ("s.tsv", "key\tscore\thalf\ttrained_on\na_1\t0.25\t0\t1\nb_2\t1\t1\t0\n", True),
    ],
)
def test_a_table_of_keys_and_scores_is_read_too(tmp_path, name, text, says_halves):
    (tmp_path / name).write_bytes(text.encode())
    scores = read_scores(str(tmp_path / name))
    np.testing.assert_array_equal(scores.of(["a_1", "b_2"]), np.float32([0.25, 1]))
    assert scores.says_halves == says_halves


def test_a_score_by_a_model_that_trained_on_the_image_is_refused(tmp_path):
    leaked = {**ROWS[0], "trained_on": 0}
    with pytest.raises(
        DataError, match=r"line 3: 'a_1': .*, found one that was trained on half 0, which the image"
    ):
        read_scores(write(tmp_path, HEADER, [ROWS[1], leaked]))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER | {"fingerprint": "0" * 64}, ROWS, r"expected scores of the data set ffffffffffff, found those of 0000"),
        (HEADER | {"version": 2}, ROWS, r"line 1: expected version 1, found 2"),
        ({"key": "a"}, ROWS, r'line 1: expected \{"softshard": "scores"'),
        ("", [], r'line 1: expected \{"softshard": "scores"'),
        (HEADER, [], r"expected a line for each image, found none"),
        (HEADER, [*ROWS, ROWS[0]], r"expected every key once, found 'a_1' again"),
        (HEADER, ["{"], r"line 2: expected JSON"),
        (HEADER, [{"key": "a", "probability": 0.5}], r"line 2: expected an object with .*, found no half, trained_on"),
        (HEADER, ["[1]"], r"line 2: expected an object"),
        (HEADER, [ROWS[0] | {"probability": 1.01}], r"'a_1': expected a probability from 0 to 1, found 1.01"),
        (HEADER, [ROWS[0] | {"probability": float("nan")}], r"expected a probability from 0 to 1, found nan"),
        (HEADER, [ROWS[0] | {"probability": "x"}], r"expected a probability from 0 to 1, found 'x'"),
        (HEADER, [ROWS[0] | {"half": 2}], r"expected half and trained_on to be 0 or 1, found 2 and 1"),
        (HEADER, [ROWS[0] | {"key": ""}], r"line 2: expected a key, found ''"),
    ],
)  # fmt: skip
def test_bad_scores_are_refused_with_their_lines(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=message):
        read_scores(write(tmp_path, header, rows), "f" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,score\na,0.5,1\n", r"line 2: expected 2 cells, found 3"),
        ("key,score\na,high\n", r"line 2: expected numbers, found"),
        ("name,score\na,0.5\n", r"line 1: expected the columns key and score"),
        ("key,score,half\na,0.5,1\n", r"both half and trained_on or neither"),
        ("key,score,half,trained_on\na,0.5,1,1\n", r"trained on half 1, which the image is in"),
        ("key,score\na,0.5\na,0.6\n", r"expected every key once, found 'a' again"),
    ],
)
def test_bad_tables_are_refused_with_their_lines(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_scores(str(tmp_path / "s.csv"))


def test_scores_of_another_ending_are_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match=r"found the ending '\.txt'"):
        read_scores(str(tmp_path / "s.txt"))
