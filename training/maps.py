"""`softshard maps make`: a teacher's label maps for every image of a data set (Yun et al. 2021, sec. 3).

The loader decodes each whole image, squished to the teacher's size, in the data set's order; the teacher
predicts densely; the K best classes of every cell go into a new data set beside the components that were
there, whose bytes are copied.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..loaders.batch import Batch
from ..loaders.crops import Augment
from ..loaders.decode import MEAN, STD
from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError
from ..shards.labelmap import encode_label_map
from ..shards.manifest import LabelMapInfo, Manifest
from ..shards.pack import pixel_stack
from ..shards.progress import progress_bar
from ..shards.reader import read_shard
from ..shards.schema import CLASSES_NAME, LMAP, TREE_NAME, component_rank
from ..shards.writer import ShardRecord, ShardWriter
from .checkpoint import load_checkpoint
from .dense import DenseTeacher, top_k_map
from .models import create_model


@dataclass(frozen=True)
class Teacher:
    """A trained classifier and how it wants its images.

    Attributes:
        model: in eval mode.
        name: timm's name of the architecture.
        mean: channel means of its images (values 0 to 1).
        std: channel standard deviations.
        weights_sha256: of the file its weights came from, or None for timm's own.
    """

    model: nn.Module
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str | None


def load_teacher(
    name: str, manifest: Manifest, *, size: int, checkpoint: str | Path | None = None
) -> Teacher:
    """Build a teacher for a data set's classes.

    Args:
        name: timm's name of the architecture.
        manifest: of the data set; the teacher's classes must be its classes.
        size: pixels of both sides of the teacher's images.
        checkpoint: what `softshard train` wrote (its class list is compared with the data set's); without it
            timm's own weights are used, whose classes can only be counted.

    Raises:
        DataError: the checkpoint is of another architecture or class list.
        UsageError: timm's weights have another number of classes.
    """
    if checkpoint is None:
        import timm

        config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is not None and config.num_classes != manifest.num_classes:
            raise UsageError(
                f"teacher {name}: expected weights for the data set's {manifest.num_classes} classes, found "
                f"{config.num_classes}. Give the teacher you trained on them with --checkpoint"
            )
        model = create_model(name, manifest.num_classes, size, pretrained=True)
        mean, std = (config.mean, config.std) if config is not None else (MEAN, STD)
        return Teacher(model.eval(), name, mean, std, None)
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    if saved.model_name != name:
        raise DataError(f"{path}: expected a checkpoint of {name}, found one of {saved.model_name}")
    saved.check_data(path, manifest.name, manifest.classes_sha256, None)
    model = create_model(name, len(saved.class_names), size)
    model.load_state_dict(saved.model)
    mean, std = (MEAN, STD) if saved.recipe.normalise else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with open(path, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return Teacher(model.eval(), name, mean, std, weights)


def make_label_maps(
    dataset: str | Path,
    destination: str | Path,
    teacher: Teacher,
    *,
    size: int = 475,
    top: int = 5,
    scores: str = "float16",
    batch_size: int = 32,
    device: str = "cpu",
    num_threads: int | None = None,
) -> Manifest:
    """Copy a data set with a label map added to every sample.

    Args:
        dataset: folder of the data set; label maps that it has are replaced.
        destination: a new or empty folder.
        teacher: what predicts.
        size: pixels that images are squished to, both sides.
        top: K, classes kept per cell.
        scores: `float16`, or `uint8` (affine per map).
        batch_size: images a step.
        device: where the teacher runs.
        num_threads: the loader's.

    Returns:
        The new data set's manifest.

    Raises:
        UsageError: the destination is in use, or the teacher's head cannot be run densely.
        DataError: the data set is damaged.
    """
    destination = Path(destination)
    if destination.exists() and any(destination.iterdir()):
        raise UsageError(f"{destination}: expected a new or empty folder, found files in it")
    destination.mkdir(parents=True, exist_ok=True)
    dense = DenseTeacher(teacher.model.to(device))
    records: list[ShardRecord] = []
    shape: tuple[int, int, int] | None = None
    with Loader(
        dataset,
        batch_size=batch_size,
        device=device,
        augment=Augment.evaluation(size=size),
        dtype="float32",
        mean=teacher.mean,
        std=teacher.std,
        shuffle=False,
        last_batch="pad",
        num_threads=num_threads,
    ) as loader:
        manifest = loader.manifest
        suffixes = [suffix for suffix in manifest.components if suffix != LMAP.suffix] + [LMAP.suffix]
        maps = _encoded_maps(loader, dense, top, scores)
        with progress_bar(loader.num_samples, "label maps", "img") as bar:
            for shard in manifest.shards:
                with ShardWriter(destination / shard.name, suffixes) as writer:
                    for sample in read_shard(Path(dataset) / shard.name):
                        key, data, shape = next(maps)
                        if key != sample.key:  # both read the manifest's order
                            raise DataError(
                                f"{shard.name}: expected sample {key!r} next, found {sample.key!r}"
                            )
                        writer.write(sample.key, {**sample.parts, LMAP.suffix: data})
                        bar.update()
                assert writer.record is not None
                records.append(writer.record)
        for name in (CLASSES_NAME, TREE_NAME):
            if (Path(dataset) / name).exists():
                shutil.copyfile(Path(dataset) / name, destination / name)
    assert shape is not None
    made = replace(
        manifest,
        components=tuple(sorted(suffixes, key=component_rank)),
        label_maps=LabelMapInfo(
            *shape,
            num_classes=manifest.num_classes,
            teacher={
                "model": teacher.name,
                "size": size,
                "scores": scores,
                "weights_sha256": teacher.weights_sha256,
                "torch": torch.__version__,
            },
        ),
        pixel_stack={**manifest.pixel_stack, "lz4": pixel_stack()["lz4"]},
        shards=tuple(records),
    )
    made.save(destination)
    return made


def _encoded_maps(
    loader: Loader, dense: DenseTeacher, top: int, scores: str
) -> Iterator[tuple[str, bytes, tuple[int, int, int]]]:
    """Key, encoded map and [K, P, Q] of every sample, in the data set's order."""
    batch: Batch
    for batch in loader:
        best, ids = top_k_map(dense(batch.images), min(top, loader.num_classes))
        best_NKPQ, ids_NKPQ = best.cpu().numpy(), ids.cpu().numpy()
        for i, key in enumerate(batch.keys):
            if key:  # padding has none
                data = encode_label_map(
                    best_NKPQ[i], ids_NKPQ[i], num_classes=loader.num_classes, score_encoding=scores
                )
                _, *shape = best_NKPQ.shape
                yield key, data, (shape[0], shape[1], shape[2])
