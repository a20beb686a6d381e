"""The machine: system, cores, memory, open files, shared memory, disks, and variables that slow things down."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..shards.cores import cores_to_run_on, cpu_quota, own_cgroups, read_small, usable_cores, within_quota
from .cache import GIB, Cache
from .doctor_finding import FINE, NOTE, WRONG, Finding

_FEW_FILES, _ENOUGH_FILES = 256, 1024
_LITTLE_MEMORY_BYTES = 2 * GIB
_LITTLE_SHARED_BYTES = GIB
_LITTLE_DISK_BYTES, _ENOUGH_DISK_BYTES = GIB, 20 * GIB
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "glusterfs", "9p", "fuse.sshfs", "gpfs"}
)


def check_machine(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """All of this file."""
    environment = os.environ if environment is None else environment
    own = own_cgroups()
    return [
        check_system(sys.platform, platform.libc_ver()[0], platform.machine()),
        check_cores(cores_to_run_on(), os.cpu_count(), cpu_quota(own)),
        check_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit(own)),
        check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        check_shared_memory("/dev/shm"),
        check_folder("cache", Cache().path, "set SOFTSHARD_CACHE to a folder on a large local disk"),
        check_folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder with room"),
        *check_variables(environment, usable_cores(own)),
    ]


def check_system(system: str, libc: str, processor: str) -> Finding:
    """DALI and torch come as wheels for Linux with glibc."""
    found = f"{system}, {libc or 'no glibc'}, {processor}"
    if system != "linux":
        fix = "only the sharder may run here; for the loader use Linux, or Docker"
        return Finding("system", found, WRONG, fix)
    if libc != "glibc":
        fix = "DALI's wheels need glibc: use an image such as python:3.12-slim, not alpine"
        return Finding("system", found, WRONG, fix)
    return Finding("system", found)


def check_cores(cores: int, all_cores: int | None, quota: float | None) -> Finding:
    """softshard starts a thread or process for each core that it may use; torch knows nothing of a container's quota."""
    found = f"{cores} of {all_cores}" + (f", a quota of {quota:g}" if quota else "")
    if quota and quota < cores:
        fix = (
            f"export OMP_NUM_THREADS={within_quota(cores, quota)}: torch starts {cores} threads, which the quota holds up. "
            "Or start the container with --cpuset-cpus"
        )
        return Finding("cores", found, NOTE, fix)
    return Finding("cores", found)


def check_memory(total_bytes: int, limit_bytes: int | None) -> Finding:
    """What there is, or what the container may have of it."""
    usable = min(total_bytes, limit_bytes or total_bytes)
    found = f"{usable / GIB:.1f} GiB" + (
        f", the container's limit (the machine has {total_bytes / GIB:.1f})" if usable < total_bytes else ""
    )
    if usable < _LITTLE_MEMORY_BYTES:
        fix = "give the container more (docker run --memory), or use fewer workers and smaller batches"
        return Finding("memory", found, NOTE, fix)
    return Finding("memory", found)


def check_open_files(soft: int, hard: int) -> Finding:
    """Each shard in use is an open file, and so is each connection."""
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return Finding("open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,}")
    most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    fix = f"ulimit -n {most}" if most > soft else "ask the administrator for more: /etc/security/limits.conf"
    return Finding("open files", f"up to {soft:,}", WRONG if soft < _FEW_FILES else NOTE, fix)


def check_shared_memory(folder: str) -> Finding:
    """Ray, NCCL and torch's own workers need it; softshard's loader does not."""
    fix = "for Ray, NCCL and torch's DataLoader workers: docker run --shm-size=8g, or --ipc=host"
    try:
        total = shutil.disk_usage(folder).total
    except OSError:
        return Finding("shared memory", f"no {folder}", NOTE, fix)
    found = f"{total / GIB:.2f} GiB"
    return (
        Finding("shared memory", found)
        if total >= _LITTLE_SHARED_BYTES
        else Finding("shared memory", found, NOTE, fix)
    )


def check_folder(name: str, folder: Path, fix: str) -> Finding:
    """Whether files can be written to a folder, how much fits, and whether its disk is this machine's own."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, f"{folder}: cannot be written", WRONG, fix)
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}", WRONG, fix)
    found = f"{folder}: {free / GIB:.1f} GiB free"
    if free < _LITTLE_DISK_BYTES:
        return Finding(name, found, WRONG, fix)
    if (kind := filesystem_of(there)) in _NETWORK:
        return Finding(name, f"{found}, on a network file system ({kind})", NOTE, fix)
    if name == "cache" and free < _ENOUGH_DISK_BYTES:
        return Finding(name, f"{found}: few shards of 256 MB fit", NOTE, fix)
    return Finding(name, found)


def check_variables(environment: Mapping[str, str], cores: int) -> list[Finding]:
    """Variables of the environment that slow down what softshard does."""
    findings = []
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads == "1" and cores > 1 and "LOCAL_RANK" not in environment:
        found, fix = "1: torch computes on one core", "unset OMP_NUM_THREADS"
        findings.append(Finding("OMP_NUM_THREADS", found, NOTE, fix))
    elif threads.isdigit() and int(threads) > cores:
        found, fix = f"{threads}, more than the {cores} cores", f"export OMP_NUM_THREADS={cores}"
        findings.append(Finding("OMP_NUM_THREADS", found, NOTE, fix))
    if environment.get("MALLOC_ARENA_MAX", "") in ("1", "2"):
        found = f"{environment['MALLOC_ARENA_MAX']}: the decoder's threads wait for each other's memory"
        fix = "unset MALLOC_ARENA_MAX; softshard gives memory back on its own"
        findings.append(Finding("MALLOC_ARENA_MAX", found, NOTE, fix))
    if environment.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        found = "set: label maps are pooled by numpy, three times as slowly"
        findings.append(Finding("NUMBA_DISABLE_JIT", found, NOTE, "unset NUMBA_DISABLE_JIT"))
    return findings or [Finding("environment", "no variable that slows things down", FINE)]


def memory_limit(groups: list[Path]) -> int | None:
    """Bytes that a container may use; None for no limit."""
    texts = (read_small(group / name) for group in groups for name in ("memory.max", "memory.limit_in_bytes"))
    return min((int(text) for text in texts if text.isdigit()), default=None)


def filesystem_of(folder: Path, mounts: str = "/proc/mounts") -> str:
    """The kind of file system that a folder lies on, such as `ext4`; empty where it cannot be told."""
    best, kind = "", ""
    for line in read_small(Path(mounts)).splitlines():
        place, name = line.split(" ")[1:3]
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind
