"""The options of a command that say how to speak to servers of the data service."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..shards.cli_values import needs_extra
from .service_address import is_service

if TYPE_CHECKING:
    from .service_client import Connection


def add_connection(command: argparse._ActionsContainer) -> None:
    """Register them."""
    command.add_argument(
        "--token-file", metavar="FILE", help="with grpc:// or grpc+tls://: file of the servers' token"
    )
    command.add_argument(
        "--tls-ca", metavar="FILE", help="with grpc+tls://: PEM file of who signed the servers' certificates"
    )


def connection_of(args: argparse.Namespace, *datasets: str | None) -> Connection | None:
    """How to speak to servers; None for data sets that are read here.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    if not any(map(is_service, datasets)):
        return None
    with needs_extra("a data set behind grpc://", "service"):
        from .service_client import Connection
    return Connection(token_file=args.token_file, tls_ca=args.tls_ca)
