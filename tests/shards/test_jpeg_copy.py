import io

import numpy as np
import pytest
from encoded_images import decode, encode
from PIL import Image

from softshard.shards import ImageRecipe
from softshard.shards.images import store_image
from softshard.shards.jpeg import read_jpeg_header
from softshard.shards.jpeg_copy import strip_metadata

COPY = ImageRecipe(40, "short-edge", reencode=False)


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "somebody's garden"
    return tags


@pytest.fixture
def plain(picture):
    """A fitting JPEG as Pillow writes it: JFIF, no metadata."""
    return encode(picture(40, 56), quality=80)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exif": exif(1)},
        {"icc_profile": b"profile" * 20_000},
        {"comment": b"a comment"},
        {"exif": exif(1), "icc_profile": b"profile", "comment": b"c", "subsampling": "4:4:4"},
        {"optimize": True, "subsampling": "4:2:2"},
        {"restart_marker_blocks": 2},
    ],
)
def test_a_fitting_jpeg_keeps_its_pixels_and_loses_its_metadata(picture, options):
    data = encode(picture(40, 56), quality=80, **options)
    stored = store_image(data, COPY)
    assert stored.stored_hw == stored.original_hw == (40, 56)
    assert np.array_equal(decode(stored.jpeg), decode(data))
    assert len(stored.jpeg) <= len(data)
    with Image.open(io.BytesIO(stored.jpeg)) as image:
        image.load()
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"}
    assert b"garden" not in stored.jpeg
    # Tables and scans as they were.
    assert data[data.index(b"\xff\xda") :] == stored.jpeg[stored.jpeg.index(b"\xff\xda") :]


def test_without_metadata_there_is_nothing_to_change(plain):
    assert store_image(plain, COPY).jpeg == strip_metadata(plain) == plain


def test_by_default_and_where_it_does_not_fit_it_is_encoded_again(plain, picture):
    assert store_image(plain, ImageRecipe(40, "short-edge")).jpeg != plain
    assert store_image(plain, ImageRecipe(24, "short-edge", reencode=False)).stored_hw == (24, 34)
    small = encode(picture(20, 30), quality=80)  # left as it is, since it is not enlarged
    assert store_image(small, COPY).jpeg == small


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"exif": exif(6)}, {"exif": exif(3)}, {"keep_rgb": True}]
)
def test_what_is_not_stored_as_it_is_is_encoded_again(picture, options):
    data = encode(picture(40, 40), quality=80, **options)
    stored = store_image(data, COPY)
    assert stored == store_image(data, ImageRecipe(40, "short-edge"))
    header = read_jpeg_header(stored.jpeg)
    assert header.baseline
    assert header.components == 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_encoded_again(picture, mode):
    data = encode(Image.fromarray(picture(40, 56)).convert(mode))
    assert read_jpeg_header(store_image(data, COPY).jpeg).components == 3


def test_what_follows_the_end_is_left_out(plain):
    for more in (b"stray", b"\0" * 3, plain):
        assert store_image(plain + more, COPY).jpeg == plain


def test_a_thumbnail_goes_and_adobe_s_marker_stays_only_where_it_matters(plain):
    at = plain.index(b"\xff\xdb")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01")
    thumbnail = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\1\1" + b"abc")
    assert strip_metadata(plain[:2] + thumbnail + adobe + plain[at:]) == plain
    only_adobe = plain[:2] + adobe + plain[at:]
    assert strip_metadata(only_adobe) == only_adobe
    assert np.array_equal(decode(store_image(only_adobe, COPY).jpeg), decode(plain))
    as_rgb = plain[:2] + adobe[:-1] + b"\0" + plain[at:]
    assert strip_metadata(as_rgb) is None


@pytest.mark.parametrize("size", [-1, -2, -40, 300, 20, 2])
def test_a_cut_file_is_not_copied(plain, size):
    assert strip_metadata(plain[:size]) is None


def test_a_scan_that_ends_early_is_not_copied(plain):
    scan = plain.index(b"\xff\xda")
    early = plain[: scan + 60] + b"\xff\xd9"
    assert strip_metadata(early) == early  # its markers are in order
    with pytest.raises(ValueError, match="expected a whole JPEG"):
        store_image(early, COPY)


def test_no_cut_or_flipped_byte_makes_it_fail_in_another_way(plain):
    generator = np.random.default_rng(0)
    for at in range(0, len(plain), 3):
        strip_metadata(plain[:at])
        damaged = bytearray(plain)
        damaged[at] = generator.integers(256)
        copied = strip_metadata(bytes(damaged))
        assert copied is None or copied.endswith(b"\xff\xd9")
