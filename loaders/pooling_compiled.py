"""Label pooling by compiled loops (pooling_kernels.py), where numba is installed: a map costs a third as much.

numba compiles on the machine itself, at the first use, and keeps what it made (beside the module, in the user's
cache, or in NUMBA_CACHE_DIR); where it can write to none of them it compiles in every process. Without numba, or
where it fails, pooling_host.py does the same in numpy. Both agree to 1e-6, which tests check.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from ..shards.labelmap import MapGroup, decode_group
from ..shards.labelmap_header import IDS_UINT16, MAX_PALETTE
from .pooling_job import PoolingJob

COMPILED_GROUP_ELEMENTS = (
    128_000  # of a group: 770 kB once decoded; what Python does for each counts for little
)
MAPS_PER_SHARE = 32  # handing a share to another thread takes as long as a few maps

_KINDS = {"logits": 0, "softmax": 1, "one-hot": 2}
_NO_TABLES = np.empty((0, 0), np.uint16)
_NO_CLASSES = np.empty(0, np.int64)


class Kernels(NamedTuple):
    """The functions of pooling_kernels.py, compiled."""

    decode_maps: Any
    pool_maps: Any
    weigh_axis: Any


@lru_cache(maxsize=1)
def load_kernels() -> Kernels | None:
    """Compile the kernels, or load them from numba's cache; None where numba is missing, switched off or fails."""
    try:
        import numba
    except ImportError:  # also of a numba that does not fit the installed numpy
        return None
    if numba.config.DISABLE_JIT:  # pyright: ignore
        return None
    from . import pooling_kernels as source

    kernels = Kernels(source.decode_maps, source.pool_maps, source.weigh_axis)
    # Where numba can write to no folder, or what lies there is damaged, the error may be any.
    try:
        for kernel in kernels:
            kernel.enable_caching()
        return _tried(kernels)
    except Exception:
        pass
    try:
        again = numba.njit(nogil=True)
        return _tried(Kernels(*(again(kernel.py_func) for kernel in kernels)))
    except Exception as error:
        warnings.warn(
            f"label pooling: expected numba to compile it, found: {error!r}; it runs in numpy, three times as slowly",
            stacklevel=2,
        )
        return None


def _tried(kernels: Kernels) -> Kernels:
    """The same, having pooled one map, which compiles them."""
    one = np.ones(1, np.int64)
    raw = np.frombuffer(bytes(14), np.uint8)
    scores, places, tables = _arrays((1, 1, 1, 1), tabled=True)
    if not kernels.decode_maps(raw, one * 0, 1, 1, one, one, _halves(), scores, places, tables):
        raise RuntimeError("numba's decode_maps refuses a map that is fine")
    group = MapGroup(one * 0, scores, places, tables, one)
    crop = np.array([[0, 1]], np.float32)
    weights = compiled_axis_weights(kernels)(crop[:, 0], crop[:, 1], 1)
    job = PoolingJob(1, weights, weights, 1, "softmax", False, 0.0, None, None)
    (target,) = pool_compiled([[group]], job, kernels, 1)
    if target.item() != 1:
        raise RuntimeError("numba's pool_maps pools another target")
    return kernels


@lru_cache(maxsize=1)
def _halves() -> np.ndarray:
    """float32 [65536], what the bits of a float16 stand for."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _arrays(shape: tuple[int, ...], *, tabled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, places, tables) of a group [n, K, P, Q], to be filled."""
    tables = np.empty((shape[0], MAX_PALETTE), np.uint16) if tabled else _NO_TABLES
    return np.empty(shape, np.float32), np.empty(shape, np.uint32), tables


def compiled_decode(kernels: Kernels) -> Callable[..., MapGroup]:
    """`labelmap.decode_group` by compiled loops; the same arrays, and the same errors."""

    def decode(
        members: np.ndarray,
        payloads: Sequence[Any],
        heads: np.ndarray,
        shape: tuple[int, int, int],
        where: Callable[[int], str],
    ) -> MapGroup:
        fields = heads[members]
        score_code, id_code = int(fields["scores"][0]), int(fields["ids"][0])
        payload_bytes = fields["payload"].astype(np.int64)
        raw = np.frombuffer(b"".join(payloads), np.uint8)
        sizes, limits = fields["palette"].astype(np.int64), fields["classes"].astype(np.int64)
        starts = np.cumsum(payload_bytes) - payload_bytes
        scores, places, tables = _arrays((len(members), *shape), tabled=id_code != IDS_UINT16)
        if raw.size != payload_bytes.sum() or not kernels.decode_maps(
            raw, starts, score_code, id_code, sizes, limits, _halves(), scores, places, tables
        ):
            return decode_group(members, payloads, heads, shape, where)  # raises, and says what is wrong
        return MapGroup(members, scores, places, tables if tables.size else None, sizes)

    return decode


def compiled_axis_weights(kernels: Kernels) -> Callable[..., np.ndarray]:
    """`roialign.axis_weights` by compiled loops; the same bits."""

    def axis_weights(start: np.ndarray, end: np.ndarray, num_cells: int, num_bins: int = 1) -> np.ndarray:
        weights = np.empty((len(start), num_bins, num_cells), np.float32)
        kernels.weigh_axis(np.ascontiguousarray(start), np.ascontiguousarray(end), weights)
        return weights

    return axis_weights


def pool_compiled(
    shares: Sequence[Iterable[MapGroup]], job: PoolingJob, kernels: Kernels, num_threads: int
) -> list[torch.Tensor]:
    """Pool N maps, share by share, in so many threads at most. The result depends on neither.

    Returns:
        [float32 [N, G, H, C]], or with `keep` [float32 [N, G, H, m], int64 [N, G, H, m]].
    """
    nothing = (0, 0, 0, 0)
    dense = np.empty((*job.shape, job.num_classes) if job.keep is None else nothing, np.float32)
    chosen = nothing if job.keep is None else (*job.shape, job.keep)
    values, ids = np.empty(chosen, np.float32), np.empty(chosen, np.int64)
    own = _NO_CLASSES if job.own is None else job.own
    rows, columns = (np.ascontiguousarray(weights) for weights in (job.rows, job.columns))

    def pool(groups: Iterable[MapGroup]) -> None:
        for group in groups:
            kernels.pool_maps(
                group.members,
                np.ascontiguousarray(group.scores),
                np.ascontiguousarray(group.places, np.uint32),
                _NO_TABLES if group.tables is None else group.tables,
                group.sizes,
                rows,
                columns,
                job.num_classes,
                _KINDS[job.kind],
                job.floor,
                float(job.original),
                own,
                dense,
                values,
                ids,
            )

    _in_threads(pool, shares, num_threads)
    return (
        [torch.from_numpy(dense)] if job.keep is None else [torch.from_numpy(values), torch.from_numpy(ids)]
    )


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    """Threads that stay for as long as the process: on a busy machine starting one takes longer than all its maps."""
    return ThreadPoolExecutor(os.cpu_count(), "label-pooling")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child process has none of its parent's threads


def _in_threads(
    run: Callable[[Iterable[MapGroup]], None], shares: Sequence[Iterable[MapGroup]], num_threads: int
) -> None:
    """Work through the shares, here and in helpers; what a helper has not begun by the end is not waited for.

    Raises:
        The error of the first share that has one.
    """
    waiting, errors = deque(enumerate(shares)), dict[int, BaseException]()

    def work() -> None:
        while True:
            try:
                i, share = waiting.popleft()
            except IndexError:
                return
            try:
                run(share)
            except BaseException as error:
                errors[i] = error
                waiting.clear()  # those before it have been begun

    helpers = [_helpers().submit(work) for _ in range(min(num_threads, len(shares)) - 1)]
    work()
    wait([helper for helper in helpers if not helper.cancel()])
    if errors:
        raise errors[min(errors)]


def num_shares(num_maps: int, num_threads: int) -> int:
    """Shares that the threads take one after the other: one where there is a single thread or little to do."""
    return max(1, min(2 * num_threads if num_threads > 1 else 1, num_maps // MAPS_PER_SHARE))
