"""Shared memory of the data service: used again, never while somebody reads it, and gone with its processes."""

import gc
import json
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from service_here import served
from service_processes import SMALL, assert_same_batch, assert_same_batches
from waiting import LONG_S

from softshard.loaders import Loader, RemoteLoader
from softshard.loaders.batch import Batch
from softshard.loaders.service_limits import Limits
from softshard.loaders.service_memory import Handle, SegmentStore, SharedBuffers, open_segment, read_rows
from softshard.loaders.service_wire import decode_batch, encode_batch

SHAPE = (4, 16, 16, 3)
REST_BYTES = 4 * 4096


def batch_of(images, value):
    """A batch of these images [N, S, S, 3], which all get one value."""
    images[:] = value
    num = len(images)
    return Batch(
        images=images.permute(0, 3, 1, 2),
        classes=torch.arange(num),
        levels=None,
        targets=torch.full((num, 7), float(value)),
        crops=torch.zeros(num, 4),
        flips=torch.zeros(num, dtype=torch.bool),
        keys=[f"key {i}" for i in range(num)],
        valid=torch.ones(num, dtype=torch.bool),
    )


def made(buffers, value):
    return encode_batch(batch_of(buffers.take(), value), [])


@pytest.fixture
def store():
    return SegmentStore(2**26)


@pytest.fixture
def buffers(store):
    return SharedBuffers(store, REST_BYTES, SHAPE, torch.uint8)


def address(rows):
    return rows.column(rows.schema.get_field_index("images")).buffers()[1].address


def test_images_that_were_decoded_there_are_not_copied_and_read_as_they_were(store, buffers):
    rows = made(buffers, 5)
    handle, kept = store.put(rows)
    assert address(kept) == address(rows)
    view = open_segment(handle)
    found, bad = decode_batch(read_rows(view, handle.stream))
    assert bad == []
    assert_same_batch(found, decode_batch(rows)[0])
    assert read_rows(view, handle.stream).equals(rows, check_metadata=True)


def test_images_from_elsewhere_are_copied_once(store):
    rows = encode_batch(batch_of(torch.empty(SHAPE, dtype=torch.uint8), 6), [])
    handle, kept = store.put(rows)
    assert address(kept) != address(rows)
    assert read_rows(open_segment(handle), handle.stream).equals(rows, check_metadata=True)


def test_targets_that_need_more_room_than_was_thought_get_it(store):
    rows = made(SharedBuffers(store, 64, SHAPE, torch.uint8), 7)
    handle, _ = store.put(rows)
    assert read_rows(open_segment(handle), handle.stream).equals(rows, check_metadata=True)


def test_memory_is_used_again_when_nobody_here_and_no_client_has_it(store, buffers):
    handle, rows = store.put(made(buffers, 1))
    first, num_bytes = address(rows), store.num_bytes
    view = open_segment(handle)
    del rows
    second = made(buffers, 2)  # a client has the first
    assert address(second) != first
    assert decode_batch(read_rows(view, handle.stream))[0].images.unique().tolist() == [1]
    assert store.num_bytes == 2 * num_bytes
    del view
    gc.collect()
    assert address(made(buffers, 3)) == first
    assert store.num_bytes == 2 * num_bytes


def test_who_comes_too_late_gets_nothing(store, buffers):
    handle, rows = store.put(made(buffers, 1))
    del rows
    other, rows = store.put(made(buffers, 2))
    assert other.descriptor == handle.descriptor
    assert open_segment(handle) is None
    assert open_segment(other) is not None
    assert len(rows) == 4


CLIENT = """
import json, sys
from softshard.loaders.service_memory import Handle, open_segment
view = open_segment(Handle.from_json(json.loads(sys.argv[1])))
print(bytes(view[4096:4100]).hex(), flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_lets_go(store, buffers, within):
    handle, rows = store.put(made(buffers, 9))
    first = address(rows)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps(handle.to_json())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert within(client.stdout.readline, LONG_S) == "09090909\n"
        del rows
        assert address(made(buffers, 2)) != first
    finally:
        client.kill()
        client.communicate(timeout=LONG_S)
    assert first in {address(each) for each in [made(buffers, value) for value in range(3)]}


def test_nobody_else_can_write_cut_or_map_it_for_writing(store, buffers):
    handle, rows = store.put(made(buffers, 1))
    descriptor = os.open(f"/proc/{handle.pid}/fd/{handle.descriptor}", os.O_RDWR)
    try:
        for attempt in (
            lambda: os.ftruncate(descriptor, 10),
            lambda: os.pwrite(descriptor, b"x", 5000),
            lambda: mmap.mmap(descriptor, handle.size),
        ):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(descriptor)
    assert len(rows) == 4


def test_beyond_the_budget_there_is_none_unless_something_makes_room():
    shape, kind = (3, 100, 100, 3), np.dtype(np.uint8)
    kept = []
    store = SegmentStore(250_000, lambda: bool(kept) and kept.pop() is not None)
    for _ in range(2):
        kept.append(store.array(shape, kind, 100))
    assert store.array((1000, 1000, 3), kind, 100) is None
    assert len(kept) == 2  # nothing is let go for what cannot be
    one, other, last = (store.array(shape, kind, 100) for _ in range(3))
    assert one is not None
    assert other is not None
    assert last is None
    assert kept == []
    assert store.num_bytes <= 250_000


def test_a_handle_of_something_else_is_refused(tmp_path, store, buffers):
    handle, rows = store.put(made(buffers, 1))
    with open(tmp_path / "file", "wb+") as file:
        file.write(bytes(handle.size))
        file.flush()
        assert open_segment(Handle(os.getpid(), file.fileno(), handle.size, handle.id, handle.stream)) is None
    # The right size and the right id, but memory that its owner may still cut while it is read.
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(unsealed, handle.id.encode())
    os.truncate(unsealed, handle.size)
    assert open_segment(Handle(os.getpid(), unsealed, handle.size, handle.id, handle.stream)) is None
    os.close(unsealed)
    for change in ({"id": "0" * 32}, {"size": handle.size - 1}, {"descriptor": 10**6}):
        assert open_segment(Handle(**handle.to_json() | change)) is None
    assert Handle.from_json(handle.to_json() | {"descriptor": -1}) is None
    assert Handle.from_json({"pid": 1}) is None
    assert len(rows) == 4


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("cache_bytes", [1, 2**30])
def test_batches_that_a_trainer_keeps_stay_what_they_are(packed, dtype, cache_bytes):
    options = SMALL | {"dtype": dtype, "batch_size": 4, "targets": "relabel"}
    with (
        served(packed, Limits(cache_bytes=cache_bytes)) as server,
        RemoteLoader(server.address, **options) as remote,
        Loader(packed, **options) as local,
    ):
        found = [*remote, *remote]  # kept, while the server makes others
        assert_same_batches(found, [*local, *local])
        assert remote._pool.num_in_memory > 0
