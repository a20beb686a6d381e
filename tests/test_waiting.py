"""No test waits for ever."""

import signal
import threading

import pytest


def test_a_test_that_never_ends_fails_and_so_does_what_it_leaves():
    after, every = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < every < after
    for _ in range(2):
        signal.setitimer(signal.ITIMER_REAL, 0.01, every)
        with pytest.raises(pytest.fail.Exception, match="expected an end within 900 s, found none"):
            threading.Event().wait()
    signal.setitimer(signal.ITIMER_REAL, after, every)
