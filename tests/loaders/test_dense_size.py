"""513 pixels, for dense tasks: packed in every way of resizing, read back at that size."""

import cv2
import numpy as np
import pytest
import simplejpeg

from softshard.loaders import Augment, Loader
from softshard.loaders.resize import resize
from softshard.shards import Manifest, read_shard, verify
from softshard.shards.cli import main

SIZES_HW = {
    "wide": (600, 900),
    "tall": (1100, 700),
    "exact": (513, 513),
    "small": (200, 300),
    "flat": (400, 800),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for name, (height, width) in SIZES_HW.items():
        (folder / name).mkdir()
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / name / "a.png"), cv2.resize(coarse, (width, height)))
    return folder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--upscale"], dict.fromkeys(SIZES_HW, (513, 513))),
        ([], {**dict.fromkeys(SIZES_HW, (513, 513)), "small": (200, 300)}),
        (
            ["--resize", "short-edge", "--upscale"],
            {"wide": (513, 770), "tall": (806, 513), "exact": (513, 513), "small": (513, 770), "flat": (513, 1026)},
        ),
        (
            ["--resize", "short-edge"],
            {"wide": (513, 770), "tall": (806, 513), "exact": (513, 513), "small": (200, 300), "flat": (400, 800)},
        ),
        (["--resize", "none"], SIZES_HW),
    ],
    ids=lambda value: " ".join(value) or "squish" if isinstance(value, list) else "",
)  # fmt: skip
def test_images_are_stored_at_513_pixels_and_served_at_513(images, tmp_path, options, expected):
    command = ["pack", str(images), str(tmp_path / "set"), "--size", "513", "--workers", "1", *options]
    assert main(command) == 0
    assert verify(tmp_path / "set", decode=True).problems == []
    train = tmp_path / "set" / "train"
    manifest = Manifest.load(train)
    assert manifest.recipe["size"] == 513
    stored = {
        sample.key: simplejpeg.decode_jpeg(sample.parts["jpg"], "RGB")
        for shard in manifest.shards
        for sample in read_shard(train / shard.name)
    }
    assert {key.partition("_")[0]: pixels.shape[:2] for key, pixels in stored.items()} == expected
    for augment in (Augment.evaluation(513), Augment.evaluation(513, centre=1.0)):
        with Loader(train, batch_size=5, dtype="uint8", augment=augment, num_threads=1) as loader:
            (batch,) = loader
        assert batch.images.shape == (5, 3, 513, 513)
        for key, image, crop in zip(batch.keys, batch.images, batch.crops.numpy(), strict=True):
            height, width = stored[key].shape[:2]
            x0, y0, x1, y1 = np.rint(crop * [width, height, width, height]).astype(int)
            whole = np.empty((513, 513, 3), np.uint8)
            resize(np.ascontiguousarray(stored[key][y0:y1, x0:x1]), whole)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), whole)
    with Loader(train, batch_size=5, augment=Augment(size=513, scale=(0.25, 1.0)), num_threads=1) as loader:
        (batch,) = loader
    assert batch.images.shape == (5, 3, 513, 513)


@pytest.mark.shared
def test_photographs_at_513_pixels_keep_their_shape(shared_data, tmp_path):
    command = [
        "pack",
        str(shared_data / "photos"),
        str(tmp_path / "set"),
        "--size",
        "513",
        "--resize",
        "short-edge",
    ]
    assert main([*command, "--upscale", "--shard-bytes", "8MB", "--workers", "2"]) == 0
    augment = Augment.evaluation(513, centre=1.0)
    seen = 0
    with Loader(
        tmp_path / "set" / "train", batch_size=50, dtype="uint8", augment=augment, num_threads=2
    ) as loader:
        for batch in loader:
            assert batch.images.shape == (50, 3, 513, 513)
            sides = np.rint((batch.crops[:, 2:] - batch.crops[:, :2]).numpy() * 513) / 513
            assert (sides.max(axis=1) == 1).all()  # all of the shorter side
            seen += int(batch.valid.sum())
    assert seen == 300
