"""Addresses of the data service: what they look like, and which of them only this host reaches. No torch, no pyarrow."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from ..shards.errors import UsageError

SCHEMES = ("grpc", "grpc+tls")


def is_service(dataset: object) -> bool:
    """Whether what stands for a data set are addresses of servers, or a file of them (service_list.py)."""
    if not isinstance(dataset, str):
        return False
    is_list = dataset.startswith("file://") and urlsplit(dataset).path.endswith(".json")
    return is_list or dataset.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def split_servers(servers: str | Sequence[str]) -> tuple[list[str], str | None]:
    """Addresses of servers, and the name of the data set that they say.

    Args:
        servers: `grpc://host:port`, each maybe with `/NAME`; several in a list, or with commas between them.

    Raises:
        UsageError: no such address, one twice, or several names.
    """
    texts = servers.split(",") if isinstance(servers, str) else list(servers)
    addresses, names = [], set()
    for text in map(str.strip, texts):
        try:
            parts = urlsplit(text)
            fits = parts.scheme in SCHEMES and parts.hostname and parts.port is not None
        except ValueError:
            parts, fits = None, False
        if (
            parts is None
            or not fits
            or parts.query
            or parts.fragment
            or parts.username
            or "/" in parts.path[1:]
        ):
            raise UsageError(
                f"data service: expected an address such as grpc://127.0.0.1:7070 or grpc+tls://host:7070/train, found "
                f"{text.rpartition('@')[2]!r:.200}"
            )
        addresses.append(f"{parts.scheme}://{parts.netloc}")
        names.add(parts.path.removeprefix("/") or None)
    if not addresses or len(set(addresses)) < len(addresses):
        raise UsageError(f"data service: expected different servers, found {', '.join(addresses) or 'none'}")
    if len(names) > 1:
        raise UsageError(
            f"data service: expected one data set on all servers, found {' and '.join(sorted(map(repr, names)))}"
        )
    return addresses, names.pop()


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:7070` or `[::1]:7070`.

    Raises:
        UsageError: neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise UsageError(f"expected an address such as 127.0.0.1:7070, found {text!r:.80}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this host can reach an address; names other than `localhost` are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
