"""One image from file to stored JPEG: decode, orient, resize, encode.

JPEGs go through libjpeg-turbo (simplejpeg; DCT-scaled when the picture is far larger than needed) and
OpenCV's resampling, about twice as many photographs per CPU-second as Pillow; whatever those cannot read
(CMYK, PNG, WebP, GIF, 16-bit, odd JPEGs) goes through Pillow. The result depends on these libraries'
versions, which the manifest records as the pixel stack.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError, UsageError, check_choice
from .jpeg import JpegHeader, raise_if_memory_ran_out, read_jpeg_header
from .jpeg_copy import strip_metadata
from .schema import JPG, MAX_IMAGE_PIXELS, MAX_JPEG_SIDE

RESIZES = ("squish", "short-edge", "none")
_ORIENTATION_TAG = 0x0112
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True)
class ImageRecipe:
    """How images are stored.

    Attributes:
        size: pixels: both sides after `squish`, the shorter one after `short-edge`.
        resize: `squish` (aspect ratio not kept), `short-edge` or `none`.
        quality: JPEG quality, 1 to 100; chroma is halved both ways (4:2:0).
        upscale: whether images smaller than the target in both sides are enlarged; the published
            ImageNet-21K-P script leaves them as they are, and so does the default.
        reencode: False copies a baseline YCbCr JPEG that has its stored size and orientation already, without
            its metadata: the same pixels, in the file's own quality.
    """

    size: int = 224
    resize: str = "squish"
    quality: int = 90
    upscale: bool = False
    reencode: bool = True

    def __post_init__(self) -> None:
        check_choice("resize", self.resize, RESIZES)
        if not 1 <= self.size <= MAX_JPEG_SIDE:
            raise UsageError(f"size: expected 1 to {MAX_JPEG_SIDE} pixels, found {self.size}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality: expected 1 to 100, found {self.quality}")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The stored (height, width) of an image of this size."""
        if self.resize == "none" or (not self.upscale and max(height, width) < self.size):
            return height, width
        if self.resize == "squish":
            return self.size, self.size
        shorter = min(height, width)
        if not self.upscale and shorter < self.size:
            return height, width
        # Half up, in integers: the same on every machine.
        return tuple((2 * side * self.size + shorter) // (2 * shorter) for side in (height, width))  # type: ignore[return-value]


@dataclass(frozen=True)
class StoredImage:
    """An image as it goes into a shard.

    Attributes:
        jpeg: baseline JPEG, RGB.
        original_hw: (height, width) of the file's picture, orientation applied.
        stored_hw: (height, width) of `jpeg`.
    """

    jpeg: bytes
    original_hw: tuple[int, int]
    stored_hw: tuple[int, int]


def pixel_stack() -> dict[str, str]:
    """Versions of everything that decides stored bytes; another stack may give other bytes."""
    packages = ("simplejpeg", "opencv-python-headless", "pillow", "numpy", "lz4", "zstandard")
    return {package: version(package) for package in packages}


def resample(image: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """Resize with antialiasing: area averages where a side shrinks, linear where it grows.

    Args:
        image: uint8 [H, W, 3] or [H, W].
        height: rows wanted.
        width: columns wanted.
        out: uint8 of the wanted shape to write into; a new array by default.

    Returns:
        uint8 of the wanted shape (`out` where given).
    """
    rows, columns = min(height, image.shape[0]), min(width, image.shape[1])
    if (rows, columns) != image.shape[:2]:
        final = (rows, columns) == (height, width)
        image = cv2.resize(image, (columns, rows), dst=out if final else None, interpolation=cv2.INTER_AREA)
        if final:
            return image
    if (rows, columns) != (height, width):
        return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if out is None:
        return image
    out[...] = image
    return out


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize for storage: like `resample`, three times as fast where both sides shrink by less than two.

    After decoding at a halving that is nearly every photograph. Area averages by such a factor have no vector
    code in OpenCV; a blur of three pixels and linear interpolation, both in fixed point and so the same on
    every processor, spread a pixel as widely: linear interpolation has a variance of 1/6 square pixels, an
    area average by the factor s of (s^2 + 1)/12, and the blur has the difference. Over 150 photographs the two
    differ by 45 dB in the median and 36 dB in the worst twentieth.
    """
    factors = image.shape[0] / height, image.shape[1] / width
    if not all(1 <= factor < 2 for factor in factors) or factors == (1, 1):
        return resample(image, height, width)
    image = cv2.GaussianBlur(image, (3, 3), _blur_sigma(factors[1]), sigmaY=_blur_sigma(factors[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


def _blur_sigma(factor: float) -> float:
    """The sigma for which OpenCV's three-tap kernel [a, 1 - 2a, a] has the variance 2a = (factor^2 - 1)/12."""
    outer = (factor * factor - 1) / 24
    if outer < 1e-3:
        return 1e-3  # no blur
    return math.sqrt(-0.5 / math.log(outer / (1 - 2 * outer)))


def store_image(data: bytes, recipe: ImageRecipe, where: str = "image") -> StoredImage:
    """Turn an image file into the JPEG that a shard holds.

    Args:
        data: the file's bytes; any of JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, PPM, whatever its name
            says.
        recipe: size, resize and quality.
        where: for messages.

    Raises:
        ImageError: unreadable, cut short, over the pixel limit, or too thin to encode.
    """
    if not recipe.reencode and (copied := _copy_fitting(data, recipe, where)) is not None:
        return copied
    pixels, original_hw = decode_rgb(data, recipe, where)
    height, width = recipe.target(*original_hw)
    if min(height, width) < 1 or max(height, width) > MAX_JPEG_SIDE:
        raise ImageError(
            f"{where}: expected stored sides of 1 to {MAX_JPEG_SIDE} pixels, found {width} x {height}",
            kind="bad-shape",
        )
    pixels = np.ascontiguousarray(shrink(pixels, height, width))
    jpeg = simplejpeg.encode_jpeg(pixels, quality=recipe.quality, colorspace="RGB", colorsubsampling="420")
    return StoredImage(jpeg, original_hw, (height, width))


def _copy_fitting(data: bytes, recipe: ImageRecipe, where: str) -> StoredImage | None:
    """The JPEG itself without its metadata, or None where it has to be encoded again."""
    if data[:2] != b"\xff\xd8":
        return None
    header = read_jpeg_header(data, where)
    size = (header.height, header.width)
    if not header.baseline or max(size) > MAX_JPEG_SIDE or recipe.target(*size) != size:
        return None
    if _orientation(data) != 1 or (jpeg := strip_metadata(data)) is None or len(jpeg) > JPG.max_bytes:
        return None
    try:
        simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)  # for its errors: a scan may be cut or damaged
    except ValueError as error:
        raise_if_memory_ran_out(error, where)
        return None
    return StoredImage(jpeg, size, size)


def decode_rgb(data: bytes, recipe: ImageRecipe, where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode to RGB with the orientation applied, at a DCT scale where the target allows it.

    Returns:
        (uint8 [H, W, 3], (height, width) of the original); H and W may be smaller than the original's, never
        smaller than the target's.

    Raises:
        ImageError: see `store_image`.
    """
    if data[:2] == b"\xff\xd8":
        header = read_jpeg_header(data, where)
        if header.components in (1, 3) and not header.lossless:
            try:
                return _decode_jpeg(data, header, recipe)
            except ValueError as error:
                raise_if_memory_ran_out(error, where)
                # Pillow fills what is missing with grey and says nothing. It forgives stray bytes, too, as
                # many photographs have them; and it names what neither library can read.
                if "premature end of data" in str(error):
                    raise ImageError(
                        f"{where}: expected a whole JPEG image, found: {error}", kind="truncated"
                    ) from error
    elif not data:
        raise ImageError(f"{where}: expected an image, found 0 bytes", kind="empty")
    return _decode_any(data, where)


def _decode_jpeg(data: bytes, header: JpegHeader, recipe: ImageRecipe) -> tuple[np.ndarray, tuple[int, int]]:
    orientation = _orientation(data)
    upright = (header.height, header.width) if orientation < 5 else (header.width, header.height)
    target = recipe.target(*upright)
    stored = target if orientation < 5 else (target[1], target[0])
    minimum = _halved((header.height, header.width), stored)
    # Strict: what libjpeg would only warn of (an early end, which it fills with grey) raises.
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=minimum[0], min_width=minimum[1], strict=True)
    return _orient(pixels, orientation), upright


def _halved(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The size at a DCT scale of 1/8, 1/4 or 1/2, whichever is the smallest that holds the target; else (0, 0).

    libjpeg-turbo has sixths and the like, too, but no vector code for them (on 150 photographs of 375 pixels
    short side they took 1.3 times as long as the whole size), and after an area average to 256 pixels they are
    33 dB from the whole size's, at worst 17; halves are 59 dB in the median.
    """
    for factor in (8, 4, 2):
        height, width = -(-size[0] // factor), -(-size[1] // factor)
        if height >= target[0] and width >= target[1]:
            return height, width
    return 0, 0


def _orientation(data: bytes) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    if b"Exif\x00\x00" not in data:
        return 1
    try:
        # Pillow warns of damaged EXIF.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG",)) as image,
        ):
            value = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow raises a dozen types on damaged EXIF, which never makes a picture unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (5 to 8 swap the sides)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_any(data: bytes, where: str) -> tuple[np.ndarray, tuple[int, int]]:
    # Pillow's own of large pictures; the limit below is an error.
    with warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:  # Pillow's own bound is the same number
            raise ImageError(
                f"{where}: expected at most {MAX_IMAGE_PIXELS} pixels, found more", kind="too-large"
            ) from error
        except UnidentifiedImageError as error:  # its text has an address in memory
            raise ImageError(f"{where}: expected an image, found bytes {bytes(data[:8])!r}") from error
        except MemoryError:  # no fault of the image
            raise
        except Exception as error:
            raise ImageError(f"{where}: expected an image, found {bytes(data[:8])!r}: {error}") from error
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ImageError(
                f"{where}: expected at most {MAX_IMAGE_PIXELS} pixels, found {image.width} x {image.height}",
                kind="too-large",
            )
        try:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:
            kind = "truncated" if "truncated" in str(error) else "unreadable"
            raise ImageError(
                f"{where}: expected a whole {image.format} image, found: {error}", kind=kind
            ) from error
    return pixels, (pixels.shape[0], pixels.shape[1])


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # Transparent pixels have arbitrary colours; on white they look as their makers saw them.
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, rgba)
    return np.asarray(image.convert("RGB"))


def _deep_grey_to_rgb(image: Image.Image) -> np.ndarray:
    """Grey of more than eight bits: 65535 becomes 255 (Pillow's own conversion would clip at 255); floats stay.

    In strips of rows: at the pixel limit a whole picture takes 360 MB in each array of 16 bits.
    """
    height, width = image.height, image.width
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        values = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        if image.mode != "F":
            values = values // 257
        rgb[top : top + rows] = np.clip(values, 0, 255).astype(np.uint8)[:, :, None]
    return rgb
