"""The file in which a pool of servers says where they are, and how clients keep to it: SERVICE.md, Pools.

    {"servers": ["grpc://10.0.0.7:41234", "grpc://10.0.0.8:39871"]}

`softshard serve --engine ray --addresses FILE` writes it whole or not at all whenever a server comes or goes; clients
that were given `file:///.../FILE.json` look at it once a second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..shards.errors import UsageError
from ..shards.files import canonical_json, write_atomically
from .service_address import is_service, split_servers

_MOST_BYTES = 2**20
_LOOK_S = 1.0


class ServerList:
    """Addresses of servers in a file that changes.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: tuple[int, int, int] | None = None
        self._looked = -_LOOK_S

    def read(self) -> list[str]:
        """The addresses that stand there now; none where no server is up.

        Raises:
            UsageError: it cannot be read, or holds something else.
        """
        try:
            with open(self.path, "rb") as file:
                self._mark = _mark(os.fstat(file.fileno()))
                content = file.read(_MOST_BYTES)
        except OSError as error:
            raise UsageError(
                f"{self.path}: expected the list of servers that softshard serve --addresses writes, found: {error.strerror}"
            ) from error
        try:
            found = json.loads(content)
            servers = found["servers"]
            fits = isinstance(servers, list) and all(isinstance(server, str) for server in servers)
        except (ValueError, KeyError, TypeError, RecursionError):
            servers, fits = [], False
        if not fits:
            raise UsageError(
                f'{self.path}: expected {{"servers": ["grpc://HOST:PORT", ...]}}, found {content[:80]!r}. '
                "softshard serve --addresses writes such a file"
            )
        try:
            return split_servers(servers)[0] if servers else []
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from error

    def changed(self) -> list[str] | None:
        """The addresses, where the file is another than it was when it was last read; None where it is not.

        Looks at most once a second. A file that is away or cannot be read stands for no change.
        """
        if time.monotonic() < self._looked + _LOOK_S:
            return None
        self._looked = time.monotonic()
        try:
            return None if _mark(os.stat(self.path)) == self._mark else self.read()
        except (OSError, UsageError):
            return None

    def write(self, servers: Sequence[str]) -> None:
        """Say where the servers are.

        Raises:
            UsageError: the file cannot be written.
        """
        try:
            write_atomically(self.path, canonical_json({"servers": sorted(servers)}) + b"\n")
        except OSError as error:
            raise UsageError(
                f"{self.path}: expected a place for the list of servers, found: {error.strerror}"
            ) from error


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    """Another for every file that is put in the place of one."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def find_servers(servers: str | Sequence[str]) -> tuple[list[str], str | None, ServerList | None]:
    """Addresses of servers, the name of the data set that they say, and the file that says where they are.

    Args:
        servers: as `split_servers` takes them; or `file:///.../servers.json`, with `#NAME` behind it for a data set.

    Raises:
        UsageError: neither.
    """
    if isinstance(servers, str) and servers.startswith("file://"):
        parts = urlsplit(servers)
        if parts.netloc not in ("", "localhost") or parts.query or not is_service(servers):
            raise UsageError(
                f"data service: expected a list of servers such as file:///run/servers.json#train, found {servers!r:.200}"
            )
        listed = ServerList(Path(unquote(parts.path)))
        return listed.read(), parts.fragment or None, listed
    return *split_servers(servers), None
