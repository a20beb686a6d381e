"""The commands in processes of their own: two do what one does; a killed run goes on.

torchrun's two are those that get SIGTERM, and what they did until then is what forks do; see forked.py.
"""

import dataclasses
import signal
import tempfile

import pytest
import torch
from tiny_runs import history, losses
from torchrun import torchrun

from softshard.training import semantic_softmax
from softshard.training.checkpoint import load_checkpoint
from softshard.training.teacher_store import store_teacher
from softshard.training.train import train as train_here

# The softshard command, which gets a signal at the given micro-batch of the given rank: after SIGKILL, which it is unless
# another is named, nothing cleans up.
COMMAND = """
import os, signal, sys
from softshard.shards.cli import main
kill_at = int(os.environ.get("TEST_KILL_AT", "0"))
if kill_at and os.environ.get("RANK", "0") == os.environ.get("TEST_KILL_RANK", "0"):
    import softshard.training.train  # binds what an evaluation calls: its batches are not counted
    from softshard.training import step
    plain, taken = step.model_input, []
    def model_input(images, normalise):
        taken.append(1)
        if len(taken) == kill_at:
            os.kill(os.getpid(), getattr(signal, os.environ.get("TEST_SIGNAL", "SIGKILL")))
        return plain(images, normalise)
    step.model_input = model_input
sys.exit(main())
"""


def launch(*arguments, code, **options):
    """As Forks.run does it, by the launcher that users have."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        return torchrun(script.name, *arguments, **options)


def train(run, shards, out, *arguments, recipe="semantic-softmax", dataset=None, **options):
    return run(
        "train", recipe, dataset or shards / "train", "--val", shards / "val", "--out", out,
        "--model", "test_convnext", "--global-batch", 8, "--image-size", 32, "--set", "ema_decay=0.9",
        "--device", "cpu", "--log-steps", 1, "--threads", 1, *arguments, code=COMMAND, **options,
    )  # fmt: skip


OPTIONS = {1: ("--epochs", 9), 2: ("--epochs", 9, "--accumulate", 2, "--checkpoint-steps", 4)}


@pytest.fixture(scope="module")
def whole(forks, shards, tmp_path_factory):
    """The folders of two runs that nothing disturbs: of one process, and of two that cut each half in two again."""
    folder = tmp_path_factory.mktemp("whole")
    for processes in (1, 2):
        done = train(forks.run, shards, folder / str(processes), *OPTIONS[processes], processes=processes)
        assert done.returncode == 0, done.stderr
        assert f"{8 // processes} on each of {processes} processes" in done.stderr
    return {1: folder / "1", 2: folder / "2"}


def test_two_processes_learn_in_54_steps_what_one_does(whole):
    assert len(losses(whole[1])) == 54
    assert losses(whole[2]) == pytest.approx(losses(whole[1]), rel=1e-4)
    assert [entry["samples"] for entry in history(whole[2])] == [12] * 9
    assert {entry["weights"] for entry in history(whole[2])} == {"ema"}
    # Two processes continue where one was, at the same batches.
    saved = [load_checkpoint(whole[processes] / "checkpoint.pt") for processes in (1, 2)]
    assert saved[0].loader == saved[1].loader


def test_two_processes_killed_in_mid_epoch_continue_with_the_same_curve(whole, forks, shards, tmp_path):
    # Step 10, the fourth of the second epoch, between its two micro-batches.
    killed = train(
        forks.run, shards, tmp_path / "run", *OPTIONS[2], processes=2, TEST_KILL_AT="20", TEST_KILL_RANK="1"
    )
    assert killed.returncode != 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").step == 8
    done = train(forks.run, shards, tmp_path / "run", *OPTIONS[2], "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert "8 of 54 steps are done" in done.stderr
    assert losses(tmp_path / "run") == losses(whole[2])
    assert history(tmp_path / "run") == history(whole[2])


def test_sigterm_to_one_of_two_processes_stops_both_with_a_checkpoint(whole, forks, shards, tmp_path):
    environment = {"TEST_KILL_AT": "20", "TEST_KILL_RANK": "1", "TEST_SIGNAL": "SIGTERM"}
    stopped = train(launch, shards, tmp_path / "run", *OPTIONS[2], processes=2, **environment)
    assert stopped.returncode != 0
    assert "4 on each of 2 processes" in stopped.stderr
    assert f"stopped by signal {signal.SIGTERM} after 10 of 54 steps" in stopped.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").step == 10
    done = train(forks.run, shards, tmp_path / "run", *OPTIONS[2], "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(whole[2])
    assert history(tmp_path / "run") == history(whole[2])


def test_a_process_killed_by_sigkill_is_continued_by_two(whole, forks, shards, tmp_path):
    options = (*OPTIONS[1], "--checkpoint-steps", 4)
    killed = train(forks.run, shards, tmp_path / "run", *options, TEST_KILL_AT="9")
    assert killed.returncode == -signal.SIGKILL
    done = train(forks.run, shards, tmp_path / "run", *options, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(whole[1]), rel=1e-4)


# What a global batch shares beside its labels: a teacher, and a loss that is a sum (`code`) where others are means.
DISTILLED = {
    "live": ("--set", "distill=paper"),
    "stored": ("--set", "distill=code", "--set", "distill_weight=0.2", "--checkpoint-steps", "4"),
}


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    """The checkpoint of a model that knows the colours, and the data set with what it says."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = dataclasses.replace(semantic_softmax(), epochs=4, global_batch=8, image_size=32, lr=1e-2)
    options = {"model": "test_resnet", "log": lambda line: None}
    checkpoint = train_here(recipe, str(shards / "train"), out=folder, **options).checkpoint
    store_teacher(shards / "train", folder / "stored", checkpoint, num_threads=1)
    return checkpoint, folder / "stored"


def distil(run, shards, teacher, kind, out, *arguments, **options):
    """Train `semantic-kd` with a teacher of that kind, for nine epochs."""
    checkpoint, stored = teacher
    if kind == "live":
        arguments = ("--teacher", checkpoint, *arguments)
    else:
        options["dataset"] = stored
    words = ("--epochs", 9, *DISTILLED[kind], *arguments)
    return train(run, shards, out, *words, recipe="semantic-kd", **options)


@pytest.fixture(scope="module")
def distilled(forks, shards, teacher, tmp_path_factory):
    """By kind of teacher: the folder of a run of one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("distilled")
    for kind in DISTILLED:
        done = distil(forks.run, shards, teacher, kind, folder / kind)
        assert done.returncode == 0, done.stderr
        assert f"teacher: {'test_resnet of' if kind == 'live' else 'stored in the shards'}" in done.stderr
    return folder


@pytest.mark.parametrize("kind", DISTILLED)
def test_two_processes_distil_as_one_does(kind, distilled, teacher, forks, shards, whole, tmp_path):
    done = distil(forks.run, shards, teacher, kind, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    expected = losses(distilled / kind)
    assert len(expected) == 54
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
    # The teacher counts: without it the losses are others from the first step.
    assert expected[0] > losses(whole[1])[0] + 0.05


def test_two_processes_that_distil_are_killed_in_mid_epoch_and_continue_with_the_same_curve(
    distilled, teacher, forks, shards, tmp_path
):
    kill = {"TEST_KILL_AT": "9", "TEST_KILL_RANK": "1"}
    killed = distil(forks.run, shards, teacher, "stored", tmp_path / "run", processes=2, **kill)
    assert killed.returncode != 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").step == 8
    done = distil(forks.run, shards, teacher, "stored", tmp_path / "run", "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert "8 of 54 steps are done" in done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(distilled / "stored"), rel=1e-4)


def test_two_processes_with_heads_in_level_order_learn_what_one_does_without(whole, forks, shards, tmp_path):
    options = ("--epochs", 9, "--set", "level_order=true")
    done = train(forks.run, shards, tmp_path / "two", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert "head in level order" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(whole[1]), rel=1e-4)
    saved = [load_checkpoint(path / "checkpoint.pt") for path in (tmp_path / "two", whole[1])]
    for name, weights in saved[1].model.items():
        torch.testing.assert_close(saved[0].model[name], weights, rtol=1e-3, atol=1e-4)
