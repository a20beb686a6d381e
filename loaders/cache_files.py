"""One file of the cache: what it is, whether it may go, and who has it; see cache.py."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ..shards.files import TEMPORARY_SUFFIX

_LEFT_OVER_S = 3600.0  # a small file that has been unfinished for so long has lost its process


def is_shard(path: Path) -> bool:
    """Whether a file is a shard, or one that is being downloaded."""
    return path.name.endswith((".tar", ".tar" + TEMPORARY_SUFFIX))


def may_go(path: Path, last_use: float) -> bool:
    """Whether a file may be evicted by itself, unless it is locked: an index goes with its shard."""
    if is_shard(path):
        return True
    if path.suffix == ".idx":
        return not path.with_suffix(".tar").exists()
    return abs(time.time() - last_use) > _LEFT_OVER_S  # also of a clock that was wrong then, and ahead


def try_lock(descriptor: int) -> bool:
    """Take an open file's exclusive lock; False where somebody holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
