"""Label pooling by compiled loops (pooling_kernels.py), where numba is installed: a map costs a third as much.

numba compiles on the machine itself, at the first use, and keeps what it made (beside the module, in the user's
cache, or in NUMBA_CACHE_DIR); where it can write to none of them it compiles in every process. Without numba, or
where it fails, pooling_host.py does the same in numpy. Both agree to 1e-6, which tests check.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from importlib import reload
from typing import Any, NamedTuple

import numpy as np
import torch

from ..shards.labelmap import DecodeSteps, MapGroup, decode_group, decode_map_groups, encode_label_map
from ..shards.labelmap_expand import expand
from ..shards.labelmap_header import (
    HEADER,
    HEADER_DTYPE,
    IDS_PALETTE_DIFFERENCES,
    IDS_UINT16,
    MAGIC,
    MAX_PALETTE,
    RANK_DIFFERENCES,
    SCORES_UINT8,
    ZSTD,
    JoinedMaps,
    check_sums,
    read_headers,
)
from .pooling_job import PoolingJob, check_ids

COMPILED_GROUP_ELEMENTS = 288_000  # of a group: what Python does for each counts for little
_CACHED_ELEMENTS = 32_000  # that are decoded before they are pooled, 256 kB
# Of a thread, at least: it takes as long as twenty maps before the first is pooled, partly under Python's lock.
MAPS_PER_SHARE = 256

_KINDS = {"logits": 0, "softmax": 1, "one-hot": 2}
_NO_TABLES = np.empty((0, 0), np.uint16)
_NO_CLASSES = np.empty(0, np.int64)


class Kernels(NamedTuple):
    """The functions of pooling_kernels.py and of the *_kernel.py beside it that pooling needs, compiled."""

    decode_maps: Any
    pool_maps: Any
    decode_and_pool: Any
    weigh_axis: Any
    first_wrong: Any
    pool_coded: Any
    headers_fit: Any
    crops_fit: Any
    expand_frames: Any  # None without libzstd


@lru_cache(maxsize=1)
def load_kernels() -> Kernels | None:
    """Compile the kernels, or load them from numba's cache; None where numba is missing, switched off or fails."""
    try:
        import numba
    except ImportError:  # also of a numba that does not fit the installed numpy
        return None
    if numba.config.DISABLE_JIT:  # pyright: ignore
        return None
    from . import checks_kernel, checksum_kernel, coded_kernel, pooling_kernels, roialign_kernel

    modules = pooling_kernels, roialign_kernel, checksum_kernel, coded_kernel, checks_kernel
    choices, frames = [(*modules, None)], _expand_kernel()
    if frames is not None:
        choices.insert(0, (*modules, frames))  # which may fail alone

    # Where numba can write to no folder, or what lies there is damaged, the error may be any.
    for choice in choices:
        with suppress(Exception):
            kernels = _kernels(*choice)
            for kernel in filter(None, kernels):
                kernel.enable_caching()
            return _tried(kernels)
    errors = []
    for choice in choices:  # without the cache: what was defined anew knows of none
        try:
            return _tried(_kernels(*[module and reload(module) for module in choice]))
        except Exception as error:
            errors.append(error)
    warnings.warn(
        f"label pooling: expected numba to compile it, found: {errors[-1]!r}; it runs in numpy, three times as slowly",
        stacklevel=2,
    )
    return None


def pooling_engine() -> str:
    """What pools label maps here: `numba` and its version, or `numpy`; compiles nothing.

    What one gives and what the other gives agree to 1e-6, not in bits. A numba that is there and fails is known as soon as
    something was pooled.
    """
    try:
        import numba
    except ImportError:
        return "numpy"
    failed = load_kernels.cache_info().currsize > 0 and load_kernels() is None
    return "numpy" if numba.config.DISABLE_JIT or failed else f"numba {numba.__version__}"  # pyright: ignore


def _expand_kernel() -> Any:
    """The module, or on a machine without libzstd, or with one that does not fit, None."""
    with suppress(Exception):
        from . import expand_kernel

        return expand_kernel


def _kernels(pooling: Any, roialign: Any, checksum: Any, coded: Any, checks: Any, frames: Any) -> Kernels:
    """The functions of these modules."""
    return Kernels(
        pooling.decode_maps,
        pooling.pool_maps,
        pooling.decode_and_pool,
        roialign.weigh_axis,
        checksum.first_wrong,
        coded.pool_coded,
        checks.headers_fit,
        checks.crops_fit,
        frames and frames.expand_frames,
    )


def _tried(kernels: Kernels) -> Kernels:
    """The same, having pooled a map of each kind in each way, which compiles them."""
    shape = 1, 1, 300  # below 256 bytes nothing would be compressed
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.int64)
    maps = [
        encode_label_map(ones, zeros, num_classes=1, score_encoding=kind) for kind in ("float16", "uint8")
    ]
    _, (groups,) = decode_map_groups(maps, steps=compiled_steps(kernels, EncodedGroup))
    encoded = list(groups)
    weigh, start, end = compiled_axis_weights(kernels), np.zeros(2, np.float32), np.ones(2, np.float32)
    job = PoolingJob(1, weigh(start, end, 1), weigh(start, end, 300), 1, "softmax", False, 0.0, None, None)
    for forms in (encoded, [group.decoded(kernels) for group in encoded]):
        (targets,) = pool_compiled([forms], job, kernels, 1)
        if not ((targets == 1).all() and kernels.crops_fit(np.array([[0, 0, 1, 1]], np.float32))):
            raise RuntimeError("numba's kernels pool other targets")
    return kernels


@lru_cache(maxsize=1)
def _halves() -> np.ndarray:
    """float32 [65536], what the bits of a float16 stand for."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


class EncodedGroup(NamedTuple):
    """Label maps of one encoding, expanded but not decoded: what the loops decode and pool in one go.

    Attributes:
        members: int64 [n], which of the N maps these are.
        payloads: bytes that hold their payloads.
        starts: int64 [n], where they begin.
        heads: HEADER_DTYPE [N].
        shape: (K, P, Q).
        where: the name of map i, for messages.
    """

    members: np.ndarray
    payloads: bytes | np.ndarray
    starts: np.ndarray
    heads: np.ndarray
    shape: tuple[int, int, int]
    where: Callable[[int], str]

    @property
    def source(self) -> tuple[np.ndarray, np.ndarray, int, int]:
        """(payloads, starts, code of the scores, code of the ids), as the loops take them."""
        first = self.heads[self.members[0]]
        return np.frombuffer(self.payloads, np.uint8), self.starts, int(first["scores"]), int(first["ids"])

    def arrays(self, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(scores, places, tables) of so many maps, to be filled."""
        tabled = self.heads["ids"][self.members[0]] != IDS_UINT16
        tables = np.empty((num, MAX_PALETTE), np.uint16) if tabled else _NO_TABLES
        return np.empty((num, *self.shape), np.float32), np.empty((num, *self.shape), np.uint32), tables

    @property
    def coded(self) -> bool:
        """Whether these are what `pool_coded` takes."""
        first = self.heads[self.members[0]]
        return first["scores"] == SCORES_UINT8 + RANK_DIFFERENCES and first["ids"] == IDS_PALETTE_DIFFERENCES

    @property
    def sizes(self) -> np.ndarray:
        """Entries of each palette, int64 [n]."""
        return self.field("palette")

    def field(self, name: str) -> np.ndarray:
        """A field of the headers, int64 [n]."""
        return self.heads[name][self.members].astype(np.int64)

    def decoded(self, kernels: Kernels) -> MapGroup:
        """The same arrays as `labelmap.decode_group`, and the same errors."""
        scores, places, tables = self.arrays(len(self.members))
        limits = self.field("classes")
        if not kernels.decode_maps(*self.source, self.sizes, limits, _halves(), scores, places, tables):
            # Raises, and says what is wrong.
            return decode_group(self.members, bytes(self.payloads), *self[2:])
        return MapGroup(self.members, scores, places, tables if tables.size else None, self.sizes)


def compiled_steps(kernels: Kernels, decode: Callable[..., MapGroup | EncodedGroup]) -> DecodeSteps:
    """The steps of decoding by compiled loops; the last leaves maps encoded for `pool_compiled`, or decodes them."""
    return DecodeSteps(
        compiled_read_headers(kernels),
        compiled_check_sums(kernels),
        expand if kernels.expand_frames is None else compiled_expand(kernels),
        decode,
        COMPILED_GROUP_ELEMENTS,
    )


def compiled_decode(kernels: Kernels) -> Callable[..., MapGroup]:
    """`labelmap.decode_group` by compiled loops."""
    return lambda *group: EncodedGroup(*group).decoded(kernels)


@lru_cache(maxsize=1)
def _checksum_tables() -> np.ndarray:
    from .checksum_kernel import checksum_tables

    return checksum_tables()


def compiled_check_sums(kernels: Kernels) -> Callable[..., None]:
    """`labelmap_header.check_sums` by compiled loops."""

    def compare(
        maps: JoinedMaps, members: np.ndarray, heads: np.ndarray, where: Callable[[int], str]
    ) -> None:
        raw, expected = np.frombuffer(maps.data, np.uint8), heads["crc32"][members].astype(np.int64)
        starts, ends = maps.starts[members], maps.starts[members + 1]
        if kernels.first_wrong(raw, starts, ends, HEADER.size - 4, expected, _checksum_tables()) >= 0:
            check_sums(maps, members, heads, where)  # raises, and says which

    return compare


def compiled_read_headers(kernels: Kernels) -> Callable[..., np.ndarray]:
    """`labelmap_header.read_headers`, checked by a compiled loop."""
    magic = np.frombuffer(MAGIC, np.uint8)

    def read(maps: JoinedMaps, where: Callable[[int], str]) -> np.ndarray:
        heads = np.empty((len(maps.starts) - 1, HEADER.size), np.uint8)
        if kernels.headers_fit(np.frombuffer(maps.data, np.uint8), maps.starts, magic, heads):
            return heads.view(HEADER_DTYPE)[:, 0]
        return read_headers(maps, where)  # raises, and says which

    return read


def compiled_expand(kernels: Kernels) -> Callable[..., bytes | np.ndarray]:
    """`labelmap_expand.expand` by a compiled loop that calls libzstd."""

    def unpack(
        maps: JoinedMaps, members: np.ndarray, heads: np.ndarray, where: Callable[[int], str]
    ) -> bytes | np.ndarray:
        raw, sizes = np.frombuffer(maps.data, np.uint8), heads["payload"][members].astype(np.int64)
        starts, ends = maps.starts[members] + HEADER.size, maps.starts[members + 1]
        payloads, frames = np.empty(sizes.sum(), np.uint8), (heads["compression"][members] == ZSTD).all()
        if frames and kernels.expand_frames(raw, starts, ends, sizes, payloads):
            return payloads
        return expand(maps, members, heads, where)  # other blocks; or raises, and says which is damaged

    return unpack


def compiled_axis_weights(kernels: Kernels) -> Callable[..., np.ndarray]:
    """`roialign.axis_weights` by compiled loops; the same bits."""

    def axis_weights(start: np.ndarray, end: np.ndarray, num_cells: int, num_bins: int = 1) -> np.ndarray:
        weights = np.empty((len(start), num_bins, num_cells), np.float32)
        kernels.weigh_axis(np.ascontiguousarray(start), np.ascontiguousarray(end), weights)
        return weights

    return axis_weights


def pool_compiled(
    shares: Sequence[Iterable[MapGroup | EncodedGroup]], job: PoolingJob, kernels: Kernels, num_threads: int
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
    kind, original = _KINDS[job.kind], float(job.original)
    plain = (
        job.kind == "softmax" and job.keep is None and not (job.floor or original) and job.shape[1:] == (1, 1)
    )

    def pool(groups: Iterable[MapGroup | EncodedGroup]) -> None:
        for group in groups:
            sizes = group.sizes
            targets = (
                sizes,
                rows,
                columns,
                job.num_classes,
                kind,
                job.floor,
                original,
                own,
                dense,
                values,
                ids,
            )
            if isinstance(group, EncodedGroup):
                limits = np.minimum(group.field("classes"), job.num_classes)
                if plain and group.coded:
                    raw, starts, *_ = group.source
                    if kernels.pool_coded(
                        raw, starts, sizes, limits, group.members, job.top, rows, columns, dense
                    ):
                        continue
                few = group.arrays(
                    max(1, min(len(group.members), _CACHED_ELEMENTS // math.prod(group.shape)))
                )
                if kernels.decode_and_pool(*group.source, limits, _halves(), group.members, *few, *targets):
                    continue
                group = group.decoded(kernels)  # raises for a damaged map
                check_ids(group, job.num_classes)
            scores, places = np.ascontiguousarray(group.scores), np.ascontiguousarray(group.places, np.uint32)
            tables = _NO_TABLES if group.tables is None else group.tables
            kernels.pool_maps(group.members, scores, places, tables, *targets)

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
    run: Callable[[Iterable[Any]], None], shares: Sequence[Iterable[Any]], num_threads: int
) -> None:
    """Work through the shares, here and in helpers; what a helper has not begun by the end is not waited for.

    Raises:
        The error of the first share that has one.
    """
    if len(shares) == 1:
        return run(shares[0])
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
