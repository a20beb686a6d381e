"""Class folders named by index, as ImageNetV2 has them: 10 is not the third."""

import cv2
import numpy as np
import pytest
import simplejpeg
from packed_files import samples

from softshard.shards import ImageRecipe, Manifest, PackOptions, pack
from softshard.shards.classes import load_class_list
from softshard.shards.cli import main
from softshard.shards.components import decode_class, decode_meta
from softshard.shards.errors import DataError


@pytest.fixture
def images(tmp_path):
    """Folders 0 to 11; the grey of a folder's image is twenty times its number."""
    for index in range(12):
        path = tmp_path / "images" / str(index) / "0a1b2c.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((8, 8, 3), 20 * index, np.uint8))
    return tmp_path / "images"


def test_they_get_the_classes_at_these_places(images, tmp_path):
    command = ["pack", str(images), str(tmp_path / "out"), "--classes", "imagenet-1k", "--size", "8"]
    assert main([*command, "--folders", "index"]) == 0
    folder = tmp_path / "out" / "train"
    manifest, wnids = Manifest.load(folder), load_class_list("imagenet-1k")
    assert manifest.class_names == wnids
    found = samples(folder)
    assert len(found) == 12
    for key, parts in found.items():
        index = decode_class(parts["cls"], key)
        # Sorted by name, folder 10 would come third and be taken for class 2.
        assert round(simplejpeg.decode_jpeg(parts["jpg"]).mean() / 20) == index
        assert key == f"{wnids[index]}_0a1b2c"
        assert decode_meta(parts["msgpack"], key)["path"] == f"{index}/0a1b2c.png"


def test_without_the_option_they_are_refused_with_the_way_out(images, tmp_path, capsys):
    assert main(["pack", str(images), str(tmp_path / "out"), "--classes", "imagenet-1k"]) == 1
    assert "If they are places in the class list: --folders index" in capsys.readouterr().err
    assert main(["pack", str(images), str(tmp_path / "out"), "--folders", "index"]) == 2
    assert "--folders index: expected the class list" in capsys.readouterr().err


def test_names_that_are_no_places_in_the_list_are_all_told(images, tmp_path):
    for name in ("00", "cat", "²"):
        (images / "3").rename(images / name) if name == "cat" else (images / name).mkdir()
    options = PackOptions(folders="index")
    with pytest.raises(DataError) as error:
        pack(images, tmp_path / "out", options, class_names=[f"class{i}" for i in range(11)], workers=1)
    assert "folders '0' and '00' are one class" in str(error.value)
    for name in ("'11'", "'cat'", "'²'"):
        assert f"folder {name}: expected a number from 0 to 10" in str(error.value)


def test_a_run_that_was_killed_continues(images, tmp_path):
    options = PackOptions(image=ImageRecipe(size=8), folders="index", shard_samples=4)
    wnids = load_class_list("imagenet-1k")
    first = pack(images, tmp_path / "out", options, class_names=wnids, workers=1)
    (tmp_path / "out" / "train" / "manifest.json").unlink()
    (tmp_path / "out" / "train" / "receipts" / "train-000001.tar.json").unlink()
    again = pack(images, tmp_path / "out", options, class_names=wnids, workers=1)
    assert (again.shards_kept, again.manifests) == (2, first.manifests)


def test_a_source_with_train_and_val_has_both_numbered(images, tmp_path):
    for split in ("train", "val"):
        for name in ("2", "10"):
            (tmp_path / "split" / split / name).mkdir(parents=True)
            (tmp_path / "split" / split / name / "x.png").write_bytes(
                (images / name / "0a1b2c.png").read_bytes()
            )
    options = PackOptions(image=ImageRecipe(size=8), folders="index")
    made = pack(
        tmp_path / "split", tmp_path / "out", options, class_names=load_class_list("imagenet-1k"), workers=1
    )
    assert made.read == 4
    assert np.load(tmp_path / "out" / "val" / "classes.npy").tolist() in ([2, 10], [10, 2])


def test_plans_made_before_there_was_the_option_are_the_same():
    assert "folders" not in PackOptions().to_json()
    assert PackOptions(folders="index").to_json()["folders"] == "index"
