"""Tests wait for events, never for time: a machine may be slow, or stand still for a while."""

import time

LIMIT_S = 600  # what has not happened by then never will


def wait_until(condition, limit_s=LIMIT_S):
    """The condition's value, as soon as it has a true one."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value
