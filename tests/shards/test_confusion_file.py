"""Confusion matrices in files: read again as they were written, by name where there are names; bad ones refused."""

import io

import numpy as np
import pytest

from softshard.shards.confusion_file import load_confusion, save_confusion
from softshard.shards.errors import DataError, UsageError

NAMES = ("cat", "dog, small", "crow")
COUNTS = np.array([[5, 2, 0], [1, 6, 0], [0, 0, 7]])


def npy(array, **options):
    data = io.BytesIO()
    np.save(data, array, **options)
    return data.getvalue()


def claiming(num_classes):
    """A header that promises more than there is."""
    data = io.BytesIO()
    shape = (num_classes, num_classes)
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return data.getvalue() + b"abc"


@pytest.mark.parametrize("name", ["c.npy", "c.csv", "new/folder/c.csv"])
def test_a_matrix_is_read_as_it_was_written(name, tmp_path):
    save_confusion(tmp_path / name, COUNTS, NAMES)
    found = load_confusion(tmp_path / name, NAMES)
    assert found.dtype == np.float64
    assert np.array_equal(found, COUNTS)


def test_a_csv_is_read_by_name_in_another_order_and_with_fewer_classes(tmp_path):
    save_confusion(tmp_path / "c.csv", COUNTS, NAMES)
    found = load_confusion(tmp_path / "c.csv", ("dog, small", "cat"))
    assert found.tolist() == [[6, 1], [2, 5]]


def test_the_bytes_of_a_csv(tmp_path):
    save_confusion(tmp_path / "c.csv", COUNTS, NAMES)
    expected = b'class,cat,"dog, small",crow\ncat,5,2,0\n"dog, small",1,6,0\ncrow,0,0,7\n'
    assert (tmp_path / "c.csv").read_bytes() == expected


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfclass,a,b\r\na,1,2\r\nb,3,4\r\n",
        b"1,2\n3,4\n",
        b"1.0, 2\r\n3,4e0",
        b",a,b\na,1,2\nb,3,4\n\n",
        b'"class","a","b"\n"a","1","2"\n"b","3","4"\n',
    ],
)
def test_spellings_of_a_csv(text, tmp_path):
    (tmp_path / "c.csv").write_bytes(text)
    assert load_confusion(tmp_path / "c.csv", ("a", "b")).tolist() == [[1, 2], [3, 4]]


def test_columns_of_fortran_are_not_taken_for_rows(tmp_path):
    (tmp_path / "c.npy").write_bytes(npy(np.asfortranarray(COUNTS.astype(np.float32))))
    assert np.array_equal(load_confusion(tmp_path / "c.npy", NAMES), COUNTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"", "expected a confusion matrix, found an empty file"),
        ("c.csv", b"1,2\n3\n", "line 2: expected 2 cells, found 1"),
        ("c.csv", b"1,2\n3,x\n", "line 2: expected numbers, found 'x'"),
        ("c.csv", b"1,2,3\n4,5,6\n", "line 1: expected 2 cells, found 3\n.*: line 2: expected 2 cells, found 3"),
        ("c.csv", b"1,2\n-3,nan\n", r"found -3.0 in row 1, column 0 \(from 0\) and 1 more"),
        ("c.csv", b"class,a,a\na,1,2\na,3,4\n", "class 'a' stands twice"),
        ("c.csv", b"class,a,b\nb,1,2\na,3,4\n", "in that order, found 'b', 'a'"),
        ("c.csv", b"class,a,c\na,1,2\nc,3,4\n", "expected the data set's 2 classes, found 1 missing: 'b'"),
        ("c.csv", b"1,2,3\n4,5,6\n7,8,9\n", "expected 2 rows and columns, one a class, found 3"),
        ("c.csv", b"\xff\xfe1,2", "expected UTF-8 text, found byte 0xff"),
        ("c.npy", b"PK\x03\x04", "expected an array of numpy.save's, found none"),
        ("c.npy", npy(COUNTS[:2, :2])[:-1], "expected 32 bytes of numbers, found 31; the file is cut short"),
        ("c.npy", npy(COUNTS[:2]), r"expected a square matrix \[C, C\] of numbers, found int64 of shape \[2, 3\]"),
        ("c.npy", npy(np.array([[{}]], object)), "of numbers, found object of shape"),
        ("c.npy", claiming(10**7), "expected 800,000,000,000,000 bytes of numbers, found 3; the file is cut short"),
    ],
)  # fmt: skip
def test_what_is_no_confusion_matrix_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){name}: .*{message}"):
        load_confusion(tmp_path / name, ("a", "b"))


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path):
    for name in ("c.npy", "c.csv"):
        with pytest.raises(UsageError, match=f"{name}: cannot be read"):
            load_confusion(tmp_path / name, NAMES)
    with pytest.raises(UsageError, match=r"expected a file that ends in \.npy or \.csv, found '\.pkl'"):
        load_confusion(tmp_path / "c.pkl", NAMES)
