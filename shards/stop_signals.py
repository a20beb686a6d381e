"""What a command says when a signal ends it: SIGTERM of whoever stops it, SIGHUP of a terminal that is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

KEPT = (
    "What is finished is kept: packing, resharding and label maps continue when the same command is given again, training "
    "with --resume, tagging from its last 50 blocks (100,000 rows of a list); into a bucket with --work alone"
)


@contextmanager
def saying_what_ended() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP end this process as ever, at once, but not without a line for the log.

    Not by an exception: what is half-written has a name that no reader looks for, and unwinding waits for threads. A signal
    that is ignored (nohup), or that somebody handles already, stays so.
    """
    process = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() == process:  # not for those that it forked
            line = f"softshard: ended by {signal.Signals(number).name}. {KEPT}\n"
            with suppress(OSError, ValueError):  # nobody reads it
                os.write(sys.stderr.fileno(), line.encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = []
    if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
        ours = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
