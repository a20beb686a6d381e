"""What the first look at an image takes for damage: against what the rest of the loader calls whole."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from softshard.loaders import Augment, Loader
from softshard.loaders.first_look import FirstLook
from softshard.loaders.samples import read_size
from softshard.shards import DataError


@pytest.fixture(scope="module")
def look(packed_plain):
    """Looks at one JPEG."""
    with Loader(packed_plain, batch_size=4, augment=Augment(size=16), dtype="uint8", num_threads=1) as loader:
        places = loader._maker.reader.find(np.array([0])).places

    def look(data):
        assert read_size(data) == (64, 64)
        FirstLook(1).check(np.array([0]), places, [memoryview(data)])

    return look


def jpeg_of(mode="RGB", **options):
    rng = np.random.default_rng(3)
    pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    pixels.convert(mode).save(stream := io.BytesIO(), "JPEG", **options)
    return stream.getvalue()


def ycck():
    data = jpeg_of("CMYK")
    at = data.index(b"Adobe") + 11  # says how the colours are coded
    return data[:at] + b"\2" + data[at + 1 :]


WHOLE = {
    "baseline": jpeg_of(),
    "progressive": jpeg_of(progressive=True),
    "grey": jpeg_of("L"),
    "CMYK": jpeg_of("CMYK"),
    "YCCK": ycck(),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_jpeg_passes_also_without_its_end_or_with_bytes_behind_it(look, kind):
    data = WHOLE[kind]
    for whole in (data, data[:-2], data + bytes(100)):
        look(whole)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_marker_in_a_scan_is_damage(look, kind):
    data = WHOLE[kind]
    at = (data.rindex(b"\xff\xda") + len(data)) // 2
    damaged = data[:at] + b"\xff\x15" + data[at + 2 :]
    with pytest.raises(DataError, match="expected a whole JPEG, found: "):
        look(damaged)


def test_stray_bytes_before_a_marker_are_damage(look):
    data = WHOLE["baseline"]
    at = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match=r"found: .*3 extraneous bytes before marker 0xda; it is damaged"):
        look(data[:at] + b"abc" + data[at:])


@pytest.mark.parametrize("text", ["Insufficient memory (case 4)", "Memory allocation failure"])
def test_a_lack_of_memory_is_no_damage(look, monkeypatch, text):
    # Only a machine that runs out at the right moment has libjpeg say so.
    def decode_jpeg(*_, **__):
        raise ValueError(text)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    with pytest.raises(MemoryError, match=f"component 'jpg': {text[:12]}"):
        look(WHOLE["baseline"])
    with pytest.raises(MemoryError, match="image: "):
        read_size(WHOLE["progressive"][:-2])
