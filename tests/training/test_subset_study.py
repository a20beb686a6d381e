"""`softshard subset study`: models trained on a full set and on a subset, their curves, and what is made of them."""

import csv
import dataclasses
import json
import os
import signal

import pytest
from json_page import read_json

from softshard.loaders import Subset
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.manifest import Manifest
from softshard.shards.shard_keys import each_shards_keys
from softshard.shards.subset_file import ClassGroup, SubsetFile
from softshard.training import single_label
from softshard.training.checkpoint import load_checkpoint
from softshard.training.curves import read_curves
from softshard.training.subset_study import EPOCHS, StudySet, study_subset

TINY = dataclasses.replace(single_label(), global_batch=8, image_size=32, lr=3e-3, augment="none")
MODELS = ["test_resnet", "test_efficientnet"]
SETTINGS = ["global_batch=8", "image_size=32", "lr=0.003", "augment=none"]


def keys_of(dataset):
    return tuple(key.decode() for part in each_shards_keys(dataset, Manifest.load(dataset)) for key in part)


@pytest.fixture(scope="module")
def keys_file(shards, tmp_path_factory):
    """Every third image."""
    path = tmp_path_factory.mktemp("keys") / "subset.txt"
    path.write_text("".join(f"{key}\n" for key in keys_of(shards / "train")[::3]))
    return path


def run(shards, keys_file, out, models=MODELS, **options):
    full = StudySet(str(shards / "train"), str(shards / "val"))
    subset = dataclasses.replace(full, subset=Subset(keys=keys_file))
    options = {"recipe": TINY, "epochs": {"full": 2, "subset": 1}, "log": lambda line: None, **options}
    return study_subset(full, subset, models, out, **options)


@pytest.fixture(scope="module")
def studied(shards, keys_file, tmp_path_factory):
    return run(shards, keys_file, tmp_path_factory.mktemp("study")).curves


def test_the_curves_are_those_of_the_runs(studied):
    full, subset = read_curves([studied])
    assert full.models == tuple(MODELS)
    assert (full.epochs, subset.epochs) == ((1, 2), (1,))
    assert (full.train_images, full.val_images) == (48, 12)
    assert (subset.train_images, subset.val_images) == (16, 12)
    for name, curves in (("full", full), ("subset", subset)):
        for model, accuracies in zip(MODELS, curves.accuracy.tolist(), strict=True):
            with (studied.parent / f"{name}-{model}" / "epochs.csv").open(newline="") as file:
                assert [float(row["top1"]) for row in csv.DictReader(file)] == pytest.approx(accuracies)


def test_by_default_100_epochs_on_the_full_set_and_50_on_the_subset():
    assert EPOCHS == {"full": 100, "subset": 50}


def test_a_study_that_was_stopped_goes_on_and_takes_more_models(shards, keys_file, studied, tmp_path):
    lines = []

    def stop(line):
        if line.startswith("epoch 0: loss"):
            lines.append(line)
            if len(lines) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(shards, keys_file, tmp_path, log=stop)
    assert stopped.stopped_by == signal.SIGTERM
    with pytest.raises(DataError, match="expected two models or more to rank, found 1"):
        read_curves([stopped.curves])
    assert run(shards, keys_file, tmp_path).curves.read_bytes() == studied.read_bytes()
    more = run(shards, keys_file, tmp_path, models=[*MODELS, "test_byobnet"])
    assert more.curves.read_text().startswith(studied.read_text())
    assert len(read_curves([more.curves])[0].models) == 3


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["test_resnet"], {}, "expected two models or more, each once, found test_resnet"),
        (["test_resnet", "test_resnet"], {}, "expected two models or more, each once"),
        (["test_resnet", "resnet5"], {}, "expected names that timm .* knows, found resnet5"),
        (MODELS, {"seed": 1}, "expected the runs of this call, found those of one with another seed"),
        (MODELS, {"epochs": {"full": 3, "subset": 1}}, "found those of one with another epochs"),
    ],
)
def test_a_study_that_cannot_be_is_refused(models, options, message, shards, keys_file, studied):
    with pytest.raises(UsageError, match=message):
        run(shards, keys_file, studied.parent, models=models, **options)


def test_a_subset_that_does_not_fit_its_validation_set_is_told_before_any_run(shards, tmp_path):
    full = StudySet(str(shards / "train"), str(shards / "val"))
    (tmp_path / "two.txt").write_text("cat\nowl\n")
    with pytest.raises(DataError, match="owl"):
        study_subset(
            full,
            dataclasses.replace(full, labels=str(tmp_path / "two.txt")),
            MODELS,
            tmp_path / "out",
            recipe=TINY,
        )
    assert not list((tmp_path / "out").glob("full-*"))


def test_the_command_trains_evaluates_and_continues(shards, keys_file, studied, tmp_path, capsys):
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["subset", "study", str(shards / "train"), str(keys_file), "--val", str(shards / "val")]
    command += ["--models", ",".join(MODELS), "--epochs-full", "2", "--epochs-subset", "1", *options]
    command += ["-o", str(tmp_path / "study"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    result = read_json("subset study", capsys.readouterr().out)
    assert (tmp_path / "study" / "curves.csv").read_bytes() == studied.read_bytes()
    assert (tmp_path / "study" / "curves.html").exists()
    assert result["full"]["train_images"] == 48
    assert result["has_value"] == (result["subset"]["images_looped"] < result["full"]["images_looped"])
    assert main(["subset", "evaluate", str(tmp_path / "study" / "curves.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main([*command, "--set", "lr=0.1"]) == 2
    assert "found those of one with another recipe" in capsys.readouterr().err


def test_a_subset_may_be_a_data_set_of_its_own_with_other_classes(shards, tmp_path):
    (tmp_path / "two.txt").write_text("cat\ngull\n")
    full = StudySet(str(shards / "train"), str(shards / "val"))
    subset = dataclasses.replace(full, labels=str(tmp_path / "two.txt"))
    found = study_subset(
        full,
        subset,
        MODELS,
        tmp_path / "out",
        recipe=TINY,
        epochs={"full": 1, "subset": 1},
        log=lambda line: None,
    )
    curves = read_curves([found.curves])
    assert [each.train_images for each in curves] == [48, 24]
    assert [each.val_images for each in curves] == [12, 6]


def test_a_subset_may_be_a_file_of_groups_and_images(shards, tmp_path, capsys):
    groups = (ClassGroup("fur", ("cat", "dog")), ClassGroup("feathers", ("crow", "gull")))
    how = {"class_method": {"method": "file"}, "class_source": {"name": "tiny"}}
    subset = SubsetFile(groups, **how, keys=keys_of(shards / "train")[::2], image_method={}, image_source={})
    subset.save(tmp_path / "subset.json")
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [
        "subset",
        "study",
        str(shards / "train"),
        str(tmp_path / "subset.json"),
        "--val",
        str(shards / "val"),
    ]
    command += ["--models", ",".join(MODELS), "--epochs-full", "1", "--epochs-subset", "1", *options]
    command += ["-o", str(tmp_path / "study"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [result[name]["train_images"] for name in ("full", "subset")] == [48, 24]
    assert [result[name]["val_images"] for name in ("full", "subset")] == [12, 12]
    saved = load_checkpoint(tmp_path / "study" / "subset-test_resnet" / "checkpoint.pt")
    assert tuple(saved.class_names) == ("fur", "feathers")
    assert main([*command, "--labels-subset", "imagenet-1k"]) == 2
    assert "expected no labels beside a file of softshard subset" in capsys.readouterr().err
