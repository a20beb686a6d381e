"""Predictions: the same for an image and the sample it was packed as; paths; bad images."""

import dataclasses
import json
import shutil
import warnings

import cv2
import numpy as np
import pytest
import torch

from softshard.shards import (
    DataError,
    ImageRecipe,
    LabelTree,
    PackOptions,
    ReshardOptions,
    UsageError,
    pack,
    read_shard,
    reshard,
)
from softshard.shards.cli import main
from softshard.shards.components import decode_meta
from softshard.training import semantic_softmax, single_label
from softshard.training.checkpoint import load_checkpoint, save_checkpoint
from softshard.training.predict import Predictor, _Reader
from softshard.training.train import train


@pytest.fixture(scope="module")
def checkpoints(shards, tmp_path_factory):
    """Trained checkpoints: of semantic softmax (at another size than the stored one), and of single labels."""
    found = {}
    for recipe in (semantic_softmax(), single_label()):
        # One of them sees the whole of an image, the other its middle.
        centre = {"single-label": 0.75}.get(recipe.name)
        recipe = dataclasses.replace(
            recipe, epochs=6, global_batch=8, image_size=40, lr=1e-2, augment="none", eval_centre=centre
        )
        out = tmp_path_factory.mktemp(recipe.name)
        result = train(recipe, str(shards / "train"), model="test_resnet", out=out, log=lambda line: None)
        found[recipe.name] = result.checkpoint
    return found


@pytest.fixture(scope="module")
def sources(shards):
    """For every validation sample, in order: its key, and the file it was packed from."""
    (shard,) = sorted((shards / "val").glob("*.tar"))
    return [
        (sample.key, str(shards.parent / "images" / decode_meta(sample.parts["msgpack"], sample.key)["path"]))
        for sample in read_shard(shard)
    ]


def refuse(error):
    raise error


@pytest.mark.parametrize("recipe", ["semantic-softmax", "single-label"])
def test_an_image_and_the_sample_it_was_packed_as_are_predicted_alike(recipe, checkpoints, shards, sources):
    predictor = Predictor(checkpoints[recipe])
    packed = list(predictor.data_set(str(shards / "val"), batch_size=5))
    assert [prediction.image for prediction in packed] == [key for key, _ in sources]
    images = list(predictor.files([path for _, path in sources], refuse, batch_size=5))
    assert [prediction.image for prediction in images] == [path for _, path in sources]
    for image, sample in zip(images, packed, strict=True):
        assert (image.path, image.best) == (sample.path, sample.best)


def test_a_data_set_of_another_tree_is_predicted_with_a_warning_that_names_both(
    checkpoints, shards, tmp_path
):
    own = LabelTree.load(shards / "val" / "tree.json")
    table = [("cat", "mammal"), ("crow", "mammal"), ("dog", "bird"), ("gull", "bird")]
    other = LabelTree.from_table(own.classes[:4], table)
    reshard([shards / "val"], tmp_path / "other", ReshardOptions(tree=other, drop=("lmap",)))
    predictor = Predictor(checkpoints["semantic-softmax"])
    with pytest.warns(
        UserWarning, match=rf"checkpoint.pt was .*: expected {own.fingerprint}, found {other.fingerprint}"
    ):
        warned = list(predictor.data_set(str(tmp_path / "other")))
    with warnings.catch_warnings(action="error"):
        assert list(predictor.data_set(str(shards / "val"))) == warned


def test_as_many_classes_of_other_names_are_refused_unless_asked_for(checkpoints, sources, tmp_path, capsys):
    for name in ("owl", "fox", "carp", "newt", "moth", "vole"):
        (tmp_path / "images" / name).mkdir(parents=True)
        shutil.copy(sources[0][1], tmp_path / "images" / name / "0.jpg")
    pack(tmp_path / "images", tmp_path / "shards", PackOptions(image=ImageRecipe(size=32)), workers=1)
    predictor, other = Predictor(checkpoints["semantic-softmax"]), str(tmp_path / "shards" / "train")
    with pytest.raises(DataError, match=r"both 6 classes.*softshard predict --other-classes"):
        next(predictor.data_set(other))
    with pytest.warns(UserWarning, match="the predictions are the checkpoint's classes"):
        found = list(predictor.data_set(other, other_classes=True))
    assert {guess.name for prediction in found for guess in prediction.best[1]} <= {
        "cat",
        "crow",
        "dog",
        "gull",
    }
    assert len(found) == 6
    assert main(["predict", str(checkpoints["semantic-softmax"]), other]) == 1
    assert "softshard predict --other-classes" in capsys.readouterr().err


def test_a_trained_model_knows_the_colours_level_by_level(checkpoints, shards):
    right = 0
    for prediction in Predictor(checkpoints["semantic-softmax"], top=2).data_set(str(shards / "val")):
        label = prediction.image.split("_")[0]
        parent = "mammal" if label in ("cat", "dog") else "bird"
        right += [guess.name for guess in prediction.path] == [parent, label]
        assert [guess.level for guess in prediction.path] == [0, 1]
        # Two classes on level 0, two listed of the four on level 1; each level sums to 1.
        assert [len(guesses) for guesses in prediction.best] == [2, 2]
        assert sum(guess.probability for guess in prediction.best[0]) == pytest.approx(1)
        assert prediction.best[1][0].probability >= prediction.best[1][1].probability
    assert right >= 11


def read(loss, logits, levels=None, top=2):
    tree = LabelTree.from_table(
        ("cat", "dog", "gull"), [("cat", "mammal"), ("dog", "mammal"), ("gull", "bird"), ("elm", "")]
    )
    recipe = dataclasses.replace(semantic_softmax(), loss=loss, levels=levels)
    saved = type("Saved", (), {"tree": tree, "class_names": list(tree.classes), "recipe": recipe})
    return tree.classes, _Reader(saved, top)("image", torch.tensor(logits, dtype=torch.float64))


def test_the_path_goes_to_the_best_child_even_where_another_branch_is_better():
    names, found = read("semantic-softmax", [0.0, 1.0, 5.0, 2.0, 1.0])
    assert names == ("cat", "dog", "gull", "mammal", "bird")
    assert [guess.name for guess in found.path] == ["mammal", "dog"]
    assert found.path[0].probability == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert [guess.name for guess in found.best[1]] == ["gull", "dog"]
    assert found.path[1].probability == found.best[1][1].probability


def test_sigmoids_are_read_one_by_one_and_the_path_ends_where_they_say_no():
    names, found = read("multi-label", [-2.0, -1.0, 5.0, 2.0, 1.0])
    assert names == ("cat", "dog", "gull", "mammal", "bird")
    # Neither a cat nor a dog, so a mammal of some other kind; the gull is on another branch.
    assert [guess.name for guess in found.path] == ["mammal"]
    assert found.path[0].probability == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert [guess.name for guess in found.best[1]] == ["gull", "dog"]
    _, found = read("asl", [-2.0, 0.1, 5.0, 2.0, 1.0])
    assert [guess.name for guess in found.path] == ["mammal", "dog"]
    _, found = read("asl", [-9.0, -9.0, -9.0, -2.0, -1.0])
    assert [guess.name for guess in found.path] == ["bird"]


def test_levels_that_were_not_trained_are_not_read():
    _, found = read("semantic-softmax", [0.0, 1.0, 5.0, 2.0, 1.0], levels=1)
    assert ([guess.name for guess in found.path], len(found.best)) == (["mammal"], 1)


def test_one_softmax_gives_the_best_classes_and_the_ancestors_of_the_best_with_all_below_them():
    _, found = read("single-label", [2.0, 1.0, 0.0, 0.0, 0.0])
    shares = np.exp([2.0, 1.0, 0.0, 0.0, 0.0]) / np.exp([2.0, 1.0, 0.0, 0.0, 0.0]).sum()
    assert [guess.name for guess in found.path] == ["mammal", "cat"]
    assert [guess.probability for guess in found.path] == pytest.approx([shares[[0, 1, 3]].sum(), shares[0]])
    assert [[guess.name for guess in guesses] for guesses in found.best] == [["cat", "dog"]]


def test_bad_images_are_reported_the_others_predicted_and_the_command_fails(
    checkpoints, sources, tmp_path, capsys
):
    (tmp_path / "cut.jpg").write_bytes((tmp_path / sources[0][1]).read_bytes()[:300])
    images = [
        sources[0][1],
        str(tmp_path / "cut.jpg"),
        str(tmp_path / "nowhere.jpg"),
        str(tmp_path),
        sources[1][1],
    ]
    checkpoint = str(checkpoints["semantic-softmax"])
    assert main(["predict", checkpoint, *images, "--device", "cpu", "--json"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["image"] for line in lines] == [images[0], images[4]]
    assert lines[0]["path"][0].keys() == {"level", "index", "name", "shown", "probability"}
    for path in images[1:4]:
        assert f"softshard: {path}: expected" in output.err


def test_the_command_prints_paths_and_levels(checkpoints, shards, sources, capsys):
    checkpoint = str(checkpoints["semantic-softmax"])
    assert main(["predict", checkpoint, str(shards / "val"), "--top", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == sources[0][0]
    assert lines[1].startswith("  path     ")
    assert " > " in lines[1]
    assert [line.split()[:2] for line in lines[2:4]] == [["level", "0"], ["level", "1"]]
    assert main(["predict", str(checkpoints["single-label"]), sources[0][1], "--device", "cpu"]) == 0
    assert "\n  best     " in capsys.readouterr().out


def test_wrong_calls_of_predict_are_named(checkpoints, shards, sources, capsys):
    with pytest.raises(UsageError, match="threads: expected at least 1, found 0"):
        Predictor(checkpoints["single-label"], num_threads=0)
    checkpoint = str(checkpoints["semantic-softmax"])
    assert main(["predict", checkpoint, str(shards / "val"), sources[0][1]]) == 2
    assert "expected image files or one data set, found a data set among others" in capsys.readouterr().err
    assert main(["predict", checkpoint, sources[0][1], "--top", "0"]) == 2
    assert "top: expected at least 1, found 0" in capsys.readouterr().err
    assert main(["predict", str(shards / "val"), sources[0][1]]) == 1
    assert "found the folder of a data set" in capsys.readouterr().err


def test_a_model_that_says_nothing_finite_predicts_nothing(checkpoints, sources, tmp_path, capsys):
    saved, path = load_checkpoint(checkpoints["semantic-softmax"]), tmp_path / "checkpoint.pt"
    weights = saved.model | {"fc.bias": torch.full((6,), torch.nan)}
    save_checkpoint(path, dataclasses.replace(saved, model=weights))
    assert main(["predict", str(path), sources[0][1], "--device", "cpu", "--json"]) == 1
    said = capsys.readouterr()
    assert f"{path}: expected finite outputs for {sources[0][1]!r}, found others" in said.err
    assert not said.out


def test_pixels_are_the_stored_ones_and_not_the_files_own(checkpoints, tmp_path):
    """A large picture is stored at 32 pixels before the model's 40, as in the training set."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), pixels)
    predictor = Predictor(checkpoints["semantic-softmax"])
    assert load_checkpoint(checkpoints["semantic-softmax"]).stored_images["size"] == 32
    large = list(predictor.files([str(tmp_path / "large.png")], refuse))
    predictor.saved.stored_images = None
    assert large != list(predictor.files([str(tmp_path / "large.png")], refuse))
