"""Cut the demo's two image folders from photographs that scikit-image and scikit-learn ship.

Each photograph is one class, a WordNet 3.0 noun; its samples are windows of it. A band across the
photograph is kept for validation and the two sides of the band for training, so the two splits show the
same thing and share no pixel. Part of the windows are filed under an ancestor only, as in ImageNet-21K,
where a picture may be labelled just `vehicle`. Nothing is downloaded: the files come out of the wheels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from numpy.random import Generator, Philox
from PIL import Image

from ..shards.errors import DataError, MissingExtraError, UsageError
from .results import write_csv

JPEG_QUALITY = 95
MIN_WINDOW_PX, MAX_WINDOW_PX = 64, 160  # in a photograph whose short side is REFERENCE_SIDE_PX or less
REFERENCE_SIDE_PX = 512
# Standard deviation of the grey values below which a window shows only sky or a black border.
MIN_CONTRAST = 2.0
MAX_DRAWS = 50

LIVING_THING, PLANT = "n00004258", "n00017222"
ARTIFACT, STRUCTURE, VEHICLE = "n00021939", "n04341686", "n04524313"
MATTER, ABSTRACTION = "n00020827", "n00002137"
INNER_NAMES = {
    LIVING_THING: "living thing",
    PLANT: "plant",
    ARTIFACT: "artifact",
    STRUCTURE: "structure",
    VEHICLE: "vehicle",
    MATTER: "matter",
    ABSTRACTION: "abstraction",
}

Region = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 lie outside


@dataclass(frozen=True)
class Photo:
    """One photograph and its class.

    Attributes:
        file: path inside the package.
        package: `skimage` or `sklearn`.
        wnid: WordNet 3.0 id of what it shows.
        name: the noun.
        ancestors: the kept ancestors, nearest first, along each synset's first hypernym.
        axis: the axis that the validation band cuts, chosen so that the object lies in all three strips.
        band: where the band begins and ends, as fractions of that axis.
    """

    file: str
    package: str
    wnid: str
    name: str
    ancestors: tuple[str, ...]
    axis: Literal["x", "y"]
    band: tuple[float, float] = (0.36, 0.64)

    @property
    def stem(self) -> str:
        return Path(self.file).stem


# `horse` is a drawing. In `camera` most windows would show a lawn, which is another class here.
PHOTOS = (
    Photo("data/astronaut.png", "skimage", "n09818022", "astronaut", (LIVING_THING,), "y", (0.40, 0.70)),
    Photo("data/brick.png", "skimage", "n02898369", "brickwork", (STRUCTURE, ARTIFACT), "x"),
    Photo("data/chelsea.png", "skimage", "n02123045", "tabby", (LIVING_THING,), "x"),
    Photo("data/coffee.png", "skimage", "n03063073", "coffee cup", (ARTIFACT,), "x"),
    Photo("data/coins.png", "skimage", "n13388245", "coin", (ABSTRACTION,), "x"),
    Photo("data/grass.png", "skimage", "n12102133", "grass", (PLANT, LIVING_THING), "x"),
    Photo("data/gravel.png", "skimage", "n14698884", "gravel", (MATTER,), "x"),
    Photo("data/hubble_deep_field.jpg", "skimage", "n08271042", "galaxy", (ABSTRACTION,), "x"),
    Photo("data/moon.png", "skimage", "n09358358", "moon", (), "x"),
    Photo("data/motorcycle_left.png", "skimage", "n03790512", "motorcycle", (VEHICLE, ARTIFACT), "x"),
    Photo("data/page.png", "skimage", "n06256697", "page", (MATTER,), "x"),
    Photo("data/retina.jpg", "skimage", "n05426989", "retina", (), "x"),
    Photo("data/rocket.jpg", "skimage", "n04099429", "rocket", (VEHICLE, ARTIFACT), "y", (0.44, 0.72)),
    Photo("datasets/images/china.jpg", "sklearn", "n03874965", "pagoda", (STRUCTURE, ARTIFACT), "y", (0.40, 0.68)),
    Photo("datasets/images/flower.jpg", "sklearn", "n11960245", "dahlia", (PLANT, LIVING_THING), "y", (0.42, 0.69)),
)  # fmt: skip


@dataclass(frozen=True)
class DemoPhotos:
    """What `write_demo_photos` wrote.

    Attributes:
        root: the folder that holds `train`, `val` and `windows.csv`.
        classes: wnids in ascending order, inner classes included.
        counts: windows per split and class, such as `counts["train"]["n02123045"]`.
    """

    root: Path
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Window:
    """One row of `windows.csv`: which pixels of which photograph a sample shows, and its label."""

    file: str
    photo: str
    x: int
    y: int
    width: int
    height: int
    split: str
    wnid: str


def split_regions(width: int, height: int, photo: Photo) -> dict[str, list[Region]]:
    """The strips of a photograph that belong to each split.

    Returns:
        `val` with the band and `train` with the strips before and behind it. They do not overlap.
    """
    length = width if photo.axis == "x" else height
    start, stop = (round(fraction * length) for fraction in photo.band)
    strips = [(0, start), (start, stop), (stop, length)]
    if photo.axis == "x":
        before, band, behind = ((low, 0, high, height) for low, high in strips)
    else:
        before, band, behind = ((0, low, width, high) for low, high in strips)
    return {"train": [before, behind], "val": [band]}


def write_demo_photos(
    out: Path, *, seed: int = 0, train_windows: int = 100, val_windows: int = 30, ancestor_share: float = 0.18
) -> DemoPhotos:
    """Write `out/train/<wnid>/*.jpg`, `out/val/<wnid>/*.jpg` and `out/windows.csv`.

    The same seed gives the same bytes for one version of numpy, Pillow and simplejpeg. Grey photographs
    give grey JPEGs.

    Args:
        out: made when missing; must not hold `train` or `val`.
        seed: places, sizes and labels of the windows.
        train_windows: mean number per photograph; each has up to a quarter more or less.
        val_windows: the same for validation.
        ancestor_share: fraction of a photograph's windows filed under one of its ancestors.

    Raises:
        MissingExtraError: scikit-image or scikit-learn is not installed.
        UsageError: `out` already holds windows.
    """
    for split in ("train", "val"):
        if (out / split).exists():
            raise UsageError(f"{out / split}: expected no such folder, found one; choose an empty folder")
    windows: list[Window] = []
    for number, photo in enumerate(PHOTOS):
        image = read_photo(photo)
        rng = Generator(Philox(key=np.array([seed, number], np.uint64)))
        for split, mean_count in (("train", train_windows), ("val", val_windows)):
            regions = split_regions(image.shape[1], image.shape[0], photo)[split]
            count = round(mean_count * rng.uniform(0.75, 1.25))
            labels = draw_labels(photo, count, ancestor_share, rng)
            for index, wnid in enumerate(labels):
                x0, y0, x1, y1 = draw_window(image, regions, rng)
                file = f"{split}/{wnid}/{photo.stem}_{index:03d}.jpg"
                write_jpeg(out / file, image[y0:y1, x0:x1])
                windows.append(Window(file, photo.stem, x0, y0, x1 - x0, y1 - y0, split, wnid))
    write_csv(out / "windows.csv", [*Window.__dataclass_fields__], map(vars, windows))
    return DemoPhotos(
        root=out,
        classes=tuple(sorted({*INNER_NAMES, *(photo.wnid for photo in PHOTOS)})),
        counts={
            split: dict(sorted(Counter(window.wnid for window in windows if window.split == split).items()))
            for split in ("train", "val")
        },
    )


def draw_labels(photo: Photo, count: int, ancestor_share: float, rng: Generator) -> list[str]:
    """The wnid of each of `count` windows: the photograph's own, or for a fixed share an ancestor's."""
    labels = [photo.wnid] * count
    if photo.ancestors:
        # The ancestors take turns, so that even a small split has windows on each level.
        for turn, index in enumerate(rng.permutation(count)[: round(ancestor_share * count)]):
            labels[index] = photo.ancestors[turn % len(photo.ancestors)]
    return labels


def draw_window(image: np.ndarray, regions: list[Region], rng: Generator) -> Region:
    """A random window inside one of the regions, drawn again while it shows nothing but a flat surface.

    Args:
        image: uint8 [H, W, channels].
        regions: where windows may lie; a larger region gets more of them.
        rng: advanced by each draw.
    """
    # A larger photograph has larger windows, which show as much of the object.
    scale = max(1.0, min(image.shape[:2]) / REFERENCE_SIDE_PX)
    low, high = round(MIN_WINDOW_PX * scale), round(MAX_WINDOW_PX * scale)
    areas = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in regions], np.float64)
    window = regions[0]
    for _ in range(MAX_DRAWS):
        left, top, right, bottom = regions[rng.choice(len(regions), p=areas / areas.sum())]
        width = int(rng.integers(low, min(high, right - left) + 1))
        height = int(rng.integers(low, min(high, bottom - top) + 1))
        x = int(rng.integers(left, right - width + 1))
        y = int(rng.integers(top, bottom - height + 1))
        window = (x, y, x + width, y + height)
        if image[y : y + height, x : x + width].mean(axis=2).std() >= MIN_CONTRAST:
            break
    return window


def read_photo(photo: Photo) -> np.ndarray:
    """The photograph as uint8 [H, W, 3], or [H, W, 1] when it is grey."""
    # Found by its path: importing the packages takes seconds, and `skimage.data` may go to the network.
    spec = find_spec(photo.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("The demo", "demo", ImportError(name=photo.package))
    path = Path(spec.submodule_search_locations[0], photo.file)
    if not path.is_file():
        raise DataError(f"{path}: expected a photograph that {photo.package} ships, found none; reinstall it")
    with Image.open(path) as picture:
        image = np.asarray(picture)
    return image[:, :, None] if image.ndim == 2 else image


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels [H, W, 1 or 3] as a JPEG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    space = "GRAY" if pixels.shape[2] == 1 else "RGB"
    path.write_bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorspace=space)
    )
