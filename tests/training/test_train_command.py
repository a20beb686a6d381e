"""`softshard train` and `softshard evaluate`: what they are told, what they print and how they end."""

import json
import os
import re
import signal

import pytest
import timm
import torch
from forked import COMMAND
from tiny_runs import before_micro_batch, run, tiny

from softshard.shards.cli import main
from softshard.training import semantic_softmax
from softshard.training.checkpoint import load_checkpoint


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_command_exits_with_128_and_the_signal(number, code, shards, tmp_path, monkeypatch):
    before_micro_batch(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    stopped = main([
        "train", "relabel", str(shards / "train"), "--model", "test_resnet", "--out", str(tmp_path), "--device", "cpu",
        "--epochs", "1", "--global-batch", "8", "--image-size", "32", "--log-steps", "1", "--set", "targets=original",
    ])  # fmt: skip
    assert stopped == code
    assert load_checkpoint(tmp_path / "checkpoint.pt").step == 1


def test_evaluate_command_prints_a_table_or_json(shards, tmp_path, capsys):
    run(tiny(semantic_softmax()), shards, tmp_path / "out")
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
            "optimizer: expected one that can be made here with the recipe's numbers, found 'sgd' (Nesterov",
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
