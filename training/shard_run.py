"""A teacher over a whole data set, shard by shard, and what it says added to every sample.

A shard of the result depends on the shard of the source and on the options alone, so several processes share the
shards, and a run that was killed continues with those that have no receipt. What a teacher says, and how that is
encoded, is the caller's: label maps in maps.py, a distillation's levels in teacher_store.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from ..loaders.cache import Cache
from ..loaders.data_set import open_shards
from ..loaders.fetch import OpenShard
from ..loaders.samples import Place
from ..loaders.whole_shards import in_order, samples_of
from ..shards.added_component import NewComponent, attach, check_hash, finish, settle
from ..shards.cores import usable_cores
from ..shards.destination import Destination
from ..shards.errors import SoftshardError
from ..shards.manifest import Manifest
from ..shards.progress import progress_bar
from ..shards.writer import ShardRecord
from .maps_images import TeacherImages
from .processes import process_group

# The slowest process may be far behind: torch's own half an hour is a shard or two.
_LONGEST_WAIT = timedelta(days=7)

T = TypeVar("T")


def run_over_shards(
    dataset: str | Path,
    source: Manifest,
    target: Destination,
    component: NewComponent,
    encoded: Callable[[torch.Tensor, list[Place]], Iterable[Callable[[], bytes]]],
    *,
    plan: Mapping[str, Any],
    title: str,
    size: int,
    batch_size: int,
    save_side: Callable[[tuple[ShardRecord, ...]], object] | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    cache: Cache | None = None,
) -> Manifest:
    """Copy a data set with a component added to every sample, or write the component into side shards.

    Args:
        dataset: the source, as `dataset_path` gives it.
        source: its manifest; its files are known to be there (`check_sidecars`).
        target: a new place, or that of an earlier run of the same call, which is continued.
        component: what is added.
        encoded: called with whole images, uint8 [n, 3, size, size] on the device, n at most `batch_size`, and their
            places: for each of them what makes its value; these are called in several threads.
        plan: what decides the result beside source and component; another one is refused by a run that continues.
        title: of the progress bar.
        size: pixels that images are squished to, both sides.
        batch_size: images a step.
        save_side: given for side shards: writes what describes them, in the stead of a manifest.
        device: where the teachers run, and images are decoded to.
        num_threads: of the decoder, and as many that encode.
        rank: of this process, of `world_size` that share the work; all see one destination. With several,
            torch.distributed must be set up, or its environment variables (torchrun does that).
        world_size: their number.
        cache: where the shards of a remote data set are kept while they are looked at.

    Returns:
        The manifest of the result; with `save_side`, what it would be.

    Raises:
        UsageError: the destination holds something else.
        DataError: the data set is damaged. Shards that are finished stay, and the same call continues.
    """
    content = {**plan, **component.to_json()}
    with ExitStack() as stack:
        group: Any = None
        if world_size > 1:
            stack.enter_context(process_group("gloo", rank, world_size))
            group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)

        def begin() -> tuple[str, set[str]]:
            target.make()
            stack.enter_context(target.hold())
            return settle(target, content, source)

        plan_sha256, done = _from_first(begin, rank, group)
        images = TeacherImages(
            source, size=size, batch_size=batch_size, device=device, num_threads=num_threads
        )
        stack.callback(images.close)
        shards = open_shards(dataset, source, cache)
        stack.callback(shards.close)
        pool = stack.enter_context(ThreadPoolExecutor(num_threads or usable_cores()))

        def values(shard: OpenShard) -> Iterator[tuple[str, bytes]]:
            """Key and encoded value of every sample of a shard, in its order."""
            for places, batch in images.whole(shard):
                made = pool.map(lambda encode: encode(), encoded(batch, places))
                for (_, place), data in zip(places, made, strict=True):
                    yield shard.index.keys[place], data

        suffixes = (component.suffix,) if save_side is not None else component.beside(source)
        missing = [i for i, record in enumerate(source.shards) if record.name not in done]
        own = missing[rank::world_size]
        total = sum(source.shards[number].samples for number in own)
        with progress_bar(total, title, "img") as bar:
            for number, shard in zip(own, in_order(shards, own), strict=True):
                record = source.shards[number]
                check_hash(str(shard.path), record, shard.data.sha256())
                added = component.suffix
                attach(target, record, samples_of(shard), suffixes, added, values(shard), plan_sha256)
                bar.update(record.samples)
        if group is not None:
            dist.barrier(group)

        def end() -> Manifest:
            return finish(target, dataset, source, component, plan_sha256, save_side)

        return _from_first(end, rank, group)


def _from_first(call: Callable[[], T], rank: int, group: Any) -> T:
    """What rank 0's call returns, on every rank; or its error, so that nobody waits for the others."""
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [call()]
        except SoftshardError as error:
            outcome = [error]
    if group is not None:
        dist.broadcast_object_list(outcome, src=0, group=group)
    if isinstance(outcome[0], SoftshardError):
        raise outcome[0]
    return outcome[0]
