"""The cache's folder: one budget, pins and downloads for all processes of a host, whatever becomes of them."""

import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from reading_processes import EPOCH, read_an_epoch, reading
from waiting import LONG_S, status_of, wait_until

from softshard.loaders import Cache, Loader
from softshard.loaders.cache import CacheFolder, Stopped
from softshard.loaders.fetch_stats import FetchCounters
from softshard.shards import DataError, Manifest, UsageError

NEVER = threading.Event()


@pytest.fixture
def counters():
    return FetchCounters()


@pytest.fixture
def folder(tmp_path, counters):
    """A function: the cache's folder, seen by one more process."""
    return lambda max_bytes=1000: CacheFolder(Cache(folder=tmp_path / "cache", max_bytes=max_bytes), counters)


def put(folder, name, num_bytes=400, urgent=False, stopped=NEVER, looks=None):
    """Fetch a file of as many bytes; a descriptor, which pins it. `looks` grows whenever it looks whether it can be had."""

    def fill(descriptor):
        os.pwrite(descriptor, name.encode()[:1] * num_bytes, 0)

    def wanted():
        if looks is not None:
            looks.append(name)
        return True

    return folder.fetch(name, num_bytes, fill, urgent=lambda: urgent, wanted=wanted, stopped=stopped)


@contextmanager
def waits_to_put(folder, name, num_bytes=400, **options):
    """Another thread, which has looked for a file and cannot have it; gives what becomes of it, once the body has ended."""
    looks, outcome = [], []

    def fetch():
        try:
            outcome.append(put(folder, name, num_bytes, looks=looks, **options))
        except Stopped as error:
            outcome.append(error)

    thread = threading.Thread(target=fetch, daemon=True)  # where the test fails, it waits for ever
    thread.start()
    wait_until(lambda: len(looks) > 2)
    assert outcome == []
    yield outcome
    thread.join(LONG_S)


def names(folder):
    return sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock")


def put_old(folder, name, age_s, num_bytes=400):
    os.close(put(folder, name, num_bytes))
    path = folder.folder / name
    os.utime(path, (time.time() - age_s,) * 2)


# ---- Budget and eviction


def test_what_was_used_least_recently_goes_first(folder, counters):
    cache = folder()
    put_old(cache, "a.tar", 100)
    put_old(cache, "b.tar", 200)
    os.close(put(cache, "c.tar"))
    assert names(cache) == ["a.tar", "c.tar"]
    assert counters.stats().evictions == 1
    os.utime(cache.folder / "c.tar", (time.time() - 300,) * 2)
    os.close(cache.open("c.tar", 400))  # a use
    os.close(put(cache, "d.tar"))
    assert names(cache) == ["c.tar", "d.tar"]


def test_a_file_goes_with_its_index(folder):
    cache = folder()
    put_old(cache, "a.tar", 100, 900)
    cache.write("a.idx", b"index")
    os.close(put(cache, "b.tar", 900))
    assert names(cache) == ["b.tar"]


def test_what_is_left_over_goes_in_the_end(folder):
    cache = folder()
    cache.write("gone.idx", b"x" * 400)  # its shard is not there
    (cache.folder / "new.idx.abcd.part").write_bytes(b"x" * 100)  # being written
    for name, last_use in (("old", 1), ("ahead", time.time() + 10**6)):  # the clock was wrong
        part = cache.folder / f"{name}.idx.abcd.part"
        part.write_bytes(b"x" * 100)
        os.utime(part, (last_use, last_use))
    os.close(put(cache, "a.tar", 900, urgent=True))
    assert names(cache) == ["a.tar", "new.idx.abcd.part"]


def test_a_cache_that_is_emptied_during_a_download_is_filled_again(folder):
    cache, fills = folder(), []

    def fill(descriptor):
        os.pwrite(descriptor, b"x" * 400, 0)
        fills.append(descriptor)
        if len(fills) == 1:
            shutil.rmtree(cache.folder)

    os.close(cache.fetch("a.tar", 400, fill, urgent=lambda: True, stopped=NEVER))
    cache.write("a.idx", b"index")
    assert (len(fills), names(cache)) == (2, ["a.idx", "a.tar"])


def test_what_another_process_has_half_downloaded_is_not_taken_for_whole(folder):
    cache, fills = folder(), []
    part = cache.folder / "a.tar.part"

    def fill(descriptor):
        os.pwrite(descriptor, b"x" * 400, 0)
        fills.append(descriptor)
        if len(fills) == 1:  # somebody empties the cache, and another process begins
            part.unlink()
            part.write_bytes(b"half" + bytes(396))

    os.close(cache.fetch("a.tar", 400, fill, urgent=lambda: True, stopped=NEVER))
    assert (cache.folder / "a.tar").read_bytes() == b"x" * 400


def test_a_cache_that_was_removed_is_made_again(folder):
    cache = folder()
    shutil.rmtree(cache.folder)
    os.close(put(cache, "a.tar"))
    assert names(cache) == ["a.tar"]


def test_what_is_in_use_stays_and_room_is_waited_for(folder):
    cache, other = folder(), folder()
    pinned = put(cache, "a.tar", 900)
    with waits_to_put(other, "b.tar", 900) as found:
        wait_until(lambda: names(cache) == ["a.tar"])  # between two looks, each of which makes a .part
        os.close(pinned)
    assert names(cache) == ["b.tar"]
    os.close(found[0])


def test_a_mapping_pins_as_long_as_anything_points_into_it(folder):
    cache = folder()
    descriptor = put(cache, "a.tar", 900)
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))[10:20]
    os.close(descriptor)
    stopped = threading.Event()
    with waits_to_put(cache, "b.tar", 900, stopped=stopped) as outcome:
        wait_until(lambda: names(cache) == ["a.tar"])  # between two looks, each of which makes a .part
        stopped.set()
    assert isinstance(outcome[0], Stopped)
    del view
    os.close(put(cache, "b.tar", 900))
    assert names(cache) == ["b.tar"]


def test_a_file_that_a_batch_waits_for_is_let_in_beyond_the_budget(folder, counters):
    cache = folder()
    pinned = put(cache, "a.tar", 900)
    os.close(put(cache, "b.tar", 900, urgent=True))
    assert names(cache) == ["a.tar", "b.tar"]
    assert counters.stats().over_budget == 1
    os.close(pinned)
    os.close(put(cache, "c.tar", 900))
    assert names(cache) == ["c.tar"]


def test_what_is_under_way_counts_in_full(folder):
    cache = folder()
    put_old(cache, "a.tar", 100, 500)

    def fill(descriptor):
        os.pwrite(descriptor, b"x", 0)
        assert names(cache) == ["b.tar.part"]  # room was made before
        assert (cache.folder / "b.tar.part").stat().st_size == 600

    os.close(cache.fetch("b.tar", 600, fill, urgent=lambda: False, stopped=NEVER))


def test_a_download_that_fails_leaves_nothing(folder):
    cache = folder()

    def fill(descriptor):
        raise DataError("not the bytes")

    with pytest.raises(DataError, match="not the bytes"):
        cache.fetch("a.tar", 600, fill, urgent=lambda: False, stopped=NEVER)
    assert names(cache) == []


def test_a_file_of_another_length_is_not_served(folder):
    cache = folder()
    os.close(put(cache, "a.tar", 300))
    assert cache.open("a.tar", 400) is None
    assert names(cache) == []


# ---- Several processes


def test_one_downloads_and_the_others_wait_for_it(folder):
    fills, found, looks = [], [], Counter()

    def fill(descriptor):
        fills.append(descriptor)
        wait_until(
            lambda: sum(times > 1 for times in looks.values()) == 3
        )  # all others have looked, and again
        os.pwrite(descriptor, b"x" * 400, 0)

    def wanted():
        looks[threading.current_thread().name] += 1
        return True

    def fetch():
        found.append(folder().fetch("a.tar", 400, fill, urgent=lambda: True, wanted=wanted, stopped=NEVER))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(fills) == 1
    assert [os.pread(descriptor, 1000, 0) for descriptor in found] == [b"x" * 400] * 4
    for descriptor in found:
        os.close(descriptor)


HANGS = """
import os, sys, threading, time
from softshard.loaders.cache import Cache, CacheFolder
from softshard.loaders.fetch_stats import FetchCounters

def fill(descriptor):
    os.pwrite(descriptor, b"half", 0)
    print("begun", flush=True)
    time.sleep(600)

folder = CacheFolder(Cache(folder=sys.argv[1], max_bytes=1000), FetchCounters())
folder.fetch("a.tar", 400, fill, urgent=lambda: True, stopped=threading.Event())
"""


@pytest.fixture
def downloading(tmp_path, within):
    """A process that is in the middle of a download."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert within(process.stdout.readline, LONG_S) == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LONG_S)


def test_when_a_process_dies_another_takes_its_download_over(folder, downloading):
    cache = folder()
    with waits_to_put(cache, "a.tar") as found:
        downloading.kill()
    assert os.pread(found[0], 1000, 0) == b"a" * 400
    assert names(cache) == ["a.tar"]
    os.close(found[0])


def test_what_a_dead_process_was_downloading_makes_room(folder, downloading):
    cache = folder()
    downloading.kill()
    downloading.wait(LONG_S)
    assert names(cache) == ["a.tar.part"]
    os.close(put(cache, "b.tar", 900))
    assert names(cache) == ["b.tar"]


def bytes_in(folder):
    """Of the shards there, whole and in part; one that is evicted meanwhile may count."""
    found = 0
    for file in folder.glob("*.tar*"):
        with suppress(FileNotFoundError):
            found += file.stat().st_size
    return found


def test_two_runs_share_a_cache_that_holds_less_than_their_data_set(packed, serve_spoiled, tmp_path):
    url, _ = serve_spoiled(packed)
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    max_bytes = 6 * max(sizes)  # of nine; each run has three or four in use
    assert max_bytes < sum(sizes)

    def run(seed):
        with reading(read_an_epoch, url, tmp_path / "cache", max_bytes, seed) as (_, read):
            return read

    with ThreadPoolExecutor(2) as pool:
        runs, sampled = [pool.submit(run, seed) for seed in (1, 2)], []
        while not all(each.done() for each in runs):
            sampled.append(bytes_in(tmp_path / "cache" / "shards"))
            time.sleep(0.02)
    for seed, (keys, stats) in zip((1, 2), (each.result() for each in runs), strict=True):
        with Loader(packed, **EPOCH, seed=seed) as local:
            assert keys == [batch.keys for batch in local]
        assert stats.shards_fetched > 0
    assert sum(each.result()[1].evictions for each in runs) > 0  # something had to go
    # A file that is evicted between the listing and its size is counted twice at most: one shard of slack.
    assert max(sampled) <= max_bytes + max(sizes)
    assert list((tmp_path / "cache" / "shards").glob("*.part")) == []


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_that_is_forked_while_the_folder_is_locked_does_not_keep_it_locked(folder):
    cache = folder()
    with cache._locked():
        child = os.fork()
        if not child:
            time.sleep(LONG_S)
            os._exit(0)
    try:
        with open(cache.folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        status_of(child)


# ---- Options


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, counters):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: expected a folder for the cache, .* set SOFTSHARD_CACHE"):
        CacheFolder(Cache(folder=tmp_path / "file"), counters)


def test_the_folder_is_the_users_own(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("SOFTSHARD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Cache().path == Path("/home/ann/.cache/softshard")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Cache().path == Path("/cache/softshard")
    monkeypatch.setenv("SOFTSHARD_CACHE", "/nvme/softshard")
    assert Cache().path == Path("/nvme/softshard")
    assert Cache(folder="here").path == Path("here")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_fetchers": 0}, "num_fetchers from 1, .* found 0, 16 and 120"),
        ({"ahead": -1}, "num_fetchers from 1, ahead from 0 .* found 8, -1 and 120"),
        ({"deadline_s": 0}, ".* a deadline_s above 0, found 8, 16 and 0"),
        ({"max_bytes": 0}, "max_bytes from 1, found 0"),
        ({"verify": "never"}, "verify of once, always, size, found 'never'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, expected):
    with pytest.raises(UsageError, match=f"^cache: expected {expected}"):
        Cache(**options)
