"""Makes batches: sample indices in, a Batch out, in two steps, so that images are decoded in between.

begin     reads labels and sizes, draws crops, hands the JPEGs to the decoder
finish    pools the label maps, and waits for the images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..shards.errors import DataError, UsageError
from ..shards.schema import CLS, HIER, JPG, KD, LMAP
from ..shards.teacher_levels import decode_teacher_levels, num_kept
from .batch import Batch, TeacherLevels
from .crops import Augment, crop_fractions, draw_crops
from .decode import Decoder, naming_the_sample
from .faults import BadSample
from .mixed_shards import MixedShards, all_components
from .order import Draws
from .pooling import pool_label_maps
from .samples import Place, check_label_maps, read_classes, read_levels, read_sizes
from .source import Source
from .stages import Stages
from .target_modes import TARGET_MODES, LabelPooling


@dataclass
class BegunBatch:
    """A batch whose images are still being decoded."""

    slots: np.ndarray  # int64 [M], where the real samples stand in the batch
    valid: np.ndarray  # bool [N], which slots have their own sample
    places: list[Place]  # their shards, and their places in them
    sources: np.ndarray  # int64 [M], their data sets
    classes: np.ndarray  # int64 [N]
    levels: np.ndarray | None  # int64 [N, L] or [N, A, L]
    crops: np.ndarray  # float32 [N, 4]
    flips: np.ndarray  # bool [N]
    keys: list[str]
    jpegs: list[np.ndarray]


class BatchMaker:
    """Holds the shards open, and all that batches of one loader have in common.

    Args:
        sources: the data sets, whose classes and levels mean the same.
        targets: as the loader's.
        teacher: whether to read the stored teacher.
        augment: what is cut from the images.
        seed: of crops and flips.
        batch_size: N.
        device: where batches are.
        stages: the clock that is told what is being done.

    Raises:
        UsageError: targets that the data set has no label maps for; a teacher that it does not have, or that is
            about another tree than the labels'; levels that only some of the data sets have.
        DataError: label maps over other classes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        targets: str | LabelPooling,
        teacher: bool,
        augment: Augment,
        seed: int,
        batch_size: int,
        device: torch.device,
        stages: Stages,
    ) -> None:
        self._stages = stages
        self._sources, self._labels = sources, sources[0].labels
        self._one_hot = targets == "original"
        pooling = targets if isinstance(targets, LabelPooling) else TARGET_MODES.get(targets)
        self._poolings = [_checked_pooling(pooling, source) for source in sources] if pooling else []
        sizes = [_teacher_level_sizes(source) for source in sources] if teacher else [None]
        self._level_sizes = sizes[0]  # the same in all: their trees are
        _check_same_levels(sources)
        self._augment, self._seed = augment, seed
        self._batch_size, self._device = batch_size, device
        self._columns = {suffix: i for i, suffix in enumerate(all_components(sources))}
        records = [source.manifest.shards for source in sources]
        self._shard_names = [shard.name for shards in records for shard in shards]
        self._starts = np.cumsum(
            [0, *(shard.samples for shards in records for shard in shards)], dtype=np.int64
        )
        self._shard_sources = np.repeat(np.arange(len(sources)), [len(shards) for shards in records])
        self._files = MixedShards(sources)

    def _places(self, samples: np.ndarray) -> tuple[list[Place], np.ndarray]:
        """Where M samples lie, and int64 [M], of which data sets they are.

        Raises:
            DataError: a shard cannot be had.
        """
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        places = samples - self._starts[numbers]
        shards = {}
        for number in dict.fromkeys(numbers.tolist()):
            with self._stages("shard", self._shard_names[number]):
                shards[number] = self._files[number]
        found = [
            (shards[number], place) for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]
        return found, self._shard_sources[numbers]

    def begin(self, draws: Draws, valid: np.ndarray, epoch: int, decoder: Decoder) -> BegunBatch:
        """Read the labels of a batch's samples, draw their crops and start decoding.

        Args:
            draws: of N slots.
            valid: bool [N], which slots have their own sample.
            epoch: of the crops and flips.
            decoder: of the images.
        """
        slots = np.flatnonzero(draws.samples >= 0)
        found, of_source = self._places(draws.samples[slots])
        with self._stages("read"):
            return self._begin(draws, slots, found, of_source, valid, epoch, decoder)

    def _begin(
        self,
        draws: Draws,
        slots: np.ndarray,
        found: list[Place],
        of_source: np.ndarray,
        valid: np.ndarray,
        epoch: int,
        decoder: Decoder,
    ) -> BegunBatch:
        real = draws.samples[slots]
        hw = read_sizes(found, self._columns[JPG.suffix])
        jpegs = [shard.member_array(place, self._columns[JPG.suffix]) for shard, place in found]
        tlhw, real_flips = draw_crops(
            self._augment, hw, real, seed=self._seed, epoch=epoch, occurrence=draws.occurrences[slots]
        )

        num = self._batch_size
        real_classes = self._read_classes(found, of_source)
        classes = np.full(num, -1, np.int64)
        classes[slots] = real_classes
        levels, real_levels = None, self._read_levels(found, of_source, real_classes)
        if real_levels is not None:
            levels = np.full((num, *real_levels.shape[1:]), -1, np.int64)
            levels[slots] = real_levels
        crops = np.tile(np.array([0, 0, 1, 1], np.float32), (num, 1))
        crops[slots] = crop_fractions(tlhw, hw)
        flips = np.zeros(num, bool)
        flips[slots] = real_flips
        keys = [""] * num
        for slot, (shard, place) in zip(slots.tolist(), found, strict=True):
            keys[slot] = shard.index.keys[place]
        with naming_the_sample(jpegs, found):
            decoder.submit(jpegs, tlhw, real_flips)
        return BegunBatch(slots, valid, found, of_source, classes, levels, crops, flips, keys, jpegs)

    def _by_source(self, of_source: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(data set, int64 [M_i], which samples of the batch are its)."""
        for i in range(len(self._sources)):
            if (rows := np.flatnonzero(of_source == i)).size:
                yield i, rows

    def _read_classes(self, places: list[Place], of_source: np.ndarray) -> np.ndarray:
        """int64 [M], classes of the label space."""
        classes = np.empty(len(places), np.int64)
        for i, rows in self._by_source(of_source):
            source, its_places = self._sources[i], [places[row] for row in rows]
            stored = read_classes(its_places, self._columns[CLS.suffix], source.manifest.num_classes)
            class_map = source.labels.class_map
            classes[rows] = stored if class_map is None else class_map[stored]
            if (dropped := np.flatnonzero(classes[rows] < 0)).size:
                shard, place = its_places[dropped[0]]
                raise DataError(
                    f"{shard.where(place, CLS.suffix)}: expected a class that the labels keep, as classes.npy says, "
                    f"found {stored[dropped[0]]}, which they leave out. Run: softshard verify {shard.path}"
                )
        return classes

    def _read_levels(
        self, places: list[Place], of_source: np.ndarray, classes: np.ndarray
    ) -> np.ndarray | None:
        """int64 [M, L] or [M, A, L], those of the label space."""
        if not _gives_levels(self._sources[0]):
            return None
        shape = self._labels.level_shape
        levels = np.empty((len(places), *shape), np.int64)
        for i, rows in self._by_source(of_source):
            relabelling = self._sources[i].labels.relabelling
            if relabelling is not None and relabelling.vectors is not None:
                levels[rows] = relabelling.vectors[classes[rows]]
            else:
                its_places = [places[row] for row in rows]
                levels[rows] = read_levels(its_places, self._columns[HIER.suffix], shape)
        return levels

    def finish(self, begun: BegunBatch, decoder: Decoder) -> Batch:
        """Pool a batch's label maps, while its images are decoded, and wait for the images."""
        with self._stages("pool"):
            targets = self._targets(begun)
            teacher = None if self._level_sizes is None else self._teacher(begun, self._level_sizes)
        with self._stages("decode"), naming_the_sample(begun.jpegs, begun.places):
            images = decoder.take(begun.slots, self._batch_size)

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self._device, non_blocking=True)

        batch = Batch(
            images=images,
            classes=tensor(begun.classes),
            levels=None if begun.levels is None else tensor(begun.levels),
            targets=targets,
            crops=tensor(begun.crops),
            flips=tensor(begun.flips),
            keys=begun.keys,
            valid=tensor(begun.valid),
            teacher=None if teacher is None else TeacherLevels(*map(tensor, teacher)),
        )
        if self._device.type == "cuda":
            # The copies run on this thread's stream; whoever takes the batch may be on another.
            torch.cuda.current_stream(self._device).synchronize()
        return batch

    def _targets(self, begun: BegunBatch) -> torch.Tensor | None:
        if not self._poolings and not self._one_hot:
            return None
        slots, classes = begun.slots, begun.classes[begun.slots]
        grid = (self._poolings[0].grid or ()) if self._poolings else ()

        def empty() -> torch.Tensor:
            return torch.zeros(self._batch_size, *grid, self._labels.num_classes, device=self._device)

        if not self._poolings:
            targets = empty()
            targets[torch.from_numpy(slots).to(self._device), torch.from_numpy(classes).to(self._device)] = 1
            return targets
        targets = None
        column = self._columns[LMAP.suffix]
        for i, rows in self._by_source(begun.sources):
            places = [begun.places[row] for row in rows]

            def where(j: int, places: list[Place] = places) -> str:
                return places[j][0].where(places[j][1], LMAP.suffix)

            pooled = pool_label_maps(
                [shard.member(place, column) for shard, place in places],
                begun.crops[slots[rows]],
                num_classes=self._labels.num_classes,
                device=self._device,
                wheres=where,
                pooling=self._poolings[i],
                flips=begun.flips[slots[rows]],
                classes=classes[rows],
            )
            if len(rows) == self._batch_size:
                return pooled
            targets = empty() if targets is None else targets
            targets[torch.from_numpy(slots[rows]).to(self._device)] = pooled
        return empty() if targets is None else targets

    def _teacher(self, begun: BegunBatch, level_sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, probabilities): int64 and float16 [N, K], zeros in empty slots."""
        width = sum(num_kept(level_sizes))
        ids = np.zeros((self._batch_size, width), np.int64)
        probabilities = np.zeros((self._batch_size, width), np.float16)
        ids[begun.slots], probabilities[begun.slots] = decode_teacher_levels(
            [shard.member(place, self._columns[KD.suffix]) for shard, place in begun.places],
            level_sizes,
            [shard.where(place, KD.suffix) for shard, place in begun.places],
        )
        return ids, probabilities

    def find_unreadable(self, draws: Draws) -> dict[int, DataError]:
        """Slots whose samples have a header or labels that cannot be read, one by one, with each one's error.

        Raises:
            DataError: a shard cannot be had.
        """
        bad = {}
        for slot in np.flatnonzero(draws.samples >= 0).tolist():
            place, of_source = self._places(draws.samples[slot : slot + 1])
            try:
                read_sizes(place, self._columns[JPG.suffix])
                self._read_levels(place, of_source, self._read_classes(place, of_source))
            except DataError as error:
                bad[slot] = error
        return bad

    def find_undecodable(
        self, draws: Draws, epoch: int, make_decoder: Callable[[], Decoder]
    ) -> dict[int, DataError]:
        """Slots whose samples have a bad image, label map or teacher, one by one, with each one's error.

        Raises:
            DataError: a shard cannot be had.
        """
        bad: dict[int, DataError] = {}
        decoder = make_decoder()
        try:
            for slot in np.flatnonzero(draws.samples >= 0).tolist():
                alone = np.arange(len(draws.samples)) == slot
                one = Draws(np.where(alone, draws.samples, -1), draws.occurrences)
                try:
                    self.finish(self.begin(one, alone, epoch, decoder), decoder)
                except (DataError, RuntimeError) as error:
                    [(shard, place)], _ = self._places(draws.samples[slot : slot + 1])
                    bad[slot] = (
                        error
                        if isinstance(error, DataError)
                        else DataError(
                            f"{shard.where(place, JPG.suffix)}: expected a JPEG that DALI decodes, found: {error}. Run: "
                            f"softshard verify --decode {shard.path}"
                        )
                    )
                    decoder.close()
                    decoder = make_decoder()
        finally:
            decoder.close()
        return bad

    def bad_sample(self, sample: int, error: DataError) -> BadSample:
        """How the quarantine names a sample."""
        [(shard, place)], _ = self._places(np.array([sample]))
        return BadSample(sample, shard.path.name, shard.index.keys[place], str(error))

    def close(self) -> None:
        """Let the shards go."""
        self._files.close()


def _checked_pooling(pooling: LabelPooling, source: Source) -> LabelPooling:
    """How a data set's label maps are pooled into the loader's classes.

    Raises:
        UsageError: it has no label maps.
        DataError: they are over other classes.
    """
    num_renamed = None if pooling.class_map is None else len(pooling.class_map)
    check_label_maps(source.dataset, source.manifest, num_renamed)
    return source.labels.pooling(pooling)


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
            f"{dataset}: expected a label tree and the component 'kd' for teacher=True, found components "
            f"{list(manifest.components)}. Distil from a live teacher instead"
        )
    if labels.tree is None or labels.tree.fingerprint != manifest.tree_sha256:
        found = "none" if labels.tree is None else labels.tree.fingerprint[:12]
        raise UsageError(
            f"{dataset}: expected labels over the tree {manifest.tree_sha256[:12]}, whose levels the stored teacher is "
            f"about, found {found}. Leave out labels or teacher=True, or distil from a live teacher"
        )
    return labels.tree.level_sizes[: labels.tree.num_levels]
