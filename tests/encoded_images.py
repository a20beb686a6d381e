"""Images as files, and how alike two pictures are."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from softshard.shards.jpeg import read_jpeg_header


def encode(image, kind="JPEG", **options):
    """What Pillow writes of an array or an image of its own."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(jpeg):
    """uint8 [H, W, 3]; a JPEG that is cut short is an error."""
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)


def psnr(one, other):
    """In dB, of pixels up to 255."""
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
