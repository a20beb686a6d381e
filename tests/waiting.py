"""Waiting for what other threads and processes do: as long as it takes, and not for ever."""

import os
import select
import time

# What has not happened by then never will: machines are slow, and stall. A third of what a test may take (pyproject.toml).
LONG_S = 300


def wait_until(condition, seconds=LONG_S):
    """The condition's value, as soon as it has a true one."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not so after {seconds} s"
        time.sleep(0.01)
    return value


def status_of(child, options=0):
    """The status of a child process, once it has one: when it has ended, or with `os.WUNTRACED` stopped."""
    return wait_until(lambda: (said := os.waitpid(child, options | os.WNOHANG))[0] and said)[1]


def first_line(stream, seconds=LONG_S):
    """The first line that a process says into a pipe."""
    assert select.select([stream], [], [], seconds)[0], f"nothing said within {seconds} s"
    return stream.readline()
