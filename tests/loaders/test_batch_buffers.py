"""Memory of batches is used again, but never while anybody sees it."""

import gc

import numpy as np
import pytest
import torch

from softshard.loaders import Augment, Loader
from softshard.loaders.batch_buffers import BatchBuffers


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_memory_comes_back_when_the_last_view_of_it_is_gone(dtype):
    buffers = BatchBuffers((2, 5, 3), dtype)
    first = buffers.take()
    address = first.data_ptr()
    assert (first.shape, first.dtype, address % 64) == ((2, 5, 3), dtype, 0)
    view = first.permute(0, 2, 1)[1:]
    array = view.numpy()
    del first, view
    gc.collect()
    assert buffers.take().data_ptr() != address
    array[...] = 7
    del array
    addresses = {buffers.take().data_ptr() for _ in range(1)}
    held = [buffers.take() for _ in range(2)]
    assert address in addresses | {tensor.data_ptr() for tensor in held}


def test_tensors_that_are_held_are_all_distinct_and_few_are_kept():
    buffers = BatchBuffers((4,), torch.float32)
    held = [buffers.take().fill_(i) for i in range(10)]
    assert [int(tensor[0]) for tensor in held] == list(range(10))
    known = {tensor.data_ptr() for tensor in held}
    del held
    again = [buffers.take() for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in again} & known) == 4


def test_memory_outlives_its_maker():
    tensor = BatchBuffers((3,), torch.float32).take().fill_(5)
    gc.collect()
    assert tensor.tolist() == [5, 5, 5]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_batches_that_are_kept_are_those_that_are_let_go(packed, dtype):
    options = {
        "batch_size": 8,
        "augment": Augment(size=16),
        "dtype": dtype,
        "num_threads": 2,
        "last_batch": "pad",
    }
    with Loader(packed, **options) as loader:
        kept = [batch.images for batch in loader]
    with Loader(packed, **options) as loader:
        for batch, images in zip(loader, kept, strict=True):
            np.testing.assert_array_equal(batch.images, images)
            del batch
