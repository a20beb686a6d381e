"""How throughput is measured: warm-up outside the clock, contenders in turn, several repeats, the median.

The machine may be shared and noisy, so contenders take turns and results are compared within one run.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..shards.cores import usable_cores

PACKAGES = (
    "softshard",
    "nvidia-dali-cuda120",
    "torch",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "numba",
    "lz4",
    "zstandard",
)

# Between turns of processes; worker processes decode a few batches ahead when they are asked for no more.
_SETTLE_S = 2.0


@dataclass(frozen=True)
class Throughput:
    """Images per second of one contender.

    Attributes:
        images_per_s: one value a repeat, by the wall clock.
        images_per_cpu_s: one value a repeat, by the process's CPU time over all its threads.
    """

    images_per_s: tuple[float, ...]
    images_per_cpu_s: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "images_per_s": round(self.median, 1),
            "low": round(min(self.images_per_s), 1),
            "high": round(max(self.images_per_s), 1),
            "images_per_cpu_s": round(statistics.median(self.images_per_cpu_s), 1),
            "repeats": len(self.images_per_s),
        }


def take_turns(
    contenders: Mapping[str, Callable[[], Iterator[int]]],
    *,
    warmup: int,
    steps: int,
    repeats: int,
    elsewhere: Mapping[str, Callable[[int, int], tuple[float, float]]] | None = None,
) -> dict[str, Throughput]:
    """Measure contenders in turn.

    Args:
        contenders: name to a function that starts one; the iterator yields the number of images of each
            batch, for as long as it is asked, and is closed after every measurement.
        elsewhere: name to a function of (warmup, steps) that measures one in another process, and gives its images
            per second and per CPU-second; they have their turn in every round, too. Before every turn there is then a
            pause, in which the one before fills its queues: that would be on the next one's clock.
        warmup: batches before the clock starts, so that queues are in their steady state.
        steps: batches on the clock.
        repeats: rounds; every contender runs once a round.

    Returns:
        Name to throughput.
    """
    elsewhere = elsewhere or {}
    pause_s = _SETTLE_S if elsewhere else 0.0
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in (*contenders, *elsewhere)}
    for _ in range(repeats):
        for name, start in contenders.items():
            time.sleep(pause_s)
            batches = start()
            for _ in range(warmup):
                next(batches)
            wall, cpu = time.perf_counter(), time.process_time()
            images = sum(next(batches) for _ in range(steps))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            values[name].append((images / wall, images / cpu))
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        for name, measure in elsewhere.items():
            time.sleep(pause_s)
            values[name].append(measure(warmup, steps))
    return {
        name: Throughput(tuple(wall for wall, _ in pairs), tuple(cpu for _, cpu in pairs))
        for name, pairs in values.items()
    }


def machine() -> dict[str, Any]:
    """What numbers belong to: processor, cores in use, Python and package versions."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model
            )
    except OSError:
        pass
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": model,
        "cores": usable_cores(),
        "python": platform.python_version(),
        "packages": versions,
    }
