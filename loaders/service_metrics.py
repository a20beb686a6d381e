"""What a server counts, and how Prometheus reads it. All names begin with `softshard_service_`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .prometheus import sample_lines
from .service_cache import CacheCounts
from .service_protocol import ACTIONS


class ServiceCounts:
    """Requests by outcome, bytes by way. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter({"socket": 0, "memory": 0})

    def answered(self, what: str, outcome: str) -> None:
        """A request was answered: `ok`, or the code of a Refusal."""
        known = what if what in (*ACTIONS, "batch") else "other"
        with self._lock:
            self._requests[known, outcome] += 1

    def sent(self, num_bytes: int, *, in_memory: bool) -> None:
        """A batch was handed over."""
        with self._lock:
            self._bytes["memory" if in_memory else "socket"] += num_bytes

    def requests(self) -> dict[str, dict[str, int]]:
        """Request to outcome to how often."""
        found: dict[str, dict[str, int]] = {}
        with self._lock:
            for (what, outcome), count in self._requests.items():
                found.setdefault(what, {})[outcome] = count
        return found

    def sent_bytes(self) -> dict[str, int]:
        """`socket` and `memory` to bytes of batches."""
        with self._lock:
            return dict(self._bytes)


class LineBudget:
    """How many lines of one kind a log gets: so many a minute, whoever asks how often. For several threads.

    Args:
        per_minute: lines.
    """

    def __init__(self, per_minute: int = 30) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._ends, self._num = 0.0, 0

    def take(self, now_s: float) -> bool:
        """Whether one more line fits, at a time by the monotonic clock."""
        with self._lock:
            if now_s >= self._ends:
                self._ends, self._num = now_s + 60, 0
            self._num += 1
            return self._num <= self._per_minute


@dataclass(frozen=True)
class ServiceStats:
    """What a server has done since it began, and does now.

    Attributes:
        address: that it listens on.
        uptime_s: seconds since it began.
        draining: it lets nobody in any more.
        clients: that asked for something lately.
        calls: answers that are being made or sent.
        connections: that there are; 0 where they are not counted.
        connections_shut: why to how many: `too-large`, `too-many`.
        unauthenticated: calls without the token.
        cache: of batches.
        cache_limit: bytes it may have.
        memory_bytes: of batches in shared memory now.
        memory_limit: bytes they may have.
        requests: request to outcome to how often.
        sent_bytes: by socket, and by shared memory.
        recipes: that are open.
        waiting: batches that are asked for and not begun.
        images: that were decoded.
        bad_samples: slots whose sample could not be read.
    """

    address: str
    uptime_s: float
    draining: bool
    clients: int
    calls: int
    connections: int
    connections_shut: Mapping[str, int]
    unauthenticated: int
    cache: CacheCounts
    cache_limit: int
    memory_bytes: int
    memory_limit: int
    requests: Mapping[str, Mapping[str, int]]
    sent_bytes: Mapping[str, int]
    recipes: int
    waiting: int
    images: int
    bad_samples: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: every field, and the hit rate."""
        return asdict(self) | {"hit_rate": self.cache.hit_rate}

    def to_prometheus(self) -> str:
        """The same as text that Prometheus reads."""
        lines: list[str] = []

        def add(name: str, kind: str, text: str, *samples: tuple[dict[str, str], float]) -> None:
            lines.extend(sample_lines(f"softshard_service_{name}", kind, text, samples))

        cache = self.cache
        add(
            "requests_total",
            "counter",
            "Requests by what they asked for and how they were answered.",
            *(
                ({"request": what, "outcome": outcome}, count)
                for what, outcomes in self.requests.items()
                for outcome, count in outcomes.items()
            ),
        )
        add(
            "connections_shut_total",
            "counter",
            "Connections that sent more than a request may have, or were too many.",
            *(({"why": why}, count) for why, count in self.connections_shut.items()),
        )
        add("unauthenticated_total", "counter", "Calls without the token.", ({}, self.unauthenticated))
        add(
            "batches_total",
            "counter",
            "Batches by how they came about: made, joined while being made, or from the cache.",
            ({"how": "made"}, cache.made),
            ({"how": "joined"}, cache.joined),
            ({"how": "cached"}, cache.hits),
        )
        add("images_total", "counter", "Images that were decoded.", ({}, self.images))
        add("bad_samples_total", "counter", "Slots whose sample could not be read.", ({}, self.bad_samples))
        add(
            "sent_bytes_total",
            "counter",
            "Bytes of batches by the way they went.",
            *(({"way": way}, count) for way, count in self.sent_bytes.items()),
        )
        add("evictions_total", "counter", "Batches that left the cache to make room.", ({}, cache.evicted))
        add("hit_rate", "gauge", "Share of the batches that cost no decode.", ({}, cache.hit_rate))
        add("cache_bytes", "gauge", "Bytes of recent batches.", ({}, cache.num_bytes))
        add("cache_limit_bytes", "gauge", "Bytes that they may have.", ({}, self.cache_limit))
        add("memory_bytes", "gauge", "Bytes of batches in shared memory.", ({}, self.memory_bytes))
        add("memory_limit_bytes", "gauge", "Bytes that they may have.", ({}, self.memory_limit))
        add(
            "connections",
            "gauge",
            "Connections, whether they ask for anything or not.",
            ({}, self.connections),
        )
        add("clients", "gauge", "Clients that asked for something lately.", ({}, self.clients))
        add("calls", "gauge", "Answers that are being made or sent.", ({}, self.calls))
        add("waiting_batches", "gauge", "Batches that are asked for and not begun.", ({}, self.waiting))
        add("recipes", "gauge", "Recipes that are open.", ({}, self.recipes))
        add("draining", "gauge", "1 while the server stops.", ({}, int(self.draining)))
        add("uptime_seconds", "gauge", "Seconds since the server began.", ({}, self.uptime_s))
        return "\n".join(lines) + "\n"
