"""The compiled loops of label pooling against numpy's path: the same targets and errors, and what happens without numba."""

import json
import multiprocessing
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import encode, made, random_crops
from waiting import LONG_S

from softshard.loaders import LabelPooling, pool_label_maps, pool_top_classes, pooling
from softshard.loaders.pooling_compiled import (
    MAPS_PER_SHARE,
    compiled_axis_weights,
    load_kernels,
    num_shares,
)
from softshard.loaders.roialign import axis_weights
from softshard.shards import DataError, decode_label_map
from softshard.shards.labelmap_header import (
    HEADER,
    RANK_DIFFERENCES,
    SCORES_UINT8,
    STORED,
    join_maps,
    pack_header,
    read_headers,
)

pytest.importorskip("numba")
KERNELS = load_kernels()


@pytest.fixture(scope="module")
def by_numpy():
    """Calls a function on numpy's path."""

    def call(function, *args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "load_kernels", lambda: None)
            return function(*args, **options)

    return call


@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 20, 300, 65_536]),
    st.sampled_from(["zero", "floor"]),
    st.sampled_from([None, (1, 3), (4, 2)]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
    st.sampled_from(["arrays", "uint8", "float16"]),
)
@settings(max_examples=100)
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
@settings(max_examples=40)
def test_maps_pooled_from_their_bytes_have_the_targets_of_numpy(by_numpy, seed, num_classes, scale):
    scores, ids, crops = made(seed, 8, num_classes=num_classes)
    maps = encode((scores - 1) * scale, ids, num_classes, score_encoding="uint8")
    ours, numpys = (
        pool(maps, crops, num_classes=num_classes)
        for pool in (pool_label_maps, partial(by_numpy, pool_label_maps))
    )
    torch.testing.assert_close(ours, numpys, rtol=1e-6, atol=1e-7)


@given(st.data(), st.integers(1, 4))
@settings(max_examples=200)
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
        np.testing.assert_array_equal(found.get(timeout=LONG_S), expected)


def test_a_damaged_map_is_named_whichever_thread_meets_it():
    scores, ids, crops = made(2, 3 * MAPS_PER_SHARE)
    maps = encode(scores, ids, 40)
    maps[-5] = maps[-5][:-6] + bytes(6)
    with pytest.raises(DataError, match=f"label map {len(maps) - 5}: expected checksum"):
        pool_label_maps(maps, crops, num_classes=40, num_threads=3)
    with pytest.raises(ValueError, match="expected class ids from 0 to 4"):
        pool_label_maps(encode(scores, ids, 40), crops, num_classes=5, num_threads=3)


@given(st.integers(0, 2**32), st.integers(1, 17), st.integers(1, 14), st.booleans())
@settings(max_examples=100)
def test_the_weights_of_rows_and_columns_are_the_same_bits(seed, cells, bins, whole_cells):
    rng = np.random.default_rng(seed)
    start, end = random_crops(rng, 50)[:, ::2].T
    if whole_cells:  # float rounding decides the number of sampling points
        low = rng.integers(0, cells, 50)
        start, end = (np.stack([low, rng.integers(low + 1, cells + 1)]) / cells).astype(np.float32)
    found = compiled_axis_weights(KERNELS)(start, end, cells, bins)
    np.testing.assert_array_equal(found, axis_weights(start, end, cells, bins))


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


def run(script, **environment):
    """What a process prints, which has not imported numba yet."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=LONG_S,  # the kernels may be compiled
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def num_compiled(script=POOL, **environment):
    """Kernels of a process that pools a map to the target that it has."""
    num, _, target = run(script, **environment).partition(" ")
    expected = torch.softmax(torch.tensor([[0.0, 2.0, 1.0]]), dim=1)
    torch.testing.assert_close(torch.tensor(json.loads(target)), expected)
    return int(num)


@pytest.mark.parametrize(
    ("script", "environment"),
    [("import sys; sys.modules['numba'] = None\n" + POOL, {}), (POOL, {"NUMBA_DISABLE_JIT": "1"})],
    ids=["missing", "switched off"],
)
def test_without_numba_numpy_pools(script, environment):
    assert num_compiled(script, **environment) == 0


CACHE_ONE = """
import numpy as np
from softshard.loaders.checks_kernel import crops_fit
crops_fit.enable_caching()
assert not crops_fit(np.zeros((1, 4), np.float32))
print(crops_fit.stats.cache_path)
"""


def test_a_cache_that_cannot_be_written_or_is_damaged_stops_nothing(tmp_path):
    kernels = [kernel for kernel in KERNELS if kernel is not None]
    folder = Path(run(CACHE_ONE, NUMBA_CACHE_DIR=str(tmp_path)).strip())
    assert tmp_path in folder.parents
    # The files that this process has kept, under the same names: to make them again takes many seconds.
    for kernel in kernels:
        name = f"{kernel.py_func.__module__.rpartition('.')[2]}.{kernel.py_func.__name__}-*"
        kept = list(Path(kernel.stats.cache_path).glob(name))
        assert len(kept) >= 2, name  # an index and the code
        for file in kept:
            (folder / file.name).write_bytes(b"damaged")
    assert num_compiled(NUMBA_CACHE_DIR=str(tmp_path)) == len(kernels)
    assert num_compiled(NUMBA_CACHE_DIR="/proc/nowhere") == len(kernels)
