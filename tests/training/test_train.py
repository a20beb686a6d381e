"""Real runs of a tiny timm model on a tiny data set: what they learn, write, count and refuse."""

import json
import re
import shlex
import shutil
from functools import partial

import cv2
import numpy as np
import pytest
import safetensors.torch
import spoiling
import timm
import torch
from tiny_runs import metric_lines, run, tiny, weights

from softshard.shards import pack
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training import relabel, semantic_softmax, single_label
from softshard.training import step as step_module
from softshard.training import train as train_module
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import evaluate
from softshard.training.models import export_weights
from softshard.training.processes import state_of_one

tiny = partial(tiny, epochs=3)


@pytest.mark.parametrize("recipe", [semantic_softmax, single_label, relabel])
def test_a_run_writes_its_files_and_the_loss_falls(recipe, shards, tmp_path):
    lines = []
    recipe = tiny(recipe(), lr=3e-3 if recipe is not relabel else 0.05)
    result = run(recipe, shards, tmp_path, val=str(shards / "val"), log=lines.append)
    assert "global batch 8 (8 on each of 1 processes), 6 steps an epoch" in lines[0]
    assert "48 samples (0 samples left out of each epoch by drop)" in lines[0]
    assert result.stopped_by is None
    assert result.steps == 18
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert [int(line["step"]) for line in metric_lines(tmp_path)] == list(range(1, 19))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["history"] == result.history
    assert summary["recipe"]["epochs"] == 3


def test_semantic_softmax_learns_the_colours(shards, tmp_path):
    recipe = tiny(semantic_softmax(), epochs=6, lr=1e-2)
    result = run(recipe, shards, tmp_path, val=str(shards / "val"))
    assert result.history[-1]["semantic_accuracy"] > 0.9
    assert result.history[-1]["samples"] == 12
    assert evaluate(tmp_path / "checkpoint.pt", str(shards / "val"), batch_size=5) == {
        "model": "test_resnet",
        "recipe": "semantic-softmax",
        "step": 36,
        "dataset": str(shards / "val"),
        **{
            name: value
            for name, value in result.history[-1].items()
            if name not in ("epoch", "loss", "num_bad")
        },
    }


def test_exported_weights_load_in_plain_timm(shards, tmp_path):
    result = run(tiny(semantic_softmax(), epochs=1), shards, tmp_path)
    for path in (result.weights, result.checkpoint):
        model = timm.create_model("test_resnet", num_classes=6, checkpoint_path=path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, weights(tmp_path)[name])
    with safetensors.safe_open(result.weights, "pt") as file:
        assert file.metadata()["model"] == "test_resnet"


def test_exported_weights_are_the_same_bytes_whatever_the_order_of_the_metadata(tmp_path):
    model, metadata = timm.create_model("test_resnet"), {f"key {i}": "ä" * i for i in range(9)}
    export_weights(tmp_path / "a.safetensors", model.state_dict(), metadata)
    export_weights(tmp_path / "b.safetensors", model.state_dict(), dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
    for name, tensor in safetensors.torch.load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_samples_that_drop_leaves_out_are_counted_aloud(shards, tmp_path):
    lines = []
    run(tiny(single_label(), epochs=1, global_batch=20), shards, tmp_path, log=lines.append)
    assert "48 samples (8 samples left out of each epoch by drop)" in lines[0]


def test_images_and_weights_are_channels_last(shards, tmp_path, monkeypatch):
    found = []
    for module, name in ((step_module, "model_input"), (train_module, "evaluate_model")):
        plain = getattr(module, name)

        def look(given, *args, plain=plain, **options):
            tensors = given.parameters() if isinstance(given, torch.nn.Module) else [given]
            found.extend(t for t in tensors if t.ndim == 4 and t.shape[1] > 1 and t.shape[2] > 1)
            return plain(given, *args, **options)

        monkeypatch.setattr(module, name, look)
    run(tiny(relabel(), epochs=1), shards, tmp_path, val=str(shards / "val"))
    assert {isinstance(tensor, torch.nn.Parameter) for tensor in found} == {False, True}
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in found)


def test_an_error_of_a_shard_says_in_which_data_set_it_lies(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path / "out")
    shutil.copytree(shards / "val", tmp_path / "val")
    (shard,) = (tmp_path / "val").glob("*.tar")
    content = bytearray(shard.read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start : start + 8] = b"no JPEG!"
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path / 'val'}.*{shard.name}: sample '.*', component 'jpg'"):
        evaluate(tmp_path / "out" / "checkpoint.pt", str(tmp_path / "val"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_samples(
    shards, tmp_path, monkeypatch, capsys
):
    plain, taken = step_module.model_input, []

    def model_input(images, normalise):
        taken.append(1)
        return plain(images, normalise) * (float("nan") if len(taken) == 9 else 1.0)

    monkeypatch.setattr(step_module, "model_input", model_input)
    with pytest.raises(
        DataError, match=r"step 8 \(epoch 1\): expected a finite loss, found nan; .*(cat|dog|crow|gull)_"
    ) as caught:
        run(tiny(single_label()), shards, tmp_path, checkpoint_steps=9)
    # The command at the end of the message shows the batch whose samples its beginning names.
    command = str(caught.value).partition("Look at the whole batch with: ")[2]
    assert "--epoch 1 --step 2 " in command
    capsys.readouterr()
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    shown = [slot["key"] for slot in json.loads(capsys.readouterr().out)["slots"]]
    named = re.findall("[a-z]+_[a-z0-9_]+", str(caught.value).partition("samples are ")[2].partition(". ")[0])
    assert named
    assert named == shown[: len(named)]
    assert load_checkpoint(tmp_path / "checkpoint.pt").step == 6


def test_a_last_step_that_spoils_the_weights_leaves_no_checkpoint_of_them(shards, tmp_path):
    # Its loss is finite: what the optimizer adds to the weights is not, and no later loss tells.
    changes = {"epochs": 1, "global_batch": 48, "schedule": "constant", "warmup": 0.0, "lr": 1e38}
    recipe = tiny(single_label(), **changes, optimizer="sgd", weight_decay=1e4)
    with pytest.raises(DataError, match=r"step 0: expected finite weights after it, found others in "):
        run(recipe, shards, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_another_data_set_is_refused_with_both_fingerprints(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path / "out")
    for name in ("cat", "crow"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            cv2.imwrite(str(tmp_path / "images" / name / f"{i}.jpg"), np.zeros((32, 32, 3), np.uint8))
    manifest = pack(tmp_path / "images", tmp_path / "shards", workers=1).manifests["train"]
    other = str(tmp_path / "shards" / "train")
    saved = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(DataError, match=f"expected {saved.classes_sha256}, found {manifest.classes_sha256}"):
        evaluate(tmp_path / "out" / "checkpoint.pt", other)
    with pytest.raises(DataError, match="does not belong to"):
        run(tiny(single_label()), shards, tmp_path / "new", val=other)
    with pytest.raises(
        UsageError, match="expected a label tree for the recipe 'semantic-softmax', found none"
    ):
        run(tiny(semantic_softmax()), tmp_path / "shards", tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 9, "world_size": 2}, "expected a multiple of the 2 processes, found 9"),
        ({"rank": 2, "world_size": 2}, r"rank: expected a number in \[0, 2\), found 2"),
        ({"global_batch": 49}, "expected a global batch of samples, which is 49 .*found 48"),
        ({"model": "resnet51x"}, "expected a name that timm .* knows, found 'resnet51x'"),
        ({"log_steps": 0}, "log_steps: expected at least 1"),
        ({"init_from": "nowhere.pt"}, "expected a file of weights, found nothing at nowhere.pt"),
    ],
)
def test_wrong_calls_say_what_was_expected(options, message, shards, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(tiny(single_label()), shards, tmp_path, **options)


def test_evaluation_sees_every_sample_once_for_every_batch_size(shards, tmp_path):
    run(tiny(semantic_softmax(), epochs=1), shards, tmp_path)
    found = [evaluate(tmp_path / "checkpoint.pt", str(shards / "val"), batch_size=n) for n in (12, 5, 100)]
    assert found[0] == found[1] == found[2]
    assert found[0]["samples"] == 12
    assert found[0]["majority"] == 1 / 4


@pytest.fixture
def damaged(shards, tmp_path):
    """The data set, of whose training images the fourth is cut short."""
    shutil.copytree(shards, tmp_path / "damaged")
    spoiling.rewrite(tmp_path / "damaged" / "train", {3: {"jpg": spoiling.cut_in_the_middle}})
    return tmp_path / "damaged"


def test_samples_that_were_left_out_are_counted_where_people_look(damaged, tmp_path):
    lines = []
    result = run(tiny(single_label()), damaged, tmp_path / "run", log=lines.append)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_bad"] == result.history[-1]["num_bad"] == 1
    assert any("1 bad samples left out so far" in line for line in lines)
    (line,) = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["sample"] == 3


def test_bad_samples_stay_counted_when_a_run_continues(damaged, tmp_path):
    run(tiny(single_label(), epochs=1), damaged, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loader"]
    assert saved["bad"] == [3]
    shares = [state_of_one(saved | {"bad": [1, 3, 5, 8]}, rank, 3)["bad"] for rank in range(3)]
    assert sorted(sample for share in shares for sample in share) == [1, 3, 5, 8]
    with pytest.raises(DataError, match="expected a whole JPEG"):
        run(tiny(single_label(), epochs=1), damaged, tmp_path / "strict", max_bad=0)
