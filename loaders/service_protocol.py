"""What servers and clients of the data service say to each other; see SERVICE.md, which specifies it.

Arrow Flight over gRPC carries everything:

    action hello            who the server is, what it serves, its pixel stack, and a proof of the same host
    action open             a recipe, as data -> what a loader with these options must know
    action count-classes    how often each class is drawn
    action vocabulary       what tags mean
    DoGet                   a ticket (recipe, epoch, taken, rank) -> one batch: Arrow rows, or a handle of shared memory

Requests are JSON objects of known fields; nothing in them names a path or a URL, or is run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..shards.errors import DataError, SoftshardError, StallError, StorageError, UsageError

PROTOCOL = 1
CLIENT_HEADER = "softshard-client"  # a number that a client drew for itself, in hex
TOKEN_HEADER = "authorization"

HELLO, OPEN, COUNT_CLASSES, VOCABULARY = "hello", "open", "count-classes", "vocabulary"
ACTIONS = (HELLO, OPEN, COUNT_CLASSES, VOCABULARY)

POOLING = "pooling"  # in a stack: what pools label maps
MAX_TICKET_BYTES = 4096
_MAX_EPOCH = 2**32
_MAX_TAKEN = 2**62
_MAX_CODE, _MAX_MESSAGE, _MAX_RETRY_S = 40, 4000, 60.0  # of a refusal

# What a refusal may be about, and what the client does then.
BUSY = "busy"  # asks again later, or another server
DRAINING = "draining"  # asks another server
UNKNOWN_RECIPE = "unknown-recipe"  # opens it once more: the server was started anew, or forgot it
REFUSED = "refused"  # a wrong token: another try would be as wrong
USAGE = "usage"  # UsageError
DATA = "data"  # DataError
STORAGE = "storage"  # StorageError: another server may reach it
INTERNAL = "internal"  # a bug there; its log says which
_ERRORS: dict[str, type[SoftshardError]] = {
    USAGE: UsageError,
    REFUSED: UsageError,
    DATA: DataError,
    STORAGE: StorageError,
}


class ServiceError(StallError):
    """No server gave what was asked for in the time that was allowed; every server's last error is named."""


@dataclass(eq=False)  # not frozen: Python sets an exception's traceback
class Refusal(Exception):
    """A server's answer that is not what was asked for.

    Attributes:
        code: one of the words above.
        message: for a person.
        retry_s: seconds after which asking again may help.
    """

    code: str
    message: str
    retry_s: float = 0.0

    def __str__(self) -> str:
        return self.message

    def to_bytes(self) -> bytes:
        """As the extra information of a Flight error."""
        return json.dumps({"code": self.code, "message": self.message, "retry_s": self.retry_s}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Refusal | None:
        """None where a server said something else. It cannot say much, nor send anybody away for long."""
        try:
            found = json.loads(content)
            retry_s = float(found["retry_s"])
            code, message = str(found["code"])[:_MAX_CODE], str(found["message"])[:_MAX_MESSAGE]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return cls(code, message, min(max(retry_s, 0.0), _MAX_RETRY_S) if math.isfinite(retry_s) else 0.0)

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """What an error of softshard's becomes on the wire."""
        for code in (STORAGE, DATA, USAGE):  # a StorageError is a DataError, too
            if isinstance(error, _ERRORS[code]):
                return cls(code, str(error))
        raise TypeError(f"expected an error of softshard's, found {error!r}")

    def to_error(self, where: str = "") -> SoftshardError:
        """The same, raised by a client; names the server where one is given."""
        return _ERRORS.get(self.code, ServiceError)(f"{where}: {self.message}" if where else self.message)


@dataclass(frozen=True)
class Ticket:
    """Which batch is asked for. Together with the recipe it decides every byte of it.

    Attributes:
        recipe: fingerprint of the options; see BatchRecipe.
        epoch: number of the epoch.
        taken: draws that every lane has given before.
        rank: of the trainer's process.
        memory: what proves that the client is on the server's host; empty for the batch itself over the socket.
    """

    recipe: str
    epoch: int
    taken: int
    rank: int
    memory: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Ticket:
        """Read and check a client's ticket.

        Raises:
            UsageError: it is none.
        """
        found = read_object(content, MAX_TICKET_BYTES, "ticket")
        if found.keys() != {"recipe", "epoch", "taken", "rank", "memory"}:
            raise UsageError(
                f"ticket: expected recipe, epoch, taken, rank and memory, found {sorted(found)!r:.200}"
            )
        for name, limit in (("epoch", _MAX_EPOCH), ("taken", _MAX_TAKEN), ("rank", _MAX_EPOCH)):
            if type(found[name]) is not int or not 0 <= found[name] < limit:
                raise UsageError(f"ticket: expected {name} from 0 to {limit - 1}, found {found[name]!r:.80}")
        for name in ("recipe", "memory"):
            if not (isinstance(found[name], str) and found[name].isascii()):
                raise UsageError(f"ticket: expected {name} as text of ASCII, found {found[name]!r:.80}")
        return cls(**found)


def read_object(content: bytes, most_bytes: int, where: str) -> dict[str, Any]:
    """Parse a request that is a JSON object of at most so many bytes.

    Raises:
        UsageError: it is larger, or none.
    """
    if len(content) > most_bytes:
        raise UsageError(f"{where}: expected at most {most_bytes:,} bytes, found {len(content):,}")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a JSON object, found {bytes(content[:40])!r}")
    return found


def check_protocol(theirs: Any, where: str) -> None:
    """Refuse another version of the protocol.

    Raises:
        UsageError: with both.
    """
    if theirs != PROTOCOL:
        raise UsageError(
            f"{where}: expected protocol {PROTOCOL} of the data service, which softshard {version('softshard')} speaks, "
            f"found {theirs!r:.40}. Install the same softshard on servers and trainers"
        )


def decode_stack(device_type: str) -> dict[str, str]:
    """Versions of everything that decides a batch's pixels; with another stack they may be others.

    Args:
        device_type: `cpu` or `cuda`, which decodes.

    Returns:
        Versions by name; `pooling` decides only the targets of recipes that pool label maps.
    """
    import cv2
    import numpy as np
    import nvidia.dali
    import torch

    from .pooling_compiled import pooling_engine
    from .resize import FILTER

    return {
        "softshard": version("softshard"),
        "decoder": device_type,
        "filter": FILTER,
        "dali": nvidia.dali.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__.partition("+")[0],
        POOLING: pooling_engine(),
    }


def check_stack(expected: dict[str, str], found: dict[str, str], where: str) -> None:
    """Refuse a server whose pixels, or pooled targets, may be others than this client's.

    Args:
        expected: this client's stack, without `pooling` where it pools nothing.
        found: the server's.
        where: the server.

    Raises:
        UsageError: naming every version that differs, with both values.
    """
    compared = {*expected, *found} - ({POOLING} - expected.keys())
    names = [name for name in sorted(compared) if expected.get(name) != found.get(name)]
    if names:
        parts = ", ".join(
            f"{name} {expected.get(name, 'none')} here and {found.get(name, 'none')} there" for name in names
        )
        raise UsageError(
            f"{where}: expected this trainer's pixel stack, found another: {parts}. Install the same versions on both sides"
        )
