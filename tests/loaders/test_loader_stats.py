"""`loader.stats()`: what was given, where the time went, and the sentence about what bounds it. Nothing is timed here."""

import json
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import LONG_S, wait_until

from softshard.loaders import Augment, FetchStats, Loader, LoaderStats
from softshard.loaders.loader_stats import LoopTimes
from softshard.loaders.stages import StageTime

OPTIONS = {"batch_size": 8, "augment": Augment(size=16), "dtype": "uint8", "num_threads": 2}


def stats_of(data_wait_s=0.0, loop_s=0.0, batches=10, **stages):
    """LoaderStats with these seconds."""
    loop = LoopTimes(batches, 80, data_wait_s, loop_s)
    return LoaderStats("set", 0, loop, {name: StageTime(s, batches) for name, s in stages.items()})


def test_an_epoch_is_counted_stage_by_stage(packed):
    with Loader(packed, targets="relabel", **OPTIONS) as loader:
        assert loader.stats().bottleneck == "nothing yet: no batch was asked for"
        assert loader.stats().mean_stage_s == {}
        assert len(list(loader)) == 13
        stats = loader.stats()
    assert (stats.loop.batches, stats.loop.images) == (13, 104)
    assert set(stats.stages) == {"order", "shard", "read", "pool", "decode", "copy"}
    assert stats.stages["decode"].calls == stats.stages["copy"].calls == 13
    assert stats.mean_stage_s["decode"] == stats.stages["decode"].seconds / 13
    assert stats.loop.data_wait_s > 0
    assert stats.loop.queue_most in (1, 2)
    assert (stats.queue_depth, stats.queue_size, stats.decoding) == (0, 2, 0)
    assert stats.fetch == FetchStats()


def test_padding_is_no_image_and_counts_go_on_over_epochs(packed):
    with Loader(packed, last_batch="pad", **OPTIONS) as loader:
        list(loader)
        first = loader.stats()
        list(loader)
        both = loader.stats()
    assert (first.loop.batches, first.loop.images) == (14, 105)
    assert both.loop.images == 210
    between = both - first
    assert (between.loop.batches, between.loop.images) == (14, 105)
    assert between.stages["read"].calls == 14
    assert between.stages["read"].seconds == both.stages["read"].seconds - first.stages["read"].seconds
    assert between.loop.queue_most == both.loop.queue_most


def test_the_queue_of_a_loop_that_holds_back_is_full(packed):
    with Loader(packed, prefetch=2, **OPTIONS) as loader:
        batches = iter(loader)
        next(batches)
        wait_until(lambda: loader.stats().queue_depth == 2 and loader.stats().decoding == 1)
        for _ in batches:
            pass
        stats = loader.stats()
    assert stats.loop.queue_most == 2
    assert stats.loop.queue_full_s > 0
    assert stats.loop.loop_s > 0


def test_stats_can_be_read_while_another_thread_iterates(packed):
    with Loader(packed, **OPTIONS) as loader:
        seen = []
        reader_stops = threading.Event()

        def look():
            while not reader_stops.is_set():
                stats = loader.stats()
                stats.to_prometheus()
                seen.append(stats.loop.images)

        reader = threading.Thread(target=look)
        reader.start()
        try:
            for _ in range(3):
                list(loader)
        finally:
            reader_stops.set()
            reader.join(LONG_S)
    assert seen == sorted(seen)
    assert loader.stats().loop.images == 3 * 104


def test_bad_samples_are_counted(damage):
    folder, _, _ = damage(20, "jpg", lambda jpeg: b"\0" * len(jpeg))
    with Loader(folder, **OPTIONS) as loader:
        list(loader)
        assert loader.stats().bad_samples == loader.num_bad == 1


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        (stats_of(0.4, 9.6, decode=9.0), "the training loop"),
        (stats_of(0.6, 9.4, decode=5.0, pool=1.0), "decode"),
        (stats_of(5.0, 5.0, decode=1.0, shard=4.0), "storage"),
        (stats_of(5.0, 5.0, decode=1.0, pool=4.0), "label pooling"),
        (stats_of(5.0, 5.0, read=4.0, copy=1.0), "reading labels"),
        (stats_of(5.0, 5.0, decode=1.0, augment=1.1), "augmentation"),
        (stats_of(batches=0, decode=1.0), "nothing yet: no batch was asked for"),
    ],
)
def test_the_bottleneck_is_the_loop_or_the_longest_stage(stats, words):
    assert stats.bottleneck == words


def test_json_holds_every_number(packed):
    with Loader(packed, **OPTIONS) as loader:
        list(loader)
        stats = loader.stats()
    found = json.loads(json.dumps(stats.to_json()))
    assert found["batches"] == 13
    assert found["stages"]["decode"]["mean_s"] == stats.mean_stage_s["decode"]
    assert found["fetch"]["bytes_fetched"] == 0
    assert found["bottleneck"] == stats.bottleneck


def test_prometheus_reads_the_text(packed):
    with Loader(packed, rank=1, world_size=2, **OPTIONS) as loader:
        list(loader)
        stats = loader.stats()
    text = stats.to_prometheus()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith("softshard_loader_") for name in families)
    assert all(family.documentation and family.type in ("counter", "gauge") for family in families.values())
    values = {
        (sample.name.removeprefix("softshard_loader_"), sample.labels.get("stage")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["batches_total", None] == stats.loop.batches == 6
    assert values["images_total", None] == 48
    assert values["stage_seconds_total", "decode"] == stats.stages["decode"].seconds
    assert values["queue_size", None] == 2
    assert values["fetch_bytes_total", None] == 0
    samples = [sample for family in families.values() for sample in family.samples]
    assert {(sample.labels["dataset"], sample.labels["rank"]) for sample in samples} == {(str(packed), "1")}
    # Every metric says what it is before its first sample, once.
    lines = text.splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert names == [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_labels_are_escaped():
    text = LoaderStats('odd"name\\with\nlines', 0).to_prometheus()
    names = {
        sample.labels["dataset"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert names == {'odd"name\\with\nlines'}


def test_a_password_in_the_url_is_in_no_label(packed, serve_spoiled, cache):
    url, _ = serve_spoiled(packed)
    assert ":secret@" in url
    with Loader(url, cache=cache, **OPTIONS) as loader:
        text = loader.stats().to_prometheus()
    assert "http://" in text
    assert "secret" not in text


def test_a_loader_behind_a_url_counts_what_it_fetched(packed, memory, cache):
    url = memory(packed)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        list(loader)
        stats = loader.stats()
    assert stats.fetch == loader.fetch_stats()
    assert stats.fetch.shards_fetched == 9
    text = stats.to_prometheus()
    label = f'dataset="{url}",rank="0"'
    assert f"softshard_loader_fetch_bytes_total{{{label}}} {stats.fetch.bytes_fetched}\n" in text
