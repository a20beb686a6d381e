"""Batches in shared memory, for trainers on the server's own host: only a handle goes over the socket.

The memory has no name (memfd_create), so that nothing is left behind: not by a server that is killed, not by a client.
A client of the same user opens it as /proc/<pid>/fd/<number>, which the kernel grants to that user alone, and finds there
a number that only this server told it. What it has mapped stays its own, whatever the server does with its copy
afterwards; where the server has let the memory go before, the client asks for the batch once more, over the socket.

    server  memfd of the Arrow stream, sealed: nobody can change or cut it, not even the server
    client  mapped copy-on-write: a training loop may write into its batch, and no other sees that
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

_MARK_BYTES = 64  # before the stream: its id, then zeros, so that Arrow's buffers begin where they should
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class Handle:
    """Where a segment is.

    Attributes:
        pid: of the server.
        descriptor: of the segment in that process.
        size: bytes.
        id: what stands at its beginning, hex.
    """

    pid: int
    descriptor: int
    size: int
    id: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Handle | None:
        """None where a server said nothing of the kind."""
        if not isinstance(content, dict) or content.keys() != {"pid", "descriptor", "size", "id"}:
            return None
        numbers = [content[name] for name in ("pid", "descriptor", "size")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            return None
        return cls(**content) if isinstance(content["id"], str) and len(content["id"]) == 32 else None


class Segment:
    """Sealed memory with an id and some bytes. Let go when nobody refers to this object."""

    def __init__(self, write: Any) -> None:
        self._descriptor = os.memfd_create("softshard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        identity = secrets.token_hex(16)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(identity.encode().ljust(_MARK_BYTES, b"\0"))
            write(file)
            self.size = file.tell()
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self.handle = Handle(os.getpid(), self._descriptor, self.size, identity)

    def close(self) -> None:
        """Let the memory go; who has mapped it keeps it."""
        self._close()


def open_segment(handle: Handle) -> memoryview | None:
    """What a segment holds, mapped copy-on-write; None where it is not there, or is not the one that was meant."""
    try:
        descriptor = os.open(
            f"/proc/{handle.pid}/fd/{handle.descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )
    except OSError:
        return None
    try:
        # Sealed before it is mapped: memory that somebody could cut would end this process when it is read.
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            return None
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_size != handle.size or found.st_size <= _MARK_BYTES:
            return None
        mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    view = memoryview(mapped)
    if not secrets.compare_digest(bytes(view[: len(handle.id)]), handle.id.encode()):
        return None
    return view[_MARK_BYTES:]


class HostProof:
    """A secret that only processes of this host and user can read: who knows it is given handles."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(32)
        self._segment = Segment(lambda file: file.write(self._secret.encode()))

    @property
    def handle(self) -> Handle:
        return self._segment.handle

    def is_known(self, secret: str) -> bool:
        """Whether a client has read it; in constant time."""
        return secrets.compare_digest(secret.encode(), self._secret.encode())

    def close(self) -> None:
        self._segment.close()


def read_proof(handle: Handle | None) -> str:
    """The secret of a server on this host; empty where it is on another, or another user's."""
    view = None if handle is None else open_segment(handle)
    return "" if view is None else bytes(view).decode("ascii", "replace")


class SegmentStore:
    """Makes segments of batches, within a budget.

    Args:
        max_bytes: that all segments have together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of all segments now."""
        return self._bytes

    def put(self, rows: pa.RecordBatch) -> Segment | None:
        """A segment with an Arrow stream of these rows; None where the budget is spent or no memory is left."""
        size = pa.ipc.get_record_batch_size(rows) + rows.schema.serialize().size + 4 * _MARK_BYTES
        with self._lock:
            if self._bytes + size > self.max_bytes:
                return None
            self._bytes += size

        def write(file: Any) -> None:
            with pa.ipc.new_stream(file, rows.schema) as stream:
                stream.write_batch(rows)

        try:
            segment = Segment(write)
        except OSError:
            self._forget(size)
            return None
        except BaseException:
            self._forget(size)
            raise
        weakref.finalize(segment, self._forget, size)
        return segment

    def _forget(self, size: int) -> None:
        with self._lock:
            self._bytes -= size


def read_rows(view: memoryview) -> pa.RecordBatch:
    """The rows in a segment; they hold its memory."""
    return pa.ipc.open_stream(pa.py_buffer(view)).read_next_batch()
