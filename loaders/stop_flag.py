"""A flag that ends waiting, and may be set from anywhere: in a signal handler, and where garbage is collected.

Both may come in the middle of `threading.Event.wait`, in the thread that waits; `Event.set` would then wait for ever for the
lock that this thread holds. Here there is none.
"""

from __future__ import annotations

import math
import time

_LOOK_S = 0.05


class StopFlag:
    """Set once. For several threads."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """End all waiting, within a twentieth of a second."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether everything is to end."""
        return self._is_set

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until it is set, at most so long; whether it is."""
        give_up = time.monotonic() + seconds
        while not self._is_set and (left := give_up - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return self._is_set
