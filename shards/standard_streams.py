"""Standard output and error of the command: open, whatever the caller closed; a message that nobody can read ends no run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class _Messages(io.RawIOBase):
    """Standard error, whose reader may go or whose disk may be full in the middle of days of work.

    Args:
        descriptor: where it is written to.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        left = memoryview(data)
        with suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]
        return len(data)


def open_streams() -> None:
    """Make standard streams that can be written to of this process's.

    Without the null device in place of a closed one the next file that is opened would get its number, and with it what
    libraries have to say.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    elif sys.stderr is sys.__stderr__:  # not where a test or a notebook has put something else there
        sys.stderr = io.TextIOWrapper(
            _Messages(sys.stderr.fileno()),  # type: ignore[arg-type]
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            write_through=True,
        )


def reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more (head, less)."""
    try:
        sys.stdout.flush()  # what could not be written is still there
    except BrokenPipeError:
        # The interpreter's own flush at the end must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
