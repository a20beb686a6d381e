"""Threads that keep torch's operations to themselves: threads of torch's own would fight those that decode."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_setting_threads = threading.Lock()


def one_thread_each(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch's operations run on that thread alone.

    Args:
        num_threads: all of them begin here and now: torch's setting is the process's own again when this returns.
        name: of the threads.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_use_one_thread)
    started = threading.Barrier(num_threads)
    wait([pool.submit(started.wait) for _ in range(num_threads)])
    return pool


def _use_one_thread() -> None:
    """Torch's setting is the calling thread's and, besides, what threads begin with later on.

    The second is given back, by a thread that ends.
    """
    with _setting_threads:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(others,))
        restore.start()
        restore.join()
