"""`softshard train --subset`: classes and images of a file of `softshard subset`, on the data set as it is."""

import json

import numpy as np
import pytest

from softshard.shards import SubsetFile
from softshard.shards.cli import main
from softshard.training.checkpoint import load_checkpoint

GROUPS = "fur: [cat, dog]\nfeathers: [crow, gull]\n"


@pytest.fixture(scope="module")
def images(shards, tmp_path_factory):
    """Two classes of two each, 16 images a class of the 24 that there are."""
    folder = tmp_path_factory.mktemp("subset")
    (folder / "groups.yaml").write_text(GROUPS)
    classes = ["--method", "file", "--from", str(folder / "groups.yaml"), "-o", str(folder / "classes.json")]
    assert main(["subset", "classes", str(shards), *classes]) == 0
    chosen = ["--classes", str(folder / "classes.json"), "-m", "16", "--method", "stratified"]
    assert main(["subset", "images", str(shards), *chosen, "-o", str(folder / "images.json")]) == 0
    return folder / "images.json"


def train(shards, out, subset, *more):
    data = [str(shards / "train"), "--val", str(shards / "val"), "--subset", str(subset)]
    how = ["--model", "test_resnet", "--device", "cpu", "--epochs", "1", "--global-batch", "8"]
    return main(["train", "single-label", *data, *how, "--image-size", "32", "--out", str(out), *more])


def test_a_run_trains_on_the_chosen_images_and_validates_on_all_of_the_classes(
    shards, images, tmp_path, capsys
):
    assert train(shards, tmp_path / "run", images) == 0
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert tuple(saved.class_names) == ("fur", "feathers")
    assert saved.step == 32 // 8
    assert saved.history[0]["samples"] == 12  # all of the validation set
    subset = SubsetFile.load(images)
    assert len(subset.keys) == 32
    assert saved.loader["subset"]["keys"] is not None
    # The validation set is read with the file's classes, as --labels.
    capsys.readouterr()
    command = ["evaluate", str(tmp_path / "run" / "checkpoint.pt"), str(shards / "val"), "--device", "cpu"]
    assert main([*command, "--labels", str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 12
    # It goes on with the same subset, and with no other.
    assert train(shards, tmp_path / "run", images, "--resume") == 0
    assert train(shards, tmp_path / "run", images.with_name("classes.json"), "--resume") != 0
    assert "subset" in capsys.readouterr().err


def test_labels_beside_a_subset_are_a_wrong_call(shards, images, tmp_path, capsys):
    assert train(shards, tmp_path / "run", images, "--labels", str(images)) == 2
    assert "expected labels or the file of a subset" in capsys.readouterr().err


def test_both_groups_have_as_many_images_of_each_member(images):
    keys = SubsetFile.load(images).keys
    counts = np.unique([key.partition("_")[0] for key in keys], return_counts=True)
    assert dict(zip(*map(np.ndarray.tolist, counts), strict=True)) == {
        "cat": 8, "crow": 8, "dog": 8, "gull": 8,
    }  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("method", ["random", "siblings", "groups", "coarse", "confusion", "file"])
def test_real_photographs_grouped_and_packed_are_trained_on(shared_data, tmp_path, method):
    classes = str(tmp_path / "classes.json")
    table = str(shared_data / "imagenet_categories_synset.csv")
    wnids = sorted(folder.name for folder in (shared_data / "photos").iterdir())
    confused = np.random.default_rng(0).integers(0, 9, (300, 300))
    rows = [",".join(["class", *wnids])]
    rows += [",".join([name, *map(str, row)]) for name, row in zip(wnids, confused.tolist(), strict=True)]
    (tmp_path / "confusion.csv").write_text("\n".join(rows) + "\n")
    by_hand = [f"group {i}: [{', '.join(wnids[i::10])}]" for i in range(10)]
    (tmp_path / "groups.yaml").write_text("\n".join(by_hand) + "\n")
    more = {
        "random": [],
        "siblings": ["--exact"],
        "groups": [],
        "coarse": ["--from", table],
        "confusion": ["--from", str(tmp_path / "confusion.csv")],
        "file": ["--from", str(tmp_path / "groups.yaml")],
    }[method]
    num = [] if method == "file" else ["-n", "10"]
    chosen = ["--method", method, *num, *more, "-o", classes]
    assert main(["subset", "classes", str(shared_data / "photos"), *chosen]) == 0
    small = ["--size", "32", "--shard-samples", "100", "--workers", "1"]
    assert (
        main(["pack", str(shared_data / "photos"), str(tmp_path / "set"), "--subset", classes, *small]) == 0
    )
    how = ["--model", "test_resnet", "--device", "cpu", "--epochs", "1", "--global-batch", "10"]
    command = ["train", "single-label", str(tmp_path / "set" / "train"), *how, "--image-size", "32"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert tuple(saved.class_names) == SubsetFile.load(classes).class_names
    assert saved.step == (1 if method == "random" else 30)
    assert saved.model["fc.weight"].shape[0] == 10
