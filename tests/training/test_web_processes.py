"""Noisy web labels with the command in processes of its own: two do what one does; a run killed by SIGKILL goes on."""

import pytest
import torch
from tiny_runs import history
from web_set import make_web_set

from softshard.training.checkpoint import load_checkpoint

# The softshard command, which kills itself before the given training micro-batch.
COMMAND = """
import os, signal, sys
from softshard.shards.cli import main
from softshard.training import step
plain, taken, kill_at = step.model_input, [], int(os.environ.get("TEST_KILL_AT", "0"))
def model_input(images, normalise):
    taken.append(1)
    if len(taken) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(images, normalise)
step.model_input = model_input
sys.exit(main())
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    return make_web_set(tmp_path_factory.mktemp("web") / "set")


def train(forks, web, out, recipe, *arguments, **options):
    return forks.run(
        "train", recipe, web / "train", "--val", web / "val", "--out", out,
        "--model", "test_convnext", "--epochs", 2, "--global-batch", 8, "--image-size", 32, "--device", "cpu",
        "--set", "augment=none", "--threads", 1, "--checkpoint-steps", 4, *arguments, code=COMMAND, **options,
    )  # fmt: skip


def test_two_processes_learn_keywords_and_classes_as_one_does(forks, web, tmp_path):
    for processes in (1, 2):
        done = train(forks, web, tmp_path / str(processes), "joint", processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = history(tmp_path / "1"), history(tmp_path / "2")
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        # Of 12 samples each rank evaluates six, and the two count together.
        names = ("samples", "classes_seen", "tagged", "untagged", "without_tags", "without_weights")
        assert {name: b[name] for name in names} == {name: a[name] for name in names}
        assert b["without_tags"] > 0
        assert b["tags_per_image"] == a["tags_per_image"] == 3


def test_a_weakly_tagged_run_killed_by_sigkill_continues_with_the_same_numbers(forks, web, tmp_path):
    whole = train(forks, web, tmp_path / "whole", "weakly-tagged")
    assert whole.returncode == 0, whole.stderr
    killed = train(forks, web, tmp_path / "killed", "weakly-tagged", TEST_KILL_AT="9")
    assert killed.returncode < 0
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt").step == 8
    done = train(forks, web, tmp_path / "killed", "weakly-tagged", "--resume")
    assert done.returncode == 0, done.stderr
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    weights = [load_checkpoint(tmp_path / name / "checkpoint.pt").model for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
