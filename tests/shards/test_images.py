import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from softshard.shards import ImageError, ImageRecipe, UsageError
from softshard.shards.images import decode_rgb, pixel_stack, resample, shrink, store_image
from softshard.shards.jpeg import read_jpeg_header

KEEP = ImageRecipe(resize="none", quality=95)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(jpeg):
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)


def psnr(one, other):
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def check_is_plain(stored):
    """Baseline RGB of the stated size, without EXIF, and readable by Pillow."""
    header = read_jpeg_header(stored.jpeg)
    assert (header.height, header.width) == stored.stored_hw
    assert header.components == 3
    assert header.baseline
    with Image.open(io.BytesIO(stored.jpeg)) as image:
        assert image.mode == "RGB"
        assert not image.getexif()
        assert "progressive" not in image.info


# ---- Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_is_applied_as_pillow_applies_it(picture, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(24, 40), kind, exif=exif, **({"quality": 97} if kind != "PNG" else {}))
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    stored = store_image(data, KEEP)
    assert stored.original_hw == stored.stored_hw == upright.shape[:2]
    assert psnr(decode(stored.jpeg), upright) > 35
    assert all(psnr(decode(stored.jpeg), wrong) < 25 for wrong in (upright[::-1], upright[:, ::-1]))
    check_is_plain(stored)


def test_an_orientation_behind_a_long_profile_is_found(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(picture(24, 40), "JPEG", exif=exif)
    at = plain.index(b"\xff\xe1")
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000)
    assert store_image(plain[:at] + 2 * profile + plain[at:], KEEP).stored_hw == (40, 24)


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_means_nothing_is_ignored(picture, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert store_image(encode(picture(24, 40), "JPEG", exif=exif), KEEP).stored_hw == (24, 40)


def test_damaged_exif_does_not_make_a_picture_unusable(picture):
    data = encode(picture(24, 40), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert store_image(data, KEEP).stored_hw == (24, 40)


# ---- Kinds


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_other_kinds_are_read_whatever_their_name_says(picture, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(picture(24, 40))
    data = encode(image, kind, **options)
    stored = store_image(data, KEEP, "class/actually_not_a.jpg")
    assert stored.original_hw == (24, 40)
    assert psnr(decode(stored.jpeg), image) > 30
    check_is_plain(stored)


def test_a_progressive_jpeg_becomes_baseline(picture):
    data = encode(picture(24, 40), "JPEG", progressive=True, quality=95)
    assert not read_jpeg_header(data).baseline
    check_is_plain(store_image(data, KEEP))


def test_grey_becomes_rgb(picture):
    grey = Image.fromarray(picture(24, 40)).convert("L")
    for kind in ("JPEG", "PNG"):
        stored = store_image(encode(grey, kind), KEEP)
        check_is_plain(stored)
        assert psnr(decode(stored.jpeg), np.repeat(np.asarray(grey)[:, :, None], 3, 2)) > 35


def test_cmyk_becomes_the_rgb_that_pillow_shows(picture):
    data = encode(Image.fromarray(picture(24, 40)).convert("CMYK"), "JPEG", quality=97)
    stored = store_image(data, KEEP)
    check_is_plain(stored)
    with Image.open(io.BytesIO(data)) as image:
        assert psnr(decode(stored.jpeg), image.convert("RGB")) > 35


def test_sixteen_bits_keep_the_high_byte(picture):
    grey = np.asarray(Image.fromarray(picture(24, 40)).convert("L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert data[24] == 16  # bit depth
    stored = store_image(data, KEEP)
    check_is_plain(stored)
    assert psnr(decode(stored.jpeg), np.repeat(grey[:, :, None], 3, 2)) > 35


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_grey_of_sixteen_bits_is_divided_by_257_in_every_strip(kind):
    grey = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    grey = np.tile(grey, (5, 7))  # more pixels than a strip has
    pixels, _ = decode_rgb(encode(Image.fromarray(grey), kind), KEEP, "a")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.repeat((grey // 257)[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [-1, 0, 256, 257, 65_535, 2**31 - 1], [0, 0, 0, 1, 255, 255]),
        (np.float32, [-0.5, 0.9, 1, 254.99, 255, 1e30], [0, 0, 1, 254, 255, 255]),
    ],
)
def test_wider_greys_are_cut_to_their_range(dtype, values, expected):
    image = Image.fromarray(np.array([values], dtype))
    pixels, _ = decode_rgb(encode(image, "TIFF"), KEEP, "a")
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (40, 24), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 24))
    stored = store_image(encode(image.convert(mode), "PNG"), KEEP)
    pixels = decode(stored.jpeg)
    assert pixels[:, :16].min() > 240
    assert pixels[:, 24:].max(axis=(0, 1))[1] < 90


def test_the_first_frame_of_an_animation_is_taken(picture):
    frames = [Image.fromarray(picture(24, 40, seed)) for seed in (1, 2)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pixels = decode(store_image(data, KEEP).jpeg)
    assert psnr(pixels, frames[0]) > 25 > psnr(pixels, frames[1]) + 8


# ---- What cannot be used


def png_claiming(width, height):
    """A PNG's header, and pixels that never come."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\4IDAT"
    )


def jpeg_claiming(data, height, width):
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_cut_jpeg_is_refused(jpeg):
    data = jpeg(48, 64)
    for size in (len(data) - 2, len(data) - 40, len(data) // 2, 200, 20):
        with pytest.raises(ImageError, match=r"^a\.jpg: expected") as caught:
            store_image(data[:size], ImageRecipe(16), "a.jpg")
        assert caught.value.kind in ("truncated", "unreadable")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_a_cut_file_of_another_kind_is_refused(picture, kind):
    data = encode(picture(48, 64), kind)
    with pytest.raises(ImageError, match=rf"^a: expected (a whole {kind} image|an image), found.*\w"):
        store_image(data[: len(data) // 2], KEEP, "a")


def test_zero_bytes_are_refused():
    with pytest.raises(ImageError, match=r"^a: expected an image, found 0 bytes$") as caught:
        store_image(b"", KEEP, "a")
    assert caught.value.kind == "empty"


def test_what_is_no_image_is_refused_with_its_first_bytes_and_the_same_words_each_time():
    texts = []
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            store_image(b"<html>404</html>", KEEP, "a.jpg")
        texts.append(str(caught.value))
        assert caught.value.kind == "unreadable"
    assert texts == ["a.jpg: expected an image, found bytes b'<html>40'"] * 2


@pytest.mark.parametrize("pillows_own", [Image.MAX_IMAGE_PIXELS, None])  # which much code switches off
def test_a_decompression_bomb_is_refused_by_its_header(jpeg, monkeypatch, pillows_own):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own)
    for data in (
        png_claiming(50_000, 50_000),
        png_claiming(14_000, 14_000),
        jpeg_claiming(jpeg(8, 8), 20_000, 20_000),
    ):
        with pytest.raises(ImageError, match=r"^a: expected at most 178956970 pixels, found") as caught:
            store_image(data, KEEP, "a")
        assert caught.value.kind == "too-large"


def test_a_jpeg_with_stray_bytes_is_read(jpeg):
    # Many photographs of ImageNet have such bytes; libjpeg warns, every viewer shows them.
    data = jpeg(24, 40)
    assert psnr(decode(store_image(data + b"stray", KEEP).jpeg), decode(data)) > 35


def test_a_scan_that_ends_early_is_refused_although_pillow_would_fill_it_with_grey(jpeg):
    data = jpeg(48, 64)
    early = data[: data.index(b"\xff\xda") + 100] + b"\xff\xd9"
    Image.open(io.BytesIO(early)).load()
    with pytest.raises(
        ImageError, match=r"^a: expected a whole JPEG image, found: .*premature end"
    ) as caught:
        store_image(early, KEEP, "a")
    assert caught.value.kind == "truncated"


def test_a_line_too_thin_to_store_is_refused(picture):
    data = encode(picture(1, 3000), "PNG")
    with pytest.raises(
        ImageError, match=r"^a: expected stored sides of 1 to 65500 pixels, found 672000 x 224"
    ) as caught:
        store_image(data, ImageRecipe(resize="short-edge", upscale=True), "a")
    assert caught.value.kind == "bad-shape"


# ---- Memory

DECODE_WITH_SPARE_MEMORY = """
import io, resource, sys
from PIL import Image
from softshard.shards import ImageRecipe
from softshard.shards.images import decode_rgb

data = sys.stdin.buffer.read()
recipe = ImageRecipe(resize="none")
small = io.BytesIO()
Image.open(io.BytesIO(data)).crop((0, 0, 8, 8)).save(small, Image.open(io.BytesIO(data)).format)
decode_rgb(small.getvalue(), recipe, "small")  # libraries take what they keep
taken = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * 2**20,) * 2)
try:
    print(decode_rgb(data, recipe, "a")[0].shape)
except Exception as error:
    print(type(error).__name__)
"""


def decode_with_spare_memory(data, mib):
    """What comes of an image in a process that may take so many MiB more: its shape, or an error's type."""
    command = [sys.executable, "-c", DECODE_WITH_SPARE_MEMORY, str(mib)]
    return (
        subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
        .stdout.decode()
        .strip()
    )


def test_sixteen_bits_take_little_more_than_the_picture_itself():
    data = encode(Image.fromarray(np.zeros((4000, 4000), np.uint16)), "PNG", compress_level=1)
    # 31 MiB of 16 bits and 46 of RGB.
    assert decode_with_spare_memory(data, 130) == "(4000, 4000, 3)"


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("PNG", np.uint8), ("JPEG", np.uint8)])
def test_a_lack_of_memory_is_not_taken_for_a_bad_image(kind, dtype):
    data = encode(Image.fromarray(np.zeros((4000, 4000), dtype)), kind)
    assert decode_with_spare_memory(data, 400) == "(4000, 4000, 3)"
    assert decode_with_spare_memory(data, 12) == "MemoryError"


@pytest.mark.parametrize("text", ["Insufficient memory (case 4)", "Memory allocation failure"])
@pytest.mark.parametrize("reencode", [True, False])
def test_a_lack_of_memory_that_libjpeg_tells_is_one(jpeg, monkeypatch, text, reencode):
    # Only a machine that runs out at the right moment has libjpeg say so.
    def decode_jpeg(*_, **__):
        raise ValueError(text)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    with pytest.raises(MemoryError, match=r"^a: "):
        store_image(jpeg(48, 64), ImageRecipe(resize="none", reencode=reencode), "a")


# ---- Sizes


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
def test_stored_sizes(picture, recipe, height, width, expected):
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


def test_the_same_image_gives_the_same_bytes(jpeg):
    assert store_image(jpeg(48, 64), ImageRecipe(32)) == store_image(jpeg(48, 64), ImageRecipe(32))


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


def test_the_pixel_stack_names_what_decides_the_bytes():
    stack = pixel_stack()
    assert {"simplejpeg", "opencv-python-headless", "pillow", "lz4"} <= stack.keys()
    assert all(version[0].isdigit() for version in stack.values())
