"""Real runs on tags and label weights: they learn, stop and continue, and their checkpoints are used."""

import csv
import json
import re
from functools import partial

import msgpack
import numpy as np
import pytest
import torch
from tiny_runs import Killed, assert_same_weights, kill_at, metric_lines, run, tiny, weights
from web_set import VOCABULARY, make_web_set

from softshard.loaders import Loader
from softshard.shards import Manifest, read_shard
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.training import fine_tune, joint, label_weighted, larger_images, single_label, weakly_tagged
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import evaluate
from softshard.training.label_space import LabelSpace
from softshard.training.models import load_trained_model
from softshard.training.predict import Predictor

tiny = partial(tiny, epochs=3, augment="none", lr=0.02)


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    return make_web_set(tmp_path_factory.mktemp("web") / "set")


def evaluated(entry):
    of_training = ("epoch", "loss", "num_bad", "without_tags", "without_weights")
    return {name: value for name, value in entry.items() if name not in of_training}


@pytest.mark.parametrize(
    ("recipe", "outputs"),
    [
        (weakly_tagged, "7 keywords"),
        (label_weighted, "4 classes"),
        (joint, "4 classes and 7 keywords"),
    ],
)
def test_a_model_learns_and_is_evaluated_on_what_it_has_outputs_for(recipe, outputs, web, tmp_path):
    lines = []
    recipe = tiny(recipe(), epochs=6)
    result = run(recipe, web, tmp_path, val=str(web / "val"), log=lines.append)
    assert f" steps; {outputs}; float32" in lines[0]
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    last = result.history[-1]
    if recipe.loss != "label-weighted":
        assert last["tag_top1"] > last["tag_chance"]
        assert last["tagged"] + last["untagged"] == 12
        assert last["tags_per_image"] == 3
    if recipe.loss != "weakly-tagged":
        assert last["balanced_top1"] == last["top1"]  # 3 images of each class
        assert last["classes_seen"] == 4
    assert ("top1" in last) == (recipe.loss != "weakly-tagged")
    numbers = evaluate(tmp_path / "checkpoint.pt", str(web / "val"), batch_size=5)
    assert {name: numbers[name] for name in evaluated(last)} == evaluated(last)


@pytest.mark.parametrize("keep_targets", [None, 5])
def test_samples_without_tags_are_counted_in_every_epoch(keep_targets, web, tmp_path):
    metas = [
        msgpack.unpackb(sample.parts["msgpack"])
        for record in Manifest.load(web / "train").shards
        for sample in read_shard(web / "train" / record.name)
    ]
    num = sum(not meta["tags"] for meta in metas)
    assert 0 < num < 5
    lines = []
    recipe = tiny(joint(), epochs=2, keep_targets=keep_targets)
    result = run(recipe, web, tmp_path, log=lines.append)
    assert [(entry["without_tags"], entry["without_weights"]) for entry in result.history] == [(num, 0)] * 2
    assert sum(f"{num} samples without tags" in line for line in lines) == 2
    assert not any("without weights" in line for line in lines)
    with (tmp_path / "epochs.csv").open(newline="") as file:
        assert [row["without_tags"] for row in csv.DictReader(file)] == [str(num)] * 2


def test_the_loss_of_a_step_is_the_sum_over_keywords(web, tmp_path):
    result = run(tiny(weakly_tagged(), epochs=1), web, tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first = float(next(csv.DictReader(file))["loss"])
    # About 2.8 keywords an image, each of seven at the beginning about equally probable.
    assert 2.0 * np.log(7) < first < 3.5 * np.log(7)
    assert result.steps == 6


@pytest.mark.parametrize("recipe", [weakly_tagged, joint])
@pytest.mark.parametrize("keep_targets", [None, 5])
def test_a_killed_run_continues_with_the_numbers_it_would_have_had(
    recipe, keep_targets, web, tmp_path, monkeypatch
):
    recipe = tiny(recipe(), epochs=2, keep_targets=keep_targets, class_balance=0.5)
    whole = run(recipe, web, tmp_path / "whole", val=str(web / "val"), checkpoint_steps=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 10)
        with pytest.raises(Killed):
            run(recipe, web, tmp_path / "killed", val=str(web / "val"), checkpoint_steps=2)
    again = run(recipe, web, tmp_path / "killed", val=str(web / "val"), checkpoint_steps=2, resume=True)
    assert again.history == whole.history
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("recipe", [weakly_tagged, label_weighted, joint])
def test_sparse_and_dense_targets_train_the_same_model(recipe, web, tmp_path):
    for keep in (None, 20):
        run(tiny(recipe(), epochs=1, keep_targets=keep), web, tmp_path / str(keep))
    dense, sparse = weights(tmp_path / "None"), weights(tmp_path / "20")
    for name, tensor in dense.items():
        torch.testing.assert_close(sparse[name], tensor, rtol=0, atol=1e-5)


def test_micro_batches_and_bfloat16_take_the_same_targets(web, tmp_path):
    recipe = tiny(joint(), epochs=1, precision="bfloat16", accumulate=4, clip_norm=5.0)
    assert run(recipe, web, tmp_path).steps == 6


def test_fine_tuning_begins_with_what_keywords_taught(web, tmp_path):
    run(tiny(weakly_tagged(), epochs=1), web, tmp_path / "tags")
    lines = []
    start = tmp_path / "tags" / "checkpoint.pt"
    recipe = tiny(fine_tune(), accumulate=2, step_epochs=1)
    run(recipe, web, tmp_path / "tuned", val=str(web / "val"), init_from=start, log=lines.append)
    assert any("new: fc.weight [4, " in line and "not used: fc.weight [7, " in line for line in lines)
    rates = [float(line["lr"]) for line in metric_lines(tmp_path / "tuned")]
    assert rates == pytest.approx([0.02] * 6 + [0.002] * 6 + [0.0002] * 6)
    # The same head for larger images, with the rate that was left.
    recipe = tiny(larger_images(), image_size=48, accumulate=2, epochs=1)
    start = tmp_path / "tuned" / "checkpoint.pt"
    run(recipe, web, tmp_path / "larger", init_from=start, log=lines.append)
    assert load_checkpoint(tmp_path / "larger" / "checkpoint.pt").recipe.lr == pytest.approx(0.0002)
    assert not any("new:" in line for line in lines[-4:])


def test_a_head_of_keywords_is_no_head_of_classes(web, tmp_path):
    run(tiny(weakly_tagged(), epochs=1), web, tmp_path / "tags")
    checkpoint = tmp_path / "tags" / "checkpoint.pt"
    with pytest.raises(DataError, match="outputs: expected 7 keywords, found 4 classes"):
        run(tiny(single_label()), web, tmp_path / "out", init_from=checkpoint)


def test_larger_images_need_a_checkpoint_to_go_on_from(web, tmp_path):
    with pytest.raises(UsageError, match=r"expected the checkpoint of a run to begin with.*found nothing"):
        run(tiny(larger_images(), accumulate=1), web, tmp_path, pretrained=True)
    with pytest.raises(UsageError, match=r"found nothing at .*run\.pt"):
        run(tiny(larger_images(), accumulate=1), web, tmp_path, init_from=tmp_path / "run.pt")


def test_a_joint_model_is_used_as_one_of_classes(web, tmp_path):
    run(tiny(joint(), epochs=1), web, tmp_path / "joint")
    path = tmp_path / "joint" / "checkpoint.pt"
    saved = load_checkpoint(path)
    assert saved.label_space.shown == "4 classes and 7 keywords"
    images = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
    both = load_trained_model(path, saved, 32, with_tags=True).eval()(images)
    classes = load_trained_model(path, saved, 32).eval()(images)
    assert torch.equal(both[:, :4], classes)
    assert both.shape == (2, 11)
    predictions = list(Predictor(path, top=4).data_set(str(web / "val")))
    assert {guess.name for guess in predictions[0].best[0]} == {"cat", "crow", "dog", "gull"}
    plain = make_web_set(tmp_path / "plain", vocabulary=None)
    numbers = evaluate(path, str(plain / "val"))
    assert "top1" in numbers
    assert "tag_top1" not in numbers


def test_training_goes_on_with_the_classes_part_of_a_joint_head(web, tmp_path):
    run(tiny(joint(), epochs=1), web, tmp_path / "joint")
    for name in ("checkpoint.pt", "model.safetensors"):
        lines = []
        recipe = tiny(single_label(), epochs=1, lr=1e-12, optimizer="sgd", weight_decay=0.0)
        out = tmp_path / name.partition(".")[0]
        run(recipe, web, out, init_from=tmp_path / "joint" / name, log=lines.append)
        assert "92 of 92 weights loaded" in lines[1]
        before, after = (
            load_checkpoint(folder / "checkpoint.pt").model for folder in (tmp_path / "joint", out)
        )
        torch.testing.assert_close(after["fc.weight"], before["fc.weight"][:4])


def test_a_model_of_keywords_predicts_keywords(web, tmp_path, capsys):
    run(tiny(weakly_tagged(), epochs=1), web, tmp_path)
    plain = make_web_set(tmp_path / "plain", vocabulary=None)
    assert main(["predict", str(tmp_path / "checkpoint.pt"), str(plain / "val"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert {guess["name"] for guess in first["best"][0]} <= set(VOCABULARY.tags)
    assert [guess["probability"] for guess in first["best"][0]] == sorted(
        (guess["probability"] for guess in first["best"][0]), reverse=True
    )


def test_another_vocabulary_is_refused(web, tmp_path):
    run(tiny(weakly_tagged(), epochs=1), web, tmp_path / "run")
    words = ("animal", "black", "feather", "fur", "kitten", "puppy", "water")
    other = make_web_set(tmp_path / "other", vocabulary=Vocabulary(words, (1,) * 7))
    with pytest.raises(
        DataError, match=r"vocabulary: expected .* the first that differs is keyword 6: 'sea'"
    ):
        evaluate(tmp_path / "run" / "checkpoint.pt", str(other / "val"))
    with pytest.raises(DataError, match="vocabulary: expected"):
        run(tiny(joint()), web, tmp_path / "b", val=str(other / "val"))
    plain = make_web_set(tmp_path / "plain", vocabulary=None)
    with pytest.raises(UsageError, match="expected samples with 'tags'"):
        evaluate(tmp_path / "run" / "checkpoint.pt", str(plain / "val"))


def test_outputs_of_keywords_alone_have_no_classes(web):
    with Loader(web / "train", batch_size=4) as loader:
        assert LabelSpace.of_loader(loader, "weakly-tagged").num_outputs == 7
        assert LabelSpace.of_loader(loader, "joint").num_outputs == 11
        assert LabelSpace.of_loader(loader, "single-label").num_outputs == 4
        assert LabelSpace.of_loader(loader, "joint").shown == "4 classes and 7 keywords"


def test_the_command_trains_evaluates_and_fine_tunes(web, tmp_path, capsys):
    small = [
        "--model",
        "test_resnet",
        "--epochs",
        "1",
        "--global-batch",
        "8",
        "--image-size",
        "32",
        "--device",
        "cpu",
    ]
    train_set, val = str(web / "train"), str(web / "val")
    out = str(tmp_path / "tags")
    command = [
        "train",
        "weakly-tagged",
        train_set,
        "--val",
        val,
        "--out",
        out,
        *small,
        "--class-balance",
        "1",
    ]
    assert main(command) == 0
    assert main(["evaluate", f"{out}/checkpoint.pt", val, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["tag_recall5"] <= 1
    assert main(["evaluate", f"{out}/checkpoint.pt", val]) == 0
    assert re.search(r"^tags_per_image +3\.00$", capsys.readouterr().out, re.MULTILINE)
    tuned = str(tmp_path / "tuned")
    command = ["train", "fine-tune", train_set, "--val", val, "--out", tuned, *small]
    assert main([*command, "--init-from", f"{out}/checkpoint.pt", "--accumulate", "2"]) == 0
    assert main(["evaluate", f"{tuned}/checkpoint.pt", val]) == 0
    assert "balanced_top1" in capsys.readouterr().out


def test_a_checkpoint_from_before_there_were_keywords_is_read(web, tmp_path):
    run(tiny(single_label(), epochs=1), web, tmp_path)
    path = tmp_path / "checkpoint.pt"
    fields = torch.load(path, weights_only=True)
    for name in ("step_epochs", "step_factor", "lr_of_start", "class_balance", "keep_targets", "tag_weight"):
        del fields["recipe"][name]
    del fields["tag_names"]
    torch.save(fields, path)
    assert load_checkpoint(path).label_space.shown == "4 classes"
    assert evaluate(path, str(web / "val"))["samples"] == 12
    assert run(tiny(single_label(), epochs=1), web, tmp_path, resume=True).steps == 6


def test_label_sets_need_classes(web, tmp_path):
    run(tiny(weakly_tagged(), epochs=1), web, tmp_path)
    sets = tmp_path / "sets.json"
    with Loader(web / "val", batch_size=4) as loader:
        keys = next(iter(loader)).keys
    sets.write_text(json.dumps({f"{keys[0]}": ["cat"]}))
    with pytest.raises(UsageError, match="label sets: expected a model with outputs for classes"):
        evaluate(tmp_path / "checkpoint.pt", str(web / "val"), label_sets=sets)
