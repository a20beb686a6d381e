"""OpenCV's own threads: switched off, for the whole process, while a decoder with threads of its own is there."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

import cv2

_num_without = 0  # objects for which OpenCV starts no threads
_threads_before = 0
_counting = threading.RLock()  # a collection of garbage may come while it is held


def _renew_lock() -> None:
    """In a forked process: whoever held the lock is not here to give it back."""
    global _counting
    _counting = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def without_opencv_threads(owner: object) -> Callable[[], object]:
    """Let OpenCV start no threads of its own, in all of the process.

    Args:
        owner: until it is gone, and all others that asked for the same.

    Returns:
        What ends it before that.
    """
    global _num_without, _threads_before
    with _counting:
        if not _num_without:
            _threads_before = cv2.getNumThreads()
            cv2.setNumThreads(0)
        _num_without += 1
    give_back = weakref.finalize(owner, _give_back)
    give_back.atexit = False
    return give_back


def _give_back() -> None:
    global _num_without
    with _counting:
        _num_without -= 1
        if not _num_without:
            cv2.setNumThreads(_threads_before)
