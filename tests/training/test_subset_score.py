"""Difficulty scores: halves, no image scored by a model that knows it, and runs that are killed and go on."""

import dataclasses
import json
import os
import re
import shutil
import signal
from collections import Counter

import pytest
import torch
from json_page import read_json
from spoiling import rewrite

from softshard.loaders import Loader, Subset
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.manifest import Manifest, load_sidecar
from softshard.shards.score_file import read_scores
from softshard.shards.shard_keys import each_shards_keys
from softshard.shards.subset_file import ClassGroup, SubsetFile
from softshard.training import semantic_softmax, single_label
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import model_outputs
from softshard.training.models import load_trained_model
from softshard.training.subset_score import refuse_trained_on, score_data_set, split_halves
from softshard.training.train import train

TINY = dataclasses.replace(
    single_label(), epochs=2, global_batch=8, image_size=32, lr=3e-3, augment="none", schedule="constant"
)


def silent(line):
    pass


def score(shards, out, **options):
    return score_data_set(
        str(shards / "train"), out, **{"recipe": TINY, "model": "test_resnet", "log": silent, **options}
    )


@pytest.fixture(scope="module")
def scored(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "scores.jsonl"
    return score(shards, out).path


def test_every_image_is_scored_once_by_the_model_of_the_other_half(shards, scored):
    found = read_scores(scored, fingerprint=Manifest.load(shards / "train").fingerprint)
    manifest = Manifest.load(shards / "train")
    assert list(found.keys) == [
        key.decode() for part in each_shards_keys(shards / "train", manifest) for key in part
    ]
    classes = load_sidecar(shards / "train", manifest)
    assert found.classes.tolist() == classes.tolist()
    assert found.half.tolist() == split_halves(found.keys, classes, 0).tolist()
    assert found.header["model"] == "test_resnet"
    assert found.header["half_samples"] == [24, 24]
    for half in (0, 1):
        scores = scored.with_name("scores.jsonl.runs")
        trained = set((scores / f"keys-{1 - half}.txt").read_text().split())
        own = {key for key, each in zip(found.keys, found.half.tolist(), strict=True) if each == half}
        assert not own & trained
        assert len(own | trained) == 48
        saved = load_checkpoint(scores / f"half-{1 - half}" / "checkpoint.pt")
        assert saved.loader["subset"] == Subset(keys=sorted(trained)).to_json()  # what it was trained on


def test_probabilities_are_those_of_the_right_class_image_by_image(shards, scored):
    found = read_scores(scored)
    models = []
    for half in (0, 1):
        path = scored.with_name("scores.jsonl.runs") / f"half-{half}" / "checkpoint.pt"
        models.append(load_trained_model(path, load_checkpoint(path), 32).eval())
    with Loader(
        str(shards / "train"),
        batch_size=1,
        augment=TINY.evaluation_augment(),
        dtype="uint8",
        shuffle=False,
    ) as loader:
        for place, batch in enumerate(loader):
            with torch.inference_mode():
                logits = models[1 - found.half[place]](batch.images.float() / 255)[0]
            right = logits.double().softmax(dim=0)[batch.classes[0]]
            assert batch.keys == [found.keys[place]]
            assert found.probability[place] == pytest.approx(float(right), abs=1e-5)


def test_the_same_call_gives_the_same_bytes_and_trains_nothing_again(shards, scored, tmp_path):
    assert score(shards, tmp_path / "s.jsonl").path.read_bytes() == scored.read_bytes()
    before = (tmp_path / "s.jsonl.runs" / "half-0" / "metrics.csv").read_bytes()
    (tmp_path / "s.jsonl").unlink()
    assert score(shards, tmp_path / "s.jsonl").mean_probability is not None
    assert (tmp_path / "s.jsonl").read_bytes() == scored.read_bytes()
    assert (tmp_path / "s.jsonl.runs" / "half-0" / "metrics.csv").read_bytes() == before


# The runs take two epochs each: at the end of the first, and of the last, when no step is left to stop at.
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_scores(at, shards, scored, tmp_path):
    epochs = []

    def stop(line):
        if line.startswith(("epoch 0: loss", "epoch 1: loss")):
            epochs.append(line)
            if len(epochs) == at:
                os.kill(os.getpid(), signal.SIGTERM)

    first = score(shards, tmp_path / "s.jsonl", log=stop)
    assert first.stopped_by == signal.SIGTERM
    assert not (tmp_path / "s.jsonl").exists()
    assert (tmp_path / "s.jsonl.runs" / "scores-1.jsonl").exists() == (at > 1)
    second = score(shards, tmp_path / "s.jsonl")
    assert second.stopped_by is None
    assert second.path.read_bytes() == scored.read_bytes()


def test_a_model_that_says_nothing_finite_is_named_and_scores_nothing(shards, tmp_path, monkeypatch):
    def spoiled(*args, **options):
        for batch, logits in model_outputs(*args, **options):
            spoilt = logits.clone()
            spoilt[0, 0] = float("inf")
            yield batch, spoilt

    monkeypatch.setattr("softshard.training.subset_score.model_outputs", spoiled)
    with pytest.raises(
        DataError, match=r"half-\d/checkpoint.pt: expected a finite probability for '.*', found nan"
    ):
        score(shards, tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()
    assert not list(tmp_path.glob("s.jsonl.runs/scores-?.jsonl"))


NO_LAST_LINE = "no last line with their number: it was cut short, or an earlier version wrote it"
HALVES = re.compile(rb'"half": (.), "trained_on": (.)')


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:30], "line 1: expected a JSON object, found something else"),
        (lambda data: data[:-9], r"line \d+: expected a JSON object, found something else"),
        (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], NO_LAST_LINE),
        (lambda data: b"", NO_LAST_LINE),
        (lambda data: data[data.index(b"\n") + 1 :], "a last line that says 24 scores after 23"),
        (lambda data: data + data[: data.index(b"\n") + 1], "more after line 25, which is the last"),
        (lambda data: 2 * data, "more after line 25, which is the last"),
        (lambda data: b"\xff" + data, "line 1: expected a JSON object, found something else"),
        (lambda data: b"7\n" + data, "line 1: expected a JSON object, found something else"),
        (
            lambda data: data.replace(b'"probability"', b'"p"', 1),
            "line 1: expected a probability from 0 to 1, found None",
        ),
        (
            lambda data: HALVES.sub(rb'"half": \1, "trained_on": \1', data, count=1),
            "line 1: key '.*': expected a score from a model that did not train on the image, found .*",
        ),
        (
            lambda data: HALVES.sub(rb'"half": \2, "trained_on": \1', data, count=1),
            "line 1: one of the other half",
        ),
    ],
    ids=[
        "cut",
        "cut at the end",
        "cut at a line's end",
        "empty",
        "without the first",
        "appended",
        "twice",
        "bytes",
        "number",
        "field",
        "same half",
        "other half",
    ],
)
def test_scores_of_a_half_that_were_damaged_meanwhile_are_named(
    damage, reason, half, shards, scored, tmp_path
):
    shutil.copytree(scored.with_name("scores.jsonl.runs"), tmp_path / "s.jsonl.runs")
    path = tmp_path / "s.jsonl.runs" / f"scores-{half}.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    expected = rf"scores-{half}\.jsonl: expected scores of the half's images in their order, found {reason}\. Remove that "
    with pytest.raises(DataError, match=f"{expected}file, and run the same command again$"):
        score(shards, tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_model_that_trained_on_the_images_is_refused(shards, scored, tmp_path):
    runs = scored.with_name("scores.jsonl.runs")
    path = runs / "half-0" / "checkpoint.pt"
    saved = load_checkpoint(path)
    halves = [Subset(keys=runs / f"keys-{half}.txt") for half in (0, 1)]
    refuse_trained_on(saved, path, trained=halves[0], scored=halves[1])  # the right way round
    with pytest.raises(DataError, match="found one that was trained on other images"):
        refuse_trained_on(saved, path, trained=halves[1], scored=halves[0])
    known = sorted(halves[0].key_set)[0]
    leaky = Subset(keys=[*halves[1].key_set, known])
    with pytest.raises(DataError, match=f"was not trained on, found 1 that it was, such as '{known}'"):
        refuse_trained_on(saved, path, trained=halves[0], scored=leaky)
    whole = train(
        TINY, str(shards / "train"), model="test_resnet", out=tmp_path / "whole", log=silent
    ).checkpoint
    with pytest.raises(DataError, match="found one that was trained on all images"):
        refuse_trained_on(load_checkpoint(whole), whole, trained=halves[0], scored=halves[1])


def test_a_checkpoint_that_was_put_in_its_place_is_refused(shards, scored, tmp_path):
    shutil.copytree(scored.with_name("scores.jsonl.runs"), tmp_path / "s.jsonl.runs")
    for name in ("scores-0.jsonl", "scores-1.jsonl"):
        (tmp_path / "s.jsonl.runs" / name).unlink()
    halves = [tmp_path / "s.jsonl.runs" / f"half-{half}" for half in (0, 1)]
    shutil.copy(halves[1] / "checkpoint.pt", halves[0] / "checkpoint.pt")
    with pytest.raises((DataError, UsageError), match="subset"):
        score(shards, tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": semantic_softmax()}, "expected a recipe of single labels without a teacher"),
        ({"seed": -1}, "expected seed as an int from 0"),
        ({"seed": 1}, "expected the runs of this call, found those of one with another seed"),
        ({"model": "test_vit"}, "found those of one with another model"),
        ({"recipe": dataclasses.replace(TINY, epochs=3)}, "found those of one with another recipe"),
    ],
)
def test_a_call_that_cannot_be_is_refused(options, message, shards, scored):
    with pytest.raises(UsageError, match=message):
        score(shards, scored, **options)


def test_a_call_whose_runs_never_began_binds_nobody(shards, scored, tmp_path):
    with pytest.raises(UsageError, match=r"which is 512 on 1 lanes, found 24.*--set global_batch=N"):
        score(shards, tmp_path / "s.jsonl", recipe=dataclasses.replace(TINY, global_batch=512))
    assert score(shards, tmp_path / "s.jsonl").path.read_bytes() == scored.read_bytes()


def test_scores_whose_checkpoints_were_deleted_answer_no_other_call(shards, scored, tmp_path):
    runs = tmp_path / "s.jsonl.runs"
    shutil.copytree(scored.with_name("scores.jsonl.runs"), runs)
    for checkpoint in runs.glob("half-*/checkpoint.pt"):
        checkpoint.unlink()
    with pytest.raises(UsageError, match="found those of one with another recipe"):
        score(shards, tmp_path / "s.jsonl", recipe=dataclasses.replace(TINY, epochs=3))


def test_an_image_that_cannot_be_read_is_skipped_and_written_down(shards, scored, tmp_path):
    shutil.copytree(shards, tmp_path / "set")
    ((_, bad),) = rewrite(tmp_path / "set" / "train", {5: {"jpg": lambda jpeg: b"no image"}})
    found = score(tmp_path / "set", tmp_path / "s.jsonl")
    assert (found.samples, found.skipped) == (47, 1)
    keys = [key for key in read_scores(scored).keys if key != bad]
    assert list(read_scores(found.path).keys) == keys
    assert json.loads(found.path.read_text().splitlines()[0])["skipped"] == 1
    lines = (tmp_path / "s.jsonl.runs" / "bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {bad}


def test_a_class_with_one_image_is_refused(shards, tmp_path):
    (tmp_path / "images" / "one").mkdir(parents=True)
    (tmp_path / "images" / "two").mkdir()
    photos = sorted((shards.parent / "images" / "cat").iterdir())
    shutil.copy(photos[0], tmp_path / "images" / "one")
    for photo in photos[:3]:
        shutil.copy(photo, tmp_path / "images" / "two")
    command = [
        "pack",
        str(tmp_path / "images"),
        str(tmp_path / "set"),
        "--val-per-class",
        "0",
        "--workers",
        "1",
    ]
    assert main([*command, "--resize", "none"]) == 0
    with pytest.raises(UsageError, match="one for each half, found one of 'one'"):
        score_data_set(
            str(tmp_path / "set" / "train"), tmp_path / "s.jsonl", recipe=TINY, model="test_resnet"
        )


def test_the_command_writes_the_same_scores_and_tells_their_mean(shards, scored, tmp_path, capsys):
    settings = [
        "epochs=2",
        "global_batch=8",
        "image_size=32",
        "lr=0.003",
        "augment=none",
        "schedule=constant",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [
        "subset",
        "score",
        str(shards / "train"),
        "--model",
        "test_resnet",
        "--device",
        "cpu",
        *options,
    ]
    assert main([*command, "-o", str(tmp_path / "s.jsonl"), "--json"]) == 0
    result = read_json("subset score", capsys.readouterr().out)
    assert result["samples"] == 48
    assert (tmp_path / "s.jsonl").read_bytes() == scored.read_bytes()
    mean = read_scores(scored).probability.mean()
    assert result["mean_probability"] == pytest.approx(mean)
    assert mean > 1 / 6  # two epochs teach it something


@pytest.mark.parametrize("action", ["score", "study"])
def test_torchrun_is_refused_since_every_process_would_train_the_same(action, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = {
        "score": ["DATASET", "--model", "resnet18"],
        "study": ["FULL", "SUBSET", "--val", "V", "--models", "a,b"],
    }
    assert main(["subset", action, *arguments[action], "-o", "out"]) == 2
    assert (
        f"softshard subset {action}: expected one process, found 2 of torchrun's" in capsys.readouterr().err
    )


def test_scores_may_be_of_groups_and_leave_classes_out(shards, tmp_path):
    groups = (ClassGroup("fur", ("cat", "dog")), ClassGroup("feathers", ("gull",)))
    how = {"class_method": {"method": "file"}, "class_source": {"name": "tiny"}}
    SubsetFile(groups, **how).save(tmp_path / "groups.json")
    found = read_scores(score(shards, tmp_path / "s.jsonl", labels=tmp_path / "groups.json").path)
    assert Counter(key.partition("_")[0] for key in found.keys) == {"cat": 12, "dog": 12, "gull": 12}
    assert Counter(found.classes.tolist()) == {0: 24, 1: 12}
    assert Counter(zip(found.classes.tolist(), found.half.tolist(), strict=True)) == {
        (0, 0): 12, (0, 1): 12, (1, 0): 6, (1, 1): 6,
    }  # fmt: skip
    saved = load_checkpoint(tmp_path / "s.jsonl.runs" / "half-0" / "checkpoint.pt")
    assert tuple(saved.class_names) == ("fur", "feathers")


@pytest.mark.shared
def test_photographs_of_300_classes_are_scored_in_groups(shared_data, tmp_path, capsys):
    """One photograph a class: only groups can be cut in halves."""
    pack = [
        "pack",
        str(shared_data / "photos"),
        str(tmp_path / "set"),
        "--size",
        "64",
        "--val-per-class",
        "0",
    ]
    assert main(pack) == 0
    names = Manifest.load(tmp_path / "set" / "train").class_names
    assert len(names) == 300
    how = {"class_method": {"method": "file"}, "class_source": {"name": "photos"}}
    groups = tuple(ClassGroup(f"group{i}", names[i::10]) for i in range(10))
    SubsetFile(groups, **how).save(tmp_path / "groups.json")
    command = [
        "subset",
        "score",
        str(tmp_path / "set" / "train"),
        "--model",
        "test_resnet",
        "--device",
        "cpu",
    ]
    command += ["--set", "image_size=64", "--set", "global_batch=32", "--epochs", "1"]
    assert main([*command, "-o", str(tmp_path / "s.jsonl")]) == 2
    assert (
        "expected two images or more of each class, one for each half, found one of 'n0"
        in capsys.readouterr().err
    )
    assert main([*command, "-o", str(tmp_path / "s.jsonl"), "--labels", str(tmp_path / "groups.json")]) == 0
    found = read_scores(
        tmp_path / "s.jsonl", fingerprint=Manifest.load(tmp_path / "set" / "train").fingerprint
    )
    counts = Counter(zip(found.classes.tolist(), found.half.tolist(), strict=True))
    assert counts == {(group, half): 15 for group in range(10) for half in (0, 1)}
    assert 0 < found.probability.min() < found.probability.max() < 1
