"""Several paths to a class: data sets, training, evaluation and prediction."""

import json

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import taught_at_random
from toy_tree import PATH_LEAVES, PATH_PAIRS, PATH_TREE, right_classes

from softshard.loaders import Loader
from softshard.shards import ImageRecipe, LabelTree, PackOptions, pack
from softshard.shards.cli import main
from softshard.training.checkpoint import load_checkpoint
from softshard.training.distillation import SemanticKDLoss, teacher_levels
from softshard.training.evaluate import evaluate
from softshard.training.label_space import LabelSpace
from softshard.training.level_layout import LevelLayout
from softshard.training.predict import Predictor


def test_trees_that_differ_in_a_further_parent_are_told_apart():
    other = LabelTree.from_table(
        PATH_LEAVES,
        [pair for pair in PATH_PAIRS if pair != ("seal", "swimmer")]
        + [
            ("crow", "swimmer"),
        ],
        parents="all-paths",
    )
    spaces = [LabelSpace(tree.classes, "f" * 64, tree) for tree in (PATH_TREE, other)]
    (problem,) = spaces[0].differences(spaces[1])
    assert "another parent for 2 of the classes in both, the first of them 'crow': 'flier', not " in problem
    assert "'flier and swimmer'" in problem


COLOURS = {"cat": (200, 40, 40), "bat": (40, 200, 40), "crow": (40, 40, 200), "seal": (200, 200, 40)}


@pytest.fixture(scope="module")
def path_shards(tmp_path_factory):
    """48 + 12 photographs of four leaf classes, two of them with two parents."""
    folder = tmp_path_factory.mktemp("paths")
    rng = np.random.default_rng(0)
    for name in PATH_LEAVES:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 60, (32, 32, 3)), 0, 255)
            cv2.imwrite(str(folder / "images" / name / f"{i:02}.jpg"), pixels.astype(np.uint8))
    options = PackOptions(image=ImageRecipe(size=32), val_per_class=3, shard_samples=20)
    pack(folder / "images", folder / "shards", options, tree=PATH_TREE, workers=1)
    return folder / "shards"


def train_by_command(recipe, shards, out, *options):
    command = [
        "train", recipe, str(shards / "train"), "--val", str(shards / "val"), "--model", "test_resnet", "--out", str(out),
        "--lr", "1e-2", "--epochs", "6", "--global-batch", "8", "--image-size", "32", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    assert main([*command, *options]) == 0
    return out / "checkpoint.pt"


@pytest.fixture(scope="module")
def teacher(path_shards, tmp_path_factory):
    return train_by_command("semantic-softmax", path_shards, tmp_path_factory.mktemp("teacher"))


def test_batches_have_a_row_for_each_path(path_shards):
    with Loader(path_shards / "train", batch_size=8) as loader:
        assert loader.tree is not None
        assert next(iter(loader)).levels.shape == (8, 2, 3)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("semantic-softmax", ["--set", "level_order=true", "--precision", "bfloat16"]),
        ("multi-label", []),
        ("asl", ["--set", "levels=2"]),
        ("semantic-kd", []),
    ],
)
def test_models_learn_from_all_paths_and_are_evaluated_and_asked(
    recipe, options, path_shards, teacher, tmp_path, capsys
):
    if recipe == "semantic-kd":
        options = ["--teacher", str(teacher)]
    checkpoint = train_by_command(recipe, path_shards, tmp_path, *options)
    history = load_checkpoint(checkpoint).history
    assert history[-1]["loss"] < history[0]["loss"]
    numbers = evaluate(checkpoint, str(path_shards / "val"))
    expected = 0.8 if recipe == "asl" else 0.9
    assert numbers["per_level"][0] > expected
    assert numbers["per_level"][1] > expected
    assert ("mean_average_precision" in numbers) == (recipe in ("multi-label", "asl"))
    assert ("leaf_top1_down_the_tree" in numbers) == recipe.startswith("semantic")
    if recipe in ("multi-label", "asl"):
        assert numbers["mean_average_precision"] > 0.8
        assert numbers["classes_with_samples"] == (4 if recipe == "asl" else 8)
    else:
        assert numbers["leaf_top1_down_the_tree"] > 0.8
    right = 0
    predictions = list(Predictor(checkpoint).data_set(str(path_shards / "val")))
    for prediction in predictions:
        label = prediction.image.split("_")[0]
        index = PATH_TREE.class_index[label]
        right += {guess.index for guess in prediction.path} <= right_classes(PATH_TREE, index)
        for below, above in zip(prediction.path[1:], prediction.path, strict=False):
            assert above.index in PATH_TREE.all_parents[below.index]
    assert right > 8
    capsys.readouterr()
    assert main(["evaluate", str(checkpoint), str(path_shards / "val"), "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["semantic_accuracy"] == pytest.approx(numbers["semantic_accuracy"])


@pytest.mark.parametrize("recipe", ["semantic-softmax", "multi-label"])
def test_three_processes_evaluate_what_one_does_though_their_last_batches_are_uneven(
    recipe, forks, path_shards, tmp_path
):
    """12 samples in batches of five: each process has five slots, one of them has two samples."""
    checkpoint = train_by_command(recipe, path_shards, tmp_path, "--epochs", "1")
    expected = evaluate(checkpoint, str(path_shards / "val"))
    command = ["evaluate", checkpoint, path_shards / "val", "--batch-size", 5, "--threads", 1, "--json"]
    done = forks.run(*command, "--device", "cpu", processes=3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # printed once
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_a_teacher_stored_in_the_shards_distils_along_all_paths(path_shards, tmp_path):
    """What a `kd` component holds of a tree of all paths is per level, as ever."""
    tree, logits, row = taught_at_random(path_shards / "train", tmp_path)
    with Loader(tmp_path, batch_size=8, teacher=True) as loader:
        batch = next(iter(loader))
    assert batch.levels.shape == (8, 2, 3)
    said = logits[[row[key] for key in batch.keys]]
    expected = teacher_levels(said, LevelLayout(tree))
    assert torch.equal(batch.teacher.ids, expected.ids)
    loss, student = SemanticKDLoss(tree), said.flip(1)
    found = loss(student, batch.teacher, batch.levels)
    assert torch.equal(found, loss(student, expected, batch.classes))
    # No level of these trees has more than four classes, so one is kept and the others share the rest.
    shares = [level.softmax(dim=1) for level in LevelLayout(tree).split(LevelLayout(tree).arrange(said))]
    best = torch.cat([share.amax(dim=1, keepdim=True) for share in shares], dim=1)
    torch.testing.assert_close(batch.teacher.probabilities.float(), best, rtol=1e-3, atol=0)


def test_a_data_set_of_one_path_is_trained_and_evaluated_with_all_paths(shards, tmp_path):
    pairs = [("cat", "mammal"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")]
    tree = LabelTree.from_table(
        ("cat", "dog", "crow", "gull"), [*pairs, ("cat", "pet"), ("dog", "pet")], parents="all-paths"
    )
    tree.save(tmp_path / "tree.json")
    labels = ["--labels", str(tmp_path / "tree.json")]
    checkpoint = train_by_command("multi-label", shards, tmp_path / "run", *labels)
    assert load_checkpoint(checkpoint).tree.num_paths == 2
    numbers = evaluate(checkpoint, str(shards / "val"), labels=tmp_path / "tree.json")
    assert numbers["classes_with_samples"] == 7
    assert numbers["mean_average_precision"] > 0.8
