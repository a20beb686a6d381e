"""Training and evaluating with other labels than the data set's own: real tiny runs on what is packed once."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
import torch
from tiny_runs import tiny

from softshard.loaders import Loader, Subset
from softshard.loaders.labels import load_labels
from softshard.shards import LabelTree, Manifest, relabel
from softshard.shards.classes import class_list_sha256
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.manifest import load_sidecar
from softshard.training.checkpoint import load_checkpoint
from softshard.training.label_space import LabelSpace
from softshard.training.objective import count_images, create_loss
from softshard.training.recipes import semantic_softmax, single_label
from softshard.training.train import train

SOME = ("gull", "cat", "dog")


def run(recipe, shards, out, **options):
    options = {"model": "test_resnet", "val": str(shards / "val"), "log": lambda line: None, **options}
    return train(recipe, str(shards / "train"), out=out, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A class list of three of the four leaves in another order, and a tree over these, all on other levels."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "some.txt").write_text("".join(f"{name}\n" for name in SOME))
    LabelTree.from_table(SOME, [("gull", "pet"), ("cat", "pet"), ("dog", "cat")]).save(folder / "other.json")
    return folder


@pytest.fixture(scope="module")
def trained(shards, files, tmp_path_factory):
    """The output folder of a run over the tree of `files`, by the command line."""
    out = tmp_path_factory.mktemp("run") / "out"
    data = [str(shards / "train"), "--val", str(shards / "val"), "--labels", str(files / "other.json")]
    how = [
        "--model",
        "test_resnet",
        "--device",
        "cpu",
        "--epochs",
        "1",
        "--global-batch",
        "8",
        "--image-size",
        "32",
    ]
    assert main(["train", "semantic-softmax", *data, *how, "--out", str(out)]) == 0
    return out


def test_a_run_with_another_tree_learns_validates_and_exports_its_classes(trained, files):
    tree = LabelTree.load(files / "other.json")
    saved = load_checkpoint(trained / "checkpoint.pt")
    assert tuple(saved.class_names) == tree.classes
    assert saved.classes_sha256 == class_list_sha256(tree.classes)
    assert (saved.tree.fingerprint, saved.tree_sha256) == (tree.fingerprint, tree.fingerprint)
    assert saved.step == 36 // 8  # the crows are left out
    assert saved.history[0]["samples"] == 9
    assert saved.model["fc.weight"].shape[0] == len(tree.classes)
    with safetensors.safe_open(trained / "model.safetensors", "pt") as file:
        assert tuple(json.loads(file.metadata()["class_names"])) == tree.classes
        assert file.metadata()["classes_sha256"] == saved.classes_sha256
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["labels"] == saved.loader["labels"] is not None


def test_evaluate_wants_the_labels_of_the_run(trained, shards, files, capsys):
    command = ["evaluate", str(trained / "checkpoint.pt"), str(shards / "val"), "--device", "cpu", "--json"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "do not belong together: class list: expected" in error
    assert "read it with the same --labels" in error
    assert main([*command, "--labels", str(files / "some.txt")]) == 1
    assert "do not belong together" in capsys.readouterr().err
    assert main([*command, "--labels", str(files / "other.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    (entry,) = load_checkpoint(trained / "checkpoint.pt").history
    assert found["semantic_accuracy"] == entry["semantic_accuracy"]
    assert found["samples"] == 9


def test_resume_wants_the_same_labels(trained, shards, files):
    for labels in (None, files / "some.txt"):
        with pytest.raises(DataError, match="do not belong together: class list: expected"):
            run(tiny(semantic_softmax()), shards, trained, labels=labels, resume=True)


def test_a_run_goes_on_with_its_labels(shards, files, tmp_path):
    options = {"labels": files / "some.txt", "val": None}
    recipe = tiny(single_label(), schedule="constant", warmup=0.0)
    whole = run(dataclasses.replace(recipe, epochs=2), shards, tmp_path / "whole", **options)
    run(recipe, shards, tmp_path / "parts", **options)
    parts = run(
        dataclasses.replace(recipe, epochs=2),
        shards,
        tmp_path / "parts",
        labels=list(SOME),
        val=None,
        resume=True,
    )
    one, two = (load_checkpoint(result.checkpoint) for result in (whole, parts))
    assert one.step == two.step == 8
    assert all(torch.equal(tensor, two.model[name]) for name, tensor in one.model.items())


def test_classes_merged_otherwise_are_refused_although_they_have_the_same_names(shards, tmp_path):
    """A checkpoint's label space does not say which images a class is made of; the loader's state does."""
    manifest = Manifest.load(shards / "train")
    tree = LabelTree.load(shards / "train" / "tree.json")
    merged = relabel(manifest.class_names, ["mammal", "bird"], old_tree=tree, to_ancestor=True)
    class_map = merged.class_map.copy()
    class_map[manifest.class_names.index("cat")] = -1
    catless = dataclasses.replace(merged, class_map=class_map, dropped=("cat",))
    run(tiny(single_label()), shards, tmp_path, labels=merged)
    with pytest.raises(UsageError, match="loader state: expected labels"):
        run(tiny(single_label()), shards, tmp_path, labels=catless, resume=True)


def test_labels_are_read_by_what_they_are(shards, files):
    assert load_labels(None) is None
    assert load_labels(SOME) is SOME
    assert load_labels(str(files / "some.txt")) == SOME
    assert load_labels(files / "other.json").classes[:3] == SOME
    assert load_labels(shards / "val") == Manifest.load(shards / "val").class_names
    with pytest.raises(UsageError, match=r"missing\.json"):
        load_labels(files / "missing.json")
    with pytest.raises(
        UsageError, match="expected a file of class names, a folder of classes or a known list"
    ):
        load_labels("imagenet-2k")


def test_labels_with_a_mistyped_class_are_refused_by_name(shards, tmp_path):
    with pytest.raises(DataError, match="doge"):
        run(tiny(single_label()), shards, tmp_path, labels=["cat", "doge"])


def test_a_label_space_is_that_of_the_loader(shards, files):
    tree = LabelTree.load(files / "other.json")
    with Loader(shards / "train", batch_size=4, labels=tree) as loader:
        space = LabelSpace.of_loader(loader)
    assert space == LabelSpace(tree.classes, class_list_sha256(tree.classes), tree)
    with Loader(shards / "train", batch_size=4) as loader:
        assert LabelSpace.of_loader(loader) == LabelSpace.of(loader.manifest, loader.tree)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_images_are_counted_over_the_samples_that_are_served(shards, fraction):
    manifest = Manifest.load(shards / "train")
    tree = LabelTree.load(shards / "train" / "tree.json")
    labels = relabel(manifest.class_names, ["gull", "mammal"], old_tree=tree, to_ancestor=True)
    recipe = tiny(semantic_softmax(), balance="images")
    subset = None if fraction == 1.0 else Subset(fraction=fraction)
    options = {"batch_size": 4, "last_batch": "pad", "labels": labels, "subset": subset}
    with Loader(shards / "train", **options) as loader:
        counts = count_images(recipe, loader)
        seen = np.concatenate([batch.classes[batch.valid].numpy() for batch in loader])
        assert counts.tolist() == np.bincount(seen, minlength=2).tolist()
        assert counts.sum() == loader.num_samples
        assert create_loss(recipe, loader.tree, counts).level_weights
    if fraction == 1.0:
        assert counts.tolist() == [12, 24]
    with Loader(shards / "train", batch_size=4) as loader:
        stored = load_sidecar(shards / "train", manifest)
        assert count_images(recipe, loader).tolist() == np.bincount(stored, minlength=6).tolist()
