"""The compiled loops against numpy's path: the same arrays, targets and errors, and what happens without numba."""

import ctypes
import multiprocessing
import os
import struct
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import random_crops, random_maps

from softshard import loaders
from softshard.loaders import (
    LabelPooling,
    pool_label_maps,
    pool_top_classes,
    pooling,
    pooling_compiled,
)
from softshard.loaders.pooling_compiled import (
    MAPS_PER_SHARE,
    compiled_axis_weights,
    compiled_check_sums,
    compiled_decode,
    compiled_expand,
    compiled_read_headers,
    load_kernels,
    num_shares,
)
from softshard.loaders.roialign import axis_weights
from softshard.shards import DataError, decode_label_map, encode_label_map
from softshard.shards.labelmap import decode_group
from softshard.shards.labelmap_expand import expand
from softshard.shards.labelmap_header import (
    HEADER,
    HEADER_DTYPE,
    MAGIC,
    RANK_DIFFERENCES,
    SCORES_UINT8,
    STORED,
    check_sums,
    join_maps,
    pack_header,
    payload_bytes,
    read_headers,
)

pytest.importorskip("numba")
KERNELS = load_kernels()
needs_libzstd = pytest.mark.skipif(KERNELS.expand_frames is None, reason="needs libzstd.so.1")


@pytest.fixture(scope="module")
def by_numpy():
    """Calls a function on numpy's path."""

    def call(function, *args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "load_kernels", lambda: None)
            return function(*args, **options)

    return call


def made(seed, num, shape=(3, 6, 9), num_classes=40):
    rng = np.random.default_rng(seed)
    scores, ids = random_maps(rng, num, *shape, num_classes)
    return scores, ids, random_crops(rng, num)


def encode(scores, ids, num_classes, **options):
    return [
        encode_label_map(s, i, num_classes=num_classes, **options) for s, i in zip(scores, ids, strict=True)
    ]


def test_the_kernels_are_compiled_here():
    assert KERNELS is not None


@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 20, 300, 65_536]),
    st.sampled_from(["zero", "floor"]),
    st.sampled_from([None, (1, 3), (4, 2)]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
    st.sampled_from(["arrays", "uint8", "float16"]),
)
@settings(max_examples=100, deadline=None)
def test_both_paths_give_the_same_targets(by_numpy, seed, num_classes, fill, grid, original, multi, form):
    num = 3 if num_classes > 1000 else 8
    scores, ids, crops = made(seed, num, num_classes=num_classes)
    maps = (scores, ids) if form == "arrays" else encode(scores, ids, num_classes, score_encoding=form)
    options = LabelPooling(fill=fill, grid=grid, original=original, multi=multi)
    classes = np.arange(num) % num_classes - 1
    call = {"num_classes": num_classes, "classes": classes, "pooling": options}
    ours, numpys = pool_label_maps(maps, crops, **call), by_numpy(pool_label_maps, maps, crops, **call)
    if multi:
        torch.testing.assert_close(ours, numpys, rtol=1e-6, atol=1e-7)
    else:  # of two equal logits either may be the largest
        assert (ours == numpys).all(dim=-1).float().mean() > 0.95
    keep = min(num_classes, 4)
    top, other = (
        pool_top_classes(maps, crops, keep=keep, **call),
        by_numpy(pool_top_classes, maps, crops, keep=keep, **call),
    )
    torch.testing.assert_close(top.values, other.values, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.gather(-1, top.ids), top.values, rtol=0, atol=0)
    assert (top.ids.sort(dim=-1).values.diff(dim=-1) > 0).all()  # no class twice


@given(st.integers(0, 2**32), st.sampled_from([3, 20, 40]), st.sampled_from([0.1, 1, 30, 500]))
@settings(max_examples=40, deadline=None)
def test_maps_pooled_from_their_bytes_have_the_targets_of_numpy(by_numpy, seed, num_classes, scale):
    scores, ids, crops = made(seed, 8, num_classes=num_classes)
    maps = encode((scores - 1) * scale, ids, num_classes, score_encoding="uint8")
    ours, numpys = (
        pool(maps, crops, num_classes=num_classes)
        for pool in (pool_label_maps, partial(by_numpy, pool_label_maps))
    )
    torch.testing.assert_close(ours, numpys, rtol=1e-6, atol=1e-7)


@given(st.data(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_any_palette_places_and_levels_pool_to_the_same_targets_or_the_same_error(by_numpy, data, palette):
    size = 2 * palette + 6 + 8 + 6
    small = st.lists(st.integers(0, 3), min_size=size, max_size=size).map(bytes)
    payload = data.draw(small | st.binary(min_size=size, max_size=size))
    coded = pack_header((SCORES_UINT8 + RANK_DIFFERENCES, 2, STORED, 2, 1, 3, palette, 600, size), payload)
    results = []
    for pool in (pool_label_maps, partial(by_numpy, pool_label_maps)):
        try:
            results.append(pool([coded], np.float32([[0, 0, 1, 1]]), num_classes=600))
        except DataError as error:
            results.append(str(error))
    ours, numpys = results
    if isinstance(ours, str) or isinstance(numpys, str):
        assert ours == numpys
    elif np.abs(decode_label_map(coded)[0]).max() < 1e4:  # else a sum's last bit is worth more than a logit
        torch.testing.assert_close(ours, numpys, rtol=1e-6, atol=1e-7)


@given(st.lists(st.tuples(st.integers(0, HEADER.size - 1), st.integers(0, 255)), max_size=3))
@settings(max_examples=300, deadline=None)
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


@pytest.mark.parametrize(
    ("crop", "fits"),
    [
        ((0, 0, 1, 1), True),
        ((0.25, 0.5, 0.5, 0.75), True),
        ((0.5, 0, 0.5, 1), False),
        ((0, 0.6, 1, 0.5), False),
        ((-0.1, 0, 1, 1), False),
        ((0, 0, 1, 1.1), False),
        ((0, 0, float("nan"), 1), False),
    ],
)
def test_crops_that_the_loop_takes_lie_within_the_image(crop, fits):
    assert KERNELS.crops_fit(np.float32([(0, 0, 1, 1), crop])) == fits


def test_classes_that_are_all_far_below_zero_have_probabilities(by_numpy):
    scores = np.float32([-900, -901])[None, :, None, None].repeat(3, axis=3)
    ids = np.int64([0, 1])[None, :, None, None].repeat(3, axis=3)
    expected = torch.softmax(torch.tensor([[-900.0, -901.0]]), dim=1)
    for maps in ((scores, ids), encode(scores, ids, 2), encode(scores, ids, 2, score_encoding="uint8")):
        for pool in (pool_label_maps, partial(by_numpy, pool_label_maps)):
            found = pool(maps, np.float32([[0, 0, 1, 1]]), num_classes=2)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_the_number_of_threads_changes_no_bit():
    scores, ids, crops = made(1, 7 * MAPS_PER_SHARE, num_classes=300)
    mixed = encode(scores[::2], ids[::2], 300) + encode(scores[1::2], ids[1::2], 300, score_encoding="uint8")
    for maps in ((scores, ids), mixed):
        one = pool_label_maps(maps, crops, num_classes=300, num_threads=1)
        for num_threads in (2, 3, 7):
            assert num_shares(len(crops), num_threads) == min(2 * num_threads, 7)
            assert torch.equal(pool_label_maps(maps, crops, num_classes=300, num_threads=num_threads), one)


def test_few_maps_are_not_shared_out():
    assert [num_shares(num, 8) for num in (1, MAPS_PER_SHARE, 3 * MAPS_PER_SHARE)] == [1, 1, 3]
    assert num_shares(100 * MAPS_PER_SHARE, 1) == 1


def test_the_first_damaged_map_is_the_one_named():
    scores, ids, crops = made(3, 6 * MAPS_PER_SHARE)
    maps, places = encode(scores, ids, 40), (40, 2 * MAPS_PER_SHARE, 4 * MAPS_PER_SHARE + 7)
    for i in places:  # under a good checksum, so that it is found only where the map is decoded
        maps[i] = pack_header(
            read_headers(join_maps([maps[i]], str), str)[0].item()[2:-1], b"\0" * (len(maps[i]) - HEADER.size)
        )
    for _ in range(20):
        with pytest.raises(DataError, match="label map 40: expected a zstd frame"):
            pool_label_maps(maps, crops, num_classes=40, num_threads=4)


def pooled_in_two_threads(*maps_and_crops):
    # An array, as torch copies a tensor for another process with OpenMP's threads, which no forked process has.
    return pool_label_maps(*maps_and_crops, num_classes=40, num_threads=2).numpy()


def test_a_forked_process_pools_with_threads_of_its_own():
    scores, ids, crops = made(4, 8 * MAPS_PER_SHARE)
    expected = pooled_in_two_threads((scores, ids), crops)
    torch.rand(1_000_000).exp().sum()  # torch has threads now
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(pooled_in_two_threads, ((scores, ids), crops))
        np.testing.assert_array_equal(found.get(timeout=240), expected)


def test_a_damaged_map_is_named_whichever_thread_meets_it():
    scores, ids, crops = made(2, 3 * MAPS_PER_SHARE)
    maps = encode(scores, ids, 40)
    maps[-5] = maps[-5][:-6] + bytes(6)
    with pytest.raises(DataError, match=f"label map {len(maps) - 5}: expected checksum"):
        pool_label_maps(maps, crops, num_classes=40, num_threads=3)
    with pytest.raises(ValueError, match="expected class ids from 0 to 4"):
        pool_label_maps(encode(scores, ids, 40), crops, num_classes=5, num_threads=3)


@given(st.integers(0, 2**32), st.integers(1, 17), st.integers(1, 14), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_weights_of_rows_and_columns_are_the_same_bits(seed, cells, bins, whole_cells):
    rng = np.random.default_rng(seed)
    start, end = random_crops(rng, 50)[:, ::2].T
    if whole_cells:  # float rounding decides the number of sampling points
        low = rng.integers(0, cells, 50)
        start, end = (np.stack([low, rng.integers(low + 1, cells + 1)]) / cells).astype(np.float32)
    found = compiled_axis_weights(KERNELS)(start, end, cells, bins)
    np.testing.assert_array_equal(found, axis_weights(start, end, cells, bins))


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=5), st.data())
@settings(max_examples=200, deadline=None)
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
@settings(max_examples=300, deadline=None)
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
@settings(max_examples=150, deadline=None)
def test_blocks_expand_to_the_same_payloads_or_the_same_error(at, value, more):
    scores, ids, _ = made(0, 1, (5, 9, 9), 60)
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


# ---- Where numba is missing, or has nowhere to write

POOL = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
from softshard.loaders import pool_label_maps
from softshard.loaders.pooling_compiled import load_kernels
scores, ids = np.array([[[[2.0]], [[1.0]]]], np.float32), np.array([[[[1]], [[2]]]])
kernels = load_kernels() or ()
print(len(kernels) - kernels.count(None), pool_label_maps((scores, ids), np.float32([[0, 0, 1, 1]]), num_classes=3).tolist())
"""


def pool_in_a_process(script=POOL, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "environment"),
    [("import sys; sys.modules['numba'] = None\n" + POOL, {}), (POOL, {"NUMBA_DISABLE_JIT": "1"})],
    ids=["missing", "switched off"],
)
def test_without_numba_numpy_pools(script, environment):
    expected = torch.softmax(torch.tensor([[0.0, 2.0, 1.0]]), dim=1)
    compiled, _, target = pool_in_a_process(script, **environment).partition(" ")
    assert compiled == "0"
    torch.testing.assert_close(torch.tensor(eval(target)), expected)


def test_a_cache_that_cannot_be_written_or_is_damaged_stops_nothing(tmp_path):
    expected = pool_in_a_process(NUMBA_CACHE_DIR=str(tmp_path))
    num_compiled = len(KERNELS) - KERNELS.count(None)
    assert expected.startswith(f"{num_compiled} ")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2 * num_compiled  # an index and the code of each
    assert pool_in_a_process(NUMBA_CACHE_DIR=str(tmp_path)) == expected
    for path in files:
        path.write_bytes(b"damaged")
    assert pool_in_a_process(NUMBA_CACHE_DIR=str(tmp_path)) == expected
    assert pool_in_a_process(NUMBA_CACHE_DIR="/proc/nowhere") == expected
