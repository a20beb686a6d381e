"""What is fetched from one epoch to the next, and what is left of it: threads, open files, a cache that goes on."""

import gc
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from cached_sets import (
    OPTIONS,
    cached,
    change_byte,
    epoch,
    fetching_threads,
    keys_of,
    open_files,
    shard_bytes,
)
from reading_processes import read_in_two, read_through_a_cache, reading
from service_processes import assert_same_batches
from waiting import LONG_S, wait_until

from softshard.loaders import Loader
from softshard.loaders.data_set import open_data_set
from softshard.loaders.whole_shards import in_order
from softshard.shards import DataError, UsageError


def small_cache(cache, packed, num_shards, **options):
    return replace(cache, max_bytes=num_shards * max(shard_bytes(packed)), **options)


def test_the_next_epochs_shards_are_fetched_before_this_one_has_ended(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=1)
    with Loader(memory(packed), cache=few, **OPTIONS) as loader:
        list(loader)
        wait_until(lambda: loader.fetch_stats().shards_fetched > len(shard_bytes(packed)))
        before = loader.fetch_stats()
        assert next(iter(loader)).keys == epoch(packed, 1)[0].keys
        assert loader.fetch_stats().fetched_in_vain == 0
    assert before.shards_fetched <= len(shard_bytes(packed)) + 2 + 2  # a step's own, and `ahead`


def test_epochs_that_follow_each_other_fetch_each_shard_once(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=2)
    num_epochs = 3
    with Loader(memory(packed), cache=few, num_epochs=num_epochs, **OPTIONS) as loader:
        for number in range(num_epochs):
            assert keys_of(loader) == keys_of(epoch(packed, number))
            assert loader.epoch == number + 1
        assert fetching_threads() == []  # nothing follows the last one
        stats = loader.fetch_stats()
    num_bytes = sum(path.stat().st_size for path in packed.glob("train-*"))
    assert stats.fetched_again == stats.fetched_in_vain == 0
    assert stats.bytes_fetched <= 1.05 * num_epochs * num_bytes


def test_after_a_full_disk_shards_are_fetched_ahead_again_in_the_next_epoch(memory, packed, cache):
    with Loader(memory(packed), cache=replace(cache, ahead=2, num_fetchers=1), **OPTIONS) as loader:
        batches = iter(loader)
        next(batches)
        fetching = loader._maker.reader.shards._files[0]._run
        with fetching._changed:
            assert fetching._shrink()  # as where a batch's shard finds no room
        assert len(list(batches)) == len(loader) - 1
        assert fetching._ahead == 0
        for _ in loader:
            wait_until(lambda: set(fetching._open) - fetching._now)
            break


def test_an_epoch_that_does_not_follow_costs_what_was_fetched_for_the_other_one(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=1)
    with Loader(memory(packed), cache=few, **OPTIONS) as loader:
        list(loader)
        wait_until(lambda: loader.fetch_stats().shards_fetched > len(shard_bytes(packed)))
        loader.set_epoch(7)
        assert keys_of(loader) == keys_of(epoch(packed, 7))
        assert 1 <= loader.fetch_stats().fetched_in_vain <= 4
        state = loader.state_dict()
        loader.load_state_dict({**state, "epoch": 2, "taken": 24})
        assert keys_of(loader) == keys_of(epoch(packed, 2))[3:]
        assert keys_of(loader) == keys_of(epoch(packed, 3))


def test_between_two_epochs_a_loader_that_is_closed_or_forgotten_leaves_nothing(
    memory, packed, cache, remaining_threads
):
    url = memory(packed)
    loader = Loader(url, cache=cache, **OPTIONS)
    list(loader)
    assert len(fetching_threads()) == cache.num_fetchers
    loader.close()
    assert fetching_threads() == []
    assert open_files(cache) == []
    loader = Loader(url, cache=cache, **OPTIONS)
    list(loader)
    assert fetching_threads()
    del loader
    gc.collect()
    assert remaining_threads() == []
    gc.collect()
    assert open_files(cache) == []


# ---- Caches that are too small


def test_a_cache_that_cannot_hold_one_batchs_shards_is_refused(memory, packed, cache):
    small = replace(cache, max_bytes=max(shard_bytes(packed)) + 1)
    with Loader(memory(packed), cache=small, **{**OPTIONS, "window": 60}) as loader:
        with pytest.raises(
            UsageError, match=r"cache: expected room for the \d shards of one batch, .* or batch"
        ):
            next(iter(loader))
        assert fetching_threads() == []


def test_a_cache_that_is_smaller_than_the_window_serves_all_and_warns(memory, packed, cache):
    small = replace(cache, max_bytes=3 * max(shard_bytes(packed)))
    options = {"batch_size": 2, "window": 105}
    with Loader(memory(packed), cache=small, **{**OPTIONS, **options}) as loader:
        with pytest.warns(UserWarning, match="fetched again in the same epoch; .* too small for the shuffle"):
            assert_same_batches(loader, epoch(packed, **options))
        stats = loader.fetch_stats()
    assert stats.fetched_again > 0
    assert stats.shards_fetched == len(shard_bytes(packed)) + stats.fetched_again


# ---- Threads, files, processes


def test_close_ends_the_threads_and_lets_the_files_go(memory, packed, cache):
    loader = Loader(memory(packed), cache=cache, **OPTIONS)
    iterator = iter(loader)
    next(iterator)
    assert len(fetching_threads()) == cache.num_fetchers
    assert open_files(cache)
    loader.close()
    assert fetching_threads() == []
    del iterator
    assert open_files(cache) == []


def test_breaking_off_lets_the_files_go(memory, packed, cache):
    with Loader(memory(packed), cache=cache, **OPTIONS) as loader:
        for _ in loader:
            break
        assert fetching_threads() == []
        assert open_files(cache) == []


def test_a_forgotten_loader_leaves_nothing(memory, packed, cache, remaining_threads):
    iterator = iter(Loader(memory(packed), cache=cache, **OPTIONS))
    next(iterator)
    del iterator
    gc.collect()
    assert remaining_threads() == []
    assert open_files(cache) == []


def test_an_error_that_was_dealt_with_keeps_nothing(copied, memory, cache):
    change_byte(copied / "train-000003.tar")
    loader = Loader(memory(copied), cache=cache, shuffle=False, **OPTIONS)
    with pytest.raises(DataError, match="expected SHA-256"):
        list(loader)
    assert fetching_threads() == []
    gc.collect()
    assert open_files(cache) == []
    loader.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_are_forked_and_spawned_read_too(packed, serve_spoiled, cache, method):
    url, requests = serve_spoiled(packed)
    with Loader(url, cache=cache, **OPTIONS) as loader:  # this process has an event loop, and threads
        next(iter(loader))
    before = sum(name.endswith(".tar") for name, _ in requests)
    with reading(read_in_two, method, url, cache.path) as (_, (found, codes)):
        assert codes == [0, 0]
        for rank in (0, 1):
            options = {**OPTIONS, "batch_size": 4, "rank": rank, "world_size": 2}
            with Loader(packed, **options) as local:
                assert found[rank] == [batch.keys for batch in local]
    # One of the two downloads a shard, the other waits for it.
    assert sum(name.endswith(".tar") for name, _ in requests) == len(shard_bytes(packed)) >= before


def test_a_killed_process_leaves_a_cache_that_goes_on(packed, serve_spoiled, cache):
    """SIGKILL in the middle of downloads, several times; then an epoch is whole."""
    slow = threading.Event()

    def spoil(name, start, answer):
        if name.endswith(".tar") and not slow.is_set():
            slow.wait(0.2)
        return answer

    url, _ = serve_spoiled(packed, spoil)
    for _ in range(2):
        with reading(read_through_a_cache, url, cache.path) as (process, _):
            process.kill()
    slow.set()
    assert_same_batches(epoch(url, cache=cache), epoch(packed))
    assert cached(cache, "*.tar.part") == []  # an index of which half was written goes later


STORAGE = """
import sys, threading, time
import fsspec
from fsspec.implementations.local import LocalFileSystem
from softshard.loaders import Cache, Faults, Loader, ahead

class Storage(LocalFileSystem):
    protocol = "dead"
    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("dead://", ""))
    def cat_file(self, path, **options):
        if path.endswith(".tar"):
            answer(path)
        return super().cat_file(path, **options)

fsspec.register_implementation("dead", Storage)
"""
DEAD = """
answer = lambda path: threading.Event().wait()
ahead._JOIN_PATIENCE_S = 0.5
with Loader("dead://" + sys.argv[1], batch_size=8, cache=Cache(sys.argv[2]), faults=Faults(give_up_s=1.5)) as loader:
    list(loader)
"""


def test_a_process_ends_although_a_storage_without_time_outs_is_dead(packed, cache):
    command = [sys.executable, "-c", STORAGE + DEAD, str(packed), str(cache.path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert run.returncode == 1
    assert "StallError: loader: expected a batch within" in run.stderr
    assert re.search(
        r"threads that fetch shards hang, and are left to themselves: train-\d+\.tar.*\. Whoever else needs",
        run.stderr,
    )


SLOW = """
seen, under_way = set(), set()

def answer(path):
    if path in seen:  # in a later epoch
        under_way.add(path)
        time.sleep(0.2)
        under_way.discard(path)
    seen.add(path)

def main():
    cache = Cache(sys.argv[2], max_bytes=int(sys.argv[3]), ahead=2, num_fetchers=2)
    loader = Loader("dead://" + sys.argv[1], batch_size=8, window=16, cache=cache)
    for _ in range(10):  # what comes next may still be in the cache
        list(loader)
        if under_way:
            return
    sys.exit("expected a shard that is fetched between two epochs, found none in ten")

main()
"""


def test_a_process_that_ends_between_two_epochs_leaves_no_unfinished_shard(packed, cache):
    """The loader is gone with the function that made it; the shards of the next epoch are being fetched."""
    max_bytes = 4 * max(shard_bytes(packed))
    command = [sys.executable, "-c", STORAGE + SLOW, str(packed), str(cache.path), str(max_bytes)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert run.returncode == 0, run.stderr
    assert cached(cache)
    assert cached(cache, "*.part") == []


def test_a_shard_is_let_go_when_the_next_one_comes_whatever_waits_in_the_threads(packed, memory, cache):
    shards, num = open_data_set(memory(packed), cache).shards, len(shard_bytes(packed))
    opened = in_order(shards, range(num))
    for _ in range(num):
        next(opened)
    wait_until(lambda: len(open_files(cache)) == 1)
    opened.close()
    assert fetching_threads() == open_files(cache) == []


def test_where_no_more_threads_can_be_started_those_that_were_end(
    packed, memory, cache, monkeypatch, remaining_threads
):
    start = threading.Thread.start

    def start_three(thread):
        if thread.name == "softshard-fetch-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with Loader(memory(packed), cache=cache, **OPTIONS) as loader:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            list(loader)
        wait_until(lambda: fetching_threads() == [])
    assert remaining_threads() == []
