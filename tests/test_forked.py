"""Commands in forks end as commands of an interpreter do."""

import subprocess

import pytest


def test_a_command_that_exits_with_a_text_prints_it_and_fails(forks):
    done = forks.run(code="import sys; print('so far'); sys.exit('it is closed')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "so far\n", "it is closed\n")


def test_ranks_that_take_too_long_are_late_and_none_of_them_failed(forks):
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(code="import time; print('begun', flush=True); time.sleep(600)", processes=3, seconds=0.2)
