"""Batches in shared memory, for trainers on the server's own host: only a handle goes over the socket.

Images are decoded into it, so that nothing is copied; all else is written behind them when a trainer first asks.

    64 bytes     id of what is in there now; zeros where nothing is
    from 4096    images [N, S, S, 3]
    `stream`     Arrow stream of the other columns

The memory has no name (memfd_create), so that nothing is left behind: not by a server that is killed, not by a client.
A client of the same user opens it as /proc/<pid>/fd/<number>, which the kernel grants to that user alone, takes a shared
lock (flock), and finds there a number that only this server told it. It maps it copy-on-write: a training loop may write
into its batch, and no other sees that. The lock goes with the mapping, also when the client is killed.

The server uses memory again, whose pages are then there already, once nobody in it refers to the batch and no client has
a lock. A client that comes too late finds another id, and asks for the batch once more, over the socket.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import re
import resource
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..shards.errors import DataError
from .batch_buffers import BatchBuffers

_ALIGNED_BYTES = 64  # where Arrow's buffers begin
_IMAGES_AT = 4096
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEAL_FUTURE_WRITE = 0x10  # nobody but who has it mapped may write; Python has no name for it before 3.13
_APART = b"apart"
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_LEASED = 32  # segments that only clients use: beyond them, the oldest are left to their clients
_DESCRIPTORS_PER_ONE = 8  # of those that a process may have, one in so many is a segment's


@dataclass(frozen=True)
class Handle:
    """Where a batch is.

    Attributes:
        pid: of the server.
        descriptor: of the segment in that process.
        size: bytes.
        id: what stands at its beginning, hex.
        stream: where its Arrow stream begins.
    """

    pid: int
    descriptor: int
    size: int
    id: str
    stream: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Handle | None:
        """None where a server said nothing of the kind."""
        if not isinstance(content, dict) or content.keys() != {"pid", "descriptor", "size", "id", "stream"}:
            return None
        numbers = [content[name] for name in ("pid", "descriptor", "size", "stream")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            return None
        identity = content["id"]
        return cls(**content) if isinstance(identity, str) and _ID.fullmatch(identity) else None


class Segment:
    """Shared memory for one batch at a time. Let go when nobody refers to this object.

    Args:
        image_bytes: room for images.
        rest_bytes: room for all else; takes no memory as long as nothing is there.

    Raises:
        OSError: no memory, or no descriptor, is left.
    """

    def __init__(self, image_bytes: int, rest_bytes: int) -> None:
        self.image_bytes, self.rest_bytes = image_bytes, rest_bytes
        self._stream = -(-(_IMAGES_AT + image_bytes) // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self.size = self._stream + rest_bytes
        self._descriptor = os.memfd_create("softshard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, self.size)
        # Where no memory is left, that is an error here, and would end the process when it is written to.
        os.posix_fallocate(self._descriptor, 0, _IMAGES_AT + image_bytes)
        self._mapped = mmap.mmap(self._descriptor, self.size)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS & ~fcntl.F_SEAL_SEAL)
        with suppress(OSError):  # Linux before 5.1
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        self.address = np.frombuffer(self._mapped, np.uint8).ctypes.data + _IMAGES_AT
        self.handle: Handle | None = None  # once there is something to read

    def images(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Its images, whatever is there."""
        count = int(np.prod(shape))
        return np.frombuffer(self._mapped, dtype, count, _IMAGES_AT).reshape(shape)

    def publish(self, write: Callable[[pa.NativeFile], None], num_bytes: int) -> None:
        """Write what stands behind the images, of so many bytes at most, and have it read.

        Raises:
            OSError: no memory is left.
        """
        os.posix_fallocate(self._descriptor, self._stream, num_bytes)
        with pa.FixedSizeBufferWriter(pa.py_buffer(memoryview(self._mapped)[self._stream :])) as file:
            write(file)
        identity = secrets.token_hex(16)
        self._mapped[: len(identity)] = identity.encode()
        self.handle = Handle(os.getpid(), self._descriptor, self.size, identity, self._stream)

    def clear(self) -> bool:
        """Have it read by nobody; False where a client does now."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Who comes from here on finds no id, and lets go.
        self._mapped[:_ALIGNED_BYTES] = bytes(_ALIGNED_BYTES)
        self.handle = None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True


def open_segment(handle: Handle) -> memoryview | None:
    """A segment, mapped copy-on-write and locked as long as this or a part of it is there.

    None where it is not there, or holds something else than what was meant.
    """
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
        if found.st_uid != os.geteuid() or found.st_size != handle.size or handle.stream > handle.size:
            return None
        # The lock is that of the open file, which the mapping keeps.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    view = memoryview(mapped)
    # After the lock: what is there now stays.
    if not secrets.compare_digest(bytes(view[: len(handle.id)]), handle.id.encode()):
        return None
    return view


class HostProof:
    """A secret that only processes of this host and user can read: who knows it is given handles."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(32)
        self._segment: Segment | None = Segment(0, len(self._secret))
        self._segment.publish(lambda file: file.write(self._secret.encode()), len(self._secret))
        assert self._segment.handle is not None
        self.handle = self._segment.handle

    def is_known(self, secret: str) -> bool:
        """Whether a client has read it; in constant time."""
        return secrets.compare_digest(secret.encode(), self._secret.encode())

    def close(self) -> None:
        self._segment = None


def read_proof(handle: Handle | None) -> str:
    """The secret of a server on this host; empty where it is on another, or another user's."""
    view = None if handle is None else open_segment(handle)
    return "" if view is None or handle is None else bytes(view[handle.stream :]).decode("ascii", "replace")


class SegmentStore:
    """Gives out segments, within a budget, and takes them back. For several threads.

    Args:
        max_bytes: that all segments have together.
        make_room: asked when they do: lets go something that uses one; False where there is nothing.
    """

    def __init__(self, max_bytes: int, make_room: Callable[[], bool] = lambda: False) -> None:
        self.max_bytes, self._make_room = max_bytes, make_room
        self._lock = threading.Lock()
        self._used: dict[int, Segment] = {}  # by the address of the images
        # Whose last array is gone, in whatever thread: they are looked at when one is wanted.
        self._returned: deque[Segment] = deque()
        self._unused: deque[Segment] = deque()  # by this process; some by clients
        self._bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of all segments now, used or not."""
        return self._bytes

    def array(self, shape: tuple[int, ...], dtype: np.dtype, rest_bytes: int) -> np.ndarray | None:
        """Room for images in a segment, which is used until this array is gone and all that share its memory.

        None where the budget is spent or no memory is left.
        """
        image_bytes = int(np.prod(shape)) * dtype.itemsize
        while (segment := self._take(image_bytes, rest_bytes)) is None:
            if image_bytes + rest_bytes > self.max_bytes or not self._make_room():
                return None
        seen = segment.images(shape, dtype)
        weakref.finalize(seen, self._returned.append, segment).atexit = False
        return seen

    def _take(self, image_bytes: int, rest_bytes: int) -> Segment | None:
        with self._lock:
            self._take_back()
            for _ in range(len(self._unused)):
                segment = self._unused.popleft()
                if (segment.image_bytes, segment.rest_bytes) == (image_bytes, rest_bytes) and segment.clear():
                    break
                self._unused.append(segment)
            else:
                if (segment := self._new(image_bytes, rest_bytes)) is None:
                    return None
            self._used[segment.address] = segment
            return segment

    def _take_back(self) -> None:
        while self._returned:
            segment = self._returned.popleft()
            del self._used[segment.address]
            self._unused.append(segment)
        while len(self._unused) > _MOST_LEASED:
            self._drop_one()

    def _drop_one(self) -> None:
        self._bytes -= self._unused.popleft().size

    def _new(self, image_bytes: int, rest_bytes: int) -> Segment | None:
        def has_room() -> bool:
            fits = self._bytes + image_bytes + rest_bytes + 2 * _IMAGES_AT <= self.max_bytes
            return fits and len(self._used) + len(self._unused) < _most_segments()

        while self._unused and not has_room():
            self._drop_one()
        if not has_room():
            return None
        try:
            segment = Segment(image_bytes, rest_bytes)
        except OSError:
            return None
        self._bytes += segment.size
        return segment

    def put(self, rows: pa.RecordBatch) -> tuple[Handle, pa.RecordBatch] | None:
        """A batch where clients can read it, and its rows there, as long as which it is there.

        Args:
            rows: of `encode_batch`; images that lie in a segment already are not copied.

        Returns:
            None where the budget is spent or no memory is left.
        """
        column = rows.schema.get_field_index("images")
        images, rest = rows.column(column), _without(rows, column)
        num_bytes = pa.ipc.get_record_batch_size(rest) + rest.schema.serialize().size + 4 * _ALIGNED_BYTES
        segment = self._used.get(images.buffers()[1].address)
        if segment is None or segment.handle is not None or segment.rest_bytes < num_bytes:
            source = np.frombuffer(images.buffers()[1], np.uint8)
            copy = self.array(source.shape, source.dtype, num_bytes)
            if copy is None:
                return None
            np.copyto(copy, source)
            segment = self._used[copy.ctypes.data]
            rows = _with(rest, column, rows.schema.field(column), pa.py_buffer(copy))

        def write(file: pa.NativeFile) -> None:
            with pa.ipc.new_stream(file, rest.schema) as stream:
                stream.write_batch(rest)

        try:
            segment.publish(write, num_bytes)
        except OSError:
            return None
        assert segment.handle is not None
        return segment.handle, rows


class SharedBuffers:
    """Memory for a decoder's images in segments, so that batches are where clients read them; see BatchBuffers.

    Args:
        store: of the segments; where it has none to give, images lie elsewhere.
        rest_bytes: that a batch has beside its images, at most.
        shape: of every tensor.
        dtype: of `decode.DTYPES`.
    """

    def __init__(
        self, store: SegmentStore, rest_bytes: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._store, self._rest_bytes, self._shape = store, rest_bytes, shape
        self._dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._plain = BatchBuffers(shape, dtype)

    def take(self) -> torch.Tensor:
        """A tensor that nobody else sees."""
        memory = self._store.array(self._shape, self._dtype, self._rest_bytes)
        return self._plain.take() if memory is None else torch.from_numpy(memory)


def _most_segments() -> int:
    """That a process may have: two descriptors each, and sockets and shards want some, too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**16 if limit == resource.RLIM_INFINITY else max(8, limit // (2 * _DESCRIPTORS_PER_ONE))


def read_rows(view: memoryview, stream: int) -> pa.RecordBatch:
    """The rows in a segment; they hold its memory.

    Raises:
        DataError: something else is there.
    """
    try:
        rest = pa.ipc.open_stream(pa.py_buffer(view[stream:])).read_next_batch()
        column, field = json.loads(rest.schema.metadata[_APART])
        kind = pa.binary(field["row_bytes"])
        whole = pa.field("images", kind, metadata=field["metadata"])
        images = pa.py_buffer(view[_IMAGES_AT : _IMAGES_AT + len(rest) * field["row_bytes"]])
        return _with(rest, column, whole, images)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        StopIteration,
        OSError,  # Arrow's, of a damaged stream
        pa.ArrowException,
    ) as error:
        raise DataError(
            f"data service: expected a batch in shared memory, found other bytes: {error!r:.200}. Install the same "
            "softshard on servers and trainers"
        ) from error


def _without(rows: pa.RecordBatch, column: int) -> pa.RecordBatch:
    """All other columns; the metadata says what is missing."""
    field = rows.schema.field(column)
    said = {name.decode(): value.decode() for name, value in (field.metadata or {}).items()}
    apart = json.dumps([column, {"row_bytes": field.type.byte_width, "metadata": said}])
    return rows.remove_column(column).replace_schema_metadata(
        {**(rows.schema.metadata or {}), _APART: apart.encode()}
    )


def _with(rest: pa.RecordBatch, column: int, field: pa.Field, buffer: pa.Buffer) -> pa.RecordBatch:
    """The opposite."""
    images = pa.FixedSizeBinaryArray.from_buffers(field.type, len(rest), [None, buffer])
    metadata = {name: value for name, value in rest.schema.metadata.items() if name != _APART}
    return rest.add_column(column, field, images).replace_schema_metadata(metadata)
