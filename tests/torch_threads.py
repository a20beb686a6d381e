"""How many threads torch computes in."""

from contextlib import contextmanager

import pytest


@contextmanager
def torch_in_one_thread():
    """For torch, here and in the processes started here.

    Sums over threads would not be bit-identical, and tiny models are faster without them, much on a busy machine: threads
    that wait for one another do so at full speed.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            yield
    finally:
        torch.set_num_threads(before)
