"""The errors that softshard raises on purpose.

Two kinds of failure: bad data or a wrong call (these classes, with a message a person can act on), and a
bug (anything else). Messages read `where: expected, found; likely cause; what to do.`
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class SoftshardError(Exception):
    """Base of every error that softshard raises on purpose."""


class DataError(SoftshardError, ValueError):
    """Data on disk is not what it should be. Commands exit with 1."""


class StorageError(DataError):
    """A place where files are kept is away, or says no. The files may be fine. Commands exit with 1."""


class RefusedError(StorageError):
    """A server says no to these credentials, or will not tell whether there is such a file."""


class StallError(SoftshardError, RuntimeError):
    """Nothing moves: a stage of the loader has not come to its end in a long time."""


class ImageError(DataError):
    """One image cannot be used.

    Args:
        message: what was expected and what was found.
        kind: a short machine-readable reason for the ledger, such as `truncated` or `too-large`.
    """

    def __init__(self, message: str, *, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class UsageError(SoftshardError, ValueError):
    """The call is wrong: options that contradict, a path that is not there. Commands exit with 2."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, as far as it fits into a message; of one that says nothing its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_choice(what: str, value: str, choices: Collection[str]) -> None:
    """Refuse what is none of some choices.

    Raises:
        UsageError: it names all of them.
    """
    if value not in choices:
        raise UsageError(f"{what}: expected one of {', '.join(choices)}, found {value!r}")


def check_share(what: str, value: float) -> None:
    """Refuse what is no share of a whole.

    Raises:
        UsageError: it is not from 0 to 1.
    """
    if not 0 <= value <= 1:  # also of what is no number
        raise UsageError(f"{what}: expected a share from 0 to 1, found {value}")


class MissingExtraError(SoftshardError, ImportError):
    """A feature needs packages of an extra that is not installed.

    Args:
        feature: what was asked for, such as `softshard.loaders`.
        extra: the extra that brings it, such as `loaders`.
        cause: the import error, for the name of the missing module.
    """

    def __init__(self, feature: str, extra: str, cause: ImportError) -> None:
        super().__init__(
            f"{feature} needs the module {cause.name!r}, which is not installed. "
            f"Run: pip install 'softshard[{extra}]' (in a clone: pip install '.[{extra}]')"
        )
        self.extra = extra
        self._arguments = feature, extra, cause

    def __reduce__(self) -> Any:  # so that a worker process can raise it
        return MissingExtraError, self._arguments


@contextmanager
def naming(path: object, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of the system that names no file, or the temporary one of this file, name this one."""
    try:
        yield
    except OSError as error:
        is_another = error.filename is not None and str(error.filename) != str(temporary)
        if not is_another and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
