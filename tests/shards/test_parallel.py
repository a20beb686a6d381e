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

IGNORING = """
import signal, sys, time
from pathlib import Path
from softshard.shards import parallel

def call(folder, item):
    if item:
        Path(folder, f"begun-{item}").touch()
        end = time.monotonic() + 10
        while not parallel._is_stopping and time.monotonic() < end:
            time.sleep(0.01)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `nohup` and `&` of a script do
    calls = parallel.in_processes(call, sys.argv[1], range(9), 2)
    next(calls)
    while len(list(Path(sys.argv[1]).glob("begun-*"))) < 2:
        time.sleep(0.01)
    calls.close()
"""


def test_without_shared_memory_it_is_said_what_is_missing(monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("softshard.shards.parallel._Processes", read_only)
    with pytest.raises(UsageError, match=r"files of /dev/shm, found: Read-only file system\. .* --workers 1"):
        list(in_processes(print, None, [1], 2))


@pytest.mark.parametrize("most", [5, 10, 20])
def test_without_files_to_open_it_is_said_how_to_have_more(most):
    """For the pipe, for the pool, for the second process: the first ends, too."""
    code = f"""if True:
        import resource, sys
        from softshard.shards.errors import UsageError
        from softshard.shards.parallel import in_processes
        resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))
        try:
            list(in_processes(print, None, range(8), 8))
        except UsageError as error:
            sys.exit(str(error))"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.stderr.startswith(
        "workers: expected to start processes, found: Too many open files. Raise ulimit -n"
    )


def test_a_script_without_a_guard_is_told_also_of_more_than_a_pipe_holds(tmp_path):
    """Its processes die before they read what they are sent."""
    script = tmp_path / "script.py"
    script.write_text(
        "from softshard.shards.parallel import in_processes; list(in_processes(print, bytes(1 << 20), [1], 2))"
    )
    done = subprocess.run([sys.executable, script], timeout=LONG_S, capture_output=True, text=True)
    assert "SoftshardError: expected worker processes to live, found one that died (killed" in done.stderr


def test_what_processes_start_with_needs_no_memfd(tmp_path):
    """Pythons that are built for older systems have none."""
    script = tmp_path / "script.py"
    script.write_text("""if True:
        import os
        from softshard.shards.parallel import in_processes
        def call(shared, item):
            return shared[item]
        if __name__ == "__main__":
            del os.memfd_create
            assert list(in_processes(call, bytes(1 << 20), range(4), 2)) == [0] * 4""")
    assert subprocess.run([sys.executable, script], timeout=LONG_S).returncode == 0


def test_what_processes_start_with_has_no_room():
    code = """if True:
        import resource, signal, sys
        from softshard.shards.errors import UsageError
        from softshard.shards.parallel import in_processes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            list(in_processes(print, bytes(1 << 20), [1], 2))
        except UsageError as error:
            sys.exit(str(error))"""
    done = subprocess.run([sys.executable, "-c", code], timeout=LONG_S, capture_output=True, text=True)
    assert done.stderr.startswith(
        "workers: expected memory for what processes start with, found: File too large"
    )


def test_processes_take_sigterm_also_where_their_parent_ignores_it(tmp_path):
    """Else the pool waits for ever for those that wait for a lock of one that was killed."""
    script = tmp_path / "script.py"
    script.write_text("""if True:
        import signal
        from softshard.shards.parallel import in_processes
        def call(shared, item):
            return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if __name__ == "__main__":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            assert all(in_processes(call, None, range(4), 2))""")
    assert subprocess.run([sys.executable, script], timeout=LONG_S).returncode == 0


def test_where_ctrl_c_is_ignored_a_closed_one_begins_no_other_calls(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IGNORING)
    done = subprocess.run([sys.executable, script, tmp_path], timeout=100, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("begun-*")) == ["begun-1", "begun-2"]


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
