"""Data sets behind URLs give the local folder's batches, bit for bit, whatever the network does."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
from cached_sets import OPTIONS, cached, epoch, shard_bytes
from service_processes import assert_same_batches
from waiting import LONG_S, wait_until

from softshard.loaders import Loader
from softshard.shards import Manifest, StorageError

# ---- The same batches


def test_a_bucket_gives_the_folders_batches(packed, bucket, cache):
    options = {"targets": "relabel", "last_batch": "pad", "lanes": 2}
    url = bucket(packed)
    with Loader(packed, **OPTIONS, **options) as local, Loader(url, cache=cache, **OPTIONS, **options) as far:
        for _ in range(2):
            assert_same_batches(far, local)
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
        assert_same_batches(loader, epoch(packed))
        assert "secret" not in loader.dataset
    assert not any("secret" in str(path) for path in cache.path.rglob("*"))


def test_memory_and_file_urls_give_the_folders_batches(memory, packed, cache):
    expected = epoch(packed)
    assert_same_batches(epoch(memory(packed), cache=cache), expected)
    assert_same_batches(epoch(f"file://{packed}", cache=cache), expected)
    assert len(cached(cache)) == len(
        shard_bytes(packed)
    )  # of the first alone: a local folder is read in place


def test_every_rank_of_a_host_reads_through_one_cache(memory, packed, cache):
    url = memory(packed)
    options = {"batch_size": 4, "world_size": 2}
    for rank in (0, 1):
        assert_same_batches(
            epoch(url, cache=cache, rank=rank, **options), epoch(packed, rank=rank, **options)
        )
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
        assert_same_batches(loader, expected)
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
        assert_same_batches(loader, epoch(packed))
        stats = loader.fetch_stats()
    for shard in Manifest.load(packed).shards:
        starts = [start for name, start in requests if name == shard.name]
        ranges = list(range(0, shard.bytes, 16 * 1024))
        assert sorted(starts) == sorted([*ranges, 16 * 1024])
    assert stats.retries == len(broken) == len(shard_bytes(packed))


def test_a_server_that_hangs_is_asked_again(packed, serve_spoiled, cache, monkeypatch):
    monkeypatch.setattr("softshard.loaders.download._TRIES_BEFORE_DEADLINE", 100)  # of 120 s
    hung = []

    def spoil(name, start, answer):
        if name.endswith("3.tar") and not hung:
            hung.append(name)
            over.wait(LONG_S)
        return answer

    over = threading.Event()
    url, requests = serve_spoiled(packed, spoil)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert_same_batches(loader, epoch(packed))
        over.set()
        retries = loader.fetch_stats().retries
    asked = Counter(request for request in requests if request[0].endswith(".tar"))
    assert asked["train-000003.tar", 0] >= 2
    # Where the machine is slow others take too long as well; what has come is not asked for again.
    assert 1 <= asked.total() - len(asked) <= retries < 100


@pytest.fixture
def away(packed, serve_spoiled, cache):
    """A function: the URL of the set from which one shard does not come, until the event is set; the others are cached."""

    def without(number):
        back, name = threading.Event(), f"{number}.tar"
        back.set()
        url, _ = serve_spoiled(
            packed, lambda asked, start, answer: answer if back.is_set() or not asked.endswith(name) else None
        )
        epoch(url, cache=cache)
        (cache.path / "shards" / f"{Manifest.load(packed).shards[number].sha256}.tar").unlink()
        back.clear()
        return url, back

    return without


def test_a_server_that_stays_away_is_an_error_that_says_so(away, cache, within):
    url, _ = away(3)
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
    away, cache, within
):
    url, back = away(8)
    with Loader(url, cache=replace(cache, deadline_s=0.5), shuffle=False, **OPTIONS) as loader:
        batches = iter(loader)
        served = [next(batches).keys]
        fetching = loader._maker.reader.shards._files[0]._run
        wait_until(lambda: 8 in fetching._failed)
        fetching._downloads._deadline_s = LONG_S  # now it comes, on a slow machine too
        back.set()
        within(lambda: served.extend(batch.keys for batch in batches))
    assert len(served) == len(loader)


def test_closing_does_not_wait_for_the_network(packed, serve_spoiled, cache, within):
    def spoil(name, start, answer):
        if name.endswith(".tar"):
            asked.set()
            over.wait(LONG_S)
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
    assert asked.wait(LONG_S)
    within(loader.close)
    thread.join(LONG_S)
    over.set()
    assert isinstance(outcome[0], Exception)  # neither a batch nor a hang
    assert cached(cache, "*.part") == []


def test_an_index_that_the_cache_does_not_take_is_none_the_less_served(packed, memory, cache):
    for shard in Manifest.load(packed).shards:
        (cache.path / "shards" / f"{shard.sha256}.idx" / "in the way").mkdir(parents=True)
    assert_same_batches(epoch(memory(packed), cache=cache), epoch(packed))
