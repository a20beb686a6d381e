"""The compiled loops that check and decode label maps against numpy's path: the same arrays, and the same errors."""

import ctypes
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import encode, made

from softshard import loaders
from softshard.loaders import pool_label_maps, pooling, pooling_compiled
from softshard.loaders.pooling_compiled import (
    compiled_check_sums,
    compiled_decode,
    compiled_expand,
    compiled_read_headers,
    load_kernels,
)
from softshard.shards import DataError
from softshard.shards.labelmap import decode_group
from softshard.shards.labelmap_expand import expand
from softshard.shards.labelmap_header import (
    HEADER,
    HEADER_DTYPE,
    MAGIC,
    check_sums,
    join_maps,
    pack_header,
    payload_bytes,
    read_headers,
)

pytest.importorskip("numba")
KERNELS = load_kernels()
needs_libzstd = pytest.mark.skipif(KERNELS.expand_frames is None, reason="needs libzstd.so.1")


@given(st.lists(st.tuples(st.integers(0, HEADER.size - 1), st.integers(0, 255)), max_size=3))
@settings(max_examples=300)
def test_headers_that_the_loop_takes_are_those_that_numpy_takes(changes):
    encoded = bytearray(pack_header((3, 2, 2, 5, 15, 15, 90, 1000, 2438), b"block"))
    for at, value in changes:
        encoded[at] = value
    maps = join_maps([bytes(encoded)], str)
    raw, magic = np.frombuffer(maps.data, np.uint8), np.frombuffer(MAGIC, np.uint8)
    room = np.empty((1, HEADER.size), np.uint8)
    try:
        expected = read_headers(maps, str)
    except DataError:
        assert not KERNELS.headers_fit(raw, maps.starts, magic, room)
        with pytest.raises(DataError):
            compiled_read_headers(KERNELS)(maps, str)
    else:
        np.testing.assert_array_equal(compiled_read_headers(KERNELS)(maps, str), expected)
        assert KERNELS.headers_fit(raw, maps.starts, magic, room)


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=5), st.data())
@settings(max_examples=200)
def test_checksums_are_those_of_zlib(blocks, data):
    fields = (1, 0, 0, 1, 1, 1, 0, 1, 11)
    encoded = [pack_header(fields, block) for block in blocks]
    damaged = data.draw(st.none() | st.integers(0, len(blocks) - 1))
    if damaged is not None:
        spoilt = bytearray(encoded[damaged])
        at = data.draw(st.integers(HEADER.size - 4, len(spoilt) - 1))
        spoilt[at] ^= data.draw(st.integers(1, 255))
        encoded[damaged] = bytes(spoilt)
    maps = join_maps(encoded, str)
    heads = read_headers(maps, str)
    for check in (check_sums, compiled_check_sums(KERNELS)):
        if damaged is None:
            check(maps, np.arange(len(blocks)), heads, str)
        else:
            with pytest.raises(DataError, match=f"^{damaged}: expected checksum"):
                check(maps, np.arange(len(blocks)), heads, str)


@given(st.data(), st.integers(0, 3), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=300)
def test_any_payload_decodes_to_the_same_arrays_or_the_same_error(data, scores, ids, num):
    shape, palette = (2, 1, 3), data.draw(st.integers(1, 4)) if ids else 0
    heads = np.zeros(num, HEADER_DTYPE)
    heads["scores"], heads["ids"], heads["palette"], heads["classes"] = scores, ids, palette, 600
    size = int(payload_bytes(*(heads[name] for name in ("scores", "ids", "palette")), np.full(num, 6))[0])
    heads["payload"] = size
    # Small bytes: most places and ids are within their limits, and some are not.
    small = st.lists(st.integers(0, 3), min_size=size, max_size=size).map(bytes)
    payloads = [data.draw(small | st.binary(min_size=size, max_size=size)) for _ in range(num)]
    results = []
    for decode in (decode_group, compiled_decode(KERNELS)):
        try:
            group = decode(
                np.arange(num), b"".join(payloads), np.arange(num) * size, heads, shape, lambda i: f"map {i}"
            )
            results.append((group.scores.tobytes(), group.ids().astype(np.int64).tolist()))
        except DataError as error:
            results.append(str(error))
    assert results[0] == results[1]


@needs_libzstd
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(-3, 3))
@settings(max_examples=150)
def test_blocks_expand_to_the_same_payloads_or_the_same_error(at, value, more):
    scores, ids, _ = made(0, 1, 5, 9, 9, 60)
    (good,) = encode(scores, ids, 60, score_encoding="uint8")
    fields, block = HEADER.unpack(good[: HEADER.size])[2:-1], bytearray(good[HEADER.size :])
    block[at % len(block)] = value
    changed = pack_header(fields, bytes(block[:more]) if more < 0 else bytes(block) + bytes(more))
    maps = join_maps([good, changed, good], str)
    heads, results = read_headers(maps, str), []
    for unpack in (expand, compiled_expand(KERNELS)):
        try:
            results.append(bytes(unpack(maps, np.arange(3), heads, str)))
        except DataError as error:
            results.append(str(error))
    assert results[0] == results[1]
    assert not more or "1: expected" in results[0]


# Of zstd 0.7, with the flags and size of those that are taken: blocks of 300 zeros as they are, and of nothing.
OLD_FRAME = struct.pack("<IBH", 0xFD2FB527, 0x60, 300 - 256) + b"\x40\x01\x2c" + bytes(300) + b"\xc0\0\0"


@needs_libzstd
@pytest.mark.parametrize(
    "frame",
    [
        zstandard.ZstdCompressor(write_content_size=False).compress(
            bytes(300)
        ),  # FORMAT.md: it MUST state its size
        zstandard.ZstdCompressor(write_checksum=True).compress(bytes(300)),
        zstandard.ZstdCompressor().compress(bytes(300)) + zstandard.ZstdCompressor().compress(bytes(300)),
        zstandard.ZstdCompressor().compress(bytes(301)),
        b"\x28\xb5\x2f\xfd\x60",
        b"\x50\x2a\x4d\x18\x60\0\0\0" + bytes(96),  # a skippable frame
        OLD_FRAME,
    ],
    ids=["no size", "a checksum", "two frames", "another size", "cut short", "skippable", "of version 0.7"],
)
def test_frames_of_another_kind_are_left_to_zstandard(frame):
    raw, payloads = np.frombuffer(frame + bytes(8), np.uint8), np.empty(300, np.uint8)
    places = np.array([0]), np.array([len(frame)]), np.array([300])
    assert not KERNELS.expand_frames(raw, *places, payloads)
    good = np.frombuffer(zstandard.ZstdCompressor().compress(b"7" * 300), np.uint8)
    assert KERNELS.expand_frames(good, np.array([0]), np.array([len(good)]), np.array([300]), payloads)
    assert bytes(payloads) == b"7" * 300


def test_without_libzstd_maps_pool_to_the_same_bits(monkeypatch):
    scores, ids, crops = made(5, 8)
    maps = encode(scores, ids, 40, score_encoding="uint8")
    expected = pool_label_maps(maps, crops, num_classes=40)
    monkeypatch.setattr(pooling, "load_kernels", lambda: KERNELS._replace(expand_frames=None))
    assert torch.equal(pool_label_maps(maps, crops, num_classes=40), expected)


@pytest.mark.parametrize("library", ["libnowhere.so", "libc.so.6"], ids=["missing", "without its functions"])
def test_a_libzstd_that_does_not_fit_is_none(monkeypatch, library):
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: load(library))
    monkeypatch.delitem(sys.modules, "softshard.loaders.expand_kernel", raising=False)
    monkeypatch.delattr(loaders, "expand_kernel", raising=False)
    assert pooling_compiled._expand_kernel() is None


def test_where_its_loop_does_not_compile_all_others_do(monkeypatch):
    from numba import njit

    unfit = njit(lambda raw, starts, ends, sizes, payloads: raw.is_no_array)
    monkeypatch.setattr(pooling_compiled, "_expand_kernel", lambda: SimpleNamespace(expand_frames=unfit))
    assert load_kernels.__wrapped__() == KERNELS._replace(expand_frames=None)
