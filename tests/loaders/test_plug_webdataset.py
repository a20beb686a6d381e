"""as_webdataset against webdataset's own WebLoader on the same shards."""

import cv2
import numpy as np
import pytest
import torch

from softshard.loaders import Augment, Loader, as_webdataset
from softshard.shards import ImageRecipe, PackOptions, UsageError, pack

webdataset = pytest.importorskip("webdataset", reason="needs webdataset: pip install '.[dev]'")

SIZE, NUM, BATCH = 48, 22, 8


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Folder of a data set of 22 pictures of 48 by 48 pixels in 3 shards."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(3)
    for i in range(NUM):
        path = folder / "images" / ("crow", "gull")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))
    pack(
        folder / "images",
        folder / "shards",
        PackOptions(image=ImageRecipe(resize="none"), shard_samples=8),
        workers=1,
    )
    return folder / "shards" / "train"


def theirs(folder, spec, components):
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode(spec)
    if components:
        dataset = dataset.to_tuple(*components)
    return webdataset.WebLoader(dataset.batched(BATCH), batch_size=None, num_workers=0)


def ours(folder, **options):
    defaults = {
        "batch_size": BATCH,
        "augment": Augment.evaluation(SIZE),
        "shuffle": False,
        "last_batch": "pad",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "num_threads": 1,
    }
    return Loader(folder, **{**defaults, **options})


@pytest.mark.parametrize("spec", ["torchrgb", "torchrgb8", "rgb", "rgb8"])
@pytest.mark.parametrize("components", [("jpg", "cls"), ("cls", "__key__", "jpg"), ()])
def test_the_batches_are_webloaders(squares, spec, components):
    dtype = "uint8" if spec.endswith("8") else "float32"
    with ours(squares, dtype=dtype) as loader:
        found = list(as_webdataset(loader, *components, images=spec))
    expected = list(theirs(squares, spec, components))
    assert len(found) == len(expected) == len(loader) == 3
    for mine, other in zip(found, expected, strict=True):
        names = components or ("__key__", "jpg", "cls")
        assert type(mine) is (tuple if components else dict)
        mine, other = (dict(zip(names, part, strict=True)) if components else part for part in (mine, other))
        if "__key__" in names:
            assert mine["__key__"] == list(other["__key__"])
        assert mine["cls"].dtype == torch.as_tensor(other["cls"]).dtype == torch.int64
        assert torch.equal(mine["cls"], torch.as_tensor(other["cls"]))
        assert mine["jpg"].shape == other["jpg"].shape
        assert mine["jpg"].dtype == other["jpg"].dtype
        if dtype == "uint8":
            assert torch.equal(mine["jpg"], other["jpg"])
        else:  # x * (1 / 255) here, x / 255 there
            torch.testing.assert_close(mine["jpg"], other["jpg"], rtol=0, atol=1e-7)
    assert len(found[-1][components.index("jpg")] if components else found[-1]["jpg"]) == NUM - 2 * BATCH


@pytest.mark.parametrize(
    ("options", "components", "images", "message"),
    [
        ({}, ("jpg", "json"), "torchrgb", "expected components of __key__, jpg, cls, found 'json'"),
        ({}, (), "pil", "expected images of torchrgb, torchrgb8, rgb, rgb8, found 'pil'"),
        ({}, (), "torchrgb8", "expected a loader with dtype 'uint8' for images='torchrgb8', found 'float32'"),
        (
            {"std": (0.2, 0.2, 0.2)},
            (),
            "rgb",
            "expected a loader whose images are from 0 to 1, found one that norm",
        ),
        ({"world_size": 2}, (), "rgb", "expected last_batch='drop' with several processes"),
    ],
)
def test_what_cannot_be_webdatasets_is_refused_when_built(squares, options, components, images, message):
    with ours(squares, **options) as loader, pytest.raises(UsageError, match=f"as_webdataset: {message}"):
        as_webdataset(loader, *components, images=images)
