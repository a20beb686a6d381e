"""The `kd` component: what goes in comes out, and nothing damaged does."""

import struct
import zlib

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.errors import DataError, UsageError
from softshard.shards.teacher_levels import (
    HEADER,
    LZ4,
    MAX_BYTES,
    STORED,
    decode_teacher_levels,
    encode_teacher_levels,
    num_kept,
    read_teacher_header,
)

SIZES = (3, 45, 1)  # of which 1, 3 and 1 are kept
IDS = [2, 44, 0, 7, 0]
PROBABILITIES = [0.7, 0.513, 0.2501, 0.1252, 0.9]

# Header, level sizes, ids, low and high bytes of the probabilities: stored, since LZ4 would be longer.
GOLDEN = bytes.fromhex("""
    53534b44 01 00 0300 05000000 9c102a2d
    0300 2d00 0100
    0200 2c00 0000 0700 0000
    9a 1b 00 02 33
    39 38 34 30 3b
""")


def sealed(head, block):
    """A value with the right checksum, whatever else is wrong."""
    return head + struct.pack("<I", zlib.crc32(block, zlib.crc32(head))) + block


def value():
    return encode_teacher_levels(np.array(IDS), np.array(PROBABILITIES), SIZES)


def test_the_bytes_are_as_documented():
    assert value() == GOLDEN


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_what_is_encoded_is_decoded(sizes, seed):
    rng, ids, probabilities = np.random.default_rng(seed), [], []
    for size, kept in zip(sizes, num_kept(sizes), strict=True):
        all_of_them = rng.dirichlet(np.full(size, 0.1))
        best = np.argsort(-all_of_them, kind="stable")[:kept]
        ids.append(best)
        probabilities.append(all_of_them[best].astype(np.float16))
    ids, probabilities = np.concatenate(ids), np.concatenate(probabilities)
    data = encode_teacher_levels(ids, probabilities, sizes)
    assert len(data) <= HEADER.size + 2 * len(sizes) + 4 * len(ids) <= MAX_BYTES
    found_ids, found_probabilities = decode_teacher_levels([data, data], sizes)
    assert found_ids.dtype == np.int64
    assert found_probabilities.dtype == np.float16
    np.testing.assert_array_equal(found_ids, np.stack([ids, ids]))
    np.testing.assert_array_equal(found_probabilities, np.stack([probabilities, probabilities]))


def test_every_changed_byte_is_noticed():
    data = value()
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        with pytest.raises(DataError, match=r"a\.tar: sample 'x', component 'kd': expected"):
            decode_teacher_levels([data, damaged], SIZES, ["first", "a.tar: sample 'x', component 'kd'"])


def test_every_cut_is_noticed():
    data = value()
    for size in range(len(data)):
        with pytest.raises(DataError, match="cut short"):
            read_teacher_header(data[:size])


def test_no_more_is_expanded_than_the_header_allows():
    head = HEADER.pack(b"SSKD", 1, LZ4, 3, 5, 0)[:-4]
    bomb = sealed(head, lz4.block.compress(bytes(10**6), store_size=False))
    with pytest.raises(DataError, match="expected an LZ4 block, found"):
        decode_teacher_levels([bomb], SIZES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((b"SSLM", 1, STORED, 3, 5), "that start with b'SSKD', found b'SSLM'"),
        ((b"SSKD", 2, STORED, 3, 5), "version 1, found 2; they were written by a newer softshard"),
        ((b"SSKD", 0, STORED, 3, 5), "encodings of version 1, found others"),
        ((b"SSKD", 1, 2, 3, 5), "encodings of version 1, found others"),
        ((b"SSKD", 1, STORED, 0, 5), "1 to 4096 levels"),
        ((b"SSKD", 1, STORED, 3, 2), "found 3 and 2; it is damaged"),
        ((b"SSKD", 1, STORED, 3, 2**31), "to 65536 kept classes"),
        ((b"SSKD", 1, STORED, 3, 6), "expected 5 kept classes on 3 levels, found 6 on 3; .* another tree"),
        ((b"SSKD", 1, STORED, 4, 5), "expected 5 kept classes on 3 levels, found 5 on 4; .* another tree"),
    ],
)
def test_bad_headers_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        decode_teacher_levels([sealed(HEADER.pack(*fields, 0)[:-4], value()[HEADER.size :])], SIZES)


@pytest.mark.parametrize(
    ("at", "written", "message"),
    [
        (0, 4, r"expected levels of \[3, 45, 1\] classes, found \[4, 45, 1\]; the teacher had another tree"),
        (6, 3, "expected ids within their level"),
        (20, 0x7C00, "probabilities from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused_under_a_right_checksum(at, written, message):
    data = value()
    payload = bytearray(data[HEADER.size :])
    if at == 20:  # the high byte of a probability: NaN
        payload[21] = written >> 8
    else:
        payload[at : at + 2] = struct.pack("<H", written)
    with pytest.raises(DataError, match=message):
        decode_teacher_levels([sealed(data[: HEADER.size - 4], bytes(payload))], SIZES)


@pytest.mark.parametrize(
    ("ids", "probabilities", "message"),
    [
        (IDS[:4], PROBABILITIES[:4], r"expected integer ids and probabilities \[5\], found int64 \[4\]"),
        (np.array(IDS) * 1.0, PROBABILITIES, "found float64"),
        ([3, *IDS[1:]], PROBABILITIES, "ids within their level"),
        ([-1, *IDS[1:]], PROBABILITIES, "ids within their level"),
        ([2, 44, 44, 7, 0], PROBABILITIES, "distinct ids on each level"),
        (IDS, [0.75, 0.5, np.nan, 0.1, 1.0], "probabilities from 0 to 1"),
        (IDS, [1.5, 0.5, 0.25, 0.125, 1.0], "probabilities from 0 to 1"),
        (IDS, [0.75, 0.5, 0.5, 0.125, 1.0], "at most 1 as the sum of a level's probabilities"),
        (IDS, [0.75, 0.25, 0.5, 0.125, 1.0], "the most probable class of each level first"),
    ],
)
def test_what_is_no_answer_of_a_teacher_is_not_written(ids, probabilities, message):
    with pytest.raises(DataError, match=message):
        encode_teacher_levels(np.array(ids), np.array(probabilities), SIZES)


@pytest.mark.parametrize("sizes", [(), (0,), (40_000,), (1,) * 5000])
def test_levels_beyond_the_limits_are_refused(sizes):
    with pytest.raises(UsageError, match="expected 1 to 4096 levels of 1 to 32767 classes"):
        encode_teacher_levels(np.array(IDS), np.array(PROBABILITIES), sizes)


def test_an_empty_batch_is_an_empty_array():
    ids, probabilities = decode_teacher_levels([], SIZES)
    assert ids.shape == probabilities.shape == (0, 5)
