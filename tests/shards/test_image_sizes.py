"""The size that a recipe stores, and the pixels that resizing gives."""

import io

import numpy as np
import pytest
from encoded_images import check_is_plain, decode, encode, psnr
from PIL import Image

from softshard.shards import ImageError, ImageRecipe, UsageError
from softshard.shards.images import decode_rgb, resample, shrink, store_image


def test_a_line_too_thin_to_store_is_refused(picture):
    data = encode(picture(1, 3000), "PNG")
    with pytest.raises(
        ImageError, match=r"^a: expected stored sides of 1 to 65500 pixels, found 672000 x 224"
    ) as caught:
        store_image(data, ImageRecipe(resize="short-edge", upscale=True), "a")
    assert caught.value.kind == "bad-shape"


@pytest.mark.parametrize(
    ("recipe", "height", "width", "expected"),
    [
        (ImageRecipe(32), 48, 64, (32, 32)),
        (ImageRecipe(32), 20, 64, (32, 32)),
        (ImageRecipe(32), 20, 30, (20, 30)),
        (ImageRecipe(32), 32, 30, (32, 32)),
        (ImageRecipe(32, upscale=True), 20, 30, (32, 32)),
        (ImageRecipe(32, "short-edge"), 48, 64, (32, 43)),
        (ImageRecipe(32, "short-edge"), 64, 48, (43, 32)),
        (ImageRecipe(32, "short-edge"), 20, 64, (20, 64)),
        (ImageRecipe(32, "short-edge"), 32, 64, (32, 64)),
        (ImageRecipe(32, "short-edge", upscale=True), 20, 64, (32, 102)),
        (ImageRecipe(32, "none"), 48, 64, (48, 64)),
        (ImageRecipe(32), 1, 1, (1, 1)),
        (ImageRecipe(32, upscale=True), 1, 1, (32, 32)),
        (ImageRecipe(1), 48, 64, (1, 1)),
    ],
)
def test_an_image_is_stored_in_the_size_that_its_recipe_gives(picture, recipe, height, width, expected):
    assert recipe.target(height, width) == expected
    for kind in ("PNG", "JPEG"):
        stored = store_image(encode(picture(height, width), kind), recipe)
        assert stored.original_hw == (height, width)
        assert stored.stored_hw == expected
        check_is_plain(stored)


@pytest.mark.parametrize(("height", "width"), [(700, 900), (901, 640), (257, 231), (229, 1200)])
def test_a_large_photograph_is_stored_close_to_what_pillow_makes_of_it(picture, height, width):
    data = encode(picture(height, width), "JPEG", quality=95)
    stored = store_image(data, ImageRecipe(224, quality=95))
    with Image.open(io.BytesIO(data)) as image:
        expected = image.resize(
            (224, 224), Image.Resampling.BOX if min(height, width) > 448 else Image.Resampling.BILINEAR
        )
    assert psnr(decode(stored.jpeg), expected) > 33


@pytest.mark.parametrize(("height", "width"), [(375, 500), (260, 300), (300, 401), (520, 700), (1100, 1300)])
def test_decoding_at_a_scale_stays_close_to_the_area_average_of_all_pixels(height, width):
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack(
        [np.sin(rows / 5) + np.sin(columns / 7), np.sin((rows + columns) / 9), np.cos(rows / 30)], 2
    )
    data = encode(Image.fromarray((127 + 60 * waves).astype(np.uint8)), "JPEG", quality=95)
    recipe = ImageRecipe(256, "short-edge")
    pixels, size = decode_rgb(data, recipe, "a")
    assert size == (height, width)
    target = recipe.target(height, width)
    assert min(pixels.shape[:2]) >= 256
    assert psnr(shrink(pixels, *target), resample(decode(data), *target)) > 40


@pytest.mark.parametrize("factor", [1.01, 1.2, 1.46, 1.7, 1.99])
def test_shrinking_smooths_as_much_as_an_area_average(factor):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    side = round(400 / factor)
    found, area = shrink(noise, side, side), resample(noise, side, side)
    # White noise: its spread after the resize tells how wide the kernel is.
    assert found.std() == pytest.approx(area.std(), rel=0.15)
    assert found.mean() == pytest.approx(noise.mean(), abs=1)


def test_resampling_is_close_to_pillow_s_on_fine_texture():
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), np.uint8)
    found = resample(noise, 32, 40)
    assert psnr(found, Image.fromarray(noise).resize((40, 32), Image.Resampling.BOX)) > 45


def test_resampling_grows_one_side_and_shrinks_the_other(picture):
    image = picture(20, 100)
    found = resample(image, 40, 25)
    expected = Image.fromarray(image).resize((25, 40), Image.Resampling.BILINEAR)
    assert found.shape == (40, 25, 3)
    assert psnr(found, expected) > 28


@pytest.mark.parametrize(("height", "width"), [(20, 30), (10, 15), (40, 60), (10, 60), (40, 15)])
def test_resampling_into_an_array_gives_the_same_pixels(picture, height, width):
    image = picture(20, 30)
    out = np.zeros((height, width, 3), np.uint8)
    assert np.array_equal(resample(image, height, width, out), resample(image, height, width))
    assert np.array_equal(out, resample(image, height, width))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "crop"}, "resize: expected one of squish, short-edge, none, found 'crop'"),
        ({"size": 0}, "size: expected 1 to 65500 pixels, found 0"),
        ({"size": 65_501}, "size: expected 1 to 65500 pixels, found 65501"),
        ({"quality": 0}, "quality: expected 1 to 100, found 0"),
        ({"quality": 101}, "quality: expected 1 to 100, found 101"),
    ],
)
def test_a_wrong_recipe_is_a_wrong_call(options, message):
    with pytest.raises(UsageError, match=message):
        ImageRecipe(**options)
