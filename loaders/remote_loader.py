"""A Loader whose batches are made by servers of the data service: RemoteLoader; SERVICE.md says how.

options -> BatchRecipe -> ServerPool -> Arrow rows -> Batch -> normalise, to the device, pinned
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..shards.errors import DataError, UsageError
from ..shards.stored_vocabulary import Vocabulary
from ..shards.subset_file import SubsetFile
from .batch import Batch
from .batch_buffers import BatchBuffers
from .cache import Cache
from .crops import Augment
from .decode import DTYPES, MEAN, STD
from .faults import BadSample, Faults
from .fetch_stats import FetchStats
from .labels import LabelSource
from .loader import Loader
from .loader_stats import LoaderStats
from .mixture import Mixture
from .normalize import normalization, normalizer
from .order import DEFAULT_WINDOW
from .remote_source import RemoteSource
from .service_answer import AnswerCheck, remote_faults
from .service_client import Connection
from .service_list import find_servers
from .service_maker import Place
from .service_pool import ServerPool
from .service_protocol import POOLING, decode_stack
from .service_recipe import (
    BatchRecipe,
    LabelData,
    NamedMixture,
    plain_subset,
    plain_targets,
    wire_dtype,
)
from .service_wire import decode_batch
from .subset import Subset
from .target_modes import Targets, pools_maps


class RemoteLoader(Loader):
    """A Loader whose batches come from servers: the same interface, state and guarantees, and the same batches.

    Order, crops, labels, targets and, since all have the same pixel stack, pixels are those of a Loader with these options
    on the servers' data set. Each batch comes exactly once, in order, whichever servers are there. States are
    interchangeable with a Loader's.

    Args:
        servers: `grpc://host:port` of each, in a list or with commas between; with `/NAME` behind it, which of their data
            sets.
            A file in which a pool says where its servers are is taken too: `file:///run/servers.json#NAME`.
        dataset: None, or the name of one; or a Mixture of names. Not both here and behind the addresses.
        batch_size: see Loader, as for everything that is not listed here.
        device: where batches go.
        num_threads: that normalise images; by default one.
        prefetch: batches that are ready ahead of need, and as many again that servers are asked for at a time.
        connection: how to speak to the servers; see Connection.

    Raises:
        UsageError: options that contradict each other or the data set; servers of another version, pixel stack or
            data set.
        DataError: the data set is damaged.
        ServiceError: no server answers.
    """

    # The options stand here again: behind **options, help() and the pages of the API would not show what can be said.
    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        batch_size: int,
        dataset: str | Mixture | None = None,
        device: str | torch.device = "cpu",
        targets: Targets = "none",
        keep_targets: int | None = None,
        labels: LabelSource | None = None,
        teacher: bool = False,
        subset: Subset | SubsetFile | str | Path | None = None,
        balance: float | None = None,
        augment: Augment | None = None,
        dtype: str = "float32",
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        shuffle: bool = True,
        last_batch: str = "drop",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
        window: int = DEFAULT_WINDOW,
        num_threads: int | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
        faults: Faults | None = None,
        num_epochs: int | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._servers, self._connection = servers, connection or Connection()
        try:
            super().__init__(
                dataset,  # pyright: ignore[reportArgumentType]
                batch_size=batch_size,
                device=device,
                targets=targets,
                keep_targets=keep_targets,
                labels=labels,
                teacher=teacher,
                subset=subset,
                balance=balance,
                augment=augment,
                dtype=dtype,
                mean=mean,
                std=std,
                shuffle=shuffle,
                last_batch=last_batch,
                seed=seed,
                rank=rank,
                world_size=world_size,
                lanes=lanes,
                window=window,
                num_threads=1 if num_threads is None else num_threads,
                prefetch=prefetch,
                pin_memory=pin_memory,
                faults=faults,
                num_epochs=num_epochs,
            )
        except BaseException:
            if hasattr(self, "_pool"):
                self._pool.close()
            raise

    def _open_source(self, dataset: Any, labels: LabelSource | None, cache: Cache | None) -> Any:
        """What servers say of the data set; `cache` is None."""
        self.faults = remote_faults(self.faults)
        self._addresses, name, listed = find_servers(self._servers)
        if name is not None and dataset is not None:
            raise UsageError(
                f"data service: expected one name of a data set, found {name!r} and {dataset!r:.80}"
            )
        recipe = self._recipe(_named(dataset or name), labels)
        stack = decode_stack(self._connection.decoder)
        if not pools_maps(self.targets):
            del stack[POOLING]
        self._pool = ServerPool(
            self._addresses, recipe.to_json(), self._connection, stack, self._per_lane, listed
        )
        place = f"{','.join(self._addresses)}/{self._pool.facts['dataset']}"
        source = RemoteSource.of(place, self._pool)
        self._pool.check = AnswerCheck.of(recipe, source.labels, source.manifest)
        return source

    def _open_maker(self, side: str | Path | None, cache: Cache | None) -> None:
        """What normalises, where servers send whole numbers; both arguments are None."""
        sent = wire_dtype(self.augment, self.dtype)
        self._normaliser = None if sent == self.dtype else _Normaliser(self)
        self._quarantine = self._new_quarantine()

    def _recipe(self, dataset: str | NamedMixture | None, labels: LabelSource | None) -> BatchRecipe:
        """What decides batches, as servers see it: what trainers do alike is one recipe, whatever else they do."""
        wire = wire_dtype(self.augment, self.dtype)
        # Erasing paints with the mean, and its noise is of normalised values, also into whole numbers.
        normalises = wire != "uint8" or self.augment.changes_pixels
        recipe = BatchRecipe(
            dataset=dataset,
            batch_size=self.batch_size,
            world_size=self.world_size,
            lanes=self.lanes,
            window=self.window,
            shuffle=self.shuffle,
            seed=self.seed,
            targets=plain_targets(self.targets),
            keep_targets=self.keep_targets,
            labels=LabelData.of(labels),
            teacher=self._teacher,
            subset=plain_subset(self.subset),
            balance=self.balance,
            augment=self.augment,
            dtype=wire,
            mean=self.mean if normalises else MEAN,  # pyright: ignore[reportArgumentType]
            std=self.std if normalises else STD,  # pyright: ignore[reportArgumentType]
        )
        # There and back, so that what a server would refuse is refused here.
        return BatchRecipe.from_json(json.loads(json.dumps(recipe.to_json())))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """See Loader.vocabulary."""
        source: Any = self.source
        return source.load_vocabulary()

    @property
    def _interrupt(self) -> Callable[[], None]:
        return self._pool.interrupt

    def _batches(self, epoch: int, taken: int) -> Iterator[Batch]:
        if self.pin_memory:
            torch.cuda.set_device(self._gpu)
        first, num = -(-taken // self._per_lane), self._num_steps(taken)
        places = (Place(epoch, taken + step * self._per_lane, self.rank) for step in range(num))
        received = self._stages.each("service", self._pool.batches(places, self._prefetch))
        for number, rows in enumerate(received, first):
            batch, bad = decode_batch(rows)
            del rows
            self._report(bad, epoch, number)
            yield self._finished(batch)
            del batch

    def _report(self, bad: list[BadSample], epoch: int, step: int) -> None:
        """Count what a server could not read, as a Loader does.

        Raises:
            DataError: more than Faults allows.
        """
        for sample in bad:
            if self._quarantine.strict:
                raise DataError(sample.reason)
            self._quarantine.add(sample, own=True, epoch=epoch, step=step)

    def _finished(self, batch: Batch) -> Batch:
        """The batch as it was asked for: on the device, normalised, pinned."""
        if self.device.type != "cpu":
            with self._stages("copy"):
                batch = batch.to(self.device)
        if self._normaliser is not None:
            with self._stages("normalise"):
                batch.images = self._normaliser(batch.images, batch.keys)
        return batch.pin_memory() if self.pin_memory else batch

    def fetch_stats(self) -> FetchStats:
        """Requests to servers, those that were repeated, and bytes of batches."""
        return self._pool.counters.stats()

    def stats(self) -> LoaderStats:
        """See Loader.stats; the stage `service` is what was waited for servers."""
        running, loop, stages = self._running, self._clock.times(), self._stages.times()
        depths = 0 if running is None else running.depth, self._prefetch, 0
        return LoaderStats(self.dataset, self.rank, loop, stages, *depths, self.num_bad, self.fetch_stats())

    def _let_go(self) -> None:
        self._pool.close()
        if self._normaliser is not None:
            self._normaliser.close()


class _Normaliser:
    """Whole numbers to normalised floats, the bits of the local loader.

    Args:
        loader: whose images they are.
    """

    def __init__(self, loader: RemoteLoader) -> None:
        size, num = loader.augment.size, loader.batch_size
        self._dtype, self._num_threads = DTYPES[loader.dtype], loader.num_threads
        self._pool = None
        if loader.device.type == "cpu":
            self._normalise = normalizer(loader.mean, loader.std, size)
            self._buffers = BatchBuffers((num, size, size, 3), self._dtype)
            if self._num_threads > 1:
                self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="softshard-normalise")
        else:
            scale, shift = normalization(loader.mean, loader.std)
            self._scale, self._shift = (
                torch.from_numpy(row)[:, None, None].to(loader.device) for row in (scale, shift)
            )

    def __call__(self, images: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """[N, 3, S, S] of the loader's dtype, channels-last; slots without a key are zeros."""
        empty = [slot for slot, key in enumerate(keys) if not key]
        if images.device.type != "cpu":
            # Two roundings, as on the processor, whatever the device would fuse.
            out = images.to(torch.float32).mul_(self._scale).add_(self._shift).to(self._dtype)
            out[empty] = 0
            return out
        out = self._buffers.take()
        pixels, found = images.permute(0, 2, 3, 1).numpy(), out.numpy()
        if self._pool is None:
            self._normalise_some(pixels, found)
        else:
            parts = zip(*(np.array_split(each, self._num_threads) for each in (pixels, found)), strict=True)
            for done in [self._pool.submit(self._normalise_some, *part) for part in parts]:
                done.result()
        found[empty] = 0
        return out.permute(0, 3, 1, 2)

    def _normalise_some(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Images [M, S, S, 3] side by side, as one that is M times as high: a call costs as much as a small image."""
        width = pixels.shape[2]
        if out.dtype == np.float32:
            self._normalise(pixels.reshape(-1, width, 3), out.reshape(-1, width, 3))
            return
        floats = np.empty(pixels.shape[1:], np.float32)
        for image, found in zip(pixels, out, strict=True):
            self._normalise(image, floats)
            found[...] = floats

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _named(dataset: str | Mixture | None) -> str | NamedMixture | None:
    """A mixture of names as servers take it."""
    if not isinstance(dataset, Mixture):
        return dataset
    names, weights = tuple(map(str, dataset.weights)), tuple(map(float, dataset.weights.values()))
    return NamedMixture(names, weights, dataset.epoch_samples)
