"""How many cores a process may use: those that it may run on, or what a container's quota leaves of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path


def usable_cores(groups: Sequence[Path] | None = None) -> int:
    """Cores that this process can keep busy, at least 1: of its affinity (`taskset`, `--cpuset-cpus`), within its quota
    (`docker run --cpus`, a CPU limit of Kubernetes).

    Args:
        groups: the folders of its control groups, as `own_cgroups` finds them.
    """
    return within_quota(cores_to_run_on(), cpu_quota(own_cgroups() if groups is None else groups))


def cores_to_run_on() -> int:
    """Cores of this process's affinity; all of the machine where the system has no such thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def within_quota(cores: int, quota: float | None) -> int:
    """Cores that a quota keeps busy; a part of one counts as one, which is then held up now and then."""
    return min(cores, math.ceil(quota)) if quota else cores


def own_cgroups(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[Path]:
    """The folders that limit this process: version 2 first, then version 1's of `cpu` and `memory`, inner ones first."""
    folders = []
    try:
        lines = Path(proc).read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in ("", "cpu", "memory"):
                top = Path(root, name)
                inner = top / path.strip("/")
                # Inside a container its own group is the root.
                folders += [inner, *(one for one in inner.parents if one.is_relative_to(top))]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def cpu_quota(groups: Sequence[Path]) -> float | None:
    """Cores' worth of time that a container may use; None for no limit."""
    quotas = []
    for group in groups:
        quota, _, period = read_small(group / "cpu.max").partition(" ")
        quota, period = (
            quota or read_small(group / "cpu.cfs_quota_us"),
            period or read_small(group / "cpu.cfs_period_us"),
        )
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def read_small(file: Path) -> str:
    """What a file of the kernel's says, stripped; nothing where it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
