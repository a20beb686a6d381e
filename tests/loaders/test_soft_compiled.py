"""Soft labels by compiled loops are, bit for bit, what the plain decoder and numpy make of the same bytes."""

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softshard.loaders.batch_buffers import BatchBuffers
from softshard.loaders.soft_compiled import find_compiled, keep_compiled, load_soft_kernels
from softshard.loaders.soft_targets import keep_largest
from softshard.shards import DataError
from softshard.shards.soft_labels import KINDS, SparseLabels, decode_soft_labels, encode_meta

pytestmark = pytest.mark.skipif(load_soft_kernels() is None, reason="needs numba")

NUM_IDS = 70_000  # ids of one, two, three and five bytes
IDS = st.lists(st.integers(0, NUM_IDS - 1), max_size=6, unique=True).map(sorted)
WEIGHTS = st.floats(0, 2.0**120, width=32) | st.integers(0, 2**40)
TEXTS = st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=3) | st.none() | st.binary(max_size=3)


@st.composite
def metas(draw):
    ids = draw(IDS)
    weights = [ids, draw(st.lists(WEIGHTS, min_size=len(ids), max_size=len(ids)))]
    fields = {"path": draw(st.text(max_size=40)), "size": [300, 70_000], "title": draw(TEXTS)}
    fields |= {"tags": draw(IDS), "weights": weights}
    return dict(draw(st.permutations(list(fields.items()))))


def compiled_finds(kind, members):
    return find_compiled(load_soft_kernels().find_labels, kind, members, NUM_IDS)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(st.lists(metas(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_what_softshard_writes_is_found(rows):
    members = [encode_meta(row) for row in rows]
    for kind in ("tags", "weights"):
        assert_same(compiled_finds(kind, members), decode_soft_labels(kind, members, NUM_IDS, str))
    members = [msgpack.packb(row["weights"], use_single_float=True) for row in rows]
    assert_same(compiled_finds("pseudo", members), decode_soft_labels("pseudo", members, NUM_IDS, str))


@given(metas(), st.sampled_from(KINDS), st.data())
@settings(max_examples=200)
def test_damaged_bytes_are_found_as_the_plain_decoder_finds_them_or_left_to_it(row, kind, data):
    member = bytearray(encode_meta(row) if kind != "pseudo" else msgpack.packb(row["weights"]))
    for _ in range(data.draw(st.integers(1, 3))):
        member[data.draw(st.integers(0, len(member) - 1))] = data.draw(st.integers(0, 255))
    member = bytes(member[: data.draw(st.integers(0, len(member)))] if data.draw(st.booleans()) else member)
    found = compiled_finds(kind, [member])
    if found is not None:
        assert_same(found, decode_soft_labels(kind, [member], NUM_IDS, str))


@given(st.binary(max_size=12))
@example("é€😀".encode())
@example(b"\xed\xa0\x80")  # half a surrogate pair
@example(b"\xe0\x80\xaf")  # longer than it must be
@example(b"\xf4\x90\x80\x80")  # beyond Unicode
@settings(max_examples=200)
def test_text_that_is_no_utf8_is_left_to_the_plain_decoder(text):
    member = b"\x82\xa4path" + bytes([0xA0 | len(text)]) + text + b"\xa4tags\x91\x03"
    try:
        text.decode()
    except UnicodeDecodeError:
        assert compiled_finds("tags", [member]) is None
        with pytest.raises(DataError, match="expected a MessagePack map"):
            decode_soft_labels("tags", [member], NUM_IDS, str)
    else:
        assert compiled_finds("tags", [member]).ids.tolist() == [3]


@pytest.mark.parametrize("depth", [1, 500, 501, 1000, 1024, 5000])
def test_lists_in_lists_are_found_as_the_plain_decoder_finds_them_or_left_to_it(depth):
    """Of a hostile sample: msgpack takes 1,024 levels at most."""
    member = b"\x82\xa5title" + b"\x91" * depth + b"\xc0" + b"\xa4tags\x91\x03"
    found = compiled_finds("tags", [member])
    assert (found is None) == (depth > 500)
    if depth <= 1000:
        wanted = decode_soft_labels("tags", [member], NUM_IDS, str)
        assert wanted.ids.tolist() == [3]
        assert found is None or found.ids.tolist() == [3]
    else:
        with pytest.raises(DataError, match="expected a MessagePack map"):
            decode_soft_labels("tags", [member], NUM_IDS, str)


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_the_largest_are_kept_in_numpys_order(keep):
    rng = np.random.default_rng(keep)
    rows = np.sort(rng.integers(0, 9, 60))
    ids = np.concatenate(
        [np.sort(rng.choice(99, np.sum(rows == row), replace=False)) for row in np.unique(rows)]
    )
    labels = SparseLabels(rows, ids, rng.integers(0, 4, 60).astype(np.float32))  # many are equal
    found = keep_compiled(load_soft_kernels().fill_largest, labels, 10, keep)
    assert_same(found, keep_largest(labels, 10, keep))


def test_dense_targets_have_nothing_left_of_the_batch_before():
    buffers = BatchBuffers((4, 7), torch.float32)
    buffers.take().fill_(5)
    dense = buffers.take().numpy()
    assert (dense == 5).all()  # memory that was used
    labels = SparseLabels(np.array([0, 0, 3]), np.array([1, 6, 0]), np.array([1, 2, 3], np.float32))
    load_soft_kernels().fill_dense(dense, *labels)
    assert dense.tolist() == [[0, 1, 0, 0, 0, 0, 2], [0] * 7, [0] * 7, [3, 0, 0, 0, 0, 0, 0]]
