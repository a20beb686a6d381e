import io
import tarfile

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards import DataError, read_shard
from softshard.shards.components import decode_class, decode_levels, decode_meta, encode_levels

WHERE = "t.tar: sample 'a'"


def npy(array, version=(1, 0)):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version=version)
    return buffer.getvalue()


def test_the_bytes_of_a_label_vector_never_change():
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }".ljust(117)
        + b"\n"
    )
    assert len(header) == 128
    assert encode_levels(np.array([3, 56, -1])) == header + b"\x03\x00\x38\x00\xff\xff"


@given(st.lists(st.integers(-1, 32_766), min_size=1, max_size=40))
def test_a_label_vector_reads_back(vector):
    found = decode_levels(encode_levels(np.array(vector, np.int16)), WHERE)
    assert found.dtype == np.int16
    assert found.tolist() == vector
    assert np.load(io.BytesIO(encode_levels(np.array(vector, np.int16)))).tolist() == vector


def test_several_paths_of_a_class_read_back():
    paths = np.array([[0, 1, -1], [0, 2, 3]], np.int16)
    assert decode_levels(npy(paths), WHERE).tolist() == paths.tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\3\4" + bytes(200),
        npy(np.zeros(3, np.int32)),
        npy(np.zeros(3, ">i2")),
        npy(np.zeros(3, np.float16)),
        npy(np.zeros((), np.int16)),
        npy(np.zeros((1, 1, 1), np.int16)),
        npy(np.asfortranarray(np.zeros((2, 3), np.int16))),
        npy(np.array([None])),
        npy(np.zeros(3, np.int16), (2, 0)),
        npy(np.zeros(3, np.int16))[:-1],
        npy(np.zeros(3, np.int16)) + b"\0",
        npy(np.zeros(3, np.int16)).replace(b"(3,)", b"(-3,)"),
        npy(np.zeros(3, np.int16)).replace(b"(3,), ", b"(9999999999999,), "),
        npy(np.zeros(3, np.int16)).replace(b"False", b"__import__('os')"),
    ],
)
def test_what_is_no_int16_vector_is_refused(data):
    with pytest.raises(DataError, match=r"^t\.tar: sample 'a', component 'hier\.npy': expected"):
        decode_levels(data, WHERE)


@settings(max_examples=300)
@given(st.integers(0, 133), st.integers(0, 255))
def test_a_damaged_vector_is_read_or_refused(at, value):
    data = bytearray(npy(np.array([3, 56, -1], np.int16)))
    data[at] = value
    try:
        found = decode_levels(bytes(data), WHERE)
    except DataError:
        return
    assert found.dtype == np.int16
    assert found.size == 3


@pytest.mark.parametrize(("data", "index"), [(b"0", 0), (b"65535", 65_535), (b"007", 7)])
def test_a_class_index_is_decimal(data, index):
    assert decode_class(data, WHERE) == index


@pytest.mark.parametrize("data", [b"", b"-1", b"1.0", b" 1", b"1\n", b"0x1", b"1_0", "²".encode(), b"1" * 17])
def test_what_is_no_class_index_is_refused(data):
    with pytest.raises(
        DataError, match=r"^t\.tar: sample 'a', component 'cls': expected a decimal class index, found"
    ):
        decode_class(data, WHERE)


def test_the_metadata_reads_back():
    meta = {"path": "größe/1.jpg", "size": [3, 4], "more": {"tags": [1.5, None]}}
    assert decode_meta(msgpack.packb(meta), WHERE) == meta


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01",
        b"\x90",
        msgpack.packb({1: 2}),
        b"\x81\xa1\xff\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\x80\x80",
        b"\x81\xa1a" + b"\x91" * 2000,
    ],
)
def test_what_is_no_map_of_texts_is_refused(data):
    with pytest.raises(DataError, match=r"^t\.tar: sample 'a', component 'msgpack': expected a"):
        decode_meta(data, WHERE)


def test_links_and_sparse_members_are_refused_before_they_are_read(tmp_path):
    for kind, extra in ((tarfile.SYMTYPE, {"linkname": "a.jpg"}), (tarfile.LNKTYPE, {"linkname": "a.jpg"})):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            member = tarfile.TarInfo("b.jpg")
            member.type = kind
            member.linkname = extra["linkname"]
            tar.addfile(member)
        with pytest.raises(DataError, match=r"expected plain files only, found 'b\.jpg' of another type"):
            list(read_shard(tmp_path / "x.tar"))


def test_a_component_twice_in_a_sample_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"1", b"2"):
            member = tarfile.TarInfo("a.cls")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match="sample 'a': expected component 'cls' once, found it again"):
        list(read_shard(tmp_path / "x.tar"))
