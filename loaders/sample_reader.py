"""Reads what a batch says of its samples besides pixels, from one data set or several: where they lie, sizes, labels.

M samples, N slots, L hierarchy levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..shards.errors import DataError, UsageError
from ..shards.schema import CLS, HIER, JPG, KD, LMAP
from ..shards.teacher_levels import decode_teacher_levels, num_kept
from .fetch import Following
from .first_look import FirstLook
from .mixed_shards import MixedShards, all_components
from .samples import Place, read_classes, read_levels, read_sizes
from .side_maps import SideFiles
from .source import Source
from .stages import Stages


@dataclass(frozen=True)
class Found:
    """M samples in their open shards.

    Attributes:
        places: their shards, and their places in them.
        numbers: int64 [M], the numbers of these shards, counted through all data sets.
        sources: int64 [M], their data sets.
        members: component to the bytes of all samples' components.
    """

    places: list[Place]
    numbers: np.ndarray
    sources: np.ndarray
    members: dict[str, Sequence[memoryview]]

    def only(self, i: int) -> Found:
        """The i-th sample alone."""
        some = slice(i, i + 1)
        members = {suffix: column[some] for suffix, column in self.members.items()}
        return Found(self.places[some], self.numbers[some], self.sources[some], members)

    def by_source(self) -> Iterator[tuple[int, np.ndarray]]:
        """(data set, int64 [M_i], which of the samples are its)."""
        for i in np.unique(self.sources).tolist():
            yield i, np.flatnonzero(self.sources == i)


class SampleReader:
    """Holds the shards open.

    Args:
        sources: the data sets, whose classes and levels mean the same.
        teacher: whether the stored teacher is read.
        side: label maps that lie beside the (single) data set, in place of its own.
        stages: the clock that is told what is being done.

    Raises:
        UsageError: a teacher that a data set does not have, or that is about another tree than the labels'; levels that
            only some of the data sets have.
    """

    def __init__(
        self, sources: Sequence[Source], *, teacher: bool, side: SideFiles | None, stages: Stages
    ) -> None:
        self._sources, self._side, self._stages = sources, side, stages
        sizes = [_teacher_level_sizes(source) for source in sources] if teacher else [None]
        self._level_sizes = sizes[0]  # the same in all: their trees are
        _check_same_levels(sources)
        tree = sources[0].labels.tree
        self._level_limits = None if tree is None else tree.level_sizes
        self._columns = {suffix: i for i, suffix in enumerate(all_components(sources))}
        records = [source.manifest.shards for source in sources]
        self._shard_names = [shard.name for shards in records for shard in shards]
        self._starts = np.cumsum(
            [0, *(shard.samples for shards in records for shard in shards)], dtype=np.int64
        )
        self._shard_sources = np.repeat(np.arange(len(sources)), [len(shards) for shards in records])
        self.shards = MixedShards(sources, None if side is None else side.shards)
        self._first_look: FirstLook | None = None

    def look_first(self) -> None:
        """From now on decode every image in full the first time that it is asked for, and refuse those that are damaged."""
        self._first_look = FirstLook(int(self._starts[-1]))

    @property
    def reads_teacher(self) -> bool:
        return self._level_sizes is not None

    def expect(self, steps: Callable[[], Iterator[np.ndarray]], following: Following | None = None) -> None:
        """Say which samples each coming step asks for, so that their shards are fetched ahead.

        Args:
            steps: begins to count the steps, as often as it is called: int64 [N] each, -1 in empty slots.
            following: what comes after them; its steps are such samples, too.
        """
        if following is not None and following.next_steps is not None:
            following = replace(following, next_steps=partial(self._shards_of, following.next_steps))
        self.shards.expect(partial(self._shards_of, steps), following)

    def _shards_of(self, steps: Callable[[], Iterator[np.ndarray]]) -> Iterator[list[int]]:
        return (np.unique(self._numbers(samples[samples >= 0])).tolist() for samples in steps())

    def _numbers(self, samples: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, samples, side="right") - 1

    def find(self, samples: np.ndarray) -> Found:
        """Open the shards of M samples.

        Args:
            samples: int64 [M], indices in the manifests' order, through all data sets.

        Raises:
            DataError: a shard cannot be had, or a side shard, or that holds other samples.
        """
        numbers = self._numbers(samples)
        shards = {}
        for number in np.unique(numbers).tolist():
            with self._stages("shard", self._shard_names[number]):
                shards[number] = self.shards[number]
                if self._side is not None:
                    self._side.beside(number, shards[number])
        inside = (samples - self._starts[numbers]).tolist()
        places = [(shards[number], place) for number, place in zip(numbers.tolist(), inside, strict=True)]
        members: dict[str, Sequence[memoryview]] = dict.fromkeys(self._columns, ())
        if places:
            columns = zip(*(shard.members(place) for shard, place in places), strict=True)
            members = dict(zip(self._columns, columns, strict=True))
        return Found(places, numbers, self._shard_sources[numbers], members)

    def jpegs(self, found: Found) -> list[np.ndarray]:
        """The JPEGs as uint8 arrays."""
        return [np.frombuffer(data, np.uint8) for data in found.members[JPG.suffix]]

    def sizes(self, found: Found) -> np.ndarray:
        """int64 [M, 2], stored height and width.

        Raises:
            DataError: see `read_sizes`; damage inside an image, after `look_first`.
        """
        sizes = read_sizes(found.places, found.members[JPG.suffix])
        if self._first_look is not None:
            inside = np.array([place for _, place in found.places], np.int64)
            samples = self._starts[found.numbers] + inside
            self._first_look.check(samples, found.places, found.members[JPG.suffix])
        return sizes

    def classes(self, found: Found) -> np.ndarray:
        """int64 [M], classes of the label space; -1 for samples of somebody else's tars that have none.

        Raises:
            DataError: see `read_classes`; a class that the labels leave out.
        """
        classes = np.empty(len(found.places), np.int64)
        for i, rows in found.by_source():
            source, places = self._sources[i], [found.places[row] for row in rows]
            members = [found.members[CLS.suffix][row] for row in rows]
            stored = read_classes(places, members, source.manifest.num_classes)
            class_map = source.labels.class_map
            if class_map is None:
                classes[rows] = stored
                continue
            classes[rows] = class_map[stored]
            if (dropped := np.flatnonzero(classes[rows] < 0)).size:
                shard, place = places[dropped[0]]
                raise DataError(
                    f"{shard.where(place, CLS.suffix)}: expected a class that the labels keep, as classes.npy says, "
                    f"found {stored[dropped[0]]}, which they leave out. Run: softshard verify {shard.path}"
                )
        return classes

    def levels(self, found: Found, classes: np.ndarray) -> np.ndarray | None:
        """int64 [M, L] or [M, A, L], those of the label space; None without any.

        Raises:
            DataError: see `read_levels`.
        """
        if not _gives_levels(self._sources[0]):
            return None
        shape = self._sources[0].labels.level_shape
        levels = np.empty((len(found.places), *shape), np.int64)
        for i, rows in found.by_source():
            relabelling = self._sources[i].labels.relabelling
            if relabelling is not None and relabelling.vectors is not None:
                levels[rows] = relabelling.vectors[classes[rows]]
            else:
                members = [found.members[HIER.suffix][row] for row in rows]
                places = [found.places[row] for row in rows]
                levels[rows] = read_levels(places, members, shape, self._level_limits)
        return levels

    def label_maps(self, found: Found) -> Sequence[memoryview]:
        """M encoded label maps, of the data set or from beside it.

        Raises:
            DataError: a side shard cannot be had, or holds other samples.
        """
        if self._side is not None:
            return self._side.read(found.numbers, found.places)
        return found.members[LMAP.suffix]

    def where_map(self, place: Place) -> str:
        """How messages name a sample's label map."""
        return place[0].where(place[1], LMAP.suffix) if self._side is None else self._side.where(place)

    def teacher(self, found: Found, slots: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
        """The stored teacher's (ids, probabilities): int64 and float16 [N, K], zeros in empty slots.

        Raises:
            DataError: see `decode_teacher_levels`.
        """
        assert self._level_sizes is not None  # see reads_teacher
        width = sum(num_kept(self._level_sizes))
        ids, probabilities = np.zeros((num_slots, width), np.int64), np.zeros((num_slots, width), np.float16)
        ids[slots], probabilities[slots] = decode_teacher_levels(
            found.members[KD.suffix],
            self._level_sizes,
            [shard.where(place, KD.suffix) for shard, place in found.places],
        )
        return ids, probabilities

    def close(self) -> None:
        """Let the shards go."""
        self.shards.close()


def _gives_levels(source: Source) -> bool:
    relabelling = source.labels.relabelling
    return (
        HIER.suffix in source.manifest.components if relabelling is None else relabelling.vectors is not None
    )


def _check_same_levels(sources: Sequence[Source]) -> None:
    """Refuse data sets of which only some have hierarchical label vectors.

    Raises:
        UsageError: naming one that has and one that has not.
    """
    without = next((source for source in sources if not _gives_levels(source)), None)
    having = next((source for source in sources if _gives_levels(source)), None)
    if without and having:
        raise UsageError(
            f"mixture: expected hierarchical label vectors (component {HIER.suffix!r}) in all data sets or in none, found "
            f"them in {having.dataset} but not in {without.dataset}. Add them: softshard reshard {without.dataset} DST "
            "--tree tree.json"
        )


def _teacher_level_sizes(source: Source) -> tuple[int, ...]:
    """Classes of the levels that the stored teacher is about.

    Raises:
        UsageError: there is none, or it is about another tree than the labels'.
    """
    dataset, manifest, labels = source.dataset, source.manifest, source.labels
    if KD.suffix not in manifest.components or manifest.tree_sha256 is None:
        raise UsageError(
            f"{dataset}: expected a stored teacher to distil from, a label tree and the component 'kd', found components "
            f"{list(manifest.components)}. Store what a teacher says: softshard teacher make DATASET DST --teacher "
            "CHECKPOINT; or ask a live one: softshard train --teacher CHECKPOINT"
        )
    if labels.tree is None or labels.tree.fingerprint != manifest.tree_sha256:
        found = "none" if labels.tree is None else labels.tree.fingerprint[:12]
        raise UsageError(
            f"{dataset}: expected labels over the tree {manifest.tree_sha256[:12]}, whose levels the stored teacher is "
            f"about, found {found}. Leave out these labels, or ask a live teacher that knows them: softshard train --teacher"
        )
    return labels.tree.level_sizes[: labels.tree.num_levels]
