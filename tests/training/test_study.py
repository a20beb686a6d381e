"""The study of target modes: contenders, tables, and whole small studies that are killed and go on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from json_page import read_json

from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training import relabel, single_label
from softshard.training.distillation import LiveTeacherLoss
from softshard.training.losses import SoftTargetLoss
from softshard.training.recipes import live_distillation
from softshard.training.study import (
    CONTENDERS,
    contender,
    format_study,
    seconds_per_step,
    study,
    summarise,
)
from softshard.training.train import train

TINY = dataclasses.replace(relabel(), epochs=2, global_batch=8, image_size=32, lr=0.05)


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    recipe = dataclasses.replace(single_label(), epochs=6, global_batch=8, image_size=32, lr=1e-2)
    out = tmp_path_factory.mktemp("teacher")
    return train(
        recipe, str(shards / "train"), model="test_resnet", out=out, log=lambda line: None
    ).checkpoint


def run(shards, out, **options):
    options = {"recipe": TINY, "model": "test_resnet", "seeds": 2, "log": lambda line: None, **options}
    return study(str(shards / "train"), str(shards / "val"), out=out, **options)


def test_contenders_differ_from_the_recipe_in_their_targets_alone():
    base = dataclasses.replace(relabel(), epochs=7, smoothing=0.3)
    for name in CONTENDERS:
        changed = {
            field.name
            for field in dataclasses.fields(base)
            if getattr(contender(base, name), field.name) != getattr(base, field.name)
        }
        assert changed <= {"name", "loss", "targets", "smoothing"}
    assert contender(base, "local-multi").targets == "relabel"
    assert contender(base, "original").smoothing == 0.0
    assert contender(base, "label-smoothing").smoothing == 0.1


def test_a_study_with_all_contenders_writes_its_table(shards, teacher, tmp_path, capsys):
    command = ["maps", "study", str(shards / "train"), "--val", str(shards / "val"), "--out", str(tmp_path)]
    settings = ["epochs=2", "global_batch=8", "image_size=32", "lr=0.05"]
    options = [part for setting in settings for part in ("--set", setting)]
    command += [
        "--model",
        "test_resnet",
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--teacher",
        str(teacher),
        *options,
    ]
    assert main(command) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["targets", *CONTENDERS]
    result = json.loads((tmp_path / "study.json").read_text())
    assert [row["contender"] for row in result["rows"]] == list(CONTENDERS)
    assert all(row["steps"] == 12 and row["step_s"] > 0 for row in result["rows"])
    asked = [
        json.loads((tmp_path / f"{name}-0" / "summary.json").read_text())["teacher"] for name in CONTENDERS
    ]
    assert [name for name, found in zip(CONTENDERS, asked, strict=True) if found] == ["live-distillation"]
    assert main([*command, "--json"]) == 0
    again = read_json("maps study", capsys.readouterr().out)
    assert again == result  # nothing was trained again


def test_a_study_goes_on_where_it_was_stopped(shards, tmp_path):
    whole = run(shards, tmp_path / "whole", contenders=["local-multi", "original"])
    run(shards, tmp_path / "parts", contenders=["local-multi", "original"], seeds=1)
    parts = run(shards, tmp_path / "parts", contenders=["local-multi", "original"])
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        assert {**one, "step_s": 0} == {**other, "step_s": 0}


def test_more_numbers_can_be_measured(shards, tmp_path):
    result = run(
        shards, tmp_path, contenders=["original"], seeds=1, measure=lambda checkpoint: {"steps_saved": 1.0}
    )
    assert result["rows"][0]["steps_saved"] == 1.0
    assert result["summary"][0]["steps_saved"] == {"mean": 1.0, "std": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contenders": ["local"]}, "expected targets of local-multi, .*, found local$"),
        ({"contenders": ["original", "original"]}, "expected targets, each once"),
        ({"contenders": ["live-distillation"]}, "expected a teacher for live-distillation, found none"),
        ({"seeds": 0}, "expected at least 1 seed, found 0"),
    ],
)
def test_a_study_that_cannot_be_is_refused(options, message, shards, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(shards, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_differences_are_taken_with_the_same_seed():
    rows = [
        {"contender": name, "seed": seed, "steps": 1, "step_s": 0.5, "top1": top1}
        for name, values in {"original": (0.1, 0.5), "local-multi": (0.2, 0.6)}.items()
        for seed, top1 in enumerate(values)
    ]
    reference, other = summarise(rows)
    assert reference["top1"] == {"mean": 0.3, "std": pytest.approx(0.2828427)}
    assert other["top1"]["difference"] == pytest.approx(0.1)
    assert other["top1"]["interval"] == pytest.approx([0.1, 0.1])  # the seeds differ, the gaps do not
    assert summarise(rows[::2])[1]["top1"]["interval"] is None  # of one run each
    table = format_study({"recipe": {"global_batch": 50}, "summary": [reference, other]})
    shown = " ".join(table.splitlines()[2].split())
    assert shown == "local-multi 2 40.0 ± 28.3 +10.0 (+10.0 to +10.0) 500.0 10.00"


def test_the_time_of_a_step_is_the_median_without_the_first_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,images_per_s\n1,1\n2,100\n3,200\n4,400\n")
    assert seconds_per_step(path, 50) == 0.25
    path.write_text("step,images_per_s\n1,1\n2,100\n3,0.0\n4,400\n")  # a slow step rounds to nothing
    assert seconds_per_step(path, 50) == 0.5
    path.write_text("step,images_per_s\n1,1\n2,0.0\n")
    with pytest.raises(
        DataError, match=r"metrics\.csv: expected a median of images_per_s above 0, found 0\.0"
    ):
        seconds_per_step(path, 50)
    path.write_text("step,images_per_s\n1,100\n")
    assert seconds_per_step(path, 50) == 0.5
    path.write_text("step,images_per_s\n")
    with pytest.raises(DataError, match=r"metrics\.csv: expected the lines of a training run, found none"):
        seconds_per_step(path, 50)


def test_a_live_teacher_gives_its_softmax_as_the_target():
    rng = np.random.default_rng(0)
    logits, teacher = (torch.tensor(rng.normal(size=(4, 6)), dtype=torch.float32) for _ in range(2))
    valid = torch.tensor([True, True, False, True])
    loss = LiveTeacherLoss()(logits, teacher, torch.full((4,), -1), valid, 3)
    assert torch.equal(loss, SoftTargetLoss()(logits, teacher.softmax(dim=1), valid, 3))
    own = LiveTeacherLoss()(teacher, teacher, torch.zeros(4))
    assert own < LiveTeacherLoss()(
        logits, teacher, torch.zeros(4)
    )  # nothing is nearer than the teacher itself


def test_live_distillation_is_a_recipe_with_a_teacher(shards, teacher, tmp_path):
    recipe = dataclasses.replace(live_distillation(), epochs=4, global_batch=8, image_size=32, lr=0.05)
    assert recipe.wants_teacher
    with pytest.raises(UsageError, match="expected a teacher, since it distils, found none"):
        train(recipe, str(shards / "train"), model="test_resnet", out=tmp_path)
    options = dict(model="test_resnet", teacher=teacher, log=lambda line: None)
    result = train(recipe, str(shards / "train"), val=str(shards / "val"), out=tmp_path, **options)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[-1]["top1"] > 0.7  # of four colours
