"""Runs that are killed or stopped continue bit for bit; what cannot continue is refused."""

import dataclasses
import os
import signal
import threading
from functools import partial
from itertools import islice

import pytest
from tiny_runs import Killed, assert_same_weights, before_micro_batch, kill_at, metric_lines, run, tiny
from waiting import LONG_S

from softshard.shards.errors import UsageError
from softshard.training import relabel, semantic_softmax, single_label
from softshard.training import train as train_module
from softshard.training.checkpoint import load_checkpoint

tiny = partial(tiny, epochs=3)


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


def waits_for_ever(number):
    """Be sent the signal, and wait for what does not come."""
    os.kill(os.getpid(), number)
    threading.Event().wait(LONG_S)
    pytest.fail("the signal ended no wait")


def test_a_signal_ends_the_wait_for_a_batch_that_does_not_come(shards, tmp_path, monkeypatch):
    recipe = tiny(relabel(), epochs=2)
    whole = run(recipe, shards, tmp_path / "whole")

    def three_batches(loader):
        yield from islice(loader, 3)
        waits_for_ever(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "named_batches", three_batches)
        stopped = run(recipe, shards, tmp_path / "parts", log_steps=10)
    assert (stopped.stopped_by, stopped.steps) == (signal.SIGTERM, 3)
    assert [line["step"] for line in metric_lines(tmp_path / "parts")] == ["3"]
    finished = run(recipe, shards, tmp_path / "parts", resume=True, log_steps=10)
    assert finished.history[1:] == whole.history[1:]
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_while_the_first_batch_is_waited_for_begins_again(shards, tmp_path, monkeypatch):
    recipe = tiny(single_label(), epochs=1)
    run(recipe, shards, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            train_module, "named_batches", lambda loader: iter(lambda: waits_for_ever(signal.SIGHUP), 0)
        )
        stopped = run(recipe, shards, tmp_path / "parts")
    assert (stopped.stopped_by, stopped.steps) == (signal.SIGHUP, 0)
    assert load_checkpoint(stopped.checkpoint).step == 0
    assert run(recipe, shards, tmp_path / "parts", resume=True).steps == 6
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_in_a_step_saves_before_the_loader_is_waited_for(shards, tmp_path, monkeypatch):
    """Between two lines of metrics.csv, and two micro-batches; a loader whose storage hangs takes long to close."""
    recipe = tiny(relabel(), epochs=1, accumulate=2, ema_decay=0.9)
    run(recipe, shards, tmp_path / "whole")
    checkpoint, saved_at = tmp_path / "parts" / "checkpoint.pt", []

    def watched(loader):
        try:
            yield from loader
        finally:
            saved_at.append(checkpoint.exists() and load_checkpoint(checkpoint).step)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "named_batches", watched)
        before_micro_batch(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = run(recipe, shards, tmp_path / "parts", log_steps=10)
    assert (stopped.stopped_by, stopped.steps, saved_at) == (signal.SIGTERM, 4, [4])
    assert [line["step"] for line in metric_lines(tmp_path / "parts")] == ["4"]
    run(recipe, shards, tmp_path / "parts", resume=True, log_steps=10)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("checkpoint_steps", "said"),
    [
        (2, "stopped by signal 15 after 3 of 6 steps; --resume continues from the checkpoint of step 2"),
        (
            None,
            "stopped by signal 15 after 3 of 6 steps; there is no checkpoint yet, and --resume begins again",
        ),
    ],
)
def test_a_signal_that_loses_a_batch_says_where_it_continues(
    checkpoint_steps, said, shards, tmp_path, monkeypatch
):
    recipe, lines = tiny(single_label(), epochs=1), []
    run(recipe, shards, tmp_path / "whole")

    def loses_the_fourth(loader):
        for number, batch in enumerate(loader, 1):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "named_batches", loses_the_fourth)
        stopped = run(recipe, shards, tmp_path / "parts", log=lines.append, checkpoint_steps=checkpoint_steps)
    assert lines[-1] == said
    assert stopped.checkpoint.exists() == (checkpoint_steps is not None)
    run(recipe, shards, tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_ends_an_evaluation_which_begins_again(shards, tmp_path, monkeypatch):
    recipe = tiny(semantic_softmax(), epochs=2)
    whole = run(recipe, shards, tmp_path / "whole", val=str(shards / "val"))
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate_model", lambda *_, **__: waits_for_ever(signal.SIGTERM))
        stopped = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"))
    assert (stopped.stopped_by, stopped.steps) == (signal.SIGTERM, 6)
    finished = run(recipe, shards, tmp_path / "parts", val=str(shards / "val"), resume=True)
    assert finished.history == whole.history
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


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


def test_a_folder_with_a_checkpoint_is_not_overwritten(shards, tmp_path):
    run(tiny(single_label(), epochs=1), shards, tmp_path)
    with pytest.raises(UsageError, match="continue it with --resume or name another --out"):
        run(tiny(single_label(), epochs=1), shards, tmp_path)
