"""The cache on a disk that is full: real file systems of a few shards, each in a process that may mount one."""

import errno
import os
import re
import shutil
import subprocess
import threading

import pytest
from forked import Forks

from softshard.loaders import Cache
from softshard.loaders.cache import CacheFolder, DiskFullError
from softshard.loaders.fetch_stats import FetchCounters
from softshard.shards import Manifest

MOUNT = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[2], "tmpfs", sys.argv[1]], check=True)
"""
EPOCH = """
import fcntl, itertools, os, shutil
from softshard.loaders import Augment, Cache, Loader, ahead
from softshard.loaders.cache import CacheFolder
folder, _, url, held, patience_s = sys.argv[1:]
options = dict(batch_size=8, augment=Augment(size=16), dtype="uint8", num_threads=1, window=4)
ahead._FULL_DISK_S = float(patience_s)
if int(held):  # another run's shard fills the disk, and is in use until this one was told so often that it is full
    os.makedirs(folder + "/shards")
    other = os.open(folder + "/shards/other.tar", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_SH)
    os.posix_fallocate(other, 0, shutil.disk_usage(folder).free - 8192)
    say_full, times = CacheFolder._disk_full, itertools.count(1)

    def let_go(self, num_bytes):
        error = say_full(self, num_bytes)
        if next(times) == int(held):
            os.close(other)
        return error

    CacheFolder._disk_full = let_go
with Loader(url, cache=Cache(folder=folder, max_bytes=10**9, ahead=8, num_fetchers=4), **options) as loader:
    print(sum(len(batch) for batch in loader), loader.fetch_stats().evictions)
"""
INDEX = """
import fcntl, os, shutil
from softshard.loaders.cache import Cache, CacheFolder
from softshard.loaders.fetch_stats import FetchCounters
folder = CacheFolder(Cache(folder=sys.argv[1], max_bytes=10**9), FetchCounters())
for last_use, name in enumerate(["first", "second", "third"]):
    shard = os.open(folder.folder / (name + ".tar"), os.O_RDWR | os.O_CREAT)
    room = shutil.disk_usage(folder.folder).free if name == "third" else 64 * 1024
    os.posix_fallocate(shard, 0, room)
    os.utime(shard, (last_use, last_use))
    if name in sys.argv[3:]:
        fcntl.flock(shard, fcntl.LOCK_SH)
    else:
        os.close(shard)
folder.write("first.idx", b"x" * 60_000)
print(*sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock"))
"""
WITHOUT_INODES = """
import os, threading
subprocess.run(["mount", "-o", "remount,nr_inodes=6", sys.argv[1]], check=True)
from softshard.loaders.cache import Cache, CacheFolder
from softshard.loaders.fetch_stats import FetchCounters
folder = CacheFolder(Cache(folder=sys.argv[1], max_bytes=10**9), FetchCounters())
for number in range(9):
    fill = lambda descriptor: os.pwrite(descriptor, bytes(400), 0)
    os.close(folder.fetch(f"{number}.tar", 400, fill, urgent=lambda: True, stopped=threading.Event()))
print(*sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock"))
"""
EMPTIED = """
import os, shutil, threading
from softshard.loaders.cache import Cache, CacheFolder, DiskFullError
from softshard.loaders.fetch_stats import FetchCounters
mounted = sys.argv[1]
folder = CacheFolder(Cache(folder=mounted + "/cache", max_bytes=10**9), FetchCounters())

def tell_full(act):
    try:
        act()
    except DiskFullError as error:
        print(error.may_pass)

def take_inodes():
    subprocess.run(["mount", "-o", f"remount,nr_inodes={sum(1 for _ in os.walk(mounted)) + files()}", mounted], check=True)

def files():
    return sum(len(names) for _, _, names in os.walk(mounted))

fetch = lambda: folder.fetch("a.tar", 400, fill=None, urgent=lambda: True, stopped=threading.Event())
shutil.rmtree(folder.folder)
take_inodes()
tell_full(fetch)
tell_full(lambda: folder.write("a.idx", b"x"))
subprocess.run(["mount", "-o", "remount,nr_inodes=100", mounted], check=True)
os.mkdir(folder.folder)
(folder.folder / "a.tar").write_bytes(b"short")
take_inodes()
tell_full(fetch)
subprocess.run(["mount", "-o", "remount,nr_inodes=100", mounted], check=True)
shutil.rmtree(folder.folder)
folder.write("small.idx", b"x")
print(*os.listdir(folder.folder))
"""
FOR_EVER = 10**9


@pytest.fixture(scope="module")
def mounting(tmp_path_factory):
    """Forks that may mount file systems, which nobody else sees."""
    inside = ["unshare", "-Urm"]
    mount = [*inside, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path_factory.mktemp("mounted"))]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs unprivileged user namespaces, to mount a small file system")
    forks = Forks(["loaders.loader", "loaders.fetch_stats"], inside)
    yield forks
    forks.close()


@pytest.fixture
def epoch_on_a_disk(mounting, serve_spoiled, packed, tmp_path):
    """A function: an epoch with the cache on a disk of so many bytes, which another run fills until it is told `held` times.

    Gives the process, which has printed the number of samples and of evictions.
    """
    url, _ = serve_spoiled(packed)

    def run(num_bytes, held=0, patience_s=100):
        return mounting.run(tmp_path, num_bytes, url, held, patience_s, code=MOUNT + EPOCH)

    return run


@pytest.fixture(scope="module")
def shard_bytes(packed):
    """Of the largest shard."""
    return max(shard.bytes for shard in Manifest.load(packed).shards)


@pytest.mark.parametrize(
    ("num_shards", "patience_s"), [(4, 100), (2, 2)], ids=["of two steps", "of one step"]
)
def test_a_disk_with_room_for_the_shards_evicts_whatever_the_budget_says(
    epoch_on_a_disk, shard_bytes, num_shards, patience_s
):
    """With room for one step alone the step before it is waited for, in vain, before they come one after the other."""
    run = epoch_on_a_disk(num_shards * shard_bytes + 64 * 1024, patience_s=patience_s)
    assert run.returncode == 0, run.stderr
    num_samples, evictions = map(int, run.stdout.split())
    assert num_samples == 104  # 105, in eights
    assert evictions > 0


def test_a_disk_without_room_for_one_shard_is_named(epoch_on_a_disk):
    run = epoch_on_a_disk(32 * 1024, patience_s=2)
    assert run.returncode == 1
    assert re.search(
        r"DiskFullError: /.*/shards: expected room for [0-9,]+ bytes, found [0-9,]+ bytes free, .*; the disk is full",
        run.stderr,
    )


def test_a_full_disk_is_waited_for_while_another_run_uses_what_fills_it(epoch_on_a_disk, shard_bytes):
    run = epoch_on_a_disk(5 * shard_bytes, held=3)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == "104"


def test_a_disk_that_another_run_keeps_full_is_not_waited_for_for_ever(epoch_on_a_disk, shard_bytes):
    run = epoch_on_a_disk(5 * shard_bytes, held=FOR_EVER, patience_s=1)
    assert run.returncode == 1
    assert "DiskFullError" in run.stderr


def test_an_index_finds_room_on_a_full_disk_where_shards_lie_that_nobody_uses(mounting, tmp_path):
    run = mounting.run(tmp_path, "256k", "first", code=MOUNT + INDEX)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["first.idx", "first.tar", "third.tar"]
    full = mounting.run(tmp_path, "256k", "first", "second", "third", code=MOUNT + INDEX)
    assert full.returncode == 1
    assert "DiskFullError" in full.stderr


def test_a_disk_that_takes_no_more_files_makes_room_by_evicting(mounting, tmp_path):
    run = mounting.run(tmp_path, "1m", code=MOUNT + WITHOUT_INODES)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "8.tar"


def test_a_quota_counts_as_a_full_disk(tmp_path, monkeypatch):
    folder = CacheFolder(Cache(folder=tmp_path, max_bytes=1000), FetchCounters())

    def no_room(descriptor, offset, length):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(
        DiskFullError, match=r"expected room for 400 bytes, found .* Make room there, or give Cache"
    ) as caught:
        folder.fetch("a.tar", 400, fill=None, urgent=lambda: True, stopped=threading.Event())
    assert not caught.value.may_pass  # its own unfinished file is nobody else's, who might let it go
    assert [path.name for path in folder.folder.iterdir()] == [".lock"]


def test_a_disk_without_room_for_the_emptied_folder_is_full(mounting, tmp_path):
    """And one without room for the lock alone, where a file has the wrong length."""
    run = mounting.run(tmp_path, "1m", code=MOUNT + EMPTIED)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False", "False", "True", "small.idx"]
