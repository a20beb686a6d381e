"""Files on their way to a destination: written under no name that a reader would look for, named when they are whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from .errors import naming
from .files import open_named, replace_durably, temporary_beside


class StagedFile(Protocol):
    """A file that is being written."""

    file: BinaryIO

    def publish(self) -> None:
        """Give it its name: it appears whole, over one that was there."""
        ...

    def discard(self) -> None:
        """Drop it; nothing happens to one that is published."""
        ...


class RenamedFile:
    """Written beside its place under a name of its own, flushed to disk, then renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_beside(path)
        self.file = open_named(self._temporary)

    def publish(self) -> None:
        self.file.flush()
        with naming(self._temporary):
            os.fsync(self.file.fileno())
        self.file.close()
        replace_durably(self._temporary, self._path)

    def discard(self) -> None:
        with suppress(OSError):  # on a full disk there is no room for what was still in memory
            self.file.close()
        self._temporary.unlink(missing_ok=True)


class UploadedFile:
    """Staged in a file without a name, which a killed process does not leave behind; then uploaded.

    Args:
        upload: copies a local file, given by its path, to where it belongs.
    """

    def __init__(self, upload: Callable[[str], None]) -> None:
        self._upload = upload
        self.file: BinaryIO = tempfile.TemporaryFile()  # type: ignore[assignment]  # noqa: SIM115

    def publish(self) -> None:
        self.file.flush()
        self._upload(f"/proc/self/fd/{self.file.fileno()}")
        self.file.close()

    def discard(self) -> None:
        self.file.close()
