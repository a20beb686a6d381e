import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from softshard.shards import DataError, UsageError, decode_label_map, decode_label_maps, encode_label_map
from softshard.shards.labelmap import read_map_header
from softshard.shards.labelmap_header import (
    HEADER,
    HEADER_FIELDS,
    IDS_PALETTE_DIFFERENCES,
    IDS_UINT16,
    LZ4,
    STORED,
    ZSTD,
)
from softshard.shards.schema import LMAP, MAX_MAP_ELEMENTS


def make_map(shape=(3, 4, 5), num_classes=1000, seed=0, spread=5.0):
    """float32 scores that float16 represents, and ids that are distinct in each cell."""
    generator = np.random.default_rng(seed)
    k, p, q = shape
    scores = generator.normal(0, spread, shape).astype(np.float16).astype(np.float32)
    first = generator.integers(0, num_classes, (1, p, q))
    step = generator.integers(1, max(2, num_classes // k), (1, p, q))
    ids = (first + step * np.arange(k)[:, None, None]) % num_classes
    return scores, ids.astype(np.uint16)


@st.composite
def maps(draw):
    k, p, q = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    num_classes = draw(st.integers(k, 65_536))
    scores, ids = make_map((k, p, q), num_classes, draw(st.integers(0, 2**32)), draw(st.floats(0, 1000)))
    return scores, ids, num_classes


@given(maps())
def test_encode_then_decode_is_identity_for_float16_scores(drawn):
    scores, ids, num_classes = drawn
    found_scores, found_ids = decode_label_map(encode_label_map(scores, ids, num_classes=num_classes))
    assert (found_scores.dtype, found_ids.dtype) == (np.float32, np.uint16)
    assert np.array_equal(found_scores, scores)
    assert np.array_equal(found_ids, ids)


@given(maps())
def test_uint8_scores_and_their_sums_along_a_row_are_off_by_a_step_at_most(drawn):
    scores, ids, num_classes = drawn
    data = encode_label_map(scores, ids, num_classes=num_classes, score_encoding="uint8")
    found_scores, found_ids = decode_label_map(data)
    # An eighth of a logit, but 64 to 256 levels.
    span = float(scores.max()) - float(scores.min())
    step = min(max(1 / 8, span / 255), span / 63)
    rounding = 4 * np.finfo(np.float32).eps * float(np.abs(scores).max())
    off = found_scores.astype(np.float64) - scores
    assert np.abs(off).max() <= step + rounding
    # Dense by class: within a stretch of cells that keep a class, errors do not add up.
    num_columns = ids.shape[2]
    for c in np.unique(ids):
        for row, kept in zip((off * (ids == c)).sum(axis=0), (ids == c).any(axis=0), strict=True):
            since = np.cumsum(row)
            for q in range(num_columns):
                if kept[q]:
                    start = max((i + 1 for i in range(q) if not kept[i]), default=0)
                    total = since[q] - (since[start - 1] if start else 0)
                    assert abs(total) <= step / 2 + (num_columns + 1) * rounding
    assert np.array_equal(found_ids, ids)


@pytest.mark.parametrize("score_encoding", ["float16", "uint8"])
def test_equal_scores_stay_equal(score_encoding):
    scores, ids = np.full((2, 3, 3), 1.5, np.float32), np.indices((2, 3, 3))[0]
    data = encode_label_map(scores, ids, num_classes=2, score_encoding=score_encoding)
    assert (decode_label_map(data)[0] == 1.5).all()


def test_few_classes_are_stored_as_a_palette_and_many_as_uint16():
    few = encode_label_map(*make_map((5, 15, 15), 100), num_classes=100)
    many = encode_label_map(*make_map((5, 15, 15), 65_536), num_classes=65_536)
    assert (read_map_header(few).ids, read_map_header(many).ids) == (IDS_PALETTE_DIFFERENCES, IDS_UINT16)
    assert read_map_header(few).palette == 100


@pytest.mark.parametrize("num_classes", [1, 255, 256, 257])
def test_a_palette_has_256_entries_at_most(num_classes):
    ids = np.arange(40 * 40).reshape(1, 40, 40) % num_classes
    data = encode_label_map(np.zeros(ids.shape), ids, num_classes=num_classes)
    assert read_map_header(data).palette == (num_classes if num_classes <= 256 else 0)
    assert np.array_equal(decode_label_map(data)[1], ids)


def test_a_palette_that_would_be_longer_than_the_ids_is_not_used():
    for num, palette in ((4, 0), (6, 2)):  # 2 entries of 2 bytes and a byte a cell, or 2 bytes a cell
        ids = np.arange(num).reshape(1, 1, num) % 2
        assert read_map_header(encode_label_map(np.ones(ids.shape), ids, num_classes=2)).palette == palette


@pytest.mark.parametrize("score_encoding", ["float16", "uint8"])
def test_lz4_holds_the_same_map(score_encoding):
    scores, ids = make_map((5, 15, 15), 100)
    options = {"num_classes": 100, "score_encoding": score_encoding}
    small = encode_label_map(scores, ids, **options)
    large = encode_label_map(scores, ids, compression="lz4", **options)
    assert (read_map_header(small).compression, read_map_header(large).compression) == (ZSTD, LZ4)
    for one, other in zip(decode_label_map(small), decode_label_map(large), strict=True):
        assert np.array_equal(one, other)


def test_the_largest_id_of_the_largest_label_space_survives():
    ids = np.array([[[65_535]], [[0]]])
    found = decode_label_map(encode_label_map(np.ones((2, 1, 1)), ids, num_classes=65_536))[1]
    assert found.tolist() == ids.tolist()


def test_maps_of_several_encodings_are_decoded_together():
    drawn = [
        make_map((3, 4, 5), classes, seed) for seed, classes in enumerate([40, 60_000, 40, 1000, 60_000])
    ]
    data = [
        encode_label_map(scores, ids, num_classes=65_536, score_encoding=encoding)
        for (scores, ids), encoding in zip(
            drawn, ["float16", "float16", "uint8", "uint8", "float16"], strict=True
        )
    ]
    scores, ids = decode_label_maps(data)
    assert scores.shape == ids.shape == (5, 3, 4, 5)
    for i, each in enumerate(data):
        assert np.array_equal(decode_label_map(each)[0], scores[i])
        assert np.array_equal(decode_label_map(each)[1], ids[i])
        assert np.array_equal(ids[i], drawn[i][1])


def test_the_bytes_of_a_map_never_change():
    # A map this small does not compress, so that its bytes do not depend on zstd's version.
    data = encode_label_map(np.array([[[1.5]], [[-2.0]]]), np.array([[[300]], [[7]]]), num_classes=1000)
    header = HEADER.pack(b"SSLM", 1, 2, 0, 0, 2, 1, 1, 0, 1000, 8, 0)[:-4]
    # Ranks: 1.5 is 0x3E00, and 0x3E00 - 0xC000 (-2.0) is 0x7E00 modulo 65,536.
    block = struct.pack("<HH", 300, 7) + bytes([0x00, 0x00, 0x3E, 0x7E])
    assert data == header + struct.pack("<I", zlib.crc32(header + block)) + block
    assert decode_label_map(data)[0].ravel().tolist() == [1.5, -2.0]


def test_the_bytes_of_a_map_with_a_palette_and_uint8_scores_never_change():
    ids = np.array([[[7, 7, 7, 7, 300]], [[300, 300, 300, 300, 7]]])
    scores = np.array([[[8.0, 8, 8, 8, 8]], [[0, 1, 2, 3, 4]]])
    data = encode_label_map(scores, ids, num_classes=1000, score_encoding="uint8")
    # The palette as differences, places, `low`, an eighth as `step`, then levels: 64 less those of rank 1.
    header = HEADER.pack(b"SSLM", 1, 3, 2, 0, 2, 1, 5, 2, 1000, 32, 0)[:-4]
    block = struct.pack("<HH10Bff", 7, 293, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0.0, 0.125)
    block += bytes([64, 64, 64, 64, 64, 64, 56, 48, 40, 32])
    assert data == header + struct.pack("<I", zlib.crc32(header + block)) + block
    assert np.array_equal(decode_label_map(data)[0], scores)


def test_a_map_of_the_first_version_is_still_read():
    # Palette, affine uint8 and LZ4, as softshard 0.1 wrote it.
    data = bytes.fromhex(
        "53534c4d01010101020006000600040088130000a0000000eeafe842e10000e803d007b80b000102030001050011020500210303"
        "13000818000f1e000b13021300710000a1a0203c00010011330100116601001199010011cc010011ff01000f24000c50ffffffff"
        "ff"
    )
    assert read_map_header(data).compression == LZ4
    scores, ids = decode_label_map(data)
    assert (read_map_header(data).scores, read_map_header(data).ids) == (1, 1)  # no differences
    assert ids.tolist() == (np.indices((2, 6, 6)).sum(axis=0) % 4 * 1000).tolist()
    assert np.allclose(scores, np.indices((2, 6, 6))[1] / 2, atol=1e-6)
    # Ids as uint16, scores as they are.
    data = bytes.fromhex("53534c4d010000000200010001000000e803000008000000e13842132c01070000003ec0")
    scores, ids = decode_label_map(data)
    assert (scores.ravel().tolist(), ids.ravel().tolist()) == ([1.5, -2.0], [300, 7])


# ---- Damage


@pytest.mark.parametrize(
    "data",
    [
        encode_label_map(*make_map((2, 3, 3), 50), num_classes=50),
        encode_label_map(*make_map((2, 3, 3), 60_000), num_classes=60_000),
        encode_label_map(*make_map((5, 7, 7), 20), num_classes=20, score_encoding="uint8"),
        encode_label_map(*make_map((5, 7, 7), 20), num_classes=20, compression="lz4"),
    ],
)
def test_every_single_changed_byte_is_noticed(data):
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            with pytest.raises(DataError, match="expected"):
                decode_label_map(bytes(damaged))


def test_every_cut_is_noticed():
    data = encode_label_map(*make_map(), num_classes=1000)
    for size in range(len(data)):
        with pytest.raises(DataError, match="expected"):
            decode_label_map(data[:size])
    with pytest.raises(DataError, match="checksum"):
        decode_label_map(data + b"\0")


def forge(block=b"", **changes):
    """A map with changed header fields, and a checksum that fits."""
    fields = {
        "magic": b"SSLM",
        "version": 1,
        "scores": 0,
        "ids": 0,
        "compression": STORED,
        "top": 1,
        "rows": 1,
        "columns": 1,
        "palette": 0,
        "classes": 10,
        "payload": 4,
    } | changes
    header = HEADER.pack(*(fields.get(name, 0) for _, name, _ in HEADER_FIELDS))[:-4]
    return header + struct.pack("<I", zlib.crc32(block, zlib.crc32(header))) + block


ZEROS, BOMB = zstandard.ZstdCompressor(), zstandard.ZstdCompressor(level=1)


def test_the_forger_makes_good_maps_too():
    assert decode_label_map(forge(b"\x03\0\0\x3c"))[1].tolist() == [[[3]]]
    frame = ZEROS.compress(b"\x03\0\0\x3c")
    assert decode_label_map(forge(frame, compression=ZSTD))[1].tolist() == [[[3]]]
    for ids in (1, 2):  # the largest id, as a palette's only entry
        assert decode_label_map(forge(b"\x09\0\0\0\x3c", ids=ids, palette=1, payload=5))[1].tolist() == [
            [[9]]
        ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected 28 to 4194304 bytes, found 0"),
        (bytes(LMAP.max_bytes + 1), "expected 28 to 4194304 bytes, found 4194305"),
        (forge(magic=b"SSLN"), "expected a label map that starts with b'SSLM', found b'SSLN'"),
        (forge(version=2), "expected label map version 1, found 2; it was written by a newer softshard"),
        (forge(version=0), "expected encodings of version 1"),
        (forge(scores=4), "expected encodings of version 1"),
        (forge(ids=3), "expected encodings of version 1"),
        (forge(compression=3), "expected encodings of version 1"),
        (forge(ids=2), "expected encodings of version 1"),
        (forge(palette=1), "expected encodings of version 1"),
        (forge(ids=1, palette=257), "expected encodings of version 1"),
        (forge(top=0), "expected 1 to 4194304 elements, found 0 x 1 x 1"),
        (forge(top=65535, rows=65535, columns=65535), "expected 1 to 4194304 elements, found 65535 x 65535 x"),
        (forge(rows=4096, columns=1025), "expected 1 to 4194304 elements, found 1 x 4096 x 1025"),
        (forge(classes=0), "expected 1 to 65536 classes, found 0"),
        (forge(classes=65_537), "expected 1 to 65536 classes, found 65537"),
        (forge(payload=2**32 - 1), "expected a payload of 4 bytes for its shape, found 4294967295"),
        (forge(b"\x0a\0\0\0"), "expected class ids below 10, found 10"),
        (forge(b"\x00\0\0\x7c"), "expected finite scores, found NaN or infinity"),
        (forge(b"\x00\0\0"), "expected 4 payload bytes, found 3"),
        (forge(b"\x00", compression=LZ4), "expected 4 payload bytes, found 0"),
        (forge(b"\xf0\xff", compression=LZ4), "expected an LZ4 block, found"),
        (forge(b"\x50hello", compression=LZ4), "expected an LZ4 block, found"),
        (forge(b"", compression=ZSTD), "expected a zstd frame, found"),
        (forge(b"\x28\xb5\x2f\xfd", compression=ZSTD), "expected a zstd frame, found"),
        (forge(ZEROS.compress(b"\0" * 5), compression=ZSTD), "expected 4 payload bytes, found 5"),
        (forge(BOMB.compress(b"\0" * 2**24), compression=ZSTD), "expected 4 payload bytes, found 16777216"),
        (forge(ZEROS.compress(b"\0" * 4) * 2, compression=ZSTD), "expected a zstd frame, found"),
        (forge(ZEROS.compress(b"\0" * 4)[:-1], compression=ZSTD), "expected a zstd frame, found"),
        (forge(b"\x05\0\x01\0\0", ids=1, palette=1, payload=5), "expected palette codes below 1, found 1"),
        (forge(b"\x05\0\x01\0\0", ids=2, palette=1, payload=5), "expected palette codes below 1, found 1"),
        (forge(b"\x0b\0\0\0\0", ids=2, palette=1, payload=5), "expected class ids below 10, found 11"),
        (forge(b"\x05\0\x04\0\0\0\0", ids=1, palette=2, payload=7), "expected a palette in ascending order"),
        (forge(b"\x05\0\0\0\0\0\0", ids=2, palette=2, payload=7), "expected a palette in ascending order"),
        (forge(b"\x05\0\xff\xff\0\0\0", ids=2, palette=2, payload=7), "expected a palette in ascending order"),
    ],
)  # fmt: skip
def test_a_hostile_map_is_refused(data, message):
    where = "t.tar: sample 'a', component 'lmap'"
    with pytest.raises(DataError) as caught:
        decode_label_map(data, where)
    assert str(caught.value).startswith(f"{where}: {message}")


def test_a_hostile_header_is_refused_before_anything_is_allocated(monkeypatch):
    def allocate(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(np, "empty", allocate)
    monkeypatch.setattr("lz4.block.decompress", allocate)
    monkeypatch.setattr("zstandard.ZstdDecompressor", allocate)
    for data in (forge(top=65535, rows=65535, columns=65535), forge(payload=2**32 - 1), forge(rows=2)):
        with pytest.raises(DataError):
            decode_label_map(data)
    with pytest.raises(AssertionError):
        decode_label_map(forge(b"\x03\0\0\x3c"))


@settings(max_examples=300)
@given(st.binary(max_size=64), st.sampled_from([STORED, LZ4, ZSTD]), st.integers(0, 2), st.integers(0, 3))
def test_random_blocks_under_a_good_checksum_decode_or_are_refused(block, compression, ids, scores):
    palette = 2 if ids else 0
    payload = 2 * palette + 4 * (1 if ids else 2) + (12 if scores % 2 else 8)
    if compression == ZSTD:
        block = ZEROS.compress(block)
    data = forge(
        block,
        top=2,
        rows=2,
        palette=palette,
        ids=ids,
        scores=scores,
        compression=compression,
        payload=payload,
    )
    try:
        found_scores, found_ids = decode_label_map(data)
    except DataError:
        return
    assert np.isfinite(found_scores).all()
    assert found_ids.max() < 10


def test_maps_of_two_shapes_do_not_make_a_batch():
    data = [encode_label_map(*make_map(shape), num_classes=1000) for shape in [(3, 4, 5), (3, 5, 4)]]
    with pytest.raises(
        DataError, match=r"^second: expected \[K, P, Q\] \[3, 4, 5\] as before, found \[3, 5, 4\]"
    ):
        decode_label_maps(data, ["first", "second"])


def test_the_damaged_map_of_a_batch_is_the_one_named():
    good = encode_label_map(np.ones((1, 1, 1)), np.zeros((1, 1, 1), int), num_classes=10)
    with pytest.raises(DataError, match=r"^second: expected class ids below 10, found 10"):
        decode_label_maps([good, forge(b"\x0a\0\0\0")], ["first", "second"])


def test_no_maps_make_no_batch():
    with pytest.raises(DataError, match="expected at least one, found none"):
        decode_label_maps([])


# ---- What is not encoded


@pytest.mark.parametrize(
    ("scores", "ids", "options", "message"),
    [
        (np.ones((1, 2)), np.ones((1, 2), int), {}, r"expected scores and ids of one shape \[K, P, Q\], found \[1, 2\]"),
        (np.ones((1, 2, 3)), np.ones((1, 3, 2), int), {}, r"found \[1, 2, 3\] and \[1, 3, 2\]"),
        (np.ones((1, 0, 3)), np.ones((1, 0, 3), int), {}, "expected scores and ids of one shape"),
        (np.ones((1, 1, 65_536)), np.ones((1, 1, 65_536), int), {}, "elements and 65535 a side, found 1 x 1 x 65536"),
        (np.ones((1, 1, 1)), np.full((1, 1, 1), 10), {}, "expected class ids from 0 to 9, found 10 to 10"),
        (np.ones((1, 1, 1)), np.full((1, 1, 1), -1), {}, "expected class ids from 0 to 9, found -1 to -1"),
        (np.ones((1, 1, 1)), np.full((1, 1, 1), 0.5), {}, "expected integer class ids, found float64"),
        (np.ones((2, 1, 1)), np.full((2, 1, 1), 4), {}, "expected distinct class ids in each cell, found one twice"),
        (np.full((1, 1, 1), np.nan), np.ones((1, 1, 1), int), {}, "expected finite scores, found NaN or infinity"),
        (np.full((1, 1, 1), -np.inf), np.ones((1, 1, 1), int), {}, "expected finite scores"),
        (np.full((1, 1, 1), 70_000), np.ones((1, 1, 1), int), {}, r"expected scores within \+-65504, found 70000"),
        (np.full((1, 1, 1), 1e39), np.ones((1, 1, 1), int), {"score_encoding": "uint8"}, "in float32's range, found"),
        (np.ones((1, 1, 1)), np.zeros((1, 1, 1), int), {"num_classes": 65_537}, "expected 1 to 65536 classes, found 65537"),
        (np.ones((1, 1, 1)), np.zeros((1, 1, 1), int), {"num_classes": 0}, "expected 1 to 65536 classes, found 0"),
    ],
)  # fmt: skip
def test_what_is_no_label_map_is_not_encoded(scores, ids, options, message):
    with pytest.raises(DataError, match=f"^label map: .*{message}"):
        encode_label_map(scores, ids, **{"num_classes": 10, **options})


def test_a_map_with_too_many_elements_is_not_encoded():
    side = 2**11 + 1
    assert 2 * side * side > MAX_MAP_ELEMENTS
    ids = np.broadcast_to(np.arange(2, dtype=np.uint8)[:, None, None], (2, side, side))
    with pytest.raises(DataError, match="expected at most 4194304 elements"):
        encode_label_map(np.broadcast_to(np.float16(1), ids.shape), ids, num_classes=2)


def test_an_unknown_score_encoding_is_a_wrong_call():
    with pytest.raises(UsageError, match="score encoding: expected one of float16, uint8, found 'int4'"):
        encode_label_map(*make_map(), num_classes=1000, score_encoding="int4")
    with pytest.raises(UsageError, match="compression: expected one of lz4, zstd, found 'gzip'"):
        encode_label_map(*make_map(), num_classes=1000, compression="gzip")
