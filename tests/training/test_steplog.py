"""What a person sees of a run: lines, bars, TensorBoard; the same numbers as in metrics.csv."""

import builtins
import csv
from types import SimpleNamespace

import pytest
import tiny_runs
import torch
from json_page import documented

from softshard.shards.errors import MissingExtraError
from softshard.training import single_label, steplog
from softshard.training.progress import Progress
from softshard.training.steplog import METRICS_COLUMNS, LogLine, StepLog

WRITTEN = {"images_per_s": 0.06}  # to one decimal


def run(shards, out, **options):
    return tiny_runs.run(tiny_runs.tiny(single_label(), epochs=2), shards, out, **{"log_steps": 2, **options})


def board_scalars(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }


def line(step, epoch, **changes):
    return LogLine(**{
        "step": step, "epoch": epoch, "loss": 1.5, "lr": 0.01, "images_per_s": 1234.5, "data_wait_share": 0.25,
        "skipped": 0, **changes,
    })  # fmt: skip


def test_without_a_terminal_a_line_comes_at_first_and_then_now_and_then():
    lines = []
    progress = Progress(lines.append, bar=False, total_steps=30, line_every_s=3600)
    for step in range(1, 13):
        if step % 10 == 1:
            progress.begin_epoch(step // 10, 10, 0)
        progress.advance()
        progress.show(line(step, (step - 1) // 10))
    assert lines == [
        "epoch 0, step 1 of 10 (1 of 30 in all): loss 1.5000, lr 0.01, 1,234 images/s, 25% of the time waiting for data"
    ]
    progress = Progress(lines.append, bar=False, total_steps=30, line_every_s=0)
    progress.begin_epoch(1, 10, 0)
    progress.show(line(12, 1, skipped=3))
    assert lines[1].startswith("epoch 1, step 2 of 10 (12 of 30 in all)")
    assert lines[1].endswith(", 3 steps skipped")


def test_where_data_are_waited_for_a_line_says_what_takes_longest():
    lines = []
    progress = Progress(lines.append, bar=False, total_steps=30, line_every_s=0)
    progress.begin_epoch(0, 10, 0)
    progress.show(line(1, 0), "decode")
    progress.show(line(2, 0, data_wait_share=0.01), "decode")
    assert lines[0].endswith(", 25% of the time waiting for data (mostly decode)")
    assert lines[1].endswith(", 1% of the time waiting for data")


def test_a_wait_that_ends_without_a_batch_counts_in_the_line_of_the_steps_before_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(steplog, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    steps = StepLog(None, 0, 8, 1, 0.0, 0)

    def batches():
        now[0] += 1
        yield "batch"
        now[0] += 6

    for _ in steps.timed(batches()):
        now[0] += 1
        steps.add(torch.tensor(0.5), ["key"])
    line, _ = steps.flush(0, 0.1, 0)
    assert (line.data_wait_share, line.images_per_s) == (7 / 8, 1.0)


def test_on_a_terminal_there_is_a_bar_and_no_line(capsys):
    lines = []
    progress = Progress(lines.append, bar=True, total_steps=30)
    progress.begin_epoch(0, 10, 4)
    progress.advance()
    progress.show(line(5, 0))
    progress.end_epoch()
    assert lines == []
    assert "5/10" in capsys.readouterr().err


def test_a_run_without_a_terminal_says_how_fast_it_is(shards, tmp_path):
    lines = []
    run(shards, tmp_path, log=lines.append)
    (shown,) = [text for text in lines if "images/s" in text]
    assert shown.startswith("epoch 0, step 2 of 6 (2 of 12 in all): loss ")


def test_tensorboard_gets_the_numbers_of_the_csv_and_a_continued_run_no_step_twice(shards, tmp_path):
    run(shards, tmp_path, tensorboard=True)
    columns = tiny_runs.metric_lines(tmp_path)
    scalars = board_scalars(tmp_path / "tensorboard")
    assert set(scalars) == columns[0].keys() - {"step", "epoch"}
    for name, values in scalars.items():
        assert list(values) == [2, 4, 6, 8, 10, 12]
        assert list(values.values()) == pytest.approx(
            [float(row[name]) for row in columns], rel=1e-3, abs=WRITTEN.get(name, 1e-3)
        )
    run(shards, tmp_path, tensorboard=True, resume=True)
    assert board_scalars(tmp_path / "tensorboard") == scalars


def test_every_epoch_leaves_what_was_evaluated_in_a_csv_and_for_tensorboard(shards, tmp_path):
    result = run(shards, tmp_path, val=str(shards / "val"), tensorboard=True)
    with (tmp_path / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for row, entry in zip(rows, result.history, strict=True):
        for name in ("loss", "semantic_accuracy", "top1", "tree_distance"):
            assert float(row[name]) == pytest.approx(entry[name], rel=1e-7)
        levels = [row[f"level_{level}"] for level in range(len(entry["per_level"]))]
        assert list(map(float, levels)) == pytest.approx(entry["per_level"], rel=1e-7)
    scalars = board_scalars(tmp_path / "tensorboard")
    shown = {name.removeprefix("val/"): values for name, values in scalars.items() if name.startswith("val/")}
    # A number that there is none for, such as the distance of errors where all was right, is left out.
    assert set(shown) == {name for row in rows for name in row if row[name]} - {"epoch", "loss", "num_bad"}
    assert shown["top1"] == pytest.approx({6: float(rows[0]["top1"]), 12: float(rows[1]["top1"])})
    before = (tmp_path / "epochs.csv").read_bytes()
    run(shards, tmp_path, val=str(shards / "val"), tensorboard=True, resume=True)
    assert (tmp_path / "epochs.csv").read_bytes() == before


def test_a_run_without_a_validation_set_has_a_loss_per_epoch(shards, tmp_path):
    result = run(shards, tmp_path)
    lines = (tmp_path / "epochs.csv").read_text().splitlines()
    rows = [f"{entry['epoch']},{entry['loss']:.8g},0" for entry in result.history]
    assert lines == ["epoch,loss,num_bad", *rows]


def test_a_missing_tensorboard_is_named_with_the_command_that_brings_it(shards, tmp_path, monkeypatch):
    plain = builtins.__import__

    def without_tensorboard(name, *args, **options):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(MissingExtraError, match=r"pip install 'softshard\[tensorboard\]'"):
        run(shards, tmp_path, tensorboard=True)


def test_every_column_is_on_the_page_of_fields():
    assert list(documented()["metrics.csv"]) == [(column,) for column in METRICS_COLUMNS]
