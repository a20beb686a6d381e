"""Real runs of a tiny timm model on a tiny data set: files, resuming, stopping, several processes."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import safetensors.torch
import spoiling
import timm
import torch
from forked import COMMAND
from tiny_runs import (
    Killed,
    assert_same_weights,
    before_micro_batch,
    kill_at,
    metric_lines,
    run,
    tiny,
    weights,
)

from softshard.shards import pack
from softshard.shards.cli import main
from softshard.shards.errors import DataError, UsageError
from softshard.training import relabel, semantic_softmax, single_label
from softshard.training import start as start_module
from softshard.training import step as step_module
from softshard.training import train as train_module
from softshard.training.checkpoint import load_checkpoint
from softshard.training.evaluate import evaluate
from softshard.training.label_space import LabelSpace
from softshard.training.models import create_model, export_weights
from softshard.training.processes import state_of_one
from softshard.training.start import load_start

pytestmark = pytest.mark.usefixtures("one_thread")
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


@pytest.mark.parametrize(
    ("killed_at", "changes"),
    [
        (3, {"lanes": 2}),
        (6, {}),
        (7, {}),
        (9, {}),
        (9, {"ema_decay": 0.9, "clip_norm": 1.0, "precision": "bfloat16"}),
    ],
)
def test_a_killed_run_continues_bit_for_bit(killed_at, changes, shards, tmp_path, monkeypatch):
    recipe = tiny(semantic_softmax(), epochs=2, **changes)
    whole = run(recipe, shards, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            run(recipe, shards, tmp_path / "parts", checkpoint_steps=2)
    saved = load_checkpoint(tmp_path / "parts" / "checkpoint.pt")
    assert (saved.step, saved.loader["lanes"]) == ((killed_at - 1) // 2 * 2, recipe.lanes)
    parts = run(recipe, shards, tmp_path / "parts", resume=True)
    assert parts.history == whole.history
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    columns = ("step", "epoch", "loss", "lr")
    assert [[line[name] for name in columns] for line in metric_lines(tmp_path / "parts")] == [
        [line[name] for name in columns] for line in metric_lines(tmp_path / "whole")
    ]


@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGTERM, 4), (signal.SIGHUP, 6)],  # 6 is the last step of an epoch, before its evaluation
)
def test_a_signal_saves_and_the_run_continues_bit_for_bit(number, at, shards, tmp_path, monkeypatch):
    recipe = tiny(relabel(), epochs=2)
    whole = run(recipe, shards, tmp_path / "whole", val=str(shards / "val"))
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        before_micro_batch(patch, at, lambda: os.kill(os.getpid(), number))
        stopped = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), log_steps=2)
    assert (stopped.stopped_by, stopped.steps, stopped.weights) == (number, at, None)
    assert signal.getsignal(number) == before
    finished = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), resume=True)
    assert (finished.steps, finished.history) == (12, whole.history)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_command_exits_with_128_and_the_signal(number, code, shards, tmp_path, monkeypatch):
    before_micro_batch(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    stopped = main([
        "train", "relabel", str(shards / "train"), "--model", "test_resnet", "--out", str(tmp_path), "--device", "cpu",
        "--epochs", "1", "--global-batch", "8", "--image-size", "32", "--log-steps", "1", "--set", "targets=original",
    ])  # fmt: skip
    assert stopped == code
    assert load_checkpoint(tmp_path / "checkpoint.pt").step == 1


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


def test_a_run_killed_while_it_evaluates_continues_with_the_evaluation(shards, tmp_path, monkeypatch):
    recipe = tiny(semantic_softmax(), epochs=2)
    whole = run(recipe, shards, tmp_path / "whole", val=str(shards / "val"))

    def evaluate_model(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate_model", evaluate_model)
        with pytest.raises(Killed):
            run(recipe, shards, tmp_path / "parts", val=str(shards / "val"))
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt").step == 6
    finished = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), resume=True)
    assert finished.history == whole.history
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    epochs = [(tmp_path / name / "epochs.csv").read_bytes() for name in ("whole", "parts")]
    assert epochs[0] == epochs[1]


def test_resume_of_a_finished_run_takes_no_step(shards, tmp_path):
    recipe = tiny(single_label(), epochs=1)
    first = run(recipe, shards, tmp_path)
    assert run(recipe, shards, tmp_path, resume=True) == first


def test_resume_begins_where_there_is_no_checkpoint(shards, tmp_path):
    assert run(tiny(single_label(), epochs=1), shards, tmp_path, resume=True).steps == 6


def test_resume_with_other_options_is_refused(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path)
    with pytest.raises(
        UsageError, match=r"lanes: 1, not 2.*epochs: 1, not 2.*model: 'test_resnet', not 'test_vit'"
    ):
        run(tiny(single_label(), epochs=2, lanes=2), shards, tmp_path, resume=True, model="test_vit")


def test_a_schedule_that_knows_its_end_cannot_be_given_more_epochs(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path)
    with pytest.raises(
        UsageError,
        match=r"epochs: 1, not 2 \(the schedule 'one-cycle' spreads over all epochs: step \d was taken with the "
        r"learning rate .*, in 2 epochs it would have been .*begin a new run with --init-from",
    ):
        run(tiny(single_label(), epochs=2), shards, tmp_path, resume=True)


def test_a_constant_rate_can_be_given_more_epochs_but_not_fewer(shards, tmp_path):
    recipe = tiny(single_label(), schedule="constant", warmup=0.0, ema_decay=0.9)
    whole = run(recipe, shards, tmp_path / "whole")
    run(dataclasses.replace(recipe, epochs=2), shards, tmp_path / "parts")
    longer = run(recipe, shards, tmp_path / "parts", resume=True)
    assert (longer.steps, longer.history) == (18, whole.history)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UsageError, match=r"epochs: 3, not 2 \(a run can be given more epochs, not fewer\)"):
        run(dataclasses.replace(recipe, epochs=2), shards, tmp_path / "parts", resume=True)


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


def test_a_folder_with_a_checkpoint_is_not_overwritten(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path)
    with pytest.raises(UsageError, match="continue it with --resume or name another --out"):
        run(tiny(single_label(), epochs=1), shards, tmp_path)


def test_weights_of_another_class_list_leave_out_the_head(shards, tmp_path):
    model = timm.create_model("test_resnet", num_classes=99)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    recipe = tiny(single_label(), epochs=1, lr=1e-12, weight_decay=0.0)
    run(recipe, shards, tmp_path / "out", init_from=tmp_path / "weights.pt")
    found = weights(tmp_path / "out")
    torch.testing.assert_close(
        found["conv1.0.weight"], model.state_dict()["conv1.0.weight"], rtol=0, atol=1e-9
    )
    assert found["fc.weight"].shape[0] == 6


def test_weights_of_another_architecture_are_refused(shards, tmp_path):
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(DataError, match="expected weights of timm's 'test_resnet', found an unknown"):
        run(tiny(single_label()), shards, tmp_path / "out", init_from=tmp_path / "weights.pt")


def load(name, source, num_classes=6, **options):
    """Load weights into a new model; returns both the report and the model."""
    model = create_model(name, num_classes, 32)
    names = tuple(f"class {i}" for i in range(num_classes))
    labels = LabelSpace(names, "a" * 64, None)
    return load_start(model, name, source, image_size=32, labels=labels, dataset="shards", **options), model


def test_weights_with_code_in_them_are_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pt")
    # torch's own text advises loading the file with weights_only=False.
    for read in (load_checkpoint, partial(load, "test_resnet")):
        with pytest.raises(
            DataError, match=r"weights\.pt: expected .* read \(it holds more than tensors, or something"
        ):
            read(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_code_in_weights_is_refused_whatever_timms_default_is(tmp_path, monkeypatch):
    asked = []

    def load_weights(path, **options):
        asked.append(options)
        return timm.create_model("test_resnet").state_dict()

    monkeypatch.setattr(start_module, "load_weights", load_weights)
    torch.save({}, tmp_path / "weights.pt")
    load("test_resnet", tmp_path / "weights.pt")
    assert asked == [{"weights_only": True}]


@pytest.mark.parametrize("error", [FileNotFoundError("not in the local cache\nmore"), URLError("no route")])
def test_weights_that_cannot_be_downloaded_are_refused_with_what_to_do(error, monkeypatch):
    def offline(*_args, **_options):
        raise error

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"model resnet50: .*where there is a network.*--init-from FILE"):
        create_model("resnet50", 1000, 224, pretrained=True)


def test_an_architecture_without_weights_is_named():
    with pytest.raises(UsageError, match="model botnet50ts_256: expected an architecture with weights"):
        create_model("botnet50ts_256", 6, 32, pretrained=True)


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


def test_evaluate_command_prints_a_table_or_json(shards, tmp_path, capsys):
    run(tiny(semantic_softmax(), epochs=1), shards, tmp_path / "out")
    arguments = ["evaluate", str(tmp_path / "out" / "checkpoint.pt"), str(shards / "val"), "--device", "cpu"]
    assert main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"semantic_accuracy +\d+\.\d\d%", line) for line in table)
    assert len({len(re.match(r"(  )?\S+( \d+)? +", line)[0]) for line in table}) == 1  # one column of values
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 12


def test_train_command_changes_the_recipe_as_it_is_told(shards, tmp_path, capsys):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "weights.pt")
    out = tmp_path / "out"
    code = main([
        "train", "transfer", str(shards / "train"), "--model", "test_resnet", "--out", str(out), "--device", "cpu",
        "--init-from", str(tmp_path / "weights.pt"), "--preset", "small", "--epochs", "1", "--global-batch", "8",
        "--precision", "bfloat16", "--lanes", "4", "--accumulate", "2", "--freeze", "--set", "clip_norm=2",
        "--set", "ema_decay=none",
    ])  # fmt: skip
    assert code == 0
    recipe = load_checkpoint(out / "checkpoint.pt").recipe
    assert (recipe.name, recipe.image_size, recipe.epochs, recipe.global_batch) == (
        "transfer-small",
        128,
        1,
        8,
    )
    assert (recipe.precision, recipe.accumulate, recipe.freeze, recipe.new_head) == (
        "bfloat16",
        2,
        True,
        True,
    )
    assert (recipe.clip_norm, recipe.ema_decay) == (2.0, None)
    shown = capsys.readouterr().err
    assert (
        "bfloat16, 4 lanes, 2 micro-batches a step, gradients clipped to norm 2.0, only the head trains"
        in shown
    )
    assert "new: fc.weight" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "nowhere.pt", "nowhere"], 1, "expected a checkpoint, found no such file"),
        (["evaluate", "nowhere.pt", "nowhere", "--batch-size", "0"], 2, "--batch-size: expected at least 1"),
        (
            ["train", "relabel", "nowhere", "--model", "m", "--out", "o", "--epochs", "0"],
            2,
            "epochs: expected",
        ),
        (
            [
                "train",
                "relabel",
                "nowhere",
                "--model",
                "m",
                "--out",
                "o",
                "--set",
                "colour=1",
                "--set",
                "flip=2",
            ],
            2,
            "'colour=1': expected FIELD=VALUE with a field of accumulate, ",
        ),
        (
            ["train", "relabel", "nowhere", "--model", "m", "--out", "o", "--precision", "float16"],
            2,
            "precision: expected float32 or bfloat16 on a CPU",
        ),
        (
            ["train", "relabel", "nowhere", "--model", "m", "--out", "o", "--lr", "nan"],
            2,
            "lr: expected finite numbers, found nan",
        ),
        (
            ["train", "relabel", "nowhere", "--model", "m", "--out", "o", "--set", "optimizer=adamx"],
            2,
            "optimizer: expected a name that timm.optim knows, such as adam",
        ),
        (
            ["train", "relabel", "nowhere", "--model", "m", "--out", "o", "--set", "momentum=0"],
            2,
            "optimizer: expected one that takes the recipe's numbers, found 'sgd' (Nesterov momentum requires",
        ),
    ],
)
def test_commands_exit_with_the_code_of_the_failure(arguments, code, message, capsys):
    assert main([*arguments, "--device", "cpu"]) == code
    assert message in capsys.readouterr().err


def test_a_broken_environment_of_torchrun_is_named(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["train", "relabel", "nowhere", "--model", "m", "--out", "o"]) == 2
    assert "WORLD_SIZE: expected a number as torchrun sets it, found 'two'" in capsys.readouterr().err


def test_command_line_needs_neither_torch_nor_timm_to_be_imported():
    code = (
        "import argparse, sys; from softshard.training.cli import add_commands;"
        "add_commands(argparse.ArgumentParser().add_subparsers());"
        "print([name for name in ('torch', 'timm', 'nvidia.dali') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("torch", ["train", "relabel", "x", "--model", "y"], "training"),
        ("timm", ["train", "relabel", "x", "--model", "y"], "training"),
        ("timm", ["demo"], "demo"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_brings_it(missing, command, extra, forks, tmp_path):
    code = (
        "import sys\n"
        "for name in [*sys.modules]:\n"
        f"    if name.partition('.')[0] in ('softshard', {missing!r}):\n"
        "        del sys.modules[name]\n"
        f"sys.modules[{missing!r}] = None\n"
    )
    done = forks.run(*command, "--out", tmp_path / "out", code=code + COMMAND)
    assert done.returncode == 2
    assert f"pip install 'softshard[{extra}]'" in done.stderr


def test_samples_that_were_left_out_are_counted_where_people_look(shards, tmp_path):
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    spoiling.rewrite(damaged / "train", {3: {"jpg": spoiling.cut_in_the_middle}})
    lines = []
    result = run(tiny(single_label()), damaged, tmp_path / "run", log=lines.append)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_bad"] == result.history[-1]["num_bad"] == 1
    assert any("1 bad samples left out so far" in line for line in lines)
    (line,) = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["sample"] == 3


def test_bad_samples_stay_counted_when_a_run_continues(shards, tmp_path):
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    spoiling.rewrite(damaged / "train", {3: {"jpg": spoiling.cut_in_the_middle}})
    run(tiny(single_label(), epochs=1), damaged, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loader"]
    assert saved["bad"] == [3]
    shares = [state_of_one(saved | {"bad": [1, 3, 5, 8]}, rank, 3)["bad"] for rank in range(3)]
    assert sorted(sample for share in shares for sample in share) == [1, 3, 5, 8]
    with pytest.raises(DataError, match="expected a whole JPEG"):
        run(tiny(single_label(), epochs=1), damaged, tmp_path / "strict", max_bad=0)
