"""Label maps from side shards, joined to a data set's samples as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..shards.errors import DataError
from ..shards.files import canonical_json, sha256_hex
from ..shards.labelmap_side import SideMaps, label_maps_component
from ..shards.manifest import Manifest
from ..shards.schema import LMAP
from ..shards.shard_files import dataset_name, dataset_path
from .cache import Cache
from .data_set import open_shards
from .fetch import OpenShard


class SideFiles:
    """The side shards of one data set, opened when needed.

    Args:
        folder: of the side shards, or any fsspec URL of one; FORMAT.md describes them.
        dataset: folder or URL of the data set that they are read with.
        manifest: its manifest.
        cache: where side shards behind a URL are kept.

    Attributes:
        manifest: what the data set's would be with these label maps, in place of any that it has.
        shards: the side shards, numbered as the data set's. Whoever expects those expects these.

    Raises:
        DataError: they are incomplete, damaged, or belong to another data set; both are named.
        UsageError: a cache that cannot be written.
    """

    def __init__(
        self, folder: str | Path, dataset: str | Path, manifest: Manifest, cache: Cache | None = None
    ) -> None:
        place = dataset_path(folder)
        side = SideMaps.load(place)
        side.check_beside(manifest, folder, dataset)
        self.manifest = replace(
            manifest,
            components=label_maps_component(side.label_maps).beside(manifest),
            label_maps=side.label_maps,
        )
        self._fingerprint_of = manifest.fingerprint, [shard.sha256 for shard in side.shards]
        self._folder = dataset_name(folder)
        self.shards = open_shards(
            place, replace(manifest, components=(LMAP.suffix,), shards=side.shards), cache
        )
        self._compared: set[int] = set()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the data set's fingerprint and the side shards'."""
        dataset, side = self._fingerprint_of
        return sha256_hex(canonical_json({"dataset": dataset, "side": side}))

    def read(self, numbers: np.ndarray, places: Sequence[tuple[OpenShard, int]]) -> list[memoryview]:
        """The label maps of M samples.

        Args:
            numbers: integer [M], the samples' shards in the manifest.
            places: the data set's open shards, and the samples' places in them.

        Raises:
            DataError: a side shard is missing or damaged, or holds other samples than the shard of its name.
        """
        found = []
        for number, (shard, place) in zip(numbers.tolist(), places, strict=True):
            found.append(self.beside(number, shard).member(place, 0))
        return found

    def beside(self, number: int, shard: OpenShard) -> OpenShard:
        """The side shard of a shard of the data set.

        Args:
            number: of both.
            shard: the data set's.

        Raises:
            DataError: it is missing or damaged, or holds other samples.
        """
        side = self.shards[number]
        if number not in self._compared:
            self._compare(side, shard)
            self._compared.add(number)
        return side

    def _compare(self, side: OpenShard, shard: OpenShard) -> None:
        if side.index.keys != shard.index.keys:
            pairs = enumerate(zip(side.index.keys, shard.index.keys, strict=True))
            i, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"{self._folder}: {shard.path.name}: expected the label map of sample {expected!r} in place {i}, found "
                f"that of {found!r}; the side shard belongs to another data set. Run: softshard maps make --side"
            )

    def where(self, place: tuple[OpenShard, int]) -> str:
        """How messages name a sample's label map."""
        return f"{self._folder}: {place[0].where(place[1], LMAP.suffix)}"

    def close(self) -> None:
        """Let the shards go."""
        self.shards.close()
