"""Processes that read a data set, forked from one that has imported everything: that is most of what a start costs."""

import multiprocessing
import os
import signal
from contextlib import contextmanager

import fsspec
from service_processes import FORKS
from waiting import LONG_S

from softshard.loaders import Augment, Cache, Connection, Loader, RemoteLoader

OPTIONS = {"batch_size": 4, "augment": Augment(size=16), "dtype": "uint8", "num_threads": 1, "window": 16}
EPOCH = OPTIONS | {"window": 4}  # three or four shards in use


@contextmanager
def reading(read, *arguments):
    """A process that has begun to read: it has said something; killed at the end."""
    heard, said = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=read, args=(*arguments, said))
    process.start()
    said.close()
    try:
        with heard:
            assert heard.poll(LONG_S)
            yield process, heard.recv()  # EOFError where it ended without a word
    finally:
        process.kill()
        process.join(LONG_S)


def read_from_servers(url, said):
    """A batch, and no more."""
    with RemoteLoader(url, **OPTIONS) as loader:
        batches = iter(loader)
        said.send(next(batches).keys)
        signal.pause()


def read_on_when_woken(url, said):
    """A batch; and the others once this process goes on after it has stopped itself."""
    connection = Connection(request_s=1, deadline_s=5)
    with RemoteLoader(url, connection=connection, **OPTIONS) as loader:
        batches = iter(loader)
        said.send(next(batches).keys)
        os.kill(os.getpid(), signal.SIGSTOP)
        assert len(list(batches)) == len(loader) - 1


def read_through_a_cache(url, folder, said):
    """An epoch, in which shards are still fetched when the first batch is there."""
    with Loader(url, cache=Cache(folder=folder, num_fetchers=2), **OPTIONS) as loader:
        for batch in loader:
            said.send(batch.keys)


def read_an_epoch(url, folder, max_bytes, seed, said):
    """The keys of an epoch's batches, and what was fetched for them."""
    cache = Cache(folder=folder, max_bytes=max_bytes, ahead=2, num_fetchers=2)
    with Loader(url, cache=cache, seed=seed, **EPOCH) as loader:
        keys = [batch.keys for batch in loader]
    said.send((keys, loader.fetch_stats()))


def read_in_two(method, url, folder, said):
    """The keys of every batch of two ranks, each of which is a process that this one starts; and how they ended."""
    fsspec.filesystem("http").exists(url)  # this process has an event loop
    context = multiprocessing.get_context(method)
    out = context.Queue()
    processes = [context.Process(target=_read_rank, args=(url, folder, rank, out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        keys = dict(out.get(timeout=LONG_S) for _ in processes)
        for process in processes:
            process.join(LONG_S)
        said.send((keys, [process.exitcode for process in processes]))
    finally:
        for process in processes:
            process.kill()


def _read_rank(url, folder, rank, out):
    with Loader(url, cache=Cache(folder=folder), rank=rank, world_size=2, **OPTIONS) as loader:
        out.put((rank, [batch.keys for batch in loader]))
