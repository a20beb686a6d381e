"""The study of vocabularies: real runs on three of them, a table, and a study that was killed."""

import dataclasses
import json

import pytest
from json_page import read_json
from web_set import WORDS, make_web_set

from softshard.shards.cli import main
from softshard.shards.errors import UsageError
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.training import fine_tune, run_series, single_label, weakly_tagged
from softshard.training.tags_study import format_tags_study, study_tags


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same images with all seven keywords, and with three."""
    folder = tmp_path_factory.mktemp("vocabularies")
    few = Vocabulary(WORDS[:3], (3, 2, 1))
    return {
        "all": make_web_set(folder / "all"),
        "few": make_web_set(folder / "few", vocabulary=few),
    }


def recipes(epochs=1):
    tiny = {"epochs": epochs, "global_batch": 8, "image_size": 32, "augment": "none"}
    pretraining = dataclasses.replace(weakly_tagged(), **tiny, lr=0.02)
    return {"pretraining": pretraining, "tuning": dataclasses.replace(fine_tune(), **tiny, accumulate=1)}


def run(sets, out, **options):
    vocabularies = {name: str(folder / "train") for name, folder in sets.items()}
    options = {"model": "test_resnet", "seeds": 2, "log": lambda line: None, **recipes(), **options}
    plain = sets["all"]
    return study_tags(vocabularies, str(plain / "train"), str(plain / "val"), out=out, **options)


def test_every_vocabulary_is_compared_with_no_pretraining(sets, tmp_path):
    result = run(sets, tmp_path)
    assert result["keywords"] == {"all": 7, "few": 3}
    assert [(row["contender"], row["seed"], row["steps"]) for row in result["rows"]] == [
        (name, seed, 6 if name == "none" else 12) for seed in (0, 1) for name in ("none", "all", "few")
    ]
    summary = {entry["contender"]: entry for entry in result["summary"]}
    rows = {(row["contender"], row["seed"]): row["balanced_top1"] for row in result["rows"]}
    gaps = [rows["all", seed] - rows["none", seed] for seed in (0, 1)]
    assert summary["all"]["balanced_top1"]["difference"] == pytest.approx(sum(gaps) / 2)
    assert json.loads((tmp_path / "study.json").read_text()) == json.loads(json.dumps(result))
    table = format_tags_study(result).splitlines()
    assert table[0].startswith("keywords")
    assert [line.split()[0] for line in table[1:]] == ["none", "all", "few"]
    assert "all (7)" in table[2]


def test_a_killed_study_continues_and_trains_nothing_twice(sets, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    calls = []
    plain = run_series.train

    def counted(recipe, dataset, **options):
        calls.append(recipe.name)
        if len(calls) == 3:
            raise Killed
        return plain(recipe, dataset, **options)

    monkeypatch.setattr(run_series, "train", counted)
    with pytest.raises(Killed):
        run(sets, tmp_path / "a", seeds=1)
    again = run(sets, tmp_path / "a", seeds=1)
    whole = run(sets, tmp_path / "b", seeds=1)
    for result in (again, whole):
        for row in result["rows"]:
            del row["step_s"]
    assert again["rows"] == whole["rows"]


def test_a_signal_after_the_last_step_of_a_run_ends_the_study(sets, tmp_path, monkeypatch):
    calls = []
    plain = run_series.train

    def late(recipe, dataset, **options):
        calls.append(recipe.name)
        trained = plain(recipe, dataset, **options)
        return dataclasses.replace(trained, late_signal=15) if len(calls) == 2 else trained

    monkeypatch.setattr(run_series, "train", late)
    result = run(sets, tmp_path, seeds=1)
    assert result["stopped_by"] == 15
    assert calls == ["fine-tune", "weakly-tagged"]


def test_the_command_prints_a_table(sets, tmp_path, capsys):
    tiny = ["epochs=1", "global_batch=8", "image_size=32"]
    settings = [text for setting in tiny for text in ("--set", setting, "--set-tuning", setting)]
    command = ["tags", "study", *(f"{name}={folder / 'train'}" for name, folder in sets.items())]
    command += ["--fine-tune", str(sets["all"] / "train"), "--val", str(sets["all"] / "val"), "--seeds", "1"]
    command += ["--model", "test_resnet", "--out", str(tmp_path), "--device", "cpu", *settings]
    assert main([*command, "--set-tuning", "accumulate=1"]) == 0
    assert "few (3)" in capsys.readouterr().out
    assert main([*command, "--set-tuning", "accumulate=1", "--json"]) == 0  # nothing is trained again
    assert read_json("tags study", capsys.readouterr().out)["seeds"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretraining": single_label()}, "expected pretraining on keywords, found the loss 'single-label'"),
        ({"tuning": single_label()}, "expected fine-tuning on classes with a new head"),
        ({"seeds": 0}, "expected at least 1 seed, found 0"),
    ],
)
def test_studies_that_compare_nothing_are_refused(changes, message, sets, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(sets, tmp_path, **changes)


@pytest.mark.parametrize("name", ["none", "a/b", "..", ""])
def test_names_that_no_folder_can_have_are_refused(name, sets, tmp_path):
    with pytest.raises(UsageError, match="expected names of letters"):
        run({"all": sets["all"], name: sets["few"]}, tmp_path)


@pytest.mark.parametrize("text", ["nouns", "nouns=", "all=x"])
def test_vocabularies_are_given_with_their_names(text, capsys):
    command = [
        "tags",
        "study",
        "all=here",
        text,
        "--fine-tune",
        "x",
        "--val",
        "x",
        "--model",
        "x",
        "--out",
        "x",
    ]
    assert main([*command, "--device", "cpu"]) == 2
    assert "expected NAME=DATASET with a name of its own" in capsys.readouterr().err
