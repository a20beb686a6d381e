"""Shards that are not the manifest's, on the way and in the cache: none of their samples is served."""

import os
import shutil
from contextlib import suppress
from dataclasses import replace

import fsspec
import pytest
from cached_sets import OPTIONS, cached, change_byte, epoch, shard_bytes
from service_processes import assert_same_batches

from softshard.loaders import Loader
from softshard.shards import DataError, Manifest, ReshardOptions, reshard


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
        with pytest.raises(
            DataError, match=rf"^(memory://copies/copied/)?train-000003\.\w+: {message}"
        ) as caught:
            within(lambda: served.extend(batch.keys for batch in loader))
        assert len(served) == 3 * 13 // 8  # the batches before it
        (bad,) = [shard for shard in loader.manifest.shards if shard.name == "train-000003.tar"]
    if ".tar: " in str(caught.value):
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
        assert_same_batches(loader, epoch(packed))
        assert loader.fetch_stats().damaged == 1


def test_an_index_that_is_missing_is_made_from_the_shard(packed, copied, memory, cache):
    for path in copied.glob("*.idx"):
        path.unlink()
    assert_same_batches(epoch(memory(copied), cache=cache), epoch(packed))
    assert len(cached(cache, "*.idx")) == len(shard_bytes(copied))


def test_a_data_set_that_has_changed_is_not_served_from_what_was_cached(packed, copied, memory, cache):
    assert_same_batches(epoch(memory(packed), cache=cache), epoch(packed))
    # The same names, other bytes.
    other = cache.path.parent / "other"
    reshard([packed], other, ReshardOptions(shard_samples=13, shuffle=5, name="train"))
    shutil.rmtree(copied)
    shutil.copytree(other, copied)
    fsspec.filesystem("memory").rm("/copies/train", recursive=True)
    fsspec.filesystem("memory").put(str(copied), "/copies/train", recursive=True)
    names = [shard.name for shard in Manifest.load(packed).shards]
    assert [shard.name for shard in Manifest.load("memory://copies/train").shards] == names
    assert_same_batches(epoch("memory://copies/train", cache=cache), epoch(copied))


def test_a_cached_file_that_was_cut_is_fetched_again(packed, memory, cache):
    url = memory(packed)
    expected = epoch(url, cache=cache)
    os.truncate(cached(cache)[0], 100)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert_same_batches(loader, expected)
        assert loader.fetch_stats().shards_fetched == 1


@pytest.mark.parametrize("verify", ["once", "always", "size"])
def test_bytes_that_rot_in_the_cache_are_found_and_fetched_again(memory, packed, cache, verify):
    url = memory(packed)
    expected = epoch(url, cache=cache)
    change_byte(cached(cache)[0])
    with Loader(url, cache=replace(cache, verify=verify), num_epochs=1, **OPTIONS) as loader:
        found = list(loader)
        stats = loader.fetch_stats()
    if verify == "size":
        assert (stats.damaged, stats.shards_fetched) == (0, 0)
    else:
        assert_same_batches(found, expected)
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
