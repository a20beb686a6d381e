"""Small collections and data sets, made here: pictures of a few coloured blobs, 40 pixels wide."""

import io
import shutil
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg
from subset_command import CREATURE, run_subset
from tag_lists import VOCABULARY, write_rows
from toy_tree import TOY, TOY_PAIRS

from softshard.shards import ImageRecipe, LabelTree, PackOptions, encode_label_map, pack
from softshard.shards.cli import main

CLASSES = {"bird": 5, "dog": 7, "oak": 4}
TABLE = [("bird", "animal"), ("dog", "animal"), ("oak", "plant")]
MAP_SHAPE = (3, 4, 5)


def make_picture(height, width, seed=0):
    """uint8 [height, width, 3], smooth, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def make_jpeg(height, width, seed=0):
    return simplejpeg.encode_jpeg(make_picture(height, width, seed), quality=92, colorspace="RGB")


def make_source(root, classes, suffix=".jpg"):
    """A folder of class folders."""
    seed = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{name}_{i}{suffix}").write_bytes(make_jpeg(30, 40, seed := seed + 1))
    return root


def make_maps(source, root, num_classes, shape=MAP_SHAPE):
    """A label map for every image of a source."""
    for i, image in enumerate(sorted(source.glob("*/*.jpg"))):
        generator = np.random.default_rng(i)
        scores = generator.normal(0, 5, shape).astype(np.float32)
        ids = generator.permuted(np.tile(np.arange(num_classes), (*shape[1:], 1)), axis=2)
        file = (root / image.parent.name / image.stem).with_suffix(".lmap")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            encode_label_map(scores, np.moveaxis(ids, 2, 0)[: shape[0]], num_classes=num_classes)
        )
    return root


@pytest.fixture(scope="session")
def picture():
    return make_picture


@pytest.fixture(scope="session")
def jpeg():
    return make_jpeg


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source", CLASSES)


@pytest.fixture(scope="session")
def source_maker():
    return make_source


@pytest.fixture(scope="session")
def maps_maker():
    return make_maps


@pytest.fixture(scope="session")
def options():
    """16 pixels, four samples a shard."""
    return PackOptions(image=ImageRecipe(16), shard_samples=4, val_per_class=1)


@pytest.fixture(scope="session")
def table_tree():
    return LabelTree.from_table(list(CLASSES), TABLE)


@pytest.fixture(scope="session")
def toy():
    return LabelTree.from_table(TOY, TOY_PAIRS)


@pytest.fixture(scope="session")
def is_a(shared_data):
    """ImageNet's wordnet.is_a.txt."""
    file = shared_data / "wordnet.is_a.txt"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return file


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory, options, table_tree):
    """`train` (13 samples, 4 shards) and `val` (3 samples, 1 shard) with every component; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    source = make_source(folder / "source", CLASSES)
    maps = make_maps(source, folder / "maps", len(table_tree.classes))
    with_maps = PackOptions(**{**vars(options), "label_maps": maps})
    pack(source, folder / "set", with_maps, tree=table_tree, workers=1)
    return folder / "set"


@pytest.fixture
def packed(packed_once, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(packed_once, tmp_path / "set")


@pytest.fixture
def run(capsys):
    """A function: exit code, standard output and standard error of a command."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's own
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, options):
    """What packing `source` with `options` gives; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    pack(make_source(folder / "source", CLASSES), folder / "set", options, workers=1)
    return folder / "set"


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of it: a run that is through."""
    return shutil.copytree(finished_once, tmp_path / "set")


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def collection_forms(tmp_path):
    """The same images in every form, beside each other: name to path."""

    def make(source):
        tars = tmp_path / "tars"
        tars.mkdir()
        for folder in source.iterdir():
            make_tar(
                tars / f"{folder.name}.tar",
                {path.name: path.read_bytes() for path in sorted(folder.iterdir())},
            )
        make_tar(tmp_path / "whole.tar", {path.name: path.read_bytes() for path in sorted(tars.iterdir())})
        rows = [
            f"{source.name}/{p.relative_to(source)},{p.parent.name}\n" for p in sorted(source.rglob("*.jpg"))
        ]
        (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))
        names = ("tars", "whole.tar", "list.csv")
        return {"folder": source, **{name: tmp_path / name for name in names}}

    return make


@pytest.fixture
def web(tmp_path):
    """A list of ten images with tags and weights, some of them wanting, and its rows; its vocabulary is `v.tsv`."""
    make_source(tmp_path / "web", {"cat": 5, "dog": 5})
    rows = []
    for label in ("cat", "dog"):
        for i in range(5):
            row = {"path": f"{label}/{label}_{i}.jpg", "label": label, "title": f"a {label}"}
            row["tags"] = ["zoo", "big cat", "zoo", "nowhere"][: i + 1]
            row["weights"] = {"dog": 0.4, label: 1.0}
            rows.append(row)
    rows[1]["tags"] = []
    del rows[2]["tags"], rows[3]["weights"]
    (tmp_path / "v.tsv").write_bytes(VOCABULARY.to_bytes())
    return write_rows(tmp_path / "web" / "web.jsonl", rows), rows


@pytest.fixture
def groups(tmp_path):
    file = tmp_path / "groups.yaml"
    file.write_text(CREATURE)
    return file


@pytest.fixture
def chosen(tmp_path, packed, groups):
    """A file that makes two classes of three, oak (3 images) and bird (4) being one, over `packed` / train."""
    file = tmp_path / "classes.json"
    run_subset("classes", packed, "--method", "file", "--from", groups, "-o", file)
    return file
