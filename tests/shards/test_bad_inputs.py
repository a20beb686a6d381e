"""A table of bad and odd inputs, and what `pack` makes of each: packed, or a line of the ledger."""

import base64
import json
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from encoded_images import encode
from packed_files import fields_by_path
from PIL import Image

from softshard import shards
from softshard.shards import ImageRecipe, PackOptions, pack, read_shard, verify
from softshard.shards.images import store_image

PACKED = "packed"
# 16 x 16 pixels each, of kinds that neither Pillow nor OpenCV writes.
LOSSLESS = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/8MAEQgAEAAQA1IRAEcRAEIRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAHBv/aAAwDUgBHAEIAAQAA"
    "pEnzIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAm9Y0wAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/9k="
)
TWELVE_BITS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoK"
    "CgoKBggLDAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"
    "CgoKCgoKCgr/wQARDAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAz/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QA"
    "FQEBAQAAAAAAAAAAAAAAAAAABwz/xAAcEQABAwUAAAAAAAAAAAAAAAAAFhxkaaKn4uf/2gAMAwEAAhEDEQA/AJ2MUTgP0LIs2KX5"
    "xNUysz8nP//Z"
)
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBT/yQARCAAQABADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALkkiiRLotrczO7/2Q=="
)


def picture(height=40, width=56):
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([rows * 5 % 256, columns * 4 % 256, (rows + columns) % 256], 2).astype(np.uint8)
    )


def jpeg(**options):
    return encode(picture(), "JPEG", quality=90, **options)


def with_size(height, width):
    """A JPEG whose frame header claims another size."""
    data = jpeg()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def corrupt_scan():
    data = bytearray(jpeg())
    scan = data.index(b"\xff\xda") + 14
    data[scan + 40 : scan + 120] = b"\xfe" * 80
    return bytes(data)


def early_end():
    data = jpeg()
    return data[: data.index(b"\xff\xda") + 100] + b"\xff\xd9"


def huffman_table_gone():
    data = jpeg()
    at = data.index(b"\xff\xc4")
    return data[: at + 5] + b"\xff" * 16 + data[at + 21 :]


def png(width, height, bits=8):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + checksum + b"\0\0\0\4IDAT"


def sixteen_bit_rgb_png():
    rows = b"".join(b"\0" + bytes([row, 0] * 3 * 24) for row in range(24))
    header = b"IHDR" + struct.pack(">IIBBBBB", 24, 24, 16, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def animation(kind):
    return encode(picture(), kind, save_all=True, append_images=[picture().rotate(180)], duration=50)


def gif_claiming(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + encode(picture(), "GIF")[10:]


# name: (bytes, what happens)
CONTENTS = {
    "JPEG cut in its header": (lambda: jpeg()[:90], "truncated"),
    "JPEG cut in its scan": (lambda: jpeg()[:-200], "truncated"),
    "JPEG without its last two bytes": (lambda: jpeg()[:-2], "truncated"),
    "JPEG whose scan ends early, with an end marker": (early_end, "truncated"),
    "JPEG with a corrupt scan": (corrupt_scan, "truncated"),
    "JPEG with a damaged Huffman table": (huffman_table_gone, "unreadable"),
    "JPEG with no frame": (lambda: b"\xff\xd8\xff\xd9" + bytes(20), "truncated"),
    "JPEG taller than its data": (lambda: with_size(400, 56), "truncated"),
    "JPEG of no rows": (lambda: with_size(0, 56), "no-pixels"),
    "JPEG of no columns": (lambda: with_size(40, 0), "no-pixels"),
    "JPEG bomb": (lambda: with_size(65_000, 65_000), "too-large"),
    "PNG bomb": (lambda: png(60_000, 60_000), "too-large"),
    "PNG bomb below Pillow's own error": (lambda: png(14_000, 14_000), "too-large"),
    "GIF bomb": (lambda: gif_claiming(65_535, 65_535), "too-large"),
    "PNG header without pixels": (lambda: png(40, 40), "truncated"),
    "PNG cut short": (lambda: encode(picture(), "PNG")[:100], "truncated"),
    "PNG with a wrong checksum": (lambda: encode(picture(), "PNG").replace(b"IDAT", b"IDAX"), "unreadable"),
    "WebP cut short": (lambda: encode(picture(), "WEBP")[:100], "unreadable"),
    "GIF cut short": (lambda: encode(picture(), "GIF")[:-600], "truncated"),
    "zero bytes": (lambda: b"", "empty"),
    "one byte": (lambda: b"\xff", "unreadable"),
    "only zeros": (lambda: bytes(5000), "unreadable"),
    "text": (lambda: b"This image is no longer available.\n", "unreadable"),
    "HTML": (lambda: b"<!doctype html><title>404 Not Found</title>", "unreadable"),
    "PDF": (lambda: encode(picture(), "PDF"), "unreadable"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "unreadable"),
    "EPS": (lambda: encode(picture(), "EPS"), "unreadable"),
    "tar": (lambda: b"a.jpg".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "unreadable"),
    "12-bit JPEG": (lambda: TWELVE_BITS, "unreadable"),
    # Odd, and fine.
    "lossless JPEG": (lambda: LOSSLESS, PACKED),
    "arithmetic-coded JPEG": (lambda: ARITHMETIC, PACKED),
    "progressive JPEG": (lambda: jpeg(progressive=True), PACKED),
    "PNG": (lambda: encode(picture(), "PNG"), PACKED),
    "WebP": (lambda: encode(picture(), "WEBP"), PACKED),
    "GIF": (lambda: encode(picture(), "GIF"), PACKED),
    "BMP": (lambda: encode(picture(), "BMP"), PACKED),
    "TIFF": (lambda: encode(picture(), "TIFF"), PACKED),
    "CMYK JPEG": (lambda: encode(picture().convert("CMYK"), "JPEG"), PACKED),
    "grey JPEG": (lambda: encode(picture().convert("L"), "JPEG"), PACKED),
    "bilevel PNG": (lambda: encode(picture().convert("1"), "PNG"), PACKED),
    "palette PNG with transparency": (lambda: encode(picture().convert("P"), "PNG", transparency=0), PACKED),
    "16-bit grey PNG": (lambda: encode(Image.fromarray(np.full((24, 24), 999, np.uint16)), "PNG"), PACKED),
    "16-bit RGB PNG": (sixteen_bit_rgb_png, PACKED),
    "one pixel": (lambda: encode(picture(1, 1), "PNG"), PACKED),
    "one row of 5,000 pixels": (lambda: encode(picture(1, 5000), "JPEG"), PACKED),
    "animated GIF": (lambda: animation("GIF"), PACKED),
    "animated PNG": (lambda: animation("PNG"), PACKED),
    "animated WebP": (lambda: animation("WEBP"), PACKED),
    "JPEG with stray bytes behind its end": (lambda: jpeg() + b"stray" * 100, PACKED),
    "JPEG with text behind its end": (lambda: jpeg() + b"<?php exit; ?>", PACKED),
    "two JPEGs in one file": (lambda: jpeg() + encode(picture(90, 90), "JPEG"), PACKED),
    "MPO": (lambda: encode(picture(), "MPO", save_all=True, append_images=[picture()]), PACKED),
    "JPEG with 64 kB of EXIF": (lambda: jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(65_000)), PACKED),
    "JPEG with damaged EXIF": (lambda: jpeg(exif=b"Exif\0\0" + b"\xff" * 99), PACKED),
    "JPEG with a large colour profile": (lambda: jpeg(icc_profile=bytes(300_000)), PACKED),
    "JPEG with a comment": (lambda: jpeg(comment=b"\xff\xd9" * 50), PACKED),
}


def pack_and_check(source, tmp_path, workers=1):
    """Pack a source; returns path to ledger kind, or to PACKED, as the data set and the ledger say."""
    summary = pack(source, tmp_path / "set", PackOptions(image=ImageRecipe(16), max_bad=1.0), workers=workers)
    assert summary.read == summary.packed + summary.bad
    report = verify(tmp_path / "set", decode=True)
    assert report.problems == []
    assert report.samples == summary.packed
    ledger = [json.loads(line) for line in (tmp_path / "set/bad.jsonl").read_text().splitlines()]
    assert len(ledger) == summary.bad
    assert all(entry["path"] in entry["reason"] for entry in ledger if entry["path"].isprintable())
    return summary, {entry["path"]: entry["kind"] for entry in ledger}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source/cat").mkdir(parents=True)
    (tmp_path / "source/cat/good.jpg").write_bytes(jpeg())
    return tmp_path / "source"


@pytest.fixture(scope="module")
def ledger_of_all(tmp_path_factory):
    """What `pack_and_check` gives of a folder with all of CONTENTS, by their numbers."""
    folder = tmp_path_factory.mktemp("contents")
    (folder / "source/cat").mkdir(parents=True)
    for number, (make, _) in enumerate(CONTENTS.values()):
        (folder / f"source/cat/{number}.jpg").write_bytes(make())
    summary, ledger = pack_and_check(folder / "source", folder)
    assert len(CONTENTS) >= 25
    assert summary.read == len(CONTENTS)
    return ledger


@pytest.mark.parametrize(("number", "name"), [*enumerate(CONTENTS)])
def test_a_file_named_jpg_that_holds_something_else(ledger_of_all, number, name):
    assert ledger_of_all.get(f"cat/{number}.jpg", PACKED) == CONTENTS[name][1]


def test_a_lossless_jpeg_is_not_decoded_at_a_scale():
    # libjpeg-turbo would write all of its 16 x 16 pixels into an array of 8 x 8.
    stored = simplejpeg.decode_jpeg(store_image(LOSSLESS, ImageRecipe(8)).jpeg, "RGB")
    for row, colour in ((0, (200, 40, 90)), (7, (128, 128, 128))):
        assert np.abs(stored[row].astype(int) - colour).max() < 4


# ---- Files that are none


def make_socket(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


NOT_FILES = {
    "a pipe": (lambda path, _: os.mkfifo(path), "not-a-file"),
    "a socket": (make_socket, "not-a-file"),
    "a device": (lambda path, _: path.symlink_to("/dev/zero"), "not-a-file"),
    "a link to nothing": (lambda path, _: path.symlink_to("nowhere"), "unreadable"),
    "a link to itself": (lambda path, _: path.symlink_to(path.name), "unreadable"),
    "a link to a picture": (lambda path, _: path.symlink_to("good.jpg"), PACKED),
}


@pytest.mark.parametrize("name", NOT_FILES)
def test_what_is_no_plain_file_is_in_the_ledger_and_never_waited_for(name, source, tmp_path, monkeypatch):
    make, expected = NOT_FILES[name]
    make(source / "cat/odd.jpg", monkeypatch)
    summary, ledger = pack_and_check(source, tmp_path)
    assert summary.read == 2
    assert ledger == ({} if expected == PACKED else {"cat/odd.jpg": expected})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_in_the_ledger(source, tmp_path):
    (source / "cat/odd.jpg").write_bytes(jpeg())
    (source / "cat/odd.jpg").chmod(0)
    assert pack_and_check(source, tmp_path)[1] == {"cat/odd.jpg": "unreadable"}


# ---- Folders


def test_a_folder_named_like_a_picture_is_a_folder(source, tmp_path):
    (source / "cat/more.jpg").mkdir()
    (source / "cat/more.jpg/a.jpg").write_bytes(jpeg())
    summary, ledger = pack_and_check(source, tmp_path)
    assert (summary.packed, ledger) == (2, {})


def test_links_that_go_round_are_followed_once_at_most(source, tmp_path):
    (source / "cat/again").symlink_to(".")
    (source / "cat/up").symlink_to("..")
    (source / "cat/deep").mkdir()
    (source / "cat/deep/top").symlink_to(source / "cat")
    (source / "root").symlink_to(".")
    summary, ledger = pack_and_check(source, tmp_path)
    assert (summary.read, summary.packed, ledger) == (1, 1, {})
    assert summary.ignored == ("cat/again", "cat/deep/top", "cat/up", "root")


def test_two_folders_that_link_to_each_other_end(source, tmp_path):
    (source / "dog").mkdir()
    (source / "dog/cat").symlink_to("../cat")
    (source / "cat/dog").symlink_to("../dog")
    summary, _ = pack_and_check(source, tmp_path)
    assert summary.packed == 2  # the cat, and the cat of the dog
    assert summary.ignored == ("cat/dog/cat", "dog/cat/dog")


def test_an_empty_class_folder_is_left_out_and_named(source, tmp_path):
    (source / "nothing").mkdir()
    (source / "hidden").mkdir()
    (source / "hidden/.a.jpg").write_bytes(jpeg())
    summary, _ = pack_and_check(source, tmp_path)
    assert summary.dropped == (("hidden", 0), ("nothing", 0))


# ---- Names

NAMES = {
    "with a newline": ["a\nb.jpg"],
    "with a tab": ["a\tb.jpg"],
    "with a leading dash": ["-rf.jpg"],
    "with spaces and quotes": ["a 'b' \"c\" $(d).jpg"],
    "with a backslash": ["a\\b.jpg"],
    "of dots": ["a.b.c..jpg"],
    "Chinese": ["猫.jpg"],
    "of 255 bytes": ["x" * 251 + ".jpg"],
    "two of 255 bytes that differ at their ends": ["x" * 250 + end + ".jpg" for end in "yz"],
    "composed and decomposed": ["\u00e9.jpg", "e\u0301.jpg"],
    "that differ in case": ["Cat.jpg", "cat.jpg", "CAT.JPG"],
    "with one stem": ["one.jpg", "one.jpeg", "one.png"],
    "that are alike once cleaned": ["a b.jpg", "a+b.jpg", "a-b.jpg"],
    "with control characters": ["\x1b[31m.jpg"],
}


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_packed_under_keys_of_their_own(name, source, tmp_path):
    for file in NAMES[name]:
        (source / "cat" / file).write_bytes(jpeg())
    summary, ledger = pack_and_check(source, tmp_path)
    assert (summary.packed, ledger) == (1 + len(NAMES[name]), {})
    keys = [
        sample.key.lower() for path in (tmp_path / "set/train").glob("*.tar") for sample in read_shard(path)
    ]
    assert len(set(keys)) == summary.packed


def test_a_name_that_is_not_utf_8_is_packed_or_in_the_ledger_as_it_is(source, tmp_path):
    for file, data in ((b"caf\xe9.jpg", jpeg()), (b"th\xe9.jpg", b"")):
        with open(os.fsencode(source / "cat") + b"/" + file, "wb") as stream:
            stream.write(data)
    summary, ledger = pack_and_check(source, tmp_path, workers=2)
    assert (summary.read, summary.packed) == (3, 2)
    assert ledger == {"cat/th\udce9.jpg": "empty"}
    assert fields_by_path(tmp_path / "set/train").keys() == {"cat/good.jpg", r"cat/caf\udce9.jpg"}


def documented():
    rows = {
        **{name: kind for name, (_, kind) in CONTENTS.items()},
        **{name: kind for name, (_, kind) in NOT_FILES.items()},
    }
    return [f"| {name} | {kind if kind == PACKED else f'ledger: `{kind}`'} |" for name, kind in rows.items()]


def test_the_documentation_has_this_table():
    text = (Path(shards.__file__).parent / "BAD_INPUTS.md").read_text("utf-8")
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == documented()
