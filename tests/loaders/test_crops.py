"""Crop windows and flips: bounds, distribution, and independence of the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import center_crop, resize

from softshard.loaders import Augment
from softshard.loaders.crops import crop_fractions, draw_crops
from softshard.shards import UsageError

SIDES = st.integers(1, 2000)


def draw(augment, height, width, num=4000, **options):
    return draw_crops(
        augment, np.tile([height, width], (num, 1)), np.arange(num), **{"seed": 3, "epoch": 0, **options}
    )


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 1),
)
@settings(max_examples=150)
def test_every_crop_lies_within_its_image(sizes, seed, epoch, smallest):
    hw = np.array(sizes)
    crops, flips = draw_crops(
        Augment(scale=(smallest, 1.0)), hw, np.arange(len(hw)) * 2**33, seed=seed, epoch=epoch
    )
    top, left, height, width = crops.T
    assert crops.dtype == np.int32
    assert flips.dtype == bool
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= hw[:, 0]).all()
    assert (left + width <= hw[:, 1]).all()
    x0, y0, x1, y1 = crop_fractions(crops, hw).T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x0 < x1).all()
    assert (y0 < y1).all()
    assert (x1 <= 1).all()
    assert (y1 <= 1).all()


def test_crops_keep_scale_and_ratio_to_the_pixel():
    augment = Augment(scale=(0.1, 0.6), ratio=(0.5, 2.0))
    height, width = draw(augment, 400, 500)[0].T[2:]
    # A side is rounded by half a pixel at most.
    assert ((height + 0.5) * (width + 0.5) >= 0.1 * 400 * 500).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.6 * 400 * 500).all()
    assert ((width + 0.5) / (height - 0.5) >= 0.5).all()
    assert ((width - 0.5) / (height + 0.5) <= 2.0).all()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 200), (120, 400)])
def test_crops_have_torchvisions_distribution(height, width):
    num = 20_000
    crops, _ = draw(Augment(), height, width, num)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(num)], np.float64
    )
    for name, measure in {
        "area": lambda c: c[:, 2] * c[:, 3] / (height * width),
        "log ratio": lambda c: np.log(c[:, 3] / c[:, 2]),
        "centre row": lambda c: (c[:, 0] + c[:, 2] / 2) / height,
        "centre column": lambda c: (c[:, 1] + c[:, 3] / 2) / width,
    }.items():
        ours, other = measure(crops.astype(np.float64)), measure(theirs)
        error = np.sqrt((ours.var() + other.var()) / num)
        assert abs(ours.mean() - other.mean()) < 4 * error + 1e-9, name
        assert abs(ours.std() - other.std()) < 0.02 * other.std() + 1e-9, name
        np.testing.assert_allclose(
            np.quantile(ours, [0.05, 0.25, 0.75, 0.95]),
            np.quantile(other, [0.05, 0.25, 0.75, 0.95]),
            atol=0.02,
            err_msg=name,
        )


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 2000, (0, 993, 10, 13)),  # 10 * 4/3 columns, centred
        (2000, 10, (993, 0, 13, 10)),  # 10 / (3/4) rows
        (1, 1, (0, 0, 1, 1)),
        (1, 500, (0, 249, 1, 1)),
    ],
)
def test_a_very_long_image_gives_its_largest_centred_crop_within_the_ratio(height, width, expected):
    # At a scale of 1 no attempt fits; the size is what torchvision falls back on.
    crops, _ = draw(Augment(scale=(1.0, 1.0)), height, width, 50)
    assert set(map(tuple, crops.tolist())) == {expected}
    _, _, rows, columns = RandomResizedCrop.get_params(
        torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    assert (rows, columns) == expected[2:]


def test_a_crop_does_not_depend_on_the_rest_of_its_batch():
    rng = np.random.default_rng(0)
    hw, samples = rng.integers(5, 400, (64, 2)), rng.integers(0, 10**9, 64)
    crops, flips = draw_crops(Augment(), hw, samples, seed=1, epoch=2)
    for part in (slice(0, 1), slice(63, None), slice(10, 40, 3)):
        alone = draw_crops(Augment(), hw[part], samples[part], seed=1, epoch=2)
        np.testing.assert_array_equal(alone[0], crops[part])
        np.testing.assert_array_equal(alone[1], flips[part])
    nothing = draw_crops(Augment(), hw[:0], samples[:0], seed=1, epoch=2)
    assert nothing[0].shape == (0, 4)
    assert nothing[1].shape == (0,)


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}, {"occurrence": 1}])
def test_seed_epoch_and_occurrence_give_other_crops_and_flips(change):
    crops, flips = draw(Augment(), 300, 300)
    others, other_flips = draw(Augment(), 300, 300, **change)
    assert (crops == others).all(axis=1).mean() < 0.01
    assert 0.45 < (flips == other_flips).mean() < 0.55


def test_half_of_the_images_are_flipped_whatever_their_crop():
    crops, flips = draw(Augment(), 300, 300, num=20_000)
    assert 0.48 < flips.mean() < 0.52
    assert abs(np.corrcoef(flips, crops[:, 2] * crops[:, 3])[0, 1]) < 0.03
    assert not draw(Augment(flip=False), 300, 300)[1].any()
    np.testing.assert_array_equal(draw(Augment(flip=False), 300, 300)[0], crops[:4000])


def test_evaluation_takes_whole_images_unflipped():
    hw = np.array([[10, 20], [300, 7]])
    crops, flips = draw_crops(Augment.evaluation(size=32), hw, np.arange(2), seed=0, epoch=0)
    assert crops.tolist() == [[0, 0, 10, 20], [0, 0, 300, 7]]
    assert not flips.any()
    assert crop_fractions(crops, hw).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize(
    ("hw", "centre", "tlhw"),
    [
        ((256, 256), 0.875, (16, 16, 224, 224)),
        ((500, 375), 0.875, (86, 23, 328, 328)),  # 328.125
        ((375, 500), 0.875, (23, 86, 328, 328)),
        ((10, 11), 1.0, (0, 0, 10, 10)),  # an odd pixel more on the right
        ((1, 7), 0.1, (0, 3, 1, 1)),
    ],
)
def test_the_centre_crop_is_a_square_of_a_share_of_the_shorter_side(hw, centre, tlhw):
    crops, flips = draw_crops(
        Augment.evaluation(32, centre=centre), np.array([hw]), np.zeros(1, int), seed=0, epoch=0
    )
    assert tuple(crops[0].tolist()) == tlhw
    assert not flips.any()


@pytest.mark.parametrize("hw", [(256, 341), (500, 375), (1024, 768), (231, 517)])
def test_the_centre_crop_is_what_resizing_to_256_and_cutting_224_shows(hw):
    """torchvision's two steps on an image of coordinates: the same window, to a pixel of either image."""
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in hw), indexing="ij")
    resized = center_crop(resize(torch.stack([rows, columns]), 256, antialias=True), 224)
    crops, _ = draw_crops(
        Augment.evaluation(224, centre=224 / 256), np.array([hw]), np.zeros(1, int), seed=0, epoch=0
    )
    top, left, height, width = crops[0].tolist()
    for axis, first, extent in ((0, top, height), (1, left, width)):
        seen = resized[axis].mean(dim=1 - axis)
        step = extent / 224
        assert abs(seen[0] - step / 2 - first) <= max(1, step)
        assert abs(seen[-1] + step / 2 - (first + extent)) <= max(1, step)


def test_without_a_scale_whole_images_are_still_flipped():
    crops, flips = draw(Augment(scale=None), 30, 40)
    assert set(map(tuple, crops.tolist())) == {(0, 0, 30, 40)}
    assert 0.45 < flips.mean() < 0.55


def test_fractions_are_x_before_y():
    fractions = crop_fractions(np.array([[100, 50, 200, 150]]), np.array([[500, 375]]))
    assert fractions.dtype == np.float32
    np.testing.assert_allclose(fractions[0], [50 / 375, 100 / 500, 200 / 375, 300 / 500], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "expected a size from 1 pixel, found 0"),
        ({"scale": (0.0, 1.0)}, r"expected a scale \(low, high\) within \(0, 1\], found \(0.0, 1.0\)"),
        ({"scale": (0.5, 0.4)}, "expected a scale"),
        ({"scale": (0.5, 1.1)}, "expected a scale"),
        ({"ratio": (0.0, 1.0)}, r"expected a ratio \(low, high\) above 0, found \(0.0, 1.0\)"),
        ({"ratio": (2.0, 1.0)}, "expected a ratio"),
        (
            {"centre": 0.875},
            r"expected a centre within \(0, 1\] and scale=None, found 0.875 and \(0.08, 1.0\)",
        ),
        ({"centre": 0.0, "scale": None}, "expected a centre within"),
    ],
)
def test_impossible_crops_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Augment(**options)


@pytest.mark.parametrize(
    ("centre", "square", "expected"),
    [
        (1.0, False, (0, 0, 100, 201)),
        (1.0, True, (0, 50, 100, 100)),
        (0.875, True, (6, 56, 88, 88)),
        (0.5, False, (25, 50, 50, 101)),
        (0.001, True, (49, 100, 1, 1)),
    ],
)
def test_the_middle_of_an_image_is_a_share_of_its_sides_or_of_the_shorter_one(centre, square, expected):
    augment = Augment.evaluation(32, centre=centre, square=square)
    tlhw, flips = draw_crops(augment, np.array([[100, 201]]), np.arange(1), seed=0, epoch=0)
    assert tuple(tlhw[0].tolist()) == expected
    assert not flips.any()


@pytest.mark.parametrize("options", [{"centre": 0.0}, {"centre": 1.5}, {"scale": (0.5, 1.0), "centre": 0.5}])
def test_a_middle_that_cannot_be_is_refused(options):
    with pytest.raises(UsageError, match="expected a centre within"):
        Augment(**{"scale": None, **options})
