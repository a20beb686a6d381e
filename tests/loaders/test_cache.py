"""The cache's folder: one budget, pins and downloads for all processes of a host, whatever becomes of them."""

import errno
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from servers.web import SpoiledServer
from softshard.loaders import Augment, Cache, Loader
from softshard.loaders.cache import CacheFolder, DiskFullError, Stopped
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


def put(folder, name, num_bytes=400, urgent=False, stopped=NEVER):
    """Fetch a file of as many bytes; a descriptor, which pins it."""

    def fill(descriptor):
        os.pwrite(descriptor, name.encode()[:1] * num_bytes, 0)

    return folder.fetch(name, num_bytes, fill, urgent=lambda: urgent, stopped=stopped)


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


def test_a_cache_that_was_removed_is_made_again(folder):
    cache = folder()
    shutil.rmtree(cache.folder)
    os.close(put(cache, "a.tar"))
    assert names(cache) == ["a.tar"]


def test_what_is_in_use_stays_and_room_is_waited_for(folder):
    cache, other = folder(), folder()
    pinned = put(cache, "a.tar", 900)
    found = []
    thread = threading.Thread(target=lambda: found.append(put(other, "b.tar", 900)))
    thread.start()
    time.sleep(0.5)
    assert names(cache) == ["a.tar"]
    os.close(pinned)
    thread.join(10)
    assert names(cache) == ["b.tar"]
    os.close(found[0])


def test_a_mapping_pins_as_long_as_anything_points_into_it(folder, tmp_path):
    cache = folder()
    descriptor = put(cache, "a.tar", 900)
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))[10:20]
    os.close(descriptor)
    stopped = threading.Event()
    outcome = []

    def wait_for_room():
        try:
            outcome.append(put(cache, "b.tar", 900, stopped=stopped))
        except Stopped as error:
            outcome.append(error)

    thread = threading.Thread(target=wait_for_room)
    thread.start()
    time.sleep(0.4)
    assert names(cache) == ["a.tar"]
    stopped.set()
    thread.join(10)
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


# ---- Several processes


def test_one_downloads_and_the_others_wait_for_it(folder):
    fills, found = [], []

    def fill(descriptor):
        fills.append(descriptor)
        time.sleep(0.3)
        os.pwrite(descriptor, b"x" * 400, 0)

    def fetch():
        found.append(folder().fetch("a.tar", 400, fill, urgent=lambda: True, stopped=NEVER))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
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


def test_when_a_process_dies_another_takes_its_download_over(folder, tmp_path):
    cache = folder()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "begun\n"
        found = []
        thread = threading.Thread(target=lambda: found.append(put(cache, "a.tar")))
        thread.start()
        time.sleep(0.3)
        assert not found
        process.send_signal(signal.SIGKILL)
        thread.join(10)
        assert os.pread(found[0], 1000, 0) == b"a" * 400
        assert names(cache) == ["a.tar"]
        os.close(found[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_dead_process_was_downloading_makes_room(folder, tmp_path):
    cache = folder()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert names(cache) == ["a.tar.part"]
    os.close(put(cache, "b.tar", 900))
    assert names(cache) == ["b.tar"]


RUN = """
import sys
sys.path.insert(0, {tests!r})
from softshard.loaders import Augment, Cache, Loader
loader = Loader({url!r}, batch_size=4, augment=Augment(size=16), dtype="uint8", num_threads=1, window=4,
                seed=int(sys.argv[1]), cache=Cache(folder={folder!r}, max_bytes={max_bytes}, ahead=2, num_fetchers=2))
with loader:
    for batch in loader:
        print(*batch.keys)
    stats = loader.fetch_stats()
print(stats.shards_fetched, stats.evictions, file=sys.stderr)
"""


def test_two_runs_share_a_cache_that_holds_less_than_their_data_set(packed, tmp_path):
    server = SpoiledServer(packed, lambda name, start, answer: answer)
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    max_bytes = 6 * max(sizes)  # of nine; each run has three or four in use
    assert max_bytes < sum(sizes)
    script = RUN.format(
        tests=str(Path(__file__).parents[1]), url=server.url, folder=str(tmp_path / "c"), max_bytes=max_bytes
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    try:
        sampled = []
        while any(run.poll() is None for run in runs) and len(sampled) < 1000:
            files = list((tmp_path / "c" / "shards").glob("*.tar*")) if (tmp_path / "c").exists() else []
            total = 0
            for file in files:
                try:
                    total += file.stat().st_size
                except FileNotFoundError:
                    continue
            sampled.append(total)
            time.sleep(0.05)
        outputs = [run.communicate(timeout=60) for run in runs]
    finally:
        for run in runs:
            run.kill()
        server.stop()
    assert [run.returncode for run in runs] == [0, 0], outputs
    for seed, (out, err) in zip((1, 2), outputs, strict=True):
        with Loader(
            packed, batch_size=4, augment=Augment(size=16), dtype="uint8", num_threads=1, window=4, seed=seed
        ) as local:
            expected = [" ".join(batch.keys) for batch in local]
        assert out.splitlines() == expected
        assert int(err.split()[-2]) > 0
    assert sum(int(err.split()[-1]) for _, err in outputs) > 0  # something had to go
    # A file that is evicted between the listing and its size is counted twice at most: one shard of slack.
    assert max(sampled) <= max_bytes + max(sizes)
    assert list((tmp_path / "c" / "shards").glob("*.part")) == []


# ---- Disks


FULL = """
import os, subprocess, sys
folder, url = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + os.environ["SIZE"], "tmpfs", folder], check=True)
from softshard.loaders import Augment, Cache, Loader, ahead
options = dict(batch_size=8, augment=Augment(size=16), dtype="uint8", num_threads=1, window=4)
ahead._FULL_DISK_S = float(os.environ["PATIENCE_S"])
if held_s := float(os.environ["HELD_S"]):  # another run's shard fills the disk, and is in use for so long
    import fcntl, shutil, threading
    os.makedirs(folder + "/shards")
    other = os.open(folder + "/shards/other.tar", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_SH)
    os.posix_fallocate(other, 0, shutil.disk_usage(folder).free - 8192)
    release = threading.Timer(held_s, os.close, [other])
    release.daemon = True
    release.start()
with Loader(url, cache=Cache(folder=folder, max_bytes=10**9, ahead=8, num_fetchers=4), **options) as loader:
    print(sum(len(batch) for batch in loader), loader.fetch_stats().evictions)
"""


def mount_or_skip(folder):
    """The command that runs another with file systems of its own; skips the test where this may not mount any."""
    inside = ["unshare", "-Urm"]
    mount = [*inside, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs unprivileged user namespaces, to mount a small file system")
    return inside


@pytest.fixture
def on_a_small_disk(tmp_path, packed):
    """A function: an epoch with the cache on a real file system of so many bytes; (exit status, output, errors)."""
    inside = mount_or_skip(tmp_path)
    server = SpoiledServer(packed, lambda name, start, answer: answer)
    disk = tmp_path / "disk"
    disk.mkdir()

    def run(num_bytes, held_s=0, patience_s=5):
        return subprocess.run(
            [*inside, sys.executable, "-W", "ignore", "-c", FULL, str(disk), server.url],
            env={**os.environ, "SIZE": str(num_bytes), "HELD_S": str(held_s), "PATIENCE_S": str(patience_s)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield run
    server.stop()


def test_a_full_disk_makes_room_by_evicting_whatever_the_budget_says(on_a_small_disk, packed):
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    result = on_a_small_disk(4 * max(sizes) + 64 * 1024)
    assert result.returncode == 0, result.stderr
    num_samples, evictions = map(int, result.stdout.split())
    assert num_samples == 104  # 105, in eights
    assert evictions > 0


def test_a_disk_without_room_for_one_shard_is_named(on_a_small_disk):
    result = on_a_small_disk(32 * 1024)
    assert result.returncode == 1
    assert re.search(
        r"DiskFullError: /.*/shards: expected room for [0-9,]+ bytes, found [0-9,]+ bytes free, .*; the disk is full",
        result.stderr,
    )


def test_a_full_disk_is_waited_for_while_another_run_uses_what_fills_it(on_a_small_disk, packed):
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    result = on_a_small_disk(5 * max(sizes), held_s=1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "104"


INDEX_ON_A_FULL_DISK = """
import fcntl, os, shutil, subprocess, sys
from softshard.loaders.cache import Cache, CacheFolder
from softshard.loaders.fetch_stats import FetchCounters
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", sys.argv[1]], check=True)
folder = CacheFolder(Cache(folder=sys.argv[1], max_bytes=10**9), FetchCounters())
for last_use, name in enumerate(["first", "second", "third"]):
    shard = os.open(folder.folder / (name + ".tar"), os.O_RDWR | os.O_CREAT)
    room = shutil.disk_usage(folder.folder).free if name == "third" else 64 * 1024
    os.posix_fallocate(shard, 0, room)
    os.utime(shard, (last_use, last_use))
    if name in sys.argv[2:]:
        fcntl.flock(shard, fcntl.LOCK_SH)
    else:
        os.close(shard)
folder.write("first.idx", b"x" * 60_000)
print(*sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock"))
"""


def test_an_index_finds_room_on_a_full_disk_where_shards_lie_that_nobody_uses(tmp_path):
    command = [*mount_or_skip(tmp_path), sys.executable, "-c", INDEX_ON_A_FULL_DISK, str(tmp_path)]
    run = subprocess.run([*command, "first"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["first.idx", "first.tar", "third.tar"]
    full = subprocess.run([*command, "first", "second", "third"], capture_output=True, text=True, timeout=120)
    assert full.returncode == 1
    assert "DiskFullError" in full.stderr


WITHOUT_INODES = """
import os, subprocess, sys, threading
from softshard.loaders.cache import Cache, CacheFolder
from softshard.loaders.fetch_stats import FetchCounters
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=6", "tmpfs", sys.argv[1]], check=True)
folder = CacheFolder(Cache(folder=sys.argv[1], max_bytes=10**9), FetchCounters())
for number in range(9):
    fill = lambda descriptor: os.pwrite(descriptor, bytes(400), 0)
    os.close(folder.fetch(f"{number}.tar", 400, fill, urgent=lambda: True, stopped=threading.Event()))
print(*sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock"))
"""


def test_a_disk_that_takes_no_more_files_makes_room_by_evicting(tmp_path):
    command = [*mount_or_skip(tmp_path), sys.executable, "-c", WITHOUT_INODES, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "8.tar"


def test_a_disk_that_another_run_keeps_full_is_not_waited_for_for_ever(on_a_small_disk, packed):
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    result = on_a_small_disk(5 * max(sizes), held_s=100, patience_s=1)
    assert result.returncode == 1
    assert "DiskFullError" in result.stderr


def test_a_disk_without_room_for_two_steps_serves_them_one_after_the_other(on_a_small_disk, packed):
    sizes = [shard.bytes for shard in Manifest.load(packed).shards]
    result = on_a_small_disk(2 * max(sizes) + 64 * 1024)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "104"


def test_a_quota_counts_as_a_full_disk(folder, monkeypatch):
    cache = folder()

    def no_room(descriptor, offset, length):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(
        DiskFullError, match=r"expected room for 400 bytes, found .* Make room there, or give Cache"
    ):
        put(cache, "a.tar", urgent=True)
    assert names(cache) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, counters):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: expected a folder for the cache, .* set SOFTSHARD_CACHE"):
        CacheFolder(Cache(folder=tmp_path / "file"), counters)


# ---- Options


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
    "options", [{"num_fetchers": 0}, {"ahead": -1}, {"deadline_s": 0}, {"max_bytes": 0}], ids=str
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError, match="cache: expected "):
        Cache(**options)
