"""Confusion matrices: counted from a model's answers, with any number of processes, and of timm's models."""

import csv
import dataclasses

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from softshard.loaders import Loader
from softshard.shards.cli import main
from softshard.shards.confusion_file import load_confusion
from softshard.shards.errors import UsageError
from softshard.shards.manifest import Manifest
from softshard.training import semantic_softmax, single_label
from softshard.training.ancestors import leaf_classes
from softshard.training.checkpoint import load_checkpoint
from softshard.training.confusion import ConfusionMatrix, confusion_of_model
from softshard.training.evaluate import evaluate
from softshard.training.evaluate_timm import open_timm
from softshard.training.models import load_trained_model
from softshard.training.preparation import own_classes
from softshard.training.train import train


@pytest.fixture(scope="module")
def checkpoints(shards, tmp_path_factory):
    found = {}
    for recipe in (single_label(), semantic_softmax()):
        recipe = dataclasses.replace(
            recipe, epochs=1, global_batch=8, image_size=32, lr=3e-3, augment="none"
        )  # so that it still errs
        out = tmp_path_factory.mktemp(recipe.name)
        found[recipe.name] = train(
            recipe, str(shards / "train"), model="test_resnet", out=out, log=lambda line: None
        ).checkpoint
    return found


def counted_by_hand(checkpoint, dataset, among):
    """The oracle: every image alone through the model, the best of `among` counted in Python."""
    saved = load_checkpoint(checkpoint)
    model = load_trained_model(checkpoint, saved, 32).eval()
    counts = np.zeros((len(saved.class_names),) * 2, np.int64)
    with Loader(
        str(dataset), batch_size=1, augment=saved.recipe.evaluation_augment(), dtype="uint8", shuffle=False
    ) as loader:
        for batch in loader:
            with torch.inference_mode():
                logits = model(batch.images.float() / 255)[0]
            counts[int(batch.classes[0]), among[int(logits[among].argmax())]] += 1
    return counts


def test_counts_are_those_of_every_image_alone(checkpoints, shards):
    path = checkpoints["single-label"]
    found = confusion_of_model(path, str(shards / "train"), batch_size=7)
    assert np.array_equal(found.counts, counted_by_hand(path, shards / "train", np.arange(6)))
    assert found.class_names == Manifest.load(shards / "train").class_names
    assert found.counts.sum() == 48
    assert found.counts.sum() > np.trace(found.counts)  # else the order of the axes would not show
    assert found.top1 == evaluate(path, str(shards / "train"))["top1"]
    other = confusion_of_model(path, str(shards / "train"), batch_size=48)
    assert np.array_equal(other.counts, found.counts)


def test_a_model_over_a_tree_answers_with_leaves(checkpoints, shards):
    path = checkpoints["semantic-softmax"]
    found = confusion_of_model(path, str(shards / "val"))
    with Loader(str(shards / "val"), batch_size=1) as loader:
        leaves = set(leaf_classes(loader.tree).tolist())
    assert found.counts.sum() == 12
    assert set(np.flatnonzero(found.counts.sum(axis=0)).tolist()) <= leaves
    assert found.top1 == evaluate(path, str(shards / "val"))["leaf_top1_down_the_tree"]


def test_padded_slots_do_not_count_and_the_row_is_the_right_class():
    matrix = ConfusionMatrix(3)
    scores = torch.tensor([[0.0, 1.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    matrix.update(scores, torch.tensor([2, 0, -1]), torch.tensor([True, True, False]))
    matrix.update(scores[:1], torch.tensor([2]))
    assert matrix.compute().tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_the_command_writes_what_is_read_again_by_name(suffix, checkpoints, shards, tmp_path, capsys):
    out = tmp_path / "new" / f"confusion.{suffix}"
    command = ["subset", "confusion", str(shards / "val"), "--model", str(checkpoints["single-label"])]
    assert main([*command, "-o", str(out), "--device", "cpu"]) == 0
    assert "12 images of 6 classes, " in capsys.readouterr().out
    expected = confusion_of_model(checkpoints["single-label"], str(shards / "val"))
    assert np.array_equal(load_confusion(out, expected.class_names), expected.counts)
    if suffix == "csv":
        header, *rows = csv.reader(out.open())
        assert header == ["class", *expected.class_names]
        assert [row[0] for row in rows] == header[1:]


def test_two_processes_count_what_one_does(checkpoints, forks, shards, tmp_path):
    """Of 12 images each process gets 6, in batches of 4: half of the last one is padding."""
    command = ["subset", "confusion", shards / "val", "--model", checkpoints["single-label"]]
    options = ["-o", tmp_path / "c.npy", "--device", "cpu", "--threads", 1, "--batch-size", 4]
    done = forks.run(*command, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 images of 6 classes") == 1
    expected = confusion_of_model(checkpoints["single-label"], str(shards / "val"))
    assert np.array_equal(np.load(tmp_path / "c.npy"), expected.counts)


def test_a_name_that_cannot_be_written_is_refused_before_the_model_runs(shards, capsys):
    command = ["subset", "confusion", str(shards / "val"), "--model", "nowhere.pt", "-o", "confusion.txt"]
    assert main(command) == 2
    assert "confusion.txt: expected a file that ends in .npy or .csv" in capsys.readouterr().err


def test_a_timm_model_answers_with_the_classes_that_the_data_set_has(shards, tmp_path):
    """Random weights do: what counts is which of a thousand outputs are asked, and in which order."""
    places = [700, 3, 999, 500]  # not in the model's order
    own = own_classes(1000)
    assert own is not None
    names = tuple(own[place] for place in places)
    (tmp_path / "images").mkdir()
    for source, name in zip(("cat", "dog", "crow", "gull"), names, strict=True):
        (tmp_path / "images" / name).symlink_to(shards.parent / "images" / source)
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    command = ["pack", str(tmp_path / "images"), str(tmp_path / "set"), "--resize", "none", "--workers", "1"]
    assert main([*command, "--classes", str(tmp_path / "list.txt"), "--val-per-class", "0"]) == 0
    dataset, weights = str(tmp_path / "set" / "train"), tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=1000).eval()
    save_file(network.state_dict(), weights)
    found = confusion_of_model("timm:test_resnet.r160_in1k", dataset, weights=weights)
    assert found.class_names == names
    assert found.counts.sum(axis=1).tolist() == [15] * 4
    opened = open_timm("test_resnet.r160_in1k", dataset, weights=weights, batch_size=60)
    with opened as (_, _, loader):
        (batch,) = loader
        with torch.inference_mode():
            answers = network(batch.images)[:, places].argmax(dim=1)
        expected = np.zeros((4, 4), np.int64)
        for right, answer in zip(batch.classes.tolist(), answers.tolist(), strict=True):
            expected[places.index(right), answer] += 1
    assert np.array_equal(found.counts, expected)
    with pytest.raises(UsageError, match="--weights: expected timm:NAME, which they are for, found model"):
        confusion_of_model("model.pt", dataset, weights=weights)
