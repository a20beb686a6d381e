"""A small packed data set for the loader's tests, and what no test may leave behind."""

import gc
import shutil
import threading
from contextlib import suppress

import cv2
import numpy as np
import pytest
from waiting import wait_until

from servers import web
from softshard.loaders import Cache
from softshard.shards import (
    ImageRecipe,
    LabelTree,
    Manifest,
    PackOptions,
    SubsetFile,
    encode_label_map,
    pack,
    read_shard,
)
from softshard.shards.index import parse_index
from softshard.shards.make_subset import ImageChoice, make_image_subset
from softshard.shards.subset_file import ClassGroup

TREE = [
    ("cat", "mammal"),
    ("dog", "mammal"),
    ("crow", "bird"),
    ("gull", "bird"),
    ("mammal", "animal"),
    ("bird", "animal"),
    ("oak", "plant"),
]
# Some images carry an ancestor's label only, as in ImageNet-21K.
FOLDERS = ("cat", "dog", "crow", "gull", "oak", "bird", "plant")
IMAGES_PER_CLASS = 15
MAP_SHAPE = (3, 4, 5)  # K, P, Q: not square


def picture(rng, height, width):
    """A smooth picture with some noise: JPEG keeps it, and no two are alike."""
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def each_path(request):
    """Label pooling on the processor, by compiled loops and in numpy."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr("softshard.loaders.pooling.load_kernels", lambda: None)
        yield


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Folder of a data set: 105 images of 12 to 320 pixels a side in 9 shards, three levels, label maps."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(7)
    tree = LabelTree.from_table(None, TREE)
    for name in FOLDERS:
        (folder / "images" / name).mkdir(parents=True)
        (folder / "maps" / name).mkdir(parents=True)
        for i in range(IMAGES_PER_CLASS):
            height, width = (20, 320) if i == 0 else (320, 20) if i == 1 else rng.integers(12, 130, 2)
            pixels = picture(rng, int(height), int(width))
            cv2.imwrite(str(folder / "images" / name / f"{i:02}.png"), pixels)
            cells = [rng.permutation(len(tree.classes))[: MAP_SHAPE[0]] for _ in range(20)]
            label_map = encode_label_map(
                rng.normal(0, 4, MAP_SHAPE),
                np.stack(cells, axis=1).reshape(MAP_SHAPE),
                num_classes=len(tree.classes),
                score_encoding="uint8" if i % 2 else "float16",
            )
            (folder / "maps" / name / f"{i:02}.lmap").write_bytes(label_map)
    options = PackOptions(image=ImageRecipe(resize="none"), shard_samples=13, label_maps=folder / "maps")
    pack(folder / "images", folder / "shards", options, tree=tree, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="session")
def packed_plain(tmp_path_factory):
    """Folder of a data set without tree and label maps: 20 images in 2 shards."""
    folder = tmp_path_factory.mktemp("plain")
    rng = np.random.default_rng(8)
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            cv2.imwrite(str(folder / "images" / name / f"{i}.jpg"), picture(rng, 40, 50))
    pack(folder / "images", folder / "shards", PackOptions(shard_samples=10), workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="session")
def packed_all_paths(tmp_path_factory):
    """Folder of a data set whose tree keeps all parents: 15 images, two paths at most."""
    folder = tmp_path_factory.mktemp("paths")
    rng = np.random.default_rng(9)
    pairs = [
        ("gull", "flier"),
        ("gull", "swimmer"),
        ("flier", "animal"),
        ("swimmer", "animal"),
        ("cat", "pet"),
    ]
    tree = LabelTree.from_table(None, pairs, parents="all-paths")
    for name in ("gull", "cat", "swimmer"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(5):
            cv2.imwrite(str(folder / "images" / name / f"{i}.jpg"), picture(rng, 40, 50))
    pack(folder / "images", folder / "shards", PackOptions(shard_samples=6), tree=tree, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="session")
def subset_files(packed, tmp_path_factory):
    """Files of `softshard subset`: `classes.json` makes three classes of five, `images.json` takes seven images of each."""
    folder = tmp_path_factory.mktemp("subsets")
    groups = (
        ClassGroup("pet", ("dog", "cat")),
        ClassGroup.single("gull"),
        ClassGroup("rest", ("oak", "plant")),
    )
    classes = SubsetFile(groups, {"name": "file"}, {"name": "train"})
    classes.save(folder / "classes.json")
    make_image_subset(packed, ImageChoice(7, "stratified", seed=2), classes).save(folder / "images.json")
    return folder


def softshard_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("softshard")]


def threads_after_a_moment():
    """Names of the loader's threads, once those that are about to end have had time to."""
    if not softshard_threads():
        return []
    gc.collect()  # not before: it takes longer than most tests here
    with suppress(AssertionError):
        wait_until(lambda: not softshard_threads(), 60)
    return softshard_threads()


@pytest.fixture
def remaining_threads():
    """A function: the names of the loader's threads that do not end by themselves."""
    return threads_after_a_moment


@pytest.fixture(autouse=True)
def no_threads_left():
    """Whatever a test does with a loader, its threads end."""
    yield
    assert threads_after_a_moment() == []


@pytest.fixture
def within():
    """A function that calls another one and fails, rather than hangs, when it takes too long.

    By default that is less than what a loader waits for by itself: 60 s for its thread, or for an answer of a server.
    A test of what ends by a shorter limit of its own, such as a pool's deadline, may give it as many `seconds` as it likes.
    """

    def call(function, seconds=50):
        outcome = []

        def work():
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=work, name="test-within", daemon=True)
        thread.start()
        thread.join(seconds)
        assert outcome, f"still running after {seconds} s"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return call


@pytest.fixture(scope="session")
def plain_samples(packed):
    """Every sample of the packed set in the manifest's order, as the plain reader gives it."""
    manifest = Manifest.load(packed)
    return [sample for shard in manifest.shards for sample in read_shard(packed / shard.name)]


@pytest.fixture
def damage(packed, tmp_path):
    """A function: copy the packed set and change one component of one sample, keeping its size.

    Takes the sample's number in the manifest's order; returns (folder, shard's name, sample's key).
    """

    def apply(number, suffix, change):
        folder = shutil.copytree(packed, tmp_path / "damaged")
        records = Manifest.load(folder).shards
        starts = np.cumsum([0] + [record.samples for record in records])
        shard_number = int(np.searchsorted(starts, number, side="right")) - 1
        place = number - int(starts[shard_number])
        shard = folder / records[shard_number].name
        index = parse_index(shard.with_suffix(".idx").read_text(), shard.name, shard.stat().st_size)
        column = index.column(suffix)
        start, size = int(index.offsets[place, column]), int(index.sizes[place, column])
        content = bytearray(shard.read_bytes())
        changed = change(bytes(content[start : start + size]))
        assert len(changed) == size
        content[start : start + size] = changed
        shard.write_bytes(content)
        return folder, shard.name, index.keys[place]

    return apply


@pytest.fixture
def bucket(s3_bucket, s3_client):
    """A function: copies a folder to a bucket of the real S3 server, and gives its URL."""

    def put(folder):
        for file in sorted(folder.iterdir()):
            if file.is_file():
                s3_client.put_object(
                    Bucket=s3_bucket.removeprefix("s3://"),
                    Key=f"{folder.name}/{file.name}",
                    Body=file.read_bytes(),
                )
        return f"{s3_bucket}/{folder.name}"

    return put


@pytest.fixture
def serve_spoiled():
    """A function: starts a web server whose answers `spoil` may change; gives its URL and the requests it has had."""
    pytest.importorskip("aiohttp")
    servers = []

    def start(folder, spoil=lambda name, start, answer: answer):
        servers.append(web.SpoiledServer(folder, spoil))
        return servers[-1].url, servers[-1].requests

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def cache(tmp_path):
    return Cache(folder=tmp_path / "cache")


@pytest.fixture
def copied(packed, tmp_path):
    """A copy of the packed set, to be changed."""
    return shutil.copytree(packed, tmp_path / "copied")
