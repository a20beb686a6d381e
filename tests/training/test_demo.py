"""The demo on a folder of a user's own: every step runs for real, only on small pictures that are easy to learn."""

import json
import shlex
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from softshard.shards import DataError, Manifest, UsageError, verify
from softshard.shards.cli import main
from softshard.training import demo, single_label
from softshard.training.results import TrainResult

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


def folder_of(tmp_path, *classes, num_images):
    """Pictures of one colour a class, with noise."""
    rng = np.random.default_rng(1)
    for name in classes:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(num_images):
            pixels = np.clip(rng.normal(COLOURS[name], 20, (72, 72, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "images" / name / f"{i:02}.png"), pixels)
    return tmp_path / "images"


class Stopped(Exception):
    """Ends a demo where nobody looks at what comes later."""


def short_demo(out, images, before=None):
    """A few steps of a small model are enough for these pictures; nobody looks at the speed.

    Args:
        out: the demo's folder.
        images: that of its pictures.
        before: name of a step that the demo ends before, with Stopped.
    """

    def stop(*_args, **_options):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        if before:
            patch.setattr(demo, before, stop)
        patch.setattr(demo, "MODEL", "test_resnet")
        patch.setattr(demo, "TRAINING_IMAGES", 1536)
        patch.setattr(demo, "GLOBAL_BATCH", 32)
        patch.setattr(demo, "BENCH_STEPS", 2)
        patch.setattr(demo, "BENCH_REPEATS", 1)
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


def test_two_classes_of_few_images_are_enough(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "MAX_EPOCHS", 6)  # half of what the demo gives its own model
    monkeypatch.setattr(demo, "BENCH_REPEATS", 1)
    images = folder_of(tmp_path, "tabby", "motorcycle", num_images=20)
    summary = demo.run_demo(tmp_path / "out", images, num_threads=1)
    assert summary["accuracy"]["teacher"]["top1"] > 0.75
    printed = capsys.readouterr().out
    assert "global batch 8 (8 on each of 1 processes), 4 steps an epoch from 32 samples" in printed
    assert "(0 samples left out of each epoch by drop)" in printed


@pytest.mark.parametrize(
    ("top1", "majority", "fine"), [(0.76, 0.5, True), (0.74, 0.5, False), (0.5, 0.1, False)]
)
def test_a_teacher_must_have_come_half_of_the_way_from_the_commonest_class(tmp_path, top1, majority, fine):
    teacher = demo.ModelResult("teacher", tmp_path, {"top1": top1, "majority": majority})
    if fine:
        demo._check_teacher(teacher)
    else:
        with pytest.raises(DataError, match="expected a validation top-1 of at least"):
            demo._check_teacher(teacher)


def test_the_printed_pack_command_makes_the_demos_shards(run, images, tmp_path, capsys):
    _, summary = run
    with pytest.raises(Stopped):
        short_demo(tmp_path / "the demo", images, before="_train")
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  $ softshard pack ")
    ]
    _, _, *words = shlex.split(line)
    words[words.index(str(tmp_path / "the demo" / "shards"))] = str(tmp_path / "again")
    assert main(words) == 0
    for name, fingerprint in summary["fingerprints"]["shards"].items():
        assert Manifest.load(tmp_path / "again" / name).fingerprint == fingerprint


def test_a_signal_while_training_ends_the_demo(tmp_path, monkeypatch):
    stopped = TrainResult(tmp_path / "checkpoint.pt", None, 3, [], stopped_by=15)
    monkeypatch.setattr(demo, "train", lambda *_args, **_options: stopped)
    with pytest.raises(KeyboardInterrupt):
        demo._train("teacher", single_label(), tmp_path, tmp_path, tmp_path, 0, None)


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


def test_a_second_run_makes_the_folder_anew_with_the_same_bytes(run, images, tmp_path):
    first, summary = run
    again = shutil.copytree(first, tmp_path / "again")
    with pytest.raises(Stopped):
        short_demo(again, images, before="bench")  # the first step that makes no more data
    assert {path.name for path in again.iterdir()} == {
        *("classes.txt", "demo.json", "relabelled", "shards", "teacher", "tree.json")
    }
    assert (again / "tree.json").read_bytes() == (first / "tree.json").read_bytes()
    made = summary["fingerprints"]
    assert Manifest.load(again / "relabelled").fingerprint == made["relabelled"]
    for name, fingerprint in made["shards"].items():
        assert Manifest.load(again / "shards" / name).fingerprint == fingerprint


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path, images):
    (tmp_path / "thesis.tex").write_text("keep me")
    with pytest.raises(UsageError, match="expected a new or empty folder, or that of an earlier demo"):
        demo.run_demo(tmp_path, images)
    assert (tmp_path / "thesis.tex").read_text() == "keep me"


@pytest.mark.parametrize("marker", ["{}", "[]", "not JSON", '{"softshard_demo": 2}', '{"softshard_demo": 1}'])
def test_a_marker_does_not_give_away_a_thesis(tmp_path, images, marker):
    (tmp_path / "demo.json").write_text(marker)
    (tmp_path / "thesis.tex").write_text("keep me")
    with pytest.raises(UsageError, match=r"or that of an earlier demo, found thesis\.tex"):
        demo.run_demo(tmp_path, images)
    assert (tmp_path / "demo.json").read_text() == marker
    assert (tmp_path / "thesis.tex").read_text() == "keep me"


def test_a_foreign_demo_json_is_left_alone(tmp_path, images):
    (tmp_path / "demo.json").write_text('{"mine": 1}')
    (tmp_path / "shards").mkdir()
    with pytest.raises(UsageError, match=r"or that of an earlier demo, found demo\.json, shards"):
        demo.run_demo(tmp_path, images)
    assert (tmp_path / "demo.json").read_text() == '{"mine": 1}'
    assert (tmp_path / "shards").exists()


@pytest.mark.parametrize("inside", ["out", "images", "same"])
def test_images_and_output_inside_one_another_are_refused(tmp_path, inside):
    images = folder_of(tmp_path, "tabby", "castle", num_images=2)
    out = {"out": images / "out", "images": tmp_path, "same": images}[inside]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="expected a folder apart from the images"):
        demo.run_demo(out, images)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "expected seed as an int"),
        ({"seed": 2**64}, "expected seed as an int"),
        ({"num_threads": 0}, "threads: expected at least 1, found 0"),
        ({"images": "nowhere"}, "nowhere: expected a file or folder, found nothing; is the path right?"),
    ],
)
def test_wrong_options_are_refused_before_an_earlier_demo_is_touched(tmp_path, images, options, message):
    (tmp_path / "demo.json").write_text('{"softshard_demo": 1}')
    (tmp_path / "classes.txt").write_text("tabby\n")
    with pytest.raises(UsageError, match=message):
        demo.run_demo(tmp_path, **{"images": images, **options})
    assert (tmp_path / "classes.txt").exists()


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
