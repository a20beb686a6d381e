"""`softshard maps check` on collages of real photographs, with a teacher trained here: it tells which way maps lie."""

import json
from dataclasses import replace
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from json_page import read_json
from packed_files import write_again

from softshard.shards import (
    DataError,
    ImageRecipe,
    Manifest,
    PackOptions,
    UsageError,
    decode_label_map,
    encode_label_map,
    pack,
    read_shard,
)
from softshard.shards.cli import main
from softshard.shards.labelmap_side import SideMaps
from softshard.shards.writer import ShardWriter
from softshard.training import maps_check
from softshard.training.demo_photos import write_demo_photos
from softshard.training.maps import MapOptions, load_teacher, make_label_maps
from softshard.training.maps_check import (
    WINDOWS,
    check_label_map_labels,
    check_orientation,
    format_check,
)
from softshard.training.maps_images import window_px
from softshard.training.recipes import single_label
from softshard.training.train import train

if find_spec("skimage") is None or find_spec("sklearn") is None:
    pytest.skip(
        "scikit-image and scikit-learn, whose photographs the demo cuts, are not installed",
        allow_module_level=True,
    )

MODEL, SIDE, NUM_COLLAGES = "test_resnet", 64, 40


def write_collages(photos, out):
    """Four windows of other photographs in each image; its class is that of the first."""
    rng = np.random.default_rng(0)
    windows = {folder.name: sorted(folder.glob("*.jpg")) for folder in sorted(photos.iterdir())}
    names = list(windows)
    for number in range(NUM_COLLAGES):
        chosen = rng.permutation(names)[:4]
        tiles = [
            cv2.resize(cv2.imread(str(windows[name][number % len(windows[name])])), (SIDE, SIDE))
            for name in chosen
        ]
        picture = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
        (out / chosen[0]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out / chosen[0] / f"{number:02}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])


def transposed(dataset, out):
    """The same data set with every map's rows and columns swapped."""
    num_classes = Manifest.load(dataset).num_classes

    def turned(sample):
        scores, ids = (array.swapaxes(1, 2) for array in decode_label_map(sample.parts["lmap"]))
        return {**sample.parts, "lmap": encode_label_map(scores, ids, num_classes=num_classes)}

    return write_again(dataset, out, turned)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """(folder with maps as they should be, the same with swapped ones, the teacher's checkpoint)."""
    folder = tmp_path_factory.mktemp("check")
    photos = write_demo_photos(folder / "photos", train_windows=16, val_windows=2, ancestor_share=0)
    classes = sorted(path.name for path in (photos.root / "train").iterdir())
    options = PackOptions(image=ImageRecipe(size=SIDE, upscale=True))
    pack(photos.root / "train", folder / "single", options, class_names=classes, workers=1)
    recipe = replace(
        single_label(), smoothing=0.0, image_size=SIDE, global_batch=16, epochs=2,
        optimizer="adamw", lr=4e-3, weight_decay=0.02, schedule="one-cycle", crop_scale=(0.25, 1.0),
    )  # fmt: skip
    trained = train(
        recipe, str(folder / "single" / "train"), model=MODEL, out=folder / "teacher", log=lambda line: None
    )
    write_collages(photos.root / "train", folder / "images")
    options = PackOptions(image=ImageRecipe(size=2 * SIDE), shard_samples=15)
    pack(folder / "images", folder / "collages", options, class_names=classes, workers=1)
    collages = folder / "collages" / "train"
    teacher = load_teacher(MODEL, Manifest.load(collages), size=192, checkpoint=trained.checkpoint)
    make_label_maps(collages, folder / "maps", teacher, MapOptions(size=192), num_threads=1)
    return folder / "maps", transposed(folder / "maps", folder / "swapped"), trained.checkpoint


def check(dataset, mapped, **options):
    manifest = Manifest.load(dataset)
    teacher = load_teacher(MODEL, manifest, checkpoint=mapped[2])
    return check_orientation(dataset, manifest, teacher, size=96, num_threads=1, **options)


def test_the_orientation_is_found_both_ways(mapped):
    plain, swapped = check(mapped[0], mapped), check(mapped[1], mapped)
    assert (plain["verdict"], swapped["verdict"]) == ("right", "swapped")
    assert plain["num_images"] == NUM_COLLAGES
    assert plain["interval"][0] > 0 > swapped["interval"][1]
    assert plain["as_stored"]["top1"] > plain["swapped"]["top1"]
    # The same numbers from the other side: the maps differ by nothing but their orientation.
    assert plain["as_stored"]["cross_entropy"] == pytest.approx(swapped["swapped"]["cross_entropy"], abs=1e-3)


def test_few_images_are_no_evidence(mapped):
    assert check(mapped[0], mapped, num_images=5)["verdict"] == "undecided"


def test_maps_that_are_their_own_transpose_are_undecided(mapped, monkeypatch):
    decode = maps_check.decode_label_maps

    def symmetric(*args):
        scores, ids = decode(*args)
        return np.full_like(scores, 1), np.broadcast_to(ids[:, :, :1, :1], ids.shape)

    monkeypatch.setattr(maps_check, "decode_label_maps", symmetric)
    found = check(mapped[0], mapped, num_images=20)
    assert (found["verdict"], found["interval"]) == ("undecided", [0.0, 0.0])


def test_the_same_seed_gives_the_same_numbers_for_any_batch_size(mapped):
    first, again = (check(mapped[0], mapped, num_images=20, batch_size=size) for size in (64, 64))
    other_batch = check(mapped[0], mapped, num_images=20, batch_size=12)
    assert first == again
    assert other_batch["advantage"] == pytest.approx(first["advantage"], abs=1e-4)
    assert check(mapped[0], mapped, num_images=20, seed=1)["advantage"] != first["advantage"]


def as_side(dataset, maps, out):
    """Side shards with a data set's label maps, for the same data set without them."""
    manifest, records = Manifest.load(maps), []
    out.mkdir()
    for record in manifest.shards:
        with ShardWriter(out / record.name, ("lmap",)) as writer:
            for sample in read_shard(maps / record.name):
                writer.write(sample.key, {"lmap": sample.parts["lmap"]})
        records.append(writer.record)
    SideMaps(manifest.name, Manifest.load(dataset).fingerprint, manifest.label_maps, tuple(records)).save(out)
    return out


def test_side_shards_are_checked_like_stored_maps(mapped, tmp_path, capsys):
    collages = mapped[0].parent / "collages" / "train"
    call = ["maps", "check", "--teacher", MODEL, "--checkpoint", str(mapped[2]), "--json"]
    call += ["--size", "96", "--device", "cpu", "--threads", "1"]
    assert main([*call, str(mapped[1])]) == 0
    stored = json.loads(capsys.readouterr().out)
    side = as_side(collages, mapped[1], tmp_path / "side")
    for dataset in (collages, mapped[0]):  # one without maps, one whose own lie the other way
        if dataset is mapped[0]:
            side = as_side(dataset, mapped[1], tmp_path / "other")
        assert main([*call, str(dataset), "--side", str(side)]) == 0
        assert json.loads(capsys.readouterr().out) == stored
    with pytest.raises(DataError, match="expected label maps of the data set"):
        check_label_map_labels(mapped[1], Manifest.load(mapped[1]), side=side)


def test_agreement_with_the_labels_names_the_worst_classes(mapped):
    manifest = Manifest.load(mapped[0])
    found = check_label_map_labels(mapped[0], manifest)
    parts = [
        (int(sample.parts["cls"]), *decode_label_map(sample.parts["lmap"]))
        for record in manifest.shards
        for sample in read_shard(mapped[0] / record.name)
    ]
    right = []
    for index, scores, ids in parts:  # the oracle: a dense map, its mean, the largest
        dense = np.zeros(manifest.num_classes)
        np.add.at(dense, ids.ravel(), scores.ravel().astype(np.float64))
        right.append(dense.argmax() == index)
    assert found["num_images"] == NUM_COLLAGES
    assert found["top1"] == pytest.approx(np.mean(right))
    shares = [worst["top1"] for worst in found["worst_classes"]]
    assert shares == sorted(shares)
    assert sum(worst["num_images"] for worst in found["worst_classes"]) <= NUM_COLLAGES


def test_the_command_prints_the_verdict_and_json(mapped, capsys):
    call = ["maps", "check", str(mapped[1]), "--teacher", MODEL, "--checkpoint", str(mapped[2])]
    call += ["--size", "96", "--device", "cpu", "--threads", "1"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "rows and columns: swapped. Import them again with --transpose" in printed
    assert main([*call, "--json"]) == 0
    assert read_json("maps check", capsys.readouterr().out)["orientation"]["verdict"] == "swapped"


def test_without_a_teacher_only_the_labels_are_compared(mapped, capsys):
    assert main(["maps", "check", str(mapped[0])]) == 0
    assert "rows and columns: not looked at. Give a --teacher" in capsys.readouterr().out


def test_a_data_set_without_maps_is_refused(mapped):
    collages = mapped[0].parent / "collages" / "train"
    with pytest.raises(UsageError, match="expected label maps"):
        check_label_map_labels(collages, Manifest.load(collages))


@pytest.mark.parametrize("options", [{"num_images": 0}, {"batch_size": 0}, {"seed": -1}])
def test_wrong_numbers_are_refused(mapped, options):
    with pytest.raises(UsageError, match="expected images and batch size from 1 and a seed from 0"):
        check(mapped[0], mapped, **options)


def test_every_window_is_another_one_in_the_mirror():
    mirrored = WINDOWS[:, [1, 0, 3, 2]]
    assert {tuple(window) for window in mirrored} == {tuple(window) for window in WINDOWS}
    overlap = np.minimum(WINDOWS[:, 2:], mirrored[:, 2:]) - np.maximum(WINDOWS[:, :2], mirrored[:, :2])
    assert (overlap.min(axis=1) <= 0).all()


def test_windows_are_whole_pixels_inside_the_image():
    found = window_px(WINDOWS, np.array([[100, 60], [3, 1], [101, 61], [1, 1]]))
    assert found.tolist() == [[0, 30, 50, 30], [2, 0, 1, 1], [5, 34, 40, 24], [0, 0, 1, 1]]


def test_the_text_says_undecided():
    side = {"cross_entropy": 1.0, "top1": 0.5}
    found = {"verdict": "undecided", "num_images": 3, "advantage": 0.0, "interval": [-1, 1]}
    labels = {"num_images": 3, "top1": 0.5, "worst_classes": []}
    text = format_check({"labels": labels, "orientation": {**found, "as_stored": side, "swapped": side}})
    assert "rows and columns: undecided: the interval holds zero" in text


def test_the_text_shows_on_which_side_of_zero_an_interval_lies_however_small():
    side = {"cross_entropy": 2.484, "top1": 0.5}
    found = {"verdict": "right", "num_images": 3, "advantage": 3e-6, "interval": [1e-6, 5e-6]}
    labels = {"num_images": 3, "top1": 0.5, "worst_classes": []}
    text = format_check({"labels": labels, "orientation": {**found, "as_stored": side, "swapped": side}})
    assert "difference +3e-06 (95% +1e-06 to +5e-06)" in text
