"""Looks at samples: as they are stored, and what the loader makes of them. `inspect_page.py` draws what is found.

Nothing here computes a crop, a target or a label: `BatchMaker`, which makes the Loader's batches, does, one sample at a
time, and `check_sample`, which `softshard verify --decode` uses, says what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg
import torch

from ..shards.components import decode_class, decode_levels, decode_meta
from ..shards.errors import DataError, UsageError
from ..shards.labelmap import decode_label_map
from ..shards.schema import CLS, HIER, JPG, KD, LMAP, META, SOFT
from ..shards.shard_files import dataset_path
from ..shards.shard_keys import each_shards_keys
from ..shards.soft_labels import KINDS, TAGS, decode_soft_labels
from ..shards.teacher_levels import num_kept
from ..shards.verify_shard import Expected, check_sample
from .decode import MEAN, STD, Decoder
from .fetch import OpenShard
from .inspect_views import CropView, Inspection, InspectOptions, MapView, SampleView
from .loader import DEFAULT_WINDOW
from .make_batch import BatchMaker
from .order import Draws, EpochOrder
from .pooling import pool_label_maps
from .side_maps import SideFiles
from .source import Source
from .stages import Stages

_SHOWN_KEYS = 10
_Value = TypeVar("_Value")


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
    with Inspector(dataset, options) as inspector:
        numbers = inspector.find_keys(options.keys) if options.keys else inspector.first_samples()
        return inspector.found(inspector.look_at_all(numbers))


class Inspector:
    """Holds the shards open, and a decoder of one image at a time. Not for several threads.

    Args:
        dataset: as `inspect_data_set` takes it; or somebody else's tars, as the Loader does.
        options: what the loader is asked for.

    Raises:
        UsageError, DataError: see `inspect_data_set`.
    """

    def __init__(self, dataset: str | Path, options: InspectOptions) -> None:
        # A single image is never mixed: what a batch does with it is for `replay`.
        augment = replace(options.augment, mixup=None, cutmix=None, mix_until_epoch=None)
        self.options = options
        self.source = source = Source.open(dataset)
        # Somebody else's tars: there is nothing to compare a sample with.
        self.foreign = not source.manifest.sidecar_sha256
        self.folder = folder = dataset if self.foreign else dataset_path(dataset)
        self._side = None if options.side is None else SideFiles(options.side, folder, source.manifest)
        self.manifest = manifest = source.manifest if self._side is None else self._side.manifest
        self.tree = tree = source.labels.tree
        maps = manifest.label_maps
        fits = maps is not None and maps.num_classes == manifest.num_classes
        self.targets = options.targets or ("relabel" if fits else "none")
        self._level_sizes = None if tree is None else tree.level_sizes[: tree.num_levels]
        self._reads_teacher = KD.suffix in manifest.components and tree is not None
        self._expected = Expected(
            folder,
            manifest.components,
            manifest.num_classes,
            maps,
            None if tree is None else tree.vectors(),
            self._level_sizes,
            decode=True,
            soft_labels=manifest.soft_labels,
        )
        self.classes = source.load_classes()
        self.starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)], dtype=np.int64)
        known = self.classes[self.classes >= 0] if self.foreign else self.classes
        self.class_counts = np.bincount(known, minlength=manifest.num_classes)
        vocabulary = source.load_vocabulary()
        self.vocabulary = () if vocabulary is None else vocabulary.tags
        self.tags = self.vocabulary if self.targets == "tags" else ()
        self._maker = BatchMaker.create(
            source.parts,
            targets=self.targets,
            teacher=self._reads_teacher,
            side=self._side,
            augment=augment,
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

    def found(self, samples: Iterator[SampleView] | Sequence[SampleView] = ()) -> Inspection:
        """These samples, with what a page has to know of their data set."""
        return Inspection(
            self.source.dataset,
            self.manifest,
            self.tree,
            self.options,
            self.targets,
            tuple(samples),
            self.tags,
            self.vocabulary,
            self.class_counts,
        )

    def first_samples(self) -> list[int]:
        """The samples that a Loader of this seed begins the epoch with."""
        options = self.options
        order = EpochOrder(self.source.shard_counts, options.seed, options.epoch, window=DEFAULT_WINDOW)
        return order.lane_draws(0, 0, options.num_samples).samples.tolist()

    def find_keys(self, keys: Sequence[str]) -> list[int]:
        """The numbers of some samples, each once, in the order of their keys.

        Raises:
            UsageError: keys that no shard has; all are named.
            DataError: a shard's index cannot be read.
        """
        wanted = dict.fromkeys(keys)
        missing, found = set(wanted), {}
        example = ""
        for shard, shard_keys in enumerate(self._keys_of_shards()):
            for place, key in enumerate(shard_keys):
                if key in missing:
                    found[key] = int(self.starts[shard]) + place
                    missing.discard(key)
                example = example or key
            if not missing:
                break
        if missing:
            unknown = [key for key in wanted if key in missing]
            shown = ", ".join(map(repr, unknown[:_SHOWN_KEYS])) + (", ..." if unknown[_SHOWN_KEYS:] else "")
            raise UsageError(
                f"inspect: expected keys of this data set, such as {example!r}, found {len(unknown):,} that it does "
                f"not have: {shown}. Leave out --keys to see the samples that an epoch begins with"
            )
        return [found[key] for key in wanted]

    def _keys_of_shards(self) -> Iterator[Sequence[str]]:
        """Of our own shards from their indexes alone: no shard is fetched for them."""
        if not self.foreign:
            for keys in each_shards_keys(self.folder, self.manifest):
                yield [key.decode("ascii", "replace") for key in keys]
            return
        numbers = range(len(self.manifest.shards))
        yield from (shard.index.keys for shard in self.open_shards(numbers))

    def open_shards(self, numbers: Sequence[int]) -> Iterator[OpenShard]:
        """Some shards, one after the other; those behind a URL are fetched whole, and ahead.

        Raises:
            DataError: one cannot be had.
        """
        self._shards.expect(lambda: ([number] for number in numbers))
        for step, number in enumerate(numbers):
            self._shards.reached(step)
            yield self._shards[number]

    def place_of(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its place in it."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def look_at_all(
        self, numbers: Sequence[int], epoch: int | None = None, num_crops: int | None = None
    ) -> Iterator[SampleView]:
        """Some samples, their shards fetched ahead.

        Args:
            numbers: of the samples, in the manifest's order.
            epoch: the first epoch whose crops are cut; None as the options say.
            num_crops: of how many epochs; None as the options say.
        """
        first = self.options.epoch if epoch is None else epoch
        epochs = range(first, first + (self.options.num_crops if num_crops is None else num_crops))
        self._maker.reader.expect(lambda: (np.array([number]) for number in numbers))
        for step, number in enumerate(numbers):
            self._shards.reached(step)
            yield self._look_at(number, epochs)

    def _look_at(self, number: int, epochs: range) -> SampleView:
        """One sample and everything about it that can be read."""
        shard_number, place = self.place_of(number)
        name = self.manifest.shards[shard_number].name
        try:
            shard = self._shards[shard_number]
            parts = {
                suffix: bytes(data)
                for suffix, data in zip(shard.index.suffixes, shard.members(place), strict=True)
                if not (self.foreign and suffix == CLS.suffix)
            }
            sizes = {suffix: len(data) for suffix, data in parts.items()}
            if self._side is not None:
                (label_map,) = self._side.read(np.array([shard_number]), [(shard, place)])
                parts[LMAP.suffix] = bytes(label_map)
        except DataError as error:
            return SampleView(number, name, problems=(str(error),))
        problems: list[str] = []
        class_index = int(self.classes[number])
        if self.foreign:
            _check_image(parts[JPG.suffix], shard.where(place, JPG.suffix), problems)
        else:
            check_sample(shard.sample(place), parts, self._expected, class_index, problems)
            class_index = _readable(decode_class, parts[CLS.suffix])
        crops: tuple[CropView, ...] = ()
        label_map = image = teacher = None
        soft = {}
        if not problems:
            # Only of whole samples: the loader's decoder takes some damage without an error.
            try:
                image = simplejpeg.decode_jpeg(parts[JPG.suffix], "RGB")
                crops, teacher = self._crops(number, epochs)
                label_map = self._label_map(parts)
                soft = self._soft_labels(parts)
            except DataError as error:
                problems.append(str(error))
        return SampleView(
            number,
            name,
            shard.index.keys[place],
            parts[JPG.suffix],
            image,
            _readable(decode_meta, parts.get(META.suffix)),
            None if class_index == -1 else class_index,
            _readable(decode_levels, parts.get(HIER.suffix)),
            crops,
            label_map,
            teacher,
            tuple(problems),
            sizes,
            soft,
        )

    def _soft_labels(self, parts: dict[str, bytes]) -> dict[str, list[tuple[int, float]]]:
        info = self.manifest.soft_labels
        found = {}
        if info is None:
            return found
        for kind in filter(info.has, KINDS):
            num_ids = info.num_tags if kind == TAGS else self.manifest.num_classes
            data = parts[SOFT.suffix if kind == "pseudo" else META.suffix]
            labels = decode_soft_labels(kind, [data], num_ids, lambda _: "inspect")
            found[kind] = list(zip(labels.ids.tolist(), labels.weights.tolist(), strict=True))
        return found

    def _crops(
        self, number: int, epochs: range
    ) -> tuple[tuple[CropView, ...], tuple[np.ndarray, np.ndarray] | None]:
        """What the Loader's batches of some epochs have in this sample's slot, and the teacher's best classes."""
        crops, teacher = [], None
        one = Draws(np.array([number]), np.zeros(1, np.int64))
        for epoch in epochs:
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

    def close(self) -> None:
        """Let the shards go."""
        self._close_decoder()
        self._maker.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _readable(decode: Callable[[bytes, str], _Value], data: bytes | None) -> _Value | None:
    """A component's value, or None where it cannot be read, which is among the problems then."""
    try:
        return None if data is None else decode(data, "")
    except DataError:
        return None


def _check_image(jpeg: bytes, where: str, problems: list[str]) -> None:
    """Add what is wrong with the image of somebody else's sample."""
    try:
        simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)
    except ValueError as error:
        problems.append(f"{where}: expected a whole JPEG, found: {error}")
