"""A loader of a data set, wherever its batches are made: here, or by servers of the data service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shards.errors import MissingExtraError, UsageError
from .loader import Loader
from .mixture import Mixture
from .service_address import is_service

if TYPE_CHECKING:
    from .service_client import Connection


def open_loader(
    dataset: str | Path | Mixture, *, connection: Connection | None = None, **options: Any
) -> Loader:
    """A Loader, or a RemoteLoader where the data set is `grpc://host:port/NAME` (several with commas between; or a list).

    Args:
        dataset: as a Loader's or a RemoteLoader's first argument.
        connection: how to speak to servers; of no effect without.
        options: of a Loader.

    Raises:
        UsageError: side shards with servers; and what Loader and RemoteLoader raise.
        MissingExtraError: servers, and pyarrow is not installed.
    """
    if not (isinstance(dataset, str) and is_service(dataset)):
        return Loader(dataset, **options)
    try:
        from .remote_loader import RemoteLoader
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "pyarrow":
            raise MissingExtraError("a data set behind grpc://", "service", error) from error
        raise
    if options.pop("side", None) is not None:
        raise UsageError(
            f"{dataset}: expected side shards where the servers are, found them given to a trainer. Start the servers with "
            "softshard serve --side NAME=DIR"
        )
    options.pop("cache", None)
    return RemoteLoader(dataset, connection=connection, **options)
