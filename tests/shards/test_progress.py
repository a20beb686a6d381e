"""Progress where standard error is no terminal: a line a minute, nothing for short work."""

import io
import threading
from types import SimpleNamespace

import pytest
from waiting import wait_until

from softshard.shards import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))  # of no other thread
    return now


def test_short_work_prints_nothing(capsys):
    with progress.progress_bar(10, "pack", "img") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_long_work_prints_a_line_a_minute_with_rate_and_time_left(clock, capsys):
    with progress.progress_bar(1200, "pack", "img") as bar:
        for _ in range(6):
            clock[0] += 20
            bar.update(20)
    assert capsys.readouterr().err.splitlines() == [
        "softshard: pack: 60 of 1,200 img, 01:00, 1.0 img/s, 19:00 left",
        "softshard: pack: 120 of 1,200 img, 02:00, 1.0 img/s, 18:00 left",
    ]


def test_what_an_earlier_run_did_is_done_and_makes_no_rate(clock, capsys):
    with progress.progress_bar(1200, "pack", "img", initial=1000) as bar:
        for _ in range(3):
            clock[0] += 20
            bar.update(20)
    assert capsys.readouterr().err == ("softshard: pack: 1,060 of 1,200 img, 01:00, 1.0 img/s, 02:20 left\n")


def test_what_an_earlier_run_did_makes_no_rate_on_a_terminal_either(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress_bar(1200, "pack", "img", initial=1000) as bar:
        bar.update(20)
        found = bar.format_dict
    assert (found["n"], found["initial"], found["total"]) == (1020, 1000, 1200)
    assert "1.02k/1.20k" in capsys.readouterr().err


def test_work_of_unknown_length_has_no_time_left(clock, capsys):
    with progress.progress_bar(None, "list", "img") as bar:
        clock[0] += 60
        bar.update(30)
    assert capsys.readouterr().err == "softshard: list: 30 img, 01:00, 0.5 img/s\n"


def test_work_that_counts_nothing_for_a_long_time_says_that_it_is_there(clock, monkeypatch):
    # Not capsys: a line that comes while its stream is emptied is lost.
    errors = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", errors)
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.001)
    with progress.progress_bar(1200, "pack", "img") as bar:
        clock[0] += 10
        bar.update(30)
        clock[0] += 50
        wait_until(lambda: errors.getvalue().endswith("\n"))
    wait_until(lambda: all(thread.name != "softshard-progress" for thread in threading.enumerate()))
    assert errors.getvalue() == "softshard: pack: 30 of 1,200 img, 01:00, 0.5 img/s, 39:00 left\n"
