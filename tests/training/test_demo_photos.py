import csv
from importlib.util import find_spec

import numpy as np
import pytest
import simplejpeg

from softshard.shards.errors import MissingExtraError, UsageError
from softshard.shards.tree import LabelTree
from softshard.training import demo_photos
from softshard.training.demo_photos import INNER_NAMES, PHOTOS, read_photo, split_regions, write_demo_photos

if find_spec("skimage") is None or find_spec("sklearn") is None:
    pytest.skip(
        "scikit-image and scikit-learn, whose photographs the demo cuts, are not installed",
        allow_module_level=True,
    )

CLASSES = sorted({photo.wnid for photo in PHOTOS} | set(INNER_NAMES))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_demo_photos(tmp_path_factory.mktemp("demo"), train_windows=30, val_windows=12)


@pytest.fixture(scope="module")
def rows(written):
    with (written.root / "windows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_pixel_is_in_both_splits(rows):
    for photo in PHOTOS:
        height, width = read_photo(photo).shape[:2]
        covered = {split: np.zeros((height, width), bool) for split in ("train", "val")}
        for row in rows:
            if row["photo"] == photo.stem:
                x, y = int(row["x"]), int(row["y"])
                right, bottom = x + int(row["width"]), y + int(row["height"])
                assert right <= width
                assert bottom <= height
                covered[row["split"]][y:bottom, x:right] = True
        assert covered["train"].any()
        assert covered["val"].any()
        assert not (covered["train"] & covered["val"]).any(), photo.stem


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.stem)
def test_regions_tile_the_photograph(photo):
    covered = np.zeros((427, 640), int)
    for regions in split_regions(640, 427, photo).values():
        for x0, y0, x1, y1 in regions:
            covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def contents(name, seed):
        write_demo_photos(tmp_path / name, seed=seed, train_windows=6, val_windows=4)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in files}

    first = contents("first", 0)
    assert contents("second", 0) == first
    assert contents("third", 1) != first


def test_windows_csv_lists_every_file_with_its_size(written, rows):
    files = {path.relative_to(written.root).as_posix() for path in written.root.rglob("*.jpg")}
    assert {row["file"] for row in rows} == files
    assert len(rows) == len(files) == sum(sum(split.values()) for split in written.counts.values())
    for row in rows:
        data = (written.root / row["file"]).read_bytes()
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        assert (width, height) == (int(row["width"]), int(row["height"]))
        assert row["file"].split("/")[:2] == [row["split"], row["wnid"]]
        assert min(width, height) >= demo_photos.MIN_WINDOW_PX


def test_every_class_has_a_name_and_windows_in_both_splits(written):
    assert list(written.classes) == CLASSES
    for split in ("train", "val"):
        assert set(written.counts[split]) == set(written.classes)
    assert len(set(written.counts["train"].values())) > 5


def test_grey_photographs_give_grey_jpegs(written):
    spaces = {
        photo.stem: {
            simplejpeg.decode_jpeg_header(path.read_bytes())[2]
            for path in written.root.glob(f"*/*/{photo.stem}_*.jpg")
        }
        for photo in PHOTOS
    }
    grey = {stem for stem, found in spaces.items() if found == {"Gray"}}
    assert grey == {"brick", "coins", "grass", "gravel", "moon", "page"}


def test_part_of_the_windows_carry_only_an_ancestors_label(rows):
    for photo in PHOTOS:
        for split in ("train", "val"):
            labels = [row["wnid"] for row in rows if row["photo"] == photo.stem and row["split"] == split]
            others = [label for label in labels if label != photo.wnid]
            assert set(others) == set(photo.ancestors)
            assert len(others) == (round(0.18 * len(labels)) if photo.ancestors else 0)


def test_the_classes_span_three_levels_and_ancestors_follow_wordnet():
    tree = LabelTree.from_wordnet(CLASSES, parents="first")
    vectors = tree.vectors()
    assert vectors.shape == (len(CLASSES), 3)
    for photo in PHOTOS:
        found, parent = [], tree.parents[CLASSES.index(photo.wnid)]
        while parent >= 0:
            found.append(CLASSES[parent])
            parent = tree.parents[parent]
        assert tuple(found) == photo.ancestors


def test_a_folder_that_holds_windows_is_refused(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="choose an empty folder"):
        write_demo_photos(tmp_path)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_photos, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'skimage'.*softshard\[demo\]"):
        write_demo_photos(tmp_path)
