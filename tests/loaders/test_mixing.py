"""Mixup and CutMix: pairs, shares, windows, images and targets, against plain loops and torchvision's RoIAlign."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_oracles import by_roi_align, random_maps

from softshard.loaders import Augment, CutMix, Mixup, pool_label_maps
from softshard.loaders.mixing import beta, cut_boxes, draw_mix, mix_images_, mix_pair_, visible_regions
from softshard.shards import UsageError

SIZE = 24


def plan_of(augment=None, samples=None, **options):
    augment = augment or Augment(size=SIZE, mixup=Mixup(0.4), cutmix=CutMix(1.0))
    samples = np.arange(400) if samples is None else np.asarray(samples)
    return draw_mix(augment, samples, **{"seed": 3, "epoch": 2, **options})


def test_slots_are_mixed_with_their_neighbours_and_both_of_a_pair_alike():
    plan = plan_of()
    assert plan.mixed.all()
    np.testing.assert_array_equal(plan.partners, np.arange(400) ^ 1)
    for values in (plan.shares, plan.boxes, plan.pasted):
        np.testing.assert_array_equal(values[0::2], values[1::2])
    assert 0.35 < plan.pasted.mean() < 0.65
    areas = plan.boxes[:, 2] * plan.boxes[:, 3]
    np.testing.assert_allclose(plan.shares[plan.pasted], 1 - areas[plan.pasted] / SIZE**2, rtol=1e-6)
    assert (areas[~plan.pasted] == 0).all()
    assert (areas[plan.pasted] > 0).all()


def test_padding_is_never_a_partner():
    samples = np.arange(12)
    samples[[1, 4, 5, 11]] = -1
    plan = plan_of(samples=samples)
    np.testing.assert_array_equal(plan.partners, [0, 1, 3, 2, 4, 5, 7, 6, 9, 8, 10, 11])
    np.testing.assert_array_equal(plan.shares[[0, 1, 4, 5, 10, 11]], 1)
    # The other pairs draw what they drew in a full batch.
    full = plan_of(samples=np.arange(12))
    for slots in ([2, 3], [6, 7], [8, 9]):
        np.testing.assert_array_equal(plan.boxes[slots], full.boxes[slots])
        np.testing.assert_array_equal(plan.shares[slots], full.shares[slots])


@pytest.mark.parametrize("part", [2, 10, 50])
def test_a_part_of_a_batch_is_mixed_as_within_the_whole(part):
    samples = np.random.default_rng(0).permutation(2**40 + np.arange(100))
    whole = plan_of(samples=samples)
    for first in range(0, 100, part):
        some = plan_of(samples=samples[first : first + part])
        np.testing.assert_array_equal(some.partners + first, whole.partners[first : first + part])
        for one, other in zip(some[1:4], whole[1:4], strict=True):
            np.testing.assert_array_equal(one, other[first : first + part])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"occurrence": 1}])
def test_draws_depend_on_seed_epoch_and_occurrence(change):
    one, other = plan_of(), plan_of(**change)
    assert (one.shares != other.shares).mean() > 0.9


def test_options_decide_how_many_pairs_are_mixed_how_and_until_when():
    mixup, cutmix = Mixup(1.0, prob=0.25), CutMix(1.0, prob=0.75)
    assert plan_of(Augment(size=SIZE)) is None
    plan = plan_of(Augment(size=SIZE, mixup=mixup), samples=np.arange(4000))
    assert abs(plan.mixed.mean() - 0.25) < 0.03
    assert not plan.pasted.any()
    plan = plan_of(Augment(size=SIZE, cutmix=cutmix), samples=np.arange(4000))
    assert abs(plan.mixed.mean() - 0.75) < 0.04
    np.testing.assert_array_equal(plan.pasted, plan.mixed)
    both = Augment(size=SIZE, mixup=mixup, cutmix=cutmix, mix_until_epoch=5)
    plan = plan_of(both, samples=np.arange(4000))
    assert abs(plan.mixed.mean() - 0.5) < 0.04
    assert plan_of(both, epoch=4) is not None
    assert plan_of(both, epoch=5) is None


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_a_beta_distribution(alpha):
    numbers = np.random.default_rng(1).random((60_000, 50))
    shares = beta(alpha, numbers)
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    expected = np.random.default_rng(2).beta(alpha, alpha, 60_000)
    assert abs(shares.mean() - 0.5) < 0.01
    assert abs(shares.std() - (1 / (4 * (2 * alpha + 1))) ** 0.5) < 0.005
    for quantile in (0.05, 0.25, 0.75, 0.95):
        assert abs(np.quantile(shares, quantile) - np.quantile(expected, quantile)) < 0.02


@given(share=st.floats(0, 1), row=st.floats(0, 1, exclude_max=True), column=st.floats(0, 1, exclude_max=True))
@settings(max_examples=200)
def test_cut_windows_lie_in_the_image_and_are_cutmixs(share, row, column):
    top, left, height, width = cut_boxes(np.array([share]), np.array([[row, column]]), SIZE)[0]
    # The published rand_bbox.
    cut = int(SIZE * np.sqrt(1.0 - share))
    cy, cx = int(row * SIZE), int(column * SIZE)
    y0, x0 = np.clip([cy - cut // 2, cx - cut // 2], 0, SIZE)
    y1, x1 = np.clip([cy + cut // 2, cx + cut // 2], 0, SIZE)
    assert (top, left, height, width) == (y0, x0, y1 - y0, x1 - x0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_images_are_mixed_as_a_plain_loop_mixes_them(dtype):
    samples = np.arange(40)
    samples[[7, 20]] = -1
    plan = plan_of(samples=samples)
    images = (torch.rand(40, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    expected = images.clone()
    for slot, partner in enumerate(plan.partners):
        if partner == slot:
            continue
        if plan.pasted[slot]:
            top, left, height, width = plan.boxes[slot]
            window = slice(top, top + height), slice(left, left + width)
            expected[slot][:, *window] = images[partner][:, *window]
        else:
            share = plan.shares[slot]
            mixed = images[slot].numpy().astype(np.float32) * share
            mixed += images[partner].numpy().astype(np.float32) * (np.float32(1) - share)
            expected[slot] = torch.from_numpy(np.rint(mixed) if dtype == torch.uint8 else mixed).to(dtype)
    pair_by_pair = images.clone()
    for first in range(0, 40, 2):
        part = plan._replace(**{name: getattr(plan, name)[first : first + 2] for name in plan._fields[:4]})
        if plan.mixed[first]:
            mix_pair_(pair_by_pair[first : first + 2], part)
    mix_images_(images, plan)
    assert torch.equal(images, expected)
    assert torch.equal(pair_by_pair, expected)


def regions_of(box, flip=False, crop=(0, 0, 1, 1)):
    """(own, given) of the first of two slots that paste this window."""
    plan = plan_of(Augment(size=SIZE, cutmix=CutMix(visible=True)), samples=[0, 1])
    plan.boxes[...], plan.pasted[...] = box, True
    own, given_ = visible_regions(plan, np.array([crop] * 2, np.float32), np.array([flip] * 2), SIZE)
    return own[0], given_[0]


def some_maps(num=1, seed=0):
    return random_maps(np.random.default_rng(seed), num, 3, 7, 5, 11)


@given(
    first=st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)),
    extent=st.tuples(st.integers(1, SIZE), st.integers(1, SIZE)),
    flip=st.booleans(),
    crop=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
    seed=st.integers(0, 5),
)
@settings(max_examples=100)
def test_what_is_visible_is_pooled_as_torchvision_pools_its_rectangles(first, extent, flip, crop, seed):
    top, left = first
    height, width = min(extent[0], SIZE - top), min(extent[1], SIZE - left)
    x0, y0 = np.float32(crop[0]), np.float32(crop[1])
    window = (x0, y0, x0 + np.float32(crop[2]), y0 + np.float32(crop[3]))
    own, pasted = regions_of((top, left, height, width), flip, window)
    # Which pixels of the crop are counted: exactly those outside the window, once, or those inside.
    mask = np.zeros((SIZE, SIZE), int)
    mask[top : top + height, left : left + width] = 1
    mask = mask[:, ::-1] if flip else mask
    centres = (np.arange(SIZE) + 0.5) / SIZE
    xs, ys = (window[i] + (window[i + 2] - window[i]) * centres for i in (0, 1))
    counted = [
        sum(
            ((xs >= a) & (xs < c))[None] & ((ys >= b) & (ys < d))[:, None]
            for a, b, c, d in rectangles.tolist()
        )
        for rectangles in (own.astype(np.float64), pasted.astype(np.float64))
    ]
    covered = height * width == SIZE * SIZE
    np.testing.assert_array_equal(counted[0], np.ones_like(mask) if covered else 1 - mask)
    np.testing.assert_array_equal(counted[1], mask)

    scores, ids = some_maps(seed=seed)
    areas = (own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1])
    expected = sum(
        area * by_roi_align(scores, ids, box[None], 11)
        for area, box in zip(areas / areas.sum(), own, strict=True)
        if area > 0
    )
    found = pool_label_maps((scores, ids), own[None], num_classes=11, softmax=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    found = pool_label_maps((scores, ids), pasted[None], num_classes=11, softmax=False)
    torch.testing.assert_close(found, by_roi_align(scores, ids, pasted, 11), rtol=1e-5, atol=2e-5)


def test_a_map_of_one_value_gives_that_value_whatever_is_visible():
    scores = np.full((1, 1, 6, 6), 2.5, np.float32)
    ids = np.full((1, 1, 6, 6), 3, np.uint16)
    for box in (
        (0, 0, 1, 1),
        (5, 6, 7, 8),
        (0, 0, SIZE, SIZE - 1),
        (1, 1, SIZE - 1, SIZE - 1),
        (0, 0, SIZE, SIZE),
    ):
        for regions in regions_of(box, crop=(0.1, 0.2, 0.15, 0.9)):
            found = pool_label_maps((scores, ids), regions[None], num_classes=5, softmax=False)[0]
            torch.testing.assert_close(found, torch.tensor([0, 0, 0, 2.5, 0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_halves_of_two_classes_are_told_apart_and_flips_are_minded(flip):
    scores = np.full((1, 1, 8, 8), 6.0, np.float32)
    ids = np.zeros((1, 1, 8, 8), np.uint16)
    ids[..., 4:] = 1  # class 0 on the left of the stored image, class 1 on the right
    own, pasted = regions_of((0, 0, SIZE, SIZE // 2), flip)  # the left half of what the model sees
    own, pasted = (
        pool_label_maps((scores, ids), part[None], num_classes=2, softmax=False)[0] for part in (own, pasted)
    )
    visible, given_ = (0, 1) if flip else (1, 0)
    # RoIAlign samples between cells: a twelfth of the column beside the border is seen.
    assert own[visible] > 5.5
    assert own[1 - visible] < 0.5
    assert pasted[given_] > 5.5
    assert pasted[1 - given_] < 0.5


def test_a_window_of_nothing_leaves_the_crop_and_one_of_all_gives_the_whole_of_the_other():
    crop = (0.25, 0.5, 0.75, 0.875)
    own, pasted = regions_of((0, 0, SIZE, SIZE), crop=crop)
    np.testing.assert_array_equal(pasted, [crop])
    np.testing.assert_array_equal(own[0], crop)  # its share is 0
    plan = plan_of(Augment(size=SIZE, mixup=Mixup(), cutmix=CutMix(visible=True)), samples=np.arange(64))
    crops = np.tile(np.array(crop, np.float32), (64, 1))
    own, pasted = visible_regions(plan, crops, np.zeros(64, bool), SIZE)
    blended = ~plan.pasted
    assert 0 < blended.sum() < 64
    np.testing.assert_array_equal(own[blended, 0], crops[blended])
    np.testing.assert_array_equal(pasted[blended, 0], crops[blended])
    scores, ids = some_maps(64)
    one = pool_label_maps((scores, ids), own, num_classes=11)
    other = pool_label_maps((scores, ids), crops, num_classes=11)
    assert torch.equal(one[blended], other[blended])
    assert (one[~blended] - other[~blended]).abs().amax(dim=1).min() > 1e-4


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (np.zeros((1, 2, 4)), r"crop 0: expected 0 <= x0 < x1 <= 1"),
        (np.array([[[0, 0, 0, 0], [0, 0, 1.5, 1]]]), r"crop 0: expected 0 <= x0 < x1 <= 1"),
        (np.zeros((1, 0, 4)), r"expected crops \[1, 4\]"),
        (np.zeros((2, 1, 4)), r"expected crops \[1, 4\]"),
    ],
)
def test_regions_that_make_no_sense_are_refused(crops, message):
    with pytest.raises(ValueError, match=message):
        pool_label_maps(some_maps(), crops, num_classes=11)


def test_regions_are_refused_for_a_grid():
    from softshard.loaders import LabelPooling

    with pytest.raises(UsageError, match=r"one crop an image for the grid \(2, 2\), found 4"):
        pool_label_maps(
            some_maps(), regions_of((1, 1, 4, 4))[0][None], num_classes=11, pooling=LabelPooling(grid=(2, 2))
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixup(0), "Mixup: expected an alpha above 0, found 0"),
        (lambda: CutMix(float("inf")), "CutMix: expected an alpha above 0"),
        (lambda: CutMix(prob=-1), "CutMix: prob: expected a share from 0 to 1"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_regions_pooled_on_a_gpu_are_the_hosts():
    scores, ids = some_maps(64)
    plan = plan_of(Augment(size=SIZE, cutmix=CutMix(visible=True)), samples=np.arange(64))
    crops = np.tile(np.array([0.1, 0.2, 0.7, 0.9], np.float32), (64, 1))
    own, _ = visible_regions(plan, crops, np.arange(64) % 2 == 0, SIZE)
    host = pool_label_maps((scores, ids), own, num_classes=11)
    there = pool_label_maps((scores, ids), own, num_classes=11, device="cuda")
    torch.testing.assert_close(host, there.cpu(), rtol=1e-5, atol=1e-5)
