"""Waiting for what other threads and processes do: as long as it takes, and not for ever."""

import select
import time

# What has not happened by then never will: machines are slow, and stall.
LONG_S = 600


def wait_until(condition, seconds=LONG_S):
    """The condition's value, as soon as it has a true one."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not so after {seconds} s"
        time.sleep(0.01)
    return value


def first_line(stream, seconds=LONG_S):
    """The first line that a process says into a pipe."""
    assert select.select([stream], [], [], seconds)[0], f"nothing said within {seconds} s"
    return stream.readline()
