"""Label pooling against torchvision's RoIAlign of the dense map, and its exact values."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import by_roi_align, dense_map, random_crops, random_maps
from torch.utils._python_dispatch import TorchDispatchMode

from softshard.loaders import pool_label_maps
from softshard.loaders.roialign import axis_weights
from softshard.shards import DataError, decode_label_maps, encode_label_map

pytestmark = pytest.mark.usefixtures("each_path")


@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 17),
    st.integers(1, 17),
    st.sampled_from([5, 7, 60, 1000]),
)
@settings(max_examples=120)
def test_pooling_equals_roi_align(seed, num, top, rows, columns, num_classes):
    rng = np.random.default_rng(seed)
    scores, ids = random_maps(rng, num, top, rows, columns, num_classes)
    crops = random_crops(rng, num)
    ours = pool_label_maps((scores, ids), crops, num_classes=num_classes, softmax=False)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, by_roi_align(scores, ids, crops, num_classes), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32), st.integers(2, 16), st.integers(2, 16))
@settings(max_examples=80)
def test_crops_of_whole_cells_sample_as_roi_align_does(seed, rows, columns):
    # The number of sampling points is the ceiling of the size: here float rounding decides it.
    rng = np.random.default_rng(seed)
    num = 30
    low = np.stack([rng.integers(0, columns, num), rng.integers(0, rows, num)], axis=1)
    high = np.stack([rng.integers(low[:, 0] + 1, columns + 1), rng.integers(low[:, 1] + 1, rows + 1)], axis=1)
    offset = rng.choice([0, 0.25, 0.3], (num, 1)) * (high < [columns, rows])
    crops = np.concatenate([(low + offset), (high + offset)], axis=1) / [columns, rows, columns, rows]
    crops = np.minimum(crops, 1).astype(np.float32)
    scores, ids = random_maps(rng, num, 3, rows, columns, 20)
    torch.testing.assert_close(
        pool_label_maps((scores, ids), crops, num_classes=20, softmax=False),
        by_roi_align(scores, ids, crops, 20),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("num", [1, 3])
def test_ids_up_to_65535_are_pooled(num):
    rng = np.random.default_rng(1)
    scores, ids = random_maps(rng, num, 5, 4, 3, 65_536)
    ids[:, 0] = 65_535 - np.arange(12).reshape(4, 3)
    crops = random_crops(rng, num)
    expected = by_roi_align(scores, ids, crops, 65_536)
    encoded = [
        encode_label_map(s, i, num_classes=65_536, score_encoding="float16")
        for s, i in zip(scores, ids, strict=True)
    ]
    plain = pool_label_maps((scores, ids), crops, num_classes=65_536, softmax=False)
    assert plain.shape == (num, 65_536)
    assert plain[:, 65_520:].abs().sum() > 0
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    halves = by_roi_align(scores.astype(np.float16).astype(np.float32), ids, crops, 65_536)
    pooled = pool_label_maps(encoded, crops, num_classes=65_536, softmax=False)
    torch.testing.assert_close(pooled, halves, rtol=1e-5, atol=1e-5)


# METHODS: 15 x 15 ramps (channel = row, channel = column), image 500 x 375, crop (top, left, height, width).
@pytest.mark.parametrize(
    ("tlhw", "row", "column"),
    [((0, 0, 500, 375), 7, 7), ((100, 50, 200, 150), 5.5, 4.5), ((0, 0, 100, 80), 1.0, 1.125)],
)
def test_ramps_have_their_exact_values(tlhw, row, column):
    top, left, height, width = tlhw
    crops = np.array([[left / 375, top / 500, (left + width) / 375, (top + height) / 500]], np.float32)
    ramp = np.arange(15, dtype=np.float32)
    scores = np.stack([np.repeat(ramp[:, None], 15, 1), np.repeat(ramp[None], 15, 0)])[None]
    ids = np.broadcast_to(np.arange(2)[:, None, None], (2, 15, 15))[None]
    pooled = pool_label_maps((scores, ids), crops, num_classes=2, softmax=False)
    torch.testing.assert_close(pooled, torch.tensor([[row, column]], dtype=torch.float32), rtol=0, atol=1e-5)


def test_the_full_crop_is_the_mean_of_the_cells():
    rng = np.random.default_rng(2)
    scores, ids = random_maps(rng, 6, 4, 9, 13, 30)
    pooled = pool_label_maps(
        (scores, ids), np.tile(np.float32([0, 0, 1, 1]), (6, 1)), num_classes=30, softmax=False
    )
    torch.testing.assert_close(pooled, dense_map(scores, ids, 30).mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_transposing_maps_and_crops_together_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    scores, ids = random_maps(rng, 8, 3, 6, 11, 25)
    crops = random_crops(rng, 8)
    turned = pool_label_maps(
        (scores.transpose(0, 1, 3, 2), ids.transpose(0, 1, 3, 2)), crops[:, [1, 0, 3, 2]], num_classes=25
    )
    torch.testing.assert_close(turned, pool_label_maps((scores, ids), crops, num_classes=25))


def test_swapping_the_axes_of_the_crop_alone_is_noticed():
    rng = np.random.default_rng(3)
    scores, ids = random_maps(rng, 20, 3, 8, 8, 25)
    crops = random_crops(rng, 20)
    swapped = pool_label_maps((scores, ids), crops[:, [1, 0, 3, 2]], num_classes=25, softmax=False)
    assert (swapped - by_roi_align(scores, ids, crops, 25)).abs().max() > 0.5


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_encoded_and_array_maps_agree(encoding):
    rng = np.random.default_rng(4)
    scores, ids = random_maps(rng, 9, 5, 7, 6, 300)
    crops = random_crops(rng, 9)
    encoded = [
        encode_label_map(s, i, num_classes=300, score_encoding=encoding)
        for s, i in zip(scores, ids, strict=True)
    ]
    decoded = decode_label_maps(encoded)
    expected = pool_label_maps(decoded, crops, num_classes=300)
    assert torch.equal(pool_label_maps(encoded, crops, num_classes=300), expected)
    assert torch.equal(pool_label_maps([memoryview(m) for m in encoded], crops, num_classes=300), expected)
    # A tuple of two encoded maps is not a (scores, ids) pair.
    pair = pool_label_maps((encoded[0], encoded[1]), crops[:2], num_classes=300)
    torch.testing.assert_close(pair, expected[:2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_ids_of_any_integer_type_and_crops_as_a_tensor_are_taken(dtype):
    rng = np.random.default_rng(5)
    scores, ids = random_maps(rng, 4, 3, 5, 5, 60)
    crops = random_crops(rng, 4)
    pooled = pool_label_maps((scores, ids.astype(dtype)), torch.from_numpy(crops), num_classes=60)
    assert torch.equal(pooled, pool_label_maps((scores, ids), crops, num_classes=60))


def test_targets_are_the_softmax_of_the_pooled_logits():
    rng = np.random.default_rng(6)
    scores, ids = random_maps(rng, 50, 5, 15, 15, 1000)
    scores *= 30  # logits far beyond what exp can take
    crops = random_crops(rng, 50)
    logits = pool_label_maps((scores, ids), crops, num_classes=1000, softmax=False)
    targets = pool_label_maps((scores, ids), crops, num_classes=1000)
    torch.testing.assert_close(targets, torch.softmax(logits.double(), dim=1).float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(50), rtol=0, atol=1e-5)
    assert (targets >= 0).all()


def test_a_map_pools_to_the_same_bits_whatever_its_batch():
    rng = np.random.default_rng(7)
    scores, ids = random_maps(rng, 70, 5, 15, 15, 1000)
    crops = random_crops(rng, 70)
    together = pool_label_maps((scores, ids), crops, num_classes=1000)
    for i in (0, 31, 69):
        alone = pool_label_maps((scores[i : i + 1], ids[i : i + 1]), crops[i : i + 1], num_classes=1000)
        assert torch.equal(alone[0], together[i])


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_the_dense_map_is_never_built():
    # [N, C, P, Q] would be 57.6 million values, 230 MB; scores, ids, result and temporaries are 3 MB.
    num, num_classes, top, side = 256, 1000, 5, 15
    rng = np.random.default_rng(8)
    scores, ids = random_maps(rng, num, top, side, side, num_classes)
    crops = random_crops(rng, num)
    with LargestTensor() as largest:
        tracemalloc.start()
        try:
            pooled = pool_label_maps((scores, ids), crops, num_classes=num_classes)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert pooled.shape == (num, num_classes)
    assert num * num_classes * 4 < peak < 20e6
    assert largest.numel <= num * top * side * side
    with LargestTensor() as dense:
        by_roi_align(scores, ids, crops, num_classes)
    assert dense.numel == num * num_classes * side * side  # the measure sees what it is there to see


def test_the_device_path_builds_no_dense_map_either():
    # The `meta` device runs the operations of any device without data.
    num, num_classes, top, side = 256, 1000, 5, 15
    scores, ids = random_maps(np.random.default_rng(9), num, top, side, side, num_classes)
    crops = random_crops(np.random.default_rng(9), num)
    with LargestTensor() as largest:
        pooled = pool_label_maps((scores, ids), crops, num_classes=num_classes, device="meta")
    assert pooled.shape == (num, num_classes)
    assert 0 < largest.numel <= num * top * side * side


def test_row_and_column_weights_sum_to_one():
    rng = np.random.default_rng(10)
    crops = random_crops(rng, 5000)
    for cells in (1, 2, 15, 64):
        weights = axis_weights(crops[:, 0], crops[:, 2], cells)
        assert weights.shape == (5000, 1, cells)
        np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-5)
        assert (weights >= 0).all()


def maps_for_errors():
    return random_maps(np.random.default_rng(11), 2, 3, 4, 4, 10)


@pytest.mark.parametrize(
    ("crop", "shown"),
    [
        ((0.5, 0.0, 0.5, 1.0), r"\[0.5, 0.0, 0.5, 1.0\]"),
        ((0.0, 0.75, 1.0, 0.25), r"\[0.0, 0.75, 1.0, 0.25\]"),
        ((-0.25, 0.0, 1.0, 1.0), r"\[-0.25, 0.0, 1.0, 1.0\]"),
        ((0.0, 0.0, 1.0, 1.5), r"\[0.0, 0.0, 1.0, 1.5\]"),
        ((float("nan"), 0.0, 1.0, 1.0), r"\[nan, 0.0, 1.0, 1.0\]"),
    ],
)
def test_empty_crops_and_crops_outside_the_image_are_refused(crop, shown):
    crops = np.float32([[0, 0, 1, 1], crop])
    message = f"crop 1: expected 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, found {shown}"
    with pytest.raises(ValueError, match=message):
        pool_label_maps(maps_for_errors(), crops, num_classes=10)


WHOLE = np.float32([[0, 0, 1, 1]] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, i: ((s[:, 0], i), WHOLE, 10), r"found \[2, 4, 4\] and \[2, 3, 4, 4\]"),
        (lambda s, i: ((s, i[:, :2]), WHOLE, 10), r"found \[2, 3, 4, 4\] and \[2, 2, 4, 4\]"),
        (lambda s, i: ((s, i), WHOLE[:1], 10), r"crops \[2, 4\] for maps \[2, 3, 4, 4\], found \[1, 4\]"),
        (lambda s, i: ((s, i), WHOLE[:, :3], 10), r"crops \[2, 4\] for maps \[2, 3, 4, 4\], found \[2, 3\]"),
        (lambda s, i: ((s[:0], i[:0]), WHOLE[:0], 10), r"found \[0, 3, 4, 4\]"),
        (lambda s, i: ((s, i.astype(float)), WHOLE, 10), "expected integer class ids, found float64"),
        (lambda s, i: ((s, i + 1), WHOLE, 10), "expected class ids from 0 to 9, found 1 to 10; the maps are"),
        (lambda s, i: ((s, i - 1), WHOLE, 10), "expected class ids from 0 to 9, found -1 to 8; the maps are"),
    ],
)
def test_wrong_shapes_and_ids_are_refused(change, message):
    maps, crops, num_classes = change(*maps_for_errors())
    with pytest.raises(ValueError, match=message):
        pool_label_maps(maps, crops, num_classes=num_classes)


def test_a_damaged_encoded_map_is_named():
    scores, ids = maps_for_errors()
    good = encode_label_map(scores[0], ids[0], num_classes=10)
    bad = good[:40] + bytes([good[40] ^ 1]) + good[41:]
    with pytest.raises(DataError, match=r"label map 1: expected checksum \w{8}, found another"):
        pool_label_maps([good, bad], WHOLE, num_classes=10)
    with pytest.raises(DataError, match=r"the second: expected checksum"):
        pool_label_maps([good, bad], WHOLE, num_classes=10, wheres=["the first", "the second"])
    with pytest.raises(ValueError, match="expected class ids from 0 to 4"):
        pool_label_maps([good, good], WHOLE, num_classes=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_pools_the_same_targets():
    rng = np.random.default_rng(12)
    scores, ids = random_maps(rng, 64, 5, 15, 15, 1000)
    crops = random_crops(rng, 64)
    for softmax in (False, True):
        host = pool_label_maps((scores, ids), crops, num_classes=1000, softmax=softmax)
        there = pool_label_maps((scores, ids), crops, num_classes=1000, softmax=softmax, device="cuda")
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), host, rtol=1e-5, atol=1e-5)
