"""Data sets behind URLs give the local folder's batches, bit for bit, whatever the network and the cache do."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import fsspec
import pytest
import torch
from reading_processes import read_in_two, read_through_a_cache, reading

from servers import web
from softshard.loaders import Augment, Cache, Loader
from softshard.loaders.data_set import open_data_set
from softshard.loaders.whole_shards import in_order
from softshard.shards import DataError, Manifest, ReshardOptions, StorageError, UsageError, reshard

OPTIONS = {"batch_size": 8, "augment": Augment(size=16), "dtype": "uint8", "num_threads": 2, "window": 16}


@pytest.fixture
def bucket(s3_bucket, s3_client):
    """A function: copies a folder to a bucket of the real S3 server, and gives its URL."""

    def put(folder):
        for file in sorted(folder.iterdir()):
            if file.is_file():
                s3_client.put_object(
                    Bucket=s3_bucket.removeprefix("s3://"),
                    Key=f"{folder.name}/{file.name}",
                    Body=file.read_bytes(),
                )
        return f"{s3_bucket}/{folder.name}"

    return put


@pytest.fixture
def serve_spoiled():
    """A function: starts a web server whose answers `spoil` may change; gives its URL and the requests it has had."""
    pytest.importorskip("aiohttp")
    servers = []

    def start(folder, spoil):
        servers.append(web.SpoiledServer(folder, spoil))
        return servers[-1].url, servers[-1].requests

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def cache(tmp_path):
    return Cache(folder=tmp_path / "cache", deadline_s=20)


def contents(loader):
    """(keys, images, classes, levels, targets) of every batch of an epoch."""
    return [
        (batch.keys, batch.images, batch.classes, batch.levels, batch.targets, batch.crops, batch.flips)
        for batch in loader
    ]


def same(found, expected):
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return True


def epoch(dataset, **options):
    with Loader(dataset, **{**OPTIONS, **options}) as loader:
        return contents(loader)


def shard_bytes(dataset):
    return [shard.bytes for shard in Manifest.load(dataset).shards]


def cached(cache, pattern="*.tar"):
    return sorted((cache.path / "shards").glob(pattern))


# ---- The same batches


def test_a_bucket_gives_the_folders_batches(packed, bucket, cache):
    options = {"targets": "relabel", "last_batch": "pad", "lanes": 2}
    url = bucket(packed)
    with Loader(packed, **OPTIONS, **options) as local, Loader(url, cache=cache, **OPTIONS, **options) as far:
        for _ in range(2):
            assert same(contents(far), contents(local))
        stats = far.fetch_stats()
    num_shards = len(shard_bytes(packed))
    assert (stats.shards_fetched, stats.fetched_again, stats.evictions) == (num_shards, 0, 0)
    assert stats.cache_hits <= num_shards  # the second epoch's, of those that were not open still
    assert stats.requests == 2 * num_shards  # each shard and its index are one request here, once
    indexes = sum(path.stat().st_size for path in packed.glob("*.idx"))
    assert stats.bytes_fetched == sum(shard_bytes(packed)) + indexes


def test_a_web_server_gives_the_folders_batches(serve, packed, cache):
    url = f"{serve(packed.parent)}/{packed.name}"
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert same(contents(loader), epoch(packed))
        assert "secret" not in loader.dataset
    assert not any("secret" in str(path) for path in cache.path.rglob("*"))


def test_memory_and_file_urls_give_the_folders_batches(memory, packed, cache):
    expected = epoch(packed)
    assert same(epoch(memory(packed), cache=cache), expected)
    assert same(epoch(f"file://{packed}", cache=cache), expected)
    assert len(cached(cache)) == len(
        shard_bytes(packed)
    )  # of the first alone: a local folder is read in place


def test_every_rank_of_a_host_reads_through_one_cache(memory, packed, cache):
    url = memory(packed)
    options = {"batch_size": 4, "world_size": 2}
    for rank in (0, 1):
        assert same(epoch(url, cache=cache, rank=rank, **options), epoch(packed, rank=rank, **options))
    assert len(cached(cache)) == len(shard_bytes(packed))


def test_an_iteration_continues_from_a_state_on_another_storage(memory, packed, cache):
    with Loader(packed, **OPTIONS) as local:
        iterator = iter(local)
        for _ in range(5):
            next(iterator)
        state = local.state_dict()
        rest = [batch.keys for batch in iterator]
    with Loader(memory(packed), cache=cache, num_epochs=1, **OPTIONS) as far:
        far.load_state_dict(state)
        assert [batch.keys for batch in far] == rest
        assert far.fetch_stats().shards_fetched < len(shard_bytes(packed))  # those before are not fetched


# ---- The network


def test_connections_that_break_in_the_middle_change_nothing(packed, bucket, proxy, cache):
    url = bucket(packed)
    expected = epoch(packed)
    proxy.share, proxy.reset_after = 0.3, 30_000
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert same(contents(loader), expected)
    assert proxy.faults > 0


def test_a_broken_range_is_asked_for_again_and_those_before_it_are_not(
    packed, serve_spoiled, cache, monkeypatch
):
    monkeypatch.setattr("softshard.loaders.download.RANGE_BYTES", 16 * 1024)
    broken = set()

    def spoil(name, start, answer):
        if name.endswith(".tar") and start == 16 * 1024 and name not in broken:
            broken.add(name)
            return None
        return answer

    url, requests = serve_spoiled(packed, spoil)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert same(contents(loader), epoch(packed))
        stats = loader.fetch_stats()
    for shard in Manifest.load(packed).shards:
        starts = [start for name, start in requests if name == shard.name]
        ranges = list(range(0, shard.bytes, 16 * 1024))
        assert sorted(starts) == sorted([*ranges, 16 * 1024])
    assert stats.retries == len(broken) == len(shard_bytes(packed))


def test_a_server_that_hangs_is_asked_again(packed, serve_spoiled, cache):
    hung = []

    def spoil(name, start, answer):
        if name.endswith("3.tar") and not hung:
            hung.append(name)
            over.wait()
        return answer

    over = threading.Event()
    url, requests = serve_spoiled(packed, spoil)
    with Loader(url, cache=replace(cache, deadline_s=8), **OPTIONS) as loader:
        assert same(contents(loader), epoch(packed))
        over.set()
        assert loader.fetch_stats().retries >= 1
    assert requests.count(("train-000003.tar", 0)) == 2


def test_a_server_that_stays_away_is_an_error_that_says_so(packed, serve_spoiled, cache, within):
    url, _ = serve_spoiled(packed, lambda name, start, answer: None if name.endswith("3.tar") else answer)
    with Loader(url, cache=replace(cache, deadline_s=1), shuffle=False, **OPTIONS) as loader:
        served = []
        with pytest.raises(
            StorageError, match=r"^http://127.*/train-000003.tar: cannot be read: .*; tried \d+"
        ) as e:
            within(lambda: served.extend(batch.keys for batch in loader))
    assert "secret" not in str(e.value)
    assert len(served) == 3 * 13 // 8  # the batches before it
    assert cached(cache, "*.part") == []


def test_storage_that_was_away_when_a_shard_was_fetched_ahead_is_asked_again_when_it_is_needed(
    packed, serve_spoiled, cache, within
):
    back = threading.Event()

    def spoil(name, start, answer):
        return answer if back.is_set() or not name.endswith("8.tar") else None

    url, _ = serve_spoiled(packed, spoil)
    with Loader(url, cache=replace(cache, deadline_s=0.5), shuffle=False, **OPTIONS) as loader:
        batches = iter(loader)
        served = [next(batches).keys]
        fetching = loader._maker.reader.shards._files[0]._run

        def until_it_failed():
            while 8 not in fetching._failed:
                time.sleep(0.01)

        within(until_it_failed)
        back.set()
        within(lambda: served.extend(batch.keys for batch in batches))
    assert len(served) == len(loader)


def test_closing_does_not_wait_for_the_network(packed, serve_spoiled, cache, within):
    def spoil(name, start, answer):
        if name.endswith(".tar"):
            asked.set()
            over.wait()
        return answer

    asked, over = threading.Event(), threading.Event()
    url, _ = serve_spoiled(packed, spoil)
    loader = Loader(url, cache=replace(cache, deadline_s=600), **OPTIONS)
    outcome = []

    def wait_for_a_batch():
        try:
            outcome.append(next(iter(loader)))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=wait_for_a_batch)
    thread.start()
    assert asked.wait(20)
    within(loader.close, seconds=10)
    thread.join(10)
    over.set()
    assert isinstance(outcome[0], Exception)  # neither a batch nor a hang
    assert cached(cache, "*.part") == []


# ---- What is checked


def change_byte(path, at=5000):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def copied(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copied")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_byte, r"expected SHA-256 [0-9a-f]{12}, found [0-9a-f]{12}, twice; the shard is not the manifest's"),
        (lambda path: os.truncate(path, 9000), "expected [0-9]+ bytes, found 9000; the shard is cut short"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            "expected ([0-9]+) bytes, found [0-9]+ or more; it is another shard",
        ),
        (lambda path: path.unlink(), "expected the shard, which the data set has by its manifest or listing, found none"),
        (
            lambda path: path.with_suffix(".idx").write_text("v1.2 0\n"),
            "expected the manifest's SHA-256, found another",
        ),
    ],
    ids=["a byte", "cut short", "too long", "gone", "another index"],
)  # fmt: skip
def test_a_shard_that_is_not_the_manifests_serves_no_sample(copied, memory, cache, within, damage, message):
    damage(copied / "train-000003.tar")
    served = []
    with Loader(memory(copied), cache=cache, shuffle=False, **OPTIONS) as loader:
        with pytest.raises(DataError, match=rf"^(memory://copies/copied/)?train-000003\.\w+: {message}"):
            within(lambda: served.extend(batch.keys for batch in loader))
        assert len(served) == 3 * 13 // 8  # the batches before it
        (bad,) = [shard for shard in loader.manifest.shards if shard.name == "train-000003.tar"]
    if "index" not in message and "SHA-256, found another" not in message:
        assert bad.sha256 not in {path.stem for path in cached(cache)}


def test_a_damaged_download_is_fetched_once_more(packed, serve_spoiled, cache):
    spoilt = []

    def spoil(name, start, answer):
        if name.endswith("3.tar") and not spoilt:
            spoilt.append(name)
            return bytes([answer[0] ^ 1]) + answer[1:]
        return answer

    url, _ = serve_spoiled(packed, spoil)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert same(contents(loader), epoch(packed))
        assert loader.fetch_stats().damaged == 1


def test_an_index_that_is_missing_is_made_from_the_shard(copied, memory, cache):
    for path in copied.glob("*.idx"):
        path.unlink()
    url, expected = memory(copied), None
    with Loader(url, cache=cache, **OPTIONS) as loader:
        expected = contents(loader)
        assert len(expected) == len(loader)
    assert len(cached(cache, "*.idx")) == len(shard_bytes(copied))


def test_an_index_that_the_cache_does_not_take_is_none_the_less_served(packed, memory, cache):
    for shard in Manifest.load(packed).shards:
        (cache.path / "shards" / f"{shard.sha256}.idx" / "in the way").mkdir(parents=True)
    assert same(epoch(memory(packed), cache=cache), epoch(packed))


def test_a_data_set_that_has_changed_is_not_served_from_what_was_cached(packed, copied, memory, cache):
    assert same(epoch(memory(packed), cache=cache), epoch(packed))
    # The same names, other bytes.
    other = cache.path.parent / "other"
    reshard([packed], other, ReshardOptions(shard_samples=13, shuffle=5, name="train"))
    shutil.rmtree(copied)
    shutil.copytree(other, copied)
    fsspec.filesystem("memory").rm("/copies/train", recursive=True)
    fsspec.filesystem("memory").put(str(copied), "/copies/train", recursive=True)
    names = [shard.name for shard in Manifest.load(packed).shards]
    assert [shard.name for shard in Manifest.load("memory://copies/train").shards] == names
    assert same(epoch("memory://copies/train", cache=cache), epoch(copied))


def test_a_cached_file_that_was_cut_is_fetched_again(packed, memory, cache):
    url = memory(packed)
    expected = epoch(url, cache=cache)
    os.truncate(cached(cache)[0], 100)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert same(contents(loader), expected)
        assert loader.fetch_stats().shards_fetched == 1


@pytest.mark.parametrize("verify", ["once", "always", "size"])
def test_bytes_that_rot_in_the_cache_are_found_and_fetched_again(memory, packed, cache, verify):
    url = memory(packed)
    expected = epoch(url, cache=cache)
    change_byte(cached(cache)[0])
    with Loader(url, cache=replace(cache, verify=verify), num_epochs=1, **OPTIONS) as loader:
        found = contents(loader)
        stats = loader.fetch_stats()
    if verify == "size":
        assert (stats.damaged, stats.shards_fetched) == (0, 0)
    else:
        assert same(found, expected)
        assert (stats.damaged, stats.shards_fetched) == (1, 1)


def test_once_is_when_the_loader_first_uses_a_shard_and_always_is_every_time(memory, packed, cache):
    url = memory(packed)
    epoch(url, cache=cache)
    # The second loader finds what the first one left, too.
    for verify, num_damaged in (("once", 0), ("always", 2)):
        with Loader(url, cache=replace(cache, verify=verify), num_epochs=1, **OPTIONS) as loader:
            list(loader)
            change_byte(cached(cache)[0])
            loader.set_epoch(0)
            with suppress(DataError):
                list(loader)
            assert loader.fetch_stats().damaged == num_damaged


def test_an_unknown_rule_for_the_cache_is_refused():
    with pytest.raises(UsageError, match="cache: expected verify of once, always, size, found 'never'"):
        Cache(verify="never")


# ---- From one epoch to the next


def small_cache(cache, packed, num_shards, **options):
    return replace(cache, max_bytes=num_shards * max(shard_bytes(packed)), **options)


def wait_until(condition):
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_the_next_epochs_shards_are_fetched_before_this_one_has_ended(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=1)
    with Loader(memory(packed), cache=few, **OPTIONS) as loader:
        list(loader)
        wait_until(lambda: loader.fetch_stats().shards_fetched > len(shard_bytes(packed)))
        before = loader.fetch_stats()
        assert next(iter(loader)).keys == next(iter_epoch(packed, 1)).keys
        assert loader.fetch_stats().fetched_in_vain == 0
    assert before.shards_fetched <= len(shard_bytes(packed)) + 2 + 2  # a step's own, and `ahead`


def iter_epoch(dataset, number, **options):
    with Loader(dataset, **{**OPTIONS, **options}) as loader:
        loader.set_epoch(number)
        yield from loader


def test_epochs_that_follow_each_other_fetch_each_shard_once(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=2)
    num_epochs = 3
    with Loader(memory(packed), cache=few, num_epochs=num_epochs, **OPTIONS) as loader:
        for number in range(num_epochs):
            expected = [batch.keys for batch in iter_epoch(packed, number)]
            assert [batch.keys for batch in loader] == expected
            assert loader.epoch == number + 1
        assert threads() == []  # nothing follows the last one
        stats = loader.fetch_stats()
    num_bytes = sum(path.stat().st_size for path in packed.glob("train-*"))
    assert stats.fetched_again == stats.fetched_in_vain == 0
    assert stats.bytes_fetched <= 1.05 * num_epochs * num_bytes


def test_an_epoch_that_does_not_follow_costs_what_was_fetched_for_the_other_one(memory, packed, cache):
    few = small_cache(cache, packed, 4, ahead=2, num_fetchers=1)
    with Loader(memory(packed), cache=few, **OPTIONS) as loader:
        list(loader)
        wait_until(lambda: loader.fetch_stats().shards_fetched > len(shard_bytes(packed)))
        loader.set_epoch(7)
        assert [batch.keys for batch in loader] == [batch.keys for batch in iter_epoch(packed, 7)]
        assert 1 <= loader.fetch_stats().fetched_in_vain <= 4
        state = loader.state_dict()
        loader.load_state_dict({**state, "epoch": 2, "taken": 24})
        assert [batch.keys for batch in loader] == [batch.keys for batch in iter_epoch(packed, 2)][3:]
        assert [batch.keys for batch in loader] == [batch.keys for batch in iter_epoch(packed, 3)]


def test_between_two_epochs_a_loader_that_is_closed_or_forgotten_leaves_nothing(
    memory, packed, cache, remaining_threads
):
    url = memory(packed)
    loader = Loader(url, cache=cache, **OPTIONS)
    list(loader)
    assert len(threads()) == cache.num_fetchers
    loader.close()
    assert threads() == []
    assert open_files(cache) == []
    loader = Loader(url, cache=cache, **OPTIONS)
    list(loader)
    assert threads()
    del loader
    gc.collect()
    assert remaining_threads() == []
    gc.collect()
    assert open_files(cache) == []


DEAD = """
import sys, threading
import fsspec
from fsspec.implementations.local import LocalFileSystem
from softshard.loaders import Cache, Faults, Loader, ahead

class Dead(LocalFileSystem):
    protocol = "dead"
    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("dead://", ""))
    def cat_file(self, path, **options):
        if path.endswith(".tar"):
            threading.Event().wait()
        return super().cat_file(path, **options)

fsspec.register_implementation("dead", Dead)
ahead._JOIN_PATIENCE_S = 0.5
with Loader("dead://" + sys.argv[1], batch_size=8, cache=Cache(sys.argv[2]), faults=Faults(give_up_s=1.5)) as loader:
    list(loader)
"""


def test_a_process_ends_although_a_storage_without_time_outs_is_dead(packed, cache):
    command = [sys.executable, "-c", DEAD, str(packed), str(cache.path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "StallError: loader: expected a batch within" in run.stderr
    assert "a thread that fetches shards hangs, and is left to itself" in run.stderr


# ---- Caches that are too small


def test_a_cache_that_cannot_hold_one_batchs_shards_is_refused(memory, packed, cache):
    small = replace(cache, max_bytes=max(shard_bytes(packed)) + 1)
    with Loader(memory(packed), cache=small, **{**OPTIONS, "window": 60}) as loader:
        with pytest.raises(
            UsageError, match=r"cache: expected room for the \d shards of one batch, .* or batch"
        ):
            next(iter(loader))
        assert threads() == []


def test_a_cache_that_is_smaller_than_the_window_serves_all_and_warns(memory, packed, cache):
    small = replace(cache, max_bytes=3 * max(shard_bytes(packed)))
    options = {"batch_size": 2, "window": 105}
    with Loader(memory(packed), cache=small, **{**OPTIONS, **options}) as loader:
        with pytest.warns(UserWarning, match="fetched again in the same epoch; .* too small for the shuffle"):
            assert same(contents(loader), epoch(packed, **options))
        stats = loader.fetch_stats()
    assert stats.fetched_again > 0
    assert stats.shards_fetched == len(shard_bytes(packed)) + stats.fetched_again


# ---- Threads, files, processes


def open_files(cache):
    """Files of the cache that this process has open or mapped."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(str(cache.path)):
            found.append(target)
    return found


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("softshard-fetch")]


def test_close_ends_the_threads_and_lets_the_files_go(memory, packed, cache):
    loader = Loader(memory(packed), cache=cache, **OPTIONS)
    iterator = iter(loader)
    next(iterator)
    assert len(threads()) == cache.num_fetchers
    assert open_files(cache)
    loader.close()
    assert threads() == []
    del iterator
    assert open_files(cache) == []


def test_a_shard_is_let_go_when_the_next_one_comes_whatever_waits_in_the_threads(packed, memory, cache):
    shards, num = open_data_set(memory(packed), cache).shards, len(shard_bytes(packed))
    opened = in_order(shards, range(num))
    for _ in range(num):
        next(opened)
    wait_until(lambda: len(open_files(cache)) == 1)
    opened.close()
    assert threads() == open_files(cache) == []


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
        wait_until(lambda: threads() == [])
    assert remaining_threads() == []


def test_breaking_off_lets_the_files_go(memory, packed, cache):
    with Loader(memory(packed), cache=cache, **OPTIONS) as loader:
        for _ in loader:
            break
        assert threads() == []
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
    assert threads() == []
    gc.collect()
    assert open_files(cache) == []
    loader.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_are_forked_and_spawned_read_too(packed, serve_spoiled, cache, method):
    url, requests = serve_spoiled(packed, lambda name, start, answer: answer)
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
    assert same(epoch(url, cache=cache), epoch(packed))
    assert cached(cache, "*.part") == []
