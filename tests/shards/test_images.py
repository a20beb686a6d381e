"""Images of every kind become baseline RGB JPEGs, upright; what cannot be used is told by kind."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from encoded_images import check_is_plain, decode, encode, psnr
from PIL import Image, ImageOps
from waiting import LONG_S

from softshard.shards import ImageError, ImageRecipe
from softshard.shards.images import decode_rgb, pixel_stack, store_image
from softshard.shards.jpeg import read_jpeg_header

KEEP = ImageRecipe(resize="none", quality=95)


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
        subprocess.run(command, input=data, capture_output=True, check=True, timeout=LONG_S)
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


def test_the_same_image_gives_the_same_bytes(jpeg):
    assert store_image(jpeg(48, 64), ImageRecipe(32)) == store_image(jpeg(48, 64), ImageRecipe(32))


def test_the_pixel_stack_names_what_decides_the_bytes():
    stack = pixel_stack()
    assert {"simplejpeg", "opencv-python-headless", "pillow", "lz4"} <= stack.keys()
    assert all(version[0].isdigit() for version in stack.values())
