"""Every target mode and option, on both paths, against RoIAlign of dense maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import by_roi_align, dense_map, encode, made, roi_align_dense

from softshard.loaders import LabelPooling, pool_label_maps, pool_top_classes, pooling
from softshard.loaders.pooling_device import pool_on_device
from softshard.loaders.target_modes import TARGET_MODES
from softshard.shards import UsageError, decode_label_maps, encode_label_map

pytestmark = pytest.mark.usefixtures("each_path")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def on_device(maps, crops, *, num_classes, softmax=True, pooling_options=None, **more):
    """The device's operations, on the processor."""
    options = pooling_options or LabelPooling()
    kind = "logits" if not softmax else "softmax" if options.multi else "one-hot"
    (groups,), job = pooling._prepare(
        maps,
        crops,
        num_classes,
        kind,
        more.get("keep"),
        None,
        options,
        more.get("flips"),
        more.get("classes"),
        pooling._Path(pool_on_device),
    )
    results = pool_on_device(groups, job, torch.device("cpu"))
    return results if options.grid is not None else [result[:, 0, 0] for result in results]


@st.composite
def options(draw, num_classes):
    grid = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    class_map = None
    if draw(st.booleans()):
        class_map = draw(
            st.lists(st.integers(-1, num_classes - 1), min_size=num_classes, max_size=num_classes)
        )
    return LabelPooling(
        local=draw(st.booleans()),
        multi=draw(st.booleans()),
        fill=draw(st.sampled_from(["zero", "floor"])),
        swap_xy=draw(st.booleans()),
        grid=grid,
        original=draw(st.sampled_from([0.0, 0.25, 1.0])),
        class_map=class_map,
    )


@given(st.data(), st.integers(0, 2**32), st.booleans(), st.sampled_from([20, 40, 600]))
@settings(max_examples=150)
def test_arrays_encoded_maps_and_the_device_give_the_same_targets(data, seed, softmax, num_classes):
    chosen = data.draw(options(num_classes))
    if not softmax:
        chosen = LabelPooling(**{**vars(chosen), "original": 0.0})
    scores, ids, crops = made(seed, num=4, num_classes=num_classes)
    scores = scores.astype(np.float16).astype(np.float32)
    rng = np.random.default_rng(seed)
    more = {"flips": rng.random(4) < 0.5, "classes": rng.integers(-1, num_classes, 4)}
    call = {"num_classes": num_classes, "softmax": softmax, **more}
    arrays = pool_label_maps((scores, ids), crops, pooling=chosen, **call)
    encoded = pool_label_maps(encode(scores, ids, num_classes), crops, pooling=chosen, **call)
    (there,) = on_device((scores, ids), crops, pooling_options=chosen, **call)
    assert arrays.shape == (4, *(chosen.grid or ()), num_classes)
    torch.testing.assert_close(encoded, arrays, **CLOSE)
    if chosen.multi or not softmax:  # a one-hot target of two equal logits may be either
        torch.testing.assert_close(there, arrays, **CLOSE)


@given(
    st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.sampled_from([7, 60])
)
@settings(max_examples=60)
def test_floor_fill_equals_roi_align_of_maps_filled_with_each_cells_smallest_value(
    seed, top, rows, columns, num_classes
):
    scores, ids, crops = made(seed, 6, top, rows, columns, num_classes)
    expected = roi_align_dense(dense_map(scores, ids, num_classes, "floor"), crops)[:, 0, 0]
    floor = LabelPooling(fill="floor")
    found = pool_label_maps((scores, ids), crops, num_classes=num_classes, softmax=False, pooling=floor)
    torch.testing.assert_close(found, expected, **CLOSE)
    targets = pool_label_maps((scores, ids), crops, num_classes=num_classes, pooling=floor)
    torch.testing.assert_close(targets, torch.softmax(expected, dim=1), **CLOSE)


@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from(["zero", "floor"]),
)
@settings(max_examples=100)
def test_a_grid_equals_roi_align_with_as_many_output_cells(seed, g, h, rows, columns, fill):
    scores, ids, crops = made(seed, 5, 3, rows, columns, 30)
    options = LabelPooling(grid=(g, h), fill=fill)
    found = pool_label_maps((scores, ids), crops, num_classes=30, softmax=False, pooling=options)
    assert found.shape == (5, g, h, 30)
    torch.testing.assert_close(
        found, roi_align_dense(dense_map(scores, ids, 30, fill), crops, (g, h)), **CLOSE
    )


def test_a_flip_mirrors_the_columns_of_a_grid_and_nothing_else():
    scores, ids, crops = made(3)
    flips = np.array([True, False] * 4)
    options = LabelPooling(grid=(3, 4))
    plain = pool_label_maps((scores, ids), crops, num_classes=40, pooling=options)
    found = pool_label_maps(
        (scores, ids), crops, num_classes=40, pooling=options, flips=torch.from_numpy(flips)
    )
    assert (plain != plain.flip(2)).any()
    torch.testing.assert_close(found[~flips], plain[~flips])
    torch.testing.assert_close(found[flips], plain[flips].flip(2))


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_a_mirrored_map_pooled_over_the_mirrored_crop_is_the_flipped_target(grid):
    # Crops of more than a cell, and not of whole cells: RoIAlign enlarges smaller ones to one side.
    scores, ids, _ = made(4, num=4)
    crops = np.float32([[0, 0, 1, 1], [0, 0.2, 0.7, 0.95], [0.31, 0, 0.93, 0.6], [0.4, 0.4, 0.87, 0.9]])
    mirrored = crops[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([1, 0, 1, 0])
    options, flips = LabelPooling(grid=grid), np.ones(4, bool)
    found = pool_label_maps((scores, ids), crops, num_classes=40, pooling=options, flips=flips)
    turned = scores[..., ::-1], ids[..., ::-1]
    torch.testing.assert_close(
        pool_label_maps(turned, mirrored, num_classes=40, pooling=options), found, rtol=1e-4, atol=1e-5
    )
    if grid is None:
        assert torch.equal(found, pool_label_maps((scores, ids), crops, num_classes=40))


@given(st.integers(0, 2**32), st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=40)
def test_swap_xy_pools_transposed_maps_as_if_they_were_not(seed, grid):
    scores, ids, crops = made(seed)
    turned = scores.transpose(0, 1, 3, 2), ids.transpose(0, 1, 3, 2)
    expected = pool_label_maps((scores, ids), crops, num_classes=40, pooling=LabelPooling(grid=grid))
    swapped = LabelPooling(grid=grid, swap_xy=True)
    torch.testing.assert_close(pool_label_maps(turned, crops, num_classes=40, pooling=swapped), expected)
    encoded = encode(*turned, 40)
    exact = pool_label_maps(decode_label_maps(encoded), crops, num_classes=40, pooling=swapped)
    torch.testing.assert_close(pool_label_maps(encoded, crops, num_classes=40, pooling=swapped), exact)


def test_global_targets_are_those_of_the_whole_image():
    scores, ids, crops = made(5)
    found = pool_label_maps((scores, ids), crops, num_classes=40, pooling=TARGET_MODES["relabel-global"])
    torch.testing.assert_close(
        found, torch.softmax(dense_map(scores, ids, 40).mean(dim=(2, 3)), dim=1), **CLOSE
    )


@pytest.mark.parametrize("mode", ["relabel-single", "relabel-global-single"])
def test_single_targets_are_the_class_with_the_largest_pooled_logit(mode):
    scores, ids, crops = made(6, num=60)
    scores += 5
    boxes = crops if mode == "relabel-single" else np.tile(np.float32([0, 0, 1, 1]), (60, 1))
    best = by_roi_align(scores, ids, boxes, 40).argmax(dim=1)
    expected = torch.nn.functional.one_hot(best, 40).float()
    options = TARGET_MODES[mode]
    assert torch.equal(pool_label_maps((scores, ids), crops, num_classes=40, pooling=options), expected)
    assert torch.equal(
        pool_label_maps(encode(scores, ids, 40), crops, num_classes=40, pooling=options), expected
    )
    assert torch.equal(on_device((scores, ids), crops, num_classes=40, pooling_options=options)[0], expected)


def test_where_all_kept_logits_are_negative_the_single_class_is_one_that_was_not_kept():
    scores, ids = np.full((1, 2, 3, 3), -4.0), np.broadcast_to(np.array([0, 2])[:, None, None], (1, 2, 3, 3))
    whole, single = np.float32([[0, 0, 1, 1]]), LabelPooling(multi=False)
    for maps in ((scores, ids), encode(scores, ids, 4)):
        assert pool_label_maps(maps, whole, num_classes=4, pooling=single).tolist() == [[0, 1, 0, 0]]
    floor = LabelPooling(multi=False, fill="floor")
    assert pool_label_maps((scores, ids), whole, num_classes=4, pooling=floor).tolist() == [[1, 0, 0, 0]]


def test_the_original_label_is_mixed_in_where_there_is_one():
    scores, ids, crops = made(7, num=4)
    classes = np.array([3, -1, 39, 0])
    plain = pool_label_maps((scores, ids), crops, num_classes=40)
    mixed = LabelPooling(original=0.25)
    found = pool_label_maps((scores, ids), crops, num_classes=40, pooling=mixed, classes=classes)
    expected = plain.clone()
    for i in (0, 2, 3):
        expected[i] *= 0.75
        expected[i, classes[i]] += 0.25
    torch.testing.assert_close(found, expected)
    only = LabelPooling(original=1.0)
    alone = pool_label_maps(
        (scores, ids), crops, num_classes=40, pooling=only, classes=torch.from_numpy(classes)
    )
    assert torch.equal(alone[[0, 2, 3]], torch.eye(40)[[3, 39, 0]])


def renamed_dense(scores, ids, class_map, num_classes, fill):
    """[N, C, P, Q] over the new classes, cell by cell."""
    num, _, rows, columns = scores.shape
    dense = np.zeros((num, num_classes, rows, columns), np.float32)
    for n, p, q in np.ndindex(num, rows, columns):
        if fill == "floor":
            dense[n, :, p, q] = scores[n, :, p, q].min()
        found = {}
        for score, old in zip(scores[n, :, p, q], ids[n, :, p, q], strict=True):
            if class_map[old] >= 0:
                found.setdefault(class_map[old], []).append(score)
        for new, values in found.items():
            dense[n, new, p, q] = np.log(np.exp(np.float64(values)).sum())
    return torch.from_numpy(dense)


@given(
    st.integers(0, 2**32), st.sampled_from(["zero", "floor"]), st.booleans(), st.sampled_from([None, (2, 3)])
)
@settings(max_examples=60)
def test_classes_are_renamed_merged_and_dropped(seed, fill, merge, grid):
    rng = np.random.default_rng(seed)
    scores, ids, crops = made(seed, num=3, top=4, rows=3, columns=4, num_classes=12)
    class_map = rng.integers(-1, 5, 12) if merge else np.where(rng.random(12) < 0.3, -1, rng.permutation(12))
    num_classes = 5 if merge else 12
    options = LabelPooling(fill=fill, class_map=class_map.tolist(), grid=grid)
    expected = roi_align_dense(
        renamed_dense(scores, ids, class_map, num_classes, fill), crops, grid or (1, 1)
    )
    if grid is None:
        expected = expected[:, 0, 0]
    call = {"num_classes": num_classes, "softmax": False}
    found = pool_label_maps((scores, ids), crops, pooling=options, **call)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    there = on_device((scores, ids), crops, pooling_options=options, **call)[0]
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-4)


def test_maps_whose_classes_are_all_dropped_give_uniform_targets():
    scores, ids, crops = made(8, num=2, num_classes=40)
    for grid in (None, (2, 2)):
        options = LabelPooling(class_map=[-1] * 40, grid=grid)
        found = pool_label_maps((scores, ids), crops, num_classes=7, pooling=options)
        torch.testing.assert_close(found, torch.full_like(found, 1 / 7))


@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("keep", [1, 5, 40])
def test_sparse_targets_are_the_largest_of_the_dense_ones(grid, keep):
    scores, ids, crops = made(9, num=70)
    options = LabelPooling(grid=grid, original=0.1)
    more = {"num_classes": 40, "classes": np.arange(70) % 40}
    dense = pool_label_maps((scores, ids), crops, pooling=options, **more)
    found = pool_top_classes(encode(scores, ids, 40), crops, keep=keep, pooling=options, **more)
    assert found.values.shape == found.ids.shape == (*dense.shape[:-1], keep)
    torch.testing.assert_close(found.values, dense.topk(keep).values, rtol=1e-2, atol=1e-3)  # float16 scores
    exact = pool_top_classes((scores, ids), crops, keep=keep, pooling=options, **more)
    torch.testing.assert_close(exact.values, dense.topk(keep).values)
    torch.testing.assert_close(dense.gather(-1, exact.ids), exact.values)
    there = on_device((scores, ids), crops, pooling_options=options, keep=keep, **more)
    torch.testing.assert_close(there[0], exact.values, **CLOSE)
    torch.testing.assert_close(dense.gather(-1, there[1]), exact.values, **CLOSE)


def test_a_batch_of_several_encodings_keeps_its_order():
    scores, ids, crops = made(10, num=90, num_classes=600)
    few = ids % 20  # through a palette; the others keep their ids
    few[:, 1:] = (few[:, :1] + 20 * np.arange(1, 3)[:, None, None]) % 600
    mixed = np.where((np.arange(90) % 3 == 0)[:, None, None, None], ids, few)
    maps = [
        encode_label_map(s, i, num_classes=600, score_encoding="uint8" if n % 2 else "float16")
        for n, (s, i) in enumerate(zip(scores, mixed, strict=True))
    ]
    expected = pool_label_maps(decode_label_maps(maps), crops, num_classes=600)
    torch.testing.assert_close(pool_label_maps(maps, crops, num_classes=600), expected)
    assert torch.equal(
        pool_top_classes(maps, crops, num_classes=600, keep=1).ids[:, 0], expected.argmax(dim=1)
    )


def test_the_sparse_grid_never_holds_the_dense_one():
    import tracemalloc

    scores, ids, crops = made(11, num=64, rows=15, columns=15, top=5, num_classes=1000)
    tracemalloc.start()
    try:
        pool_top_classes((scores, ids), crops, num_classes=1000, keep=5, pooling=LabelPooling(grid=(7, 7)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 7 * 7 * 1000 * 4 / 2  # the dense one is 12.5 MB


# ---- What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fill": "mean"}, "expected fill of zero, floor, found 'mean'"),
        ({"grid": (0, 2)}, r"expected a grid of \(rows, columns\) from 1, found \(0, 2\)"),
        ({"grid": (2,)}, r"expected a grid of \(rows, columns\)"),
        ({"original": 1.5}, "expected a share of the original label from 0 to 1, found 1.5"),
        ({"class_map": [0.5]}, r"expected a class map of integers from -1, .*, found float64 \[1\]"),
        ({"class_map": [-2]}, "expected a class map of integers from -1"),
        ({"class_map": [[1]]}, r"found int64 \[1, 1\]"),
        ({"class_map": []}, "expected a class map of integers"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        LabelPooling(**wrong)


def test_options_that_do_not_fit_the_call_are_refused():
    scores, ids, crops = made(12)
    call = {"num_classes": 40}
    mixed = LabelPooling(original=0.5)
    with pytest.raises(UsageError, match=r"expected the images' classes for original=0\.5, found None"):
        pool_label_maps((scores, ids), crops, pooling=mixed, **call)
    with pytest.raises(UsageError, match="expected softmax=True where the original label is mixed in"):
        pool_label_maps((scores, ids), crops, pooling=mixed, softmax=False, classes=np.zeros(8, int), **call)
    for classes in (np.zeros(7, int), np.full(8, 40), np.zeros(8)):
        with pytest.raises(ValueError, match="expected 8 classes below 40, found"):
            pool_label_maps((scores, ids), crops, pooling=mixed, classes=classes, **call)
    with pytest.raises(UsageError, match="expected a class map to classes below 40, found 40"):
        pool_label_maps((scores, ids), crops, pooling=LabelPooling(class_map=[40] * 40), **call)
    with pytest.raises(ValueError, match="expected class ids from 0 to 2, found"):
        pool_label_maps((scores, ids), crops, pooling=LabelPooling(class_map=[0] * 3), **call)
    with pytest.raises(ValueError, match="expected 8 flips, found \\[3\\]"):
        pool_label_maps(
            (scores, ids), crops, pooling=LabelPooling(grid=(2, 2)), flips=np.ones(3, bool), **call
        )
    for keep in (0, 41):
        with pytest.raises(UsageError, match=f"expected to keep 1 to 40 classes, found {keep}"):
            pool_top_classes((scores, ids), crops, keep=keep, **call)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    "options",
    [
        LabelPooling(local=False, fill="floor"),
        LabelPooling(grid=(3, 4), swap_xy=True, original=0.2),
        LabelPooling(class_map=[*range(20), *[-1] * 20]),
    ],
)
def test_a_gpu_gives_the_same_targets(options):
    scores, ids, crops = made(13)
    more = {"num_classes": 40, "pooling": options, "classes": np.arange(8), "flips": np.arange(8) % 2 == 0}
    there = pool_label_maps((scores, ids), crops, device="cuda", **more)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), pool_label_maps((scores, ids), crops, **more), **CLOSE)
