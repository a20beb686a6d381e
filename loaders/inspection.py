"""Looks at samples: as they are stored, and what the loader makes of them. `inspect_page.py` draws what is found.

Nothing here computes a crop, a target or a label: `BatchMaker`, which makes the Loader's batches, does, one sample at a
time, and `check_sample`, which `softshard verify --decode` uses, says what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch

from ..shards.components import decode_class, decode_levels, decode_meta
from ..shards.errors import DataError, UsageError
from ..shards.labelmap import decode_label_map
from ..shards.manifest import Manifest, load_sidecar, load_tree
from ..shards.philox import check_seed
from ..shards.schema import CLS, HIER, JPG, KD, LMAP, META
from ..shards.shard_files import dataset_name, dataset_path
from ..shards.teacher_levels import num_kept
from ..shards.tree import LabelTree
from ..shards.verify_shard import Expected, check_sample
from .crops import Augment
from .decode import MEAN, STD, Decoder
from .loader import DEFAULT_WINDOW
from .make_batch import BatchMaker
from .order import Draws, EpochOrder
from .pooling import pool_label_maps
from .side_maps import SideFiles
from .source import Source
from .stages import Stages
from .target_modes import TARGETS

MAX_SAMPLES = 200
MAX_CROP_PIXELS = 2**25  # of all crops together: about 10 MB of JPEG
_SHOWN_KEYS = 10
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class InspectOptions:
    """Which samples are looked at, and what the loader is asked for.

    Attributes:
        num_samples: the samples that the epoch begins with, so many of them.
        keys: samples to look at instead.
        seed: of the loader's order, crops and flips.
        epoch: the first epoch whose crops are drawn.
        num_crops: of every sample, those of so many epochs: a sample has one crop an epoch.
        targets: one of TARGETS; None pools label maps (`relabel`) where there are some, else `none`.
        augment: as the loader's.
        side: folder of side shards with the label maps, as the loader's.

    Raises:
        UsageError: numbers out of range, or more than fits a page.
    """

    num_samples: int = 12
    keys: Sequence[str] = ()
    seed: int = 0
    epoch: int = 0
    num_crops: int = 3
    targets: str | None = None
    augment: Augment = field(default_factory=Augment)
    side: str | Path | None = None

    def __post_init__(self) -> None:
        num = len(set(self.keys)) or self.num_samples
        if not 1 <= num <= MAX_SAMPLES:
            raise UsageError(f"inspect: expected 1 to {MAX_SAMPLES} samples on a page, found {num}")
        if self.num_crops < 1:
            raise UsageError(f"inspect: expected crops of 1 epoch or more, found {self.num_crops}")
        pixels = num * self.num_crops * self.augment.size**2
        if pixels > MAX_CROP_PIXELS:
            raise UsageError(
                f"inspect: expected at most {MAX_CROP_PIXELS:,} pixels of crops on a page, found {pixels:,}: {num} "
                f"samples x {self.num_crops} crops x {self.augment.size} x {self.augment.size}. Ask for fewer"
            )
        if self.targets is not None and self.targets not in TARGETS:
            raise UsageError(f"inspect: expected targets of {', '.join(TARGETS)}, found {self.targets!r}")
        check_seed(self.seed, self.epoch)
        check_seed(self.seed, self.epoch + self.num_crops - 1)


class CropView(NamedTuple):
    """One crop, as a batch of the Loader has it.

    Attributes:
        epoch: that cuts it.
        crop_xyxy: (x0, y0, x1, y1) as fractions of the stored image.
        flip: whether it is mirrored left to right.
        image: uint8 [S, S, 3], RGB, mirrored where it is.
        target: float32 [C], or None without targets.
    """

    epoch: int
    crop_xyxy: tuple[float, float, float, float]
    flip: bool
    image: np.ndarray
    target: np.ndarray | None


class MapView(NamedTuple):
    """A label map.

    Attributes:
        scores: float32 [K, P, Q], logits.
        ids: uint16 [K, P, Q], the teacher's classes.
        whole: float32 [C of the teacher], the map pooled over the whole image, softmaxed.
    """

    scores: np.ndarray
    ids: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class SampleView:
    """A sample; what cannot be read is None, and `problems` says why.

    Attributes:
        number: its index in the manifest's order.
        shard: name of its shard.
        key: None where the shard cannot be read.
        jpeg: the stored image's bytes.
        image: uint8 [H, W, 3], RGB, the stored image.
        meta: the `msgpack` component.
        class_index: of the data set's class list.
        levels: int16 [L] or [A, L], the stored hierarchical label vectors.
        crops: one an epoch.
        label_map: None without label maps, too.
        teacher: the distillation teacher's best class of every level, and its probability within the level: int64
            [L], float32 [L]; None without one, too.
        problems: everything that is wrong, as `softshard verify --decode` says it.
    """

    number: int
    shard: str
    key: str | None = None
    jpeg: bytes | None = None
    image: np.ndarray | None = None
    meta: dict | None = None
    class_index: int | None = None
    levels: np.ndarray | None = None
    crops: tuple[CropView, ...] = ()
    label_map: MapView | None = None
    teacher: tuple[np.ndarray, np.ndarray] | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        dataset: its folder or URL.
        manifest: of the data set, with side shards what it would be with their label maps.
        tree: its label tree, or None.
        options: what was asked for.
        targets: the target mode, chosen where it was left open.
        samples: in the order asked for.
        tags: names of what targets are about, where these are tags and not classes.
    """

    dataset: str
    manifest: Manifest
    tree: LabelTree | None
    options: InspectOptions
    targets: str
    samples: tuple[SampleView, ...]
    tags: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """Those of all samples."""
        return [problem for sample in self.samples for problem in sample.problems]


def inspect_data_set(dataset: str | Path, options: InspectOptions | None = None) -> Inspection:
    """Look at samples of a data set.

    Args:
        dataset: its folder, or any fsspec URL; shards are then fetched whole into the loader's cache.
        options: which samples, and what to ask the loader for.

    Returns:
        What was found. A damaged sample is no error: its `problems` say what is wrong.

    Raises:
        UsageError: a key that the data set does not have; targets that pool label maps where
            there are none.
        DataError: manifest, label tree or `classes.npy` are missing or damaged; with keys, also a shard's index.
    """
    options = options or InspectOptions()
    dataset = dataset_path(dataset)
    manifest = Manifest.load(dataset)
    with _Inspector(dataset, manifest, options) as inspector:
        numbers = inspector.find_keys(options.keys) if options.keys else _first_samples(manifest, options)
        samples = tuple(inspector.look_at_all(numbers))
        return Inspection(
            dataset_name(dataset),
            inspector.manifest,
            inspector.tree,
            options,
            inspector.targets,
            samples,
            inspector.tags,
        )


def _first_samples(manifest: Manifest, options: InspectOptions) -> list[int]:
    """The samples that a Loader of this seed begins the epoch with."""
    counts = np.array([shard.samples for shard in manifest.shards], np.int64)
    order = EpochOrder(counts, options.seed, options.epoch, window=DEFAULT_WINDOW)
    return order.lane_draws(0, 0, options.num_samples).samples.tolist()


class _Inspector:
    """Holds the shards open, and a decoder of one image at a time."""

    def __init__(self, dataset: str | Path, manifest: Manifest, options: InspectOptions) -> None:
        self._options = options
        self._side = None if options.side is None else SideFiles(options.side, dataset, manifest)
        self.manifest = manifest = manifest if self._side is None else self._side.manifest
        self.tree = tree = load_tree(dataset, manifest)
        maps = manifest.label_maps
        fits = maps is not None and maps.num_classes == manifest.num_classes
        self.targets = options.targets or ("relabel" if fits else "none")
        self._level_sizes = None if tree is None else tree.level_sizes[: tree.num_levels]
        self._reads_teacher = KD.suffix in manifest.components and tree is not None
        self._expected = Expected(
            dataset,
            manifest.components,
            manifest.num_classes,
            maps,
            None if tree is None else tree.vectors(),
            self._level_sizes,
            decode=True,
            soft_labels=manifest.soft_labels,
        )
        self._classes = load_sidecar(dataset, manifest)
        self._starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)], dtype=np.int64)
        source = Source.open(dataset)
        vocabulary = source.load_vocabulary() if self.targets == "tags" else None
        self.tags = () if vocabulary is None else vocabulary.tags
        self._maker = BatchMaker.create(
            source.parts,
            targets=self.targets,
            teacher=self._reads_teacher,
            side=self._side,
            augment=options.augment,
            dtype="uint8",
            mean=MEAN,
            std=STD,
            seed=options.seed,
            batch_size=1,
            device=torch.device("cpu"),
            num_threads=1,
            stages=Stages(),
        )
        self._shards = self._maker.reader.shards
        self._decoder: Decoder | None = None

    def find_keys(self, keys: Sequence[str]) -> list[int]:
        """The numbers of some samples, each once, in the order of their keys.

        Raises:
            UsageError: keys that no shard has; all are named.
            DataError: a shard that has to be searched cannot be read.
        """
        wanted = dict.fromkeys(keys)
        missing, found = set(wanted), {}
        example = ""
        searched = range(len(self.manifest.shards))
        self._shards.expect(lambda: ([shard] for shard in searched))
        for shard in searched:
            if not missing:
                break
            self._shards.reached(shard)
            for place, key in enumerate(self._shards[shard].index.keys):
                if key in missing:
                    found[key] = int(self._starts[shard]) + place
                    missing.discard(key)
                example = example or key
        if missing:
            unknown = [key for key in wanted if key in missing]
            shown = ", ".join(map(repr, unknown[:_SHOWN_KEYS])) + (", ..." if unknown[_SHOWN_KEYS:] else "")
            raise UsageError(
                f"inspect: expected keys of this data set, such as {example!r}, found {len(unknown):,} that it does "
                f"not have: {shown}. Leave out --keys to see the samples that an epoch begins with"
            )
        return [found[key] for key in wanted]

    def look_at_all(self, numbers: Sequence[int]) -> Iterator[SampleView]:
        """Some samples, their shards fetched ahead."""
        self._maker.reader.expect(lambda: (np.array([number]) for number in numbers))
        for step, number in enumerate(numbers):
            self._shards.reached(step)
            yield self._look_at(number)

    def _look_at(self, number: int) -> SampleView:
        """One sample and everything about it that can be read."""
        shard_number = int(np.searchsorted(self._starts, number, side="right")) - 1
        place = number - int(self._starts[shard_number])
        name = self.manifest.shards[shard_number].name
        try:
            shard = self._shards[shard_number]
            beside = {}
            if self._side is not None:
                (label_map,) = self._side.read(np.array([shard_number]), [(shard, place)])
                beside[LMAP.suffix] = bytes(label_map)
        except DataError as error:
            return SampleView(number, name, problems=(str(error),))
        parts = {
            suffix: bytes(shard.member(place, column)) for column, suffix in enumerate(shard.index.suffixes)
        }
        parts |= beside
        problems: list[str] = []
        check_sample(shard.sample(place), parts, self._expected, int(self._classes[number]), problems)
        crops: tuple[CropView, ...] = ()
        label_map = image = teacher = None
        if not problems:
            # Only of whole samples: the loader's decoder takes some damage without an error.
            try:
                image = simplejpeg.decode_jpeg(parts[JPG.suffix], "RGB")
                crops, teacher = self._crops(number)
                label_map = self._label_map(parts)
            except DataError as error:
                problems.append(str(error))
        return SampleView(
            number,
            name,
            shard.index.keys[place],
            parts[JPG.suffix],
            image,
            _readable(decode_meta, parts.get(META.suffix)),
            _readable(decode_class, parts[CLS.suffix]),
            _readable(decode_levels, parts.get(HIER.suffix)),
            crops,
            label_map,
            teacher,
            tuple(problems),
        )

    def _crops(self, number: int) -> tuple[tuple[CropView, ...], tuple[np.ndarray, np.ndarray] | None]:
        """What the Loader's batches of some epochs have in this sample's slot, and the teacher's best classes."""
        crops, teacher = [], None
        one = Draws(np.array([number]), np.zeros(1, np.int64))
        for epoch in range(self._options.epoch, self._options.epoch + self._options.num_crops):
            decoder = self._decoder = self._decoder or self._maker.make_decoder()
            try:
                batch = self._maker.finish(
                    self._maker.begin(one, np.ones(1, bool), epoch, decoder),
                    decoder,
                )
            except BaseException:
                self._close_decoder()  # DALI may give a pipeline up after an error
                raise
            x0, y0, x1, y1 = batch.crops[0].tolist()
            crops.append(
                CropView(
                    epoch,
                    (x0, y0, x1, y1),
                    bool(batch.flips[0]),
                    np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy()),
                    batch.targets[0].numpy() if isinstance(batch.targets, torch.Tensor) else None,
                )
            )
            if batch.teacher is not None and self._level_sizes is not None:
                # The most probable class of a level comes first.
                firsts = np.cumsum([0, *num_kept(self._level_sizes)])[:-1]
                ids, probabilities = batch.teacher
                teacher = ids[0].numpy()[firsts], probabilities[0].numpy()[firsts].astype(np.float32)
        return tuple(crops), teacher

    def _label_map(self, parts: dict[str, bytes]) -> MapView | None:
        info, data = self.manifest.label_maps, parts.get(LMAP.suffix)
        if info is None or data is None:
            return None
        whole = pool_label_maps([data], np.array([[0, 0, 1, 1]], np.float32), num_classes=info.num_classes)
        return MapView(*decode_label_map(data), whole[0].numpy())

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def __enter__(self) -> _Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_decoder()
        self._maker.close()


def _readable(decode: Callable[[bytes, str], _Value], data: bytes | None) -> _Value | None:
    """A component's value, or None where it cannot be read, which is among the problems then."""
    try:
        return None if data is None else decode(data, "")
    except DataError:
        return None
