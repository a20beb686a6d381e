"""Groups of confused classes: how long they take, and what they lose against every set that there is.

Job: `confusion_groups` over a simulated confusion matrix: classes in families (100 of them for 1000 classes), most of a
class's errors inside its family, the sizes of errors heavy-tailed. Seconds are the median of the repeats. On 12 classes
every group is compared with the best of all sets of the classes left.

Run: python benchmarks/confusion_groups.py
"""

from __future__ import annotations

import time
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from harness import arguments, sweep, write_result

from softshard.shards.confusion_groups import confusion_groups

SMALL_CASES, SMALL_CLASSES = 200, 12


def simulated(num_classes: int, seed: int) -> np.ndarray:
    """float64 [C, C]: errors of a model whose classes come in families of about ten."""
    rng = np.random.default_rng(seed)
    family = rng.integers(0, max(1, num_classes // 10), num_classes)
    near = np.where(family[:, None] == family, 1.0, 0.02)
    return near * rng.pareto(2.0, (num_classes, num_classes))


def measure(num_classes: int, num_groups: int, repeats: int = 3) -> dict[str, Any]:
    """One row: seconds, and the total against the same sizes drawn at random."""
    confusion = simulated(num_classes, 0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = confusion_groups(confusion, num_groups)
        seconds.append(time.perf_counter() - start)
    share = np.mean([len(group) * (len(group) - 1) for group in found.groups]) * num_groups
    by_chance = confusion[~np.eye(num_classes, dtype=bool)].mean() * share
    return {
        "seconds": round(median(seconds), 2),
        "lowest_s": round(min(seconds), 2),
        "highest_s": round(max(seconds), 2),
        "total_against_random": round(found.total / by_chance, 2) if by_chance else None,
    }


def against_every_set() -> dict[str, Any]:
    """The worst group of many small cases, as a share of the best set of the same size that was left."""
    worst, best, groups = 1.0, 0, 0
    for seed in range(SMALL_CASES):
        confusion = simulated(SMALL_CLASSES, seed)
        pairs = confusion + confusion.T
        left = set(range(SMALL_CLASSES))
        found = confusion_groups(confusion, 2 + seed % 4)
        for group, value in zip(found.groups, found.values, strict=True):
            most = max(
                sum(pairs[i, j] for i, j in combinations(chosen, 2))
                for chosen in combinations(sorted(left), len(group))
            )
            worst, best, groups = min(worst, value / most), best + (value > most * (1 - 1e-9)), groups + 1
            left -= set(group)
    return {
        "cases": SMALL_CASES,
        "groups": groups,
        "were_the_best": int(best),
        "worst_share": round(worst, 4),
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    swept = {"num_classes": [100, 1000], "num_groups": [2, 10, 67, 100]}
    rows = sweep(swept, measure)
    write_result(
        args.out,
        benchmark="confusion_groups",
        job="confusion_groups over a simulated confusion matrix",
        swept=swept,
        rows=rows,
        against_every_set=against_every_set(),
    )


if __name__ == "__main__":
    main()
