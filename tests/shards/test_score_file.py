"""Files of difficulty scores: read as they were written; scores that mean nothing are refused."""

import json

import pytest

from softshard.shards.errors import DataError
from softshard.shards.score_file import read_scores, score_header, score_line

HEADER = score_header(dataset="set", fingerprint="f" * 64, seed=0, model="resnet50", samples=2)
LINES = [score_line("cat_1", 0, 0.25, 0), score_line("dog_1", 1, 2 / 3, 1)]


def write(path, header, lines):
    path.write_text("".join([json.dumps(header) + "\n", *lines]))
    return path


def test_the_bytes_of_a_line():
    assert LINES[1] == '{"key": "dog_1", "class": 1, "probability": 0.666667, "half": 1, "trained_on": 0}\n'
    assert HEADER["softshard"] == "scores"
    assert HEADER["version"] == 1


def test_scores_are_read_as_they_were_written(tmp_path):
    found = read_scores(write(tmp_path / "s.jsonl", HEADER, LINES), fingerprint="f" * 64)
    assert found.keys == ("cat_1", "dog_1")
    assert found.classes.tolist() == [0, 1]
    assert found.probability.tolist() == [0.25, 0.666667]
    assert found.half.tolist() == [0, 1]
    assert found.header["model"] == "resnet50"


def changed(line, **values):
    return json.dumps(json.loads(line) | values) + "\n"


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (HEADER, [LINES[0], changed(LINES[1], trained_on=1)],
         "line 3: key 'dog_1': expected a score from a model that did not train on the image, found one that was trained "
         "on its half, 1"),
        (HEADER, LINES[:1], "expected 2 scores, found 1; it is cut short"),
        (HEADER, [LINES[0], LINES[0]], "line 3: expected each key once, found 'cat_1' again"),
        (HEADER, [LINES[0], LINES[1][:20]], "line 3: expected a JSON object"),
        (HEADER, [LINES[0], changed(LINES[1], probability=1.5)], "expected a probability from 0 to 1, found 1.5"),
        (HEADER, [LINES[0], changed(LINES[1], probability=True)], "expected a probability from 0 to 1, found True"),
        (HEADER, [LINES[0], changed(LINES[1], half=2)], r"expected halves 0 or 1, found \(2, 0\)"),
        (HEADER, [LINES[0], changed(LINES[1], key=7)], "expected a key and a class index"),
        (HEADER | {"version": 2}, LINES, "expected version 1, found 2"),
        (HEADER | {"softshard": "bad"}, LINES, "expected a file of `softshard subset score`, found something else"),
        (HEADER | {"samples": "2"}, LINES, "expected a header with 'fingerprint' and 'samples'"),
        (HEADER | {"fingerprint": "0" * 64}, LINES, "expected scores of the data set ffff"),
    ],
)  # fmt: skip
def test_what_are_no_scores_is_refused(header, lines, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_scores(write(tmp_path / "s.jsonl", header, lines), fingerprint="f" * 64)


def test_every_bad_line_is_named(tmp_path):
    lines = [changed(LINES[0], probability=-1), changed(LINES[1], half=0)]
    with pytest.raises(DataError) as caught:
        read_scores(write(tmp_path / "s.jsonl", HEADER, lines))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["line 2", "line 3"]


def test_an_empty_file_is_none(tmp_path):
    (tmp_path / "s.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="expected a file of `softshard subset score`, found something else"):
        read_scores(tmp_path / "s.jsonl")
