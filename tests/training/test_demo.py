"""The demo on a folder of a user's own: every step runs for real, only on small pictures that are easy to learn."""

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from softshard.shards import DataError, Manifest, UsageError, verify
from softshard.shards.cli import main
from softshard.training import demo

COLOURS = {
    "tabby": (200, 60, 60),
    "sparrow": (60, 200, 60),
    "motorcycle": (60, 60, 200),
    "castle": (200, 200, 60),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(40):
            pixels = np.clip(rng.normal(colour, 40, (72, 72, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{i:02}.png"), pixels)
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, short_demo(out, images)


def short_demo(out, images):
    """A few steps are enough for these pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAINING_IMAGES", 768)
        patch.setattr(demo, "GLOBAL_BATCH", 32)
        return demo.run_demo(out, images, num_threads=1)


class Pictures(HTMLParser):
    """Counts what the page holds."""

    def __init__(self):
        super().__init__()
        self.count = {"img": 0, "svg": 0}
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag in self.count:
            self.count[tag] += 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_summary_has_samples_bytes_speed_and_accuracies_beside_chance(run):
    out, summary = run
    assert summary == json.loads((out / "demo.json").read_text())
    assert summary["samples"] == {"train": 128, "val": 32}
    assert len(summary["levels"]) >= 2  # inner nodes of WordNet became classes
    assert summary["bytes_a_sample_with_maps"] > summary["bytes_a_sample"] > 1000
    assert summary["images_per_s"] > 0
    assert set(summary["accuracy"]) == {"teacher", "semantic-softmax", "relabel"}
    for numbers in summary["accuracy"].values():
        assert {"top1", "leaf_top1", "semantic_accuracy", "chance", "majority"} <= set(numbers)


def test_the_teacher_and_both_students_beat_the_commonest_class(run):
    _, summary = run
    for name, numbers in summary["accuracy"].items():
        assert numbers["leaf_top1"] > 2 * numbers["majority"], name


def test_the_shards_and_the_label_maps_verify(run):
    out, _ = run
    assert verify(out / "shards", decode=True).problems == []
    assert verify(out / "relabelled", decode=True).problems == []
    assert Manifest.load(out / "relabelled").components == ("jpg", "cls", "hier.npy", "lmap", "msgpack")


def test_the_page_is_one_file_with_pictures_and_curves(run):
    out, _ = run
    page = Pictures()
    page.feed((out / "index.html").read_text())
    assert page.count["img"] >= 2 * 4  # overview and crop of at least one picture a class
    assert page.count["svg"] >= 2
    assert all(source.startswith("data:") for source in page.sources)


def test_a_second_run_makes_the_folder_anew_with_the_same_bytes(run, images):
    out, first = run
    assert short_demo(out, images)["fingerprints"] == first["fingerprints"]


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path, images):
    (tmp_path / "thesis.tex").write_text("keep me")
    with pytest.raises(UsageError, match="expected a new or empty folder, or that of an earlier demo"):
        demo.run_demo(tmp_path, images)
    assert (tmp_path / "thesis.tex").read_text() == "keep me"


def test_one_image_a_class_is_refused_with_the_class(tmp_path):
    (tmp_path / "images" / "tabby").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "tabby" / "0.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="expected at least two images in every class"):
        demo.run_demo(tmp_path / "out", tmp_path / "images")


def test_a_class_that_is_no_noun_is_named_and_exits_with_1(tmp_path, capsys):
    for name in ("tabby", "qwertyx"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / "images" / name / f"{i}.png"), np.zeros((64, 64, 3), np.uint8))
    assert main(["demo", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 1
    assert "'qwertyx'" in capsys.readouterr().err
