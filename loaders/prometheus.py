"""A loader's statistics in Prometheus' text format, version 0.0.4.

Serve it from whatever answers HTTP in the training process, or write it to a file that a node exporter collects. All
names begin with `softshard_loader_`; every sample has the labels `dataset` (without passwords) and `rank`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from .fetch_stats import FetchStats

if TYPE_CHECKING:
    from .loader_stats import LoaderStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FETCHED: dict[str, tuple[str, str]] = {
    "requests": ("fetch_requests_total", "Ranges and small files that were asked for, retries included."),
    "retries": ("fetch_retries_total", "Requests that repeated one without an answer."),
    "bytes_fetched": ("fetch_bytes_total", "Bytes of shards and indexes that came."),
    "shards_fetched": ("fetch_shards_total", "Shards that were downloaded."),
    "cache_hits": ("fetch_cache_hits_total", "Shards that were in the cache."),
    "fetched_again": (
        "fetch_again_total",
        "Shards that one iteration fetched twice: the cache is too small.",
    ),
    "fetched_in_vain": ("fetch_in_vain_total", "Shards that were fetched for an epoch that did not follow."),
    "damaged": ("fetch_damaged_total", "Downloads and cached shards that were thrown away."),
    "evictions": ("fetch_evictions_total", "Shards that were removed from the cache to make room."),
    "over_budget": ("fetch_over_budget_total", "Shards that were let in beyond the cache's budget."),
    "waited_s": ("fetch_wait_seconds_total", "Seconds that batches waited for shards."),
}
assert _FETCHED.keys() == {field.name for field in fields(FetchStats)}


def exposition(stats: LoaderStats) -> str:
    """The text: for each metric a HELP and a TYPE line, then its samples."""
    labels = {"dataset": stats.dataset, "rank": str(stats.rank)}
    loop = stats.loop
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        labelled = (({**labels, **more}, value) for more, value in samples)
        lines.extend(sample_lines(f"softshard_loader_{name}", kind, text, labelled))

    def count(name: str, text: str, value: float) -> None:
        add(name, "counter", text, [({}, value)])

    def gauge(name: str, text: str, value: float) -> None:
        add(name, "gauge", text, [({}, value)])

    count("batches_total", "Batches that the training loop was given.", loop.batches)
    count("images_total", "Images in them.", loop.images)
    add(
        "stage_seconds_total",
        "counter",
        "Seconds that making batches spent in each stage.",
        [({"stage": name}, time.seconds) for name, time in stats.stages.items()],
    )
    count("data_wait_seconds_total", "Seconds that the training loop waited for batches.", loop.data_wait_s)
    count("loop_seconds_total", "Seconds that the training loop spent on its batches.", loop.loop_s)
    count("queue_full_seconds_total", "Seconds that batches waited for room in the queue.", loop.queue_full_s)
    gauge("queue_batches", "Batches in the queue.", stats.queue_depth)
    gauge("queue_batches_most", "Batches that were in the queue at most.", loop.queue_most)
    gauge("queue_size", "Batches that the queue holds.", stats.queue_size)
    gauge("decoding_batches", "Batches whose images are being decoded, or wait for it.", stats.decoding)
    count("bad_samples_total", "Samples that could not be read.", stats.bad_samples)
    for field, (name, text) in _FETCHED.items():
        count(name, text, getattr(stats.fetch, field))
    return "\n".join(lines) + "\n"


def sample_lines(
    name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    """One metric: its HELP and TYPE lines, then a line for each (labels, value)."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{_label_text(labels)} {value}"


def _label_text(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
