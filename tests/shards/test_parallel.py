"""Ctrl-C while work is spread over processes."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from waiting import LONG_S

from softshard.shards.errors import UsageError
from softshard.shards.parallel import in_processes

SCRIPT = r"""
import os, sys, time
if __name__ == "__mp_main__":
    os.write(1, b"importing\n")
    time.sleep(0.3)
from softshard.shards.parallel import in_processes

def call(shared, item):
    try:
        os.write(1, b"calling\n")
        time.sleep(shared)
    finally:
        os.write(1, b"cleaned\n")

if __name__ == "__main__":
    try:
        list(in_processes(call, 600, range(100), 2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_without_shared_memory_it_is_said_what_is_missing(monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("softshard.shards.parallel._Processes", read_only)
    with pytest.raises(UsageError, match=r"files of /dev/shm, found: Read-only file system\. .* --workers 1"):
        list(in_processes(print, None, [1], 2))


@pytest.mark.parametrize(("when", "to_all"), [("importing", True), ("calling", True), ("calling", False)])
def test_ctrl_c_ends_running_calls_and_begins_no_others(when, to_all, tmp_path):
    """Whether it reaches all processes of a terminal or, by `kill -INT`, one of them; as long as they import too."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    pipe = subprocess.PIPE
    call = [sys.executable, script]
    with subprocess.Popen(call, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        try:
            said = []
            while said.count(when) < 2:  # once by each process
                said += [run.stdout.readline().strip()]
                assert said[-1]
            (os.killpg if to_all else os.kill)(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=LONG_S)
        finally:
            run.kill()
    said += out.split()
    assert (run.returncode, err) == (130, "")
    assert said.count("cleaned") == said.count("calling") <= 2
