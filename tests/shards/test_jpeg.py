import pytest
import simplejpeg
from encoded_images import encode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from softshard.shards import ImageError
from softshard.shards.jpeg import read_jpeg_header
from softshard.shards.schema import MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("RGB", {}, (21, 33, 3, True)),
        ("L", {}, (21, 33, 1, True)),
        ("CMYK", {}, (21, 33, 4, True)),
        ("RGB", {"progressive": True}, (21, 33, 3, False)),
        ("RGB", {"exif": b"Exif\0\0" + bytes(3000)}, (21, 33, 3, True)),
    ],
)
def test_the_header_of_what_pillow_writes(picture, mode, options, expected):
    data = encode(Image.fromarray(picture(21, 33)).convert(mode), **options)
    assert read_jpeg_header(data)[:4] == expected
    assert read_jpeg_header(memoryview(data))[:4] == expected


def test_a_thumbnail_inside_the_exif_is_not_taken_for_the_picture(picture):
    data = encode(picture(21, 33), exif=b"Exif\0\0" + encode(picture(5, 7)))
    assert read_jpeg_header(data)[:2] == (21, 33)


def test_fill_bytes_before_a_marker_are_skipped(picture):
    data = encode(picture(21, 33))
    at = data.index(b"\xff\xc0")
    assert read_jpeg_header(data[:at] + b"\xff\xff" + data[at:])[:2] == (21, 33)


def forged(data, height, width):
    """The picture with other sides in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda data: b"", "empty", "expected a JPEG, found 0 bytes"),
        (lambda data: b"\x89PNG\r\n", "not-jpeg", r"expected a JPEG, found bytes b'\\x89PNG'"),
        (lambda data: data[:3], "not-jpeg", "expected a JPEG, found bytes"),
        (lambda data: data[:100], "truncated", "expected a JPEG frame header, found none in 100 bytes"),
        (lambda data: data[:2] + b"\xff\xd9" + bytes(20), "truncated", "expected a JPEG frame header"),
        (lambda data: data[:2] + b"\xff\xe0\0\1" + bytes(20), "truncated", "expected a JPEG frame header"),
        (lambda data: forged(data, 0, 33), "no-pixels", "expected pixels, found a JPEG of 33 x 0"),
        (lambda data: forged(data, 65_000, 65_000), "too-large", "expected at most 178956970 pixels, found 65000 x 65000"),
    ],
)  # fmt: skip
def test_what_is_no_usable_header_is_refused(jpeg, change, kind, message):
    with pytest.raises(ImageError, match=f"^a.jpg: {message}") as caught:
        read_jpeg_header(change(jpeg(21, 33)), "a.jpg")
    assert caught.value.kind == kind


@given(st.binary(max_size=200))
def test_random_bytes_give_a_header_or_the_typed_error(data):
    for content in (data, b"\xff\xd8" + data, b"\xff\xd8\xff" + data):
        try:
            header = read_jpeg_header(content)
        except ImageError:
            continue
        assert 0 < header.height * header.width <= MAX_IMAGE_PIXELS


def test_every_cut_before_the_pixels_is_refused_and_every_other_reads(jpeg):
    data = jpeg(21, 33)
    at = data.index(b"\xff\xc0")
    for size in range(len(data)):
        if size <= at + 9:
            with pytest.raises(ImageError):
                read_jpeg_header(data[:size])
        else:
            assert read_jpeg_header(data[:size])[:2] == (21, 33)
    assert simplejpeg.decode_jpeg_header(data)[:2] == (21, 33)
