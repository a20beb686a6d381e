"""Waiting for what other threads and processes do: as long as it takes, and not for ever."""

import time

# For what takes moments: machines are slow, and stall. A test that waits for so long has failed.
LONG_S = 240


def wait_until(condition, seconds=LONG_S):
    """The condition's value, as soon as it has a true one."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not so after {seconds} s"
        time.sleep(0.01)
    return value
