"""`softshard maps make`: a teacher's label maps for every image of a data set (Yun et al. 2021, sec. 3).

The loader decodes each whole image, squished to the teacher's size, in the data set's order; the teacher
predicts densely; the K best classes of every cell go into a new data set beside the components that were
there, whose bytes are copied.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..loaders.batch import Batch
from ..loaders.crops import Augment
from ..loaders.decode import MEAN, STD
from ..loaders.fetch import check_local
from ..loaders.loader import Loader
from ..shards.errors import DataError, UsageError
from ..shards.images import pixel_stack
from ..shards.labelmap import encode_label_map
from ..shards.manifest import LabelMapInfo, Manifest
from ..shards.progress import progress_bar
from ..shards.reader import read_shard
from ..shards.schema import CLASSES_NAME, LMAP, MANIFEST_NAME, TIMM_INFO_NAME, TREE_NAME, component_rank
from ..shards.wordnet import WNID_PATTERN
from ..shards.writer import ShardRecord, ShardWriter
from .checkpoint import load_checkpoint
from .dense import DenseTeacher, top_k_map
from .label_space import LabelSpace
from .models import create_model, load_trained_model


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
            timm's own weights are used, whose classes are compared where timm has their list of wnids. Where it
            has none, a UserWarning says that the order could not be checked.

    Raises:
        DataError: the checkpoint is of another architecture, class list or image size; or timm's weights are
            for other classes or for another order of them.
        UsageError: timm's weights have another number of classes, or cannot be had.
    """
    if checkpoint is None:
        config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is not None:
            _check_own_classes(name, config.num_classes, manifest)
        model = create_model(name, manifest.num_classes, size, pretrained=True)
        mean, std = (config.mean, config.std) if config is not None else (MEAN, STD)
        return Teacher(model.eval(), name, mean, std, None)
    path = Path(checkpoint)
    saved = load_checkpoint(path)
    if saved.model_name != name:
        raise DataError(f"{path}: expected a checkpoint of {name}, found one of {saved.model_name}")
    saved.check_data(path, manifest.name, LabelSpace.of(manifest))
    model = load_trained_model(path, saved, size)
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
        UsageError: the destination is in use, a folder is a URL, or the teacher's head cannot be run densely.
        DataError: the data set is damaged. What was written so far is deleted then.
    """
    check_local(dataset)
    if "://" in str(destination):
        raise UsageError(
            f"{destination}: expected a local folder, found a URL; write to a local folder and copy that"
        )
    dataset, destination = Path(dataset), Path(destination)
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination}: expected a new or empty folder, found a file")
    if destination.exists() and any(destination.iterdir()):
        raise UsageError(
            f"{destination}: expected a new or empty folder, found files in it; without a {MANIFEST_NAME} they may be "
            "left over from a run that was killed, and can be deleted then. Delete them or give another DST"
        )
    source = Manifest.load(dataset)
    copied = [CLASSES_NAME, *([TREE_NAME] if source.tree_sha256 else [])]
    for name in copied:
        if not (dataset / name).is_file():
            raise DataError(
                f"{dataset / name}: expected a file of the data set, found none; it was not copied whole. "
                f"Run: softshard verify {dataset}"
            )
    dense = DenseTeacher(teacher.model.to(device))
    destination.mkdir(parents=True, exist_ok=True)
    try:
        return _write_mapped(
            dataset, destination, teacher, dense, copied,
            size=size, top=top, scores=scores, batch_size=batch_size, device=device, num_threads=num_threads,
        )  # fmt: skip
    except BaseException:  # Ctrl-C, too: half a data set would only stand in the next run's way
        shards = [Path(shard.name) for shard in source.shards]
        written = [*shards, *(shard.with_suffix(".idx") for shard in shards)]
        for name in (*written, *copied, TIMM_INFO_NAME, MANIFEST_NAME):
            (destination / name).unlink(missing_ok=True)
        raise


def _check_own_classes(name: str, num_classes: int, manifest: Manifest) -> None:
    """Refuse weights of timm's whose outputs are not the data set's classes in the data set's order."""
    if num_classes != manifest.num_classes:
        raise UsageError(
            f"teacher {name}: expected weights for the data set's {manifest.num_classes} classes, found "
            f"{num_classes}. Give the teacher you trained on them with --checkpoint"
        )
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        warnings.warn(
            f"teacher {name}: timm has no class list for its {num_classes} outputs, so that they are the classes of "
            f"{manifest.name!r} in the same order could not be checked",
            stacklevel=3,
        )
        return
    for index, (output, found) in enumerate(
        zip(ImageNetInfo(subset).label_names(), manifest.class_names, strict=True)
    ):
        if output == found:
            continue
        where = f"teacher {name}: its outputs are the wnids of {subset}; class {index}"
        if WNID_PATTERN.fullmatch(found):
            cause = "it is another class list, or another order"
        else:
            cause = "only classes that are named by wnid can be compared; pack with --classes and folders named by wnid"
        raise DataError(
            f"{where}: expected {output!r}, found {found!r} in the data set; {cause}. "
            "Or give the teacher you trained on these classes with --checkpoint"
        )


def _write_mapped(
    dataset: Path,
    destination: Path,
    teacher: Teacher,
    dense: DenseTeacher,
    copied: list[str],
    *,
    size: int,
    top: int,
    scores: str,
    batch_size: int,
    device: str,
    num_threads: int | None,
) -> Manifest:
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
                    for sample in read_shard(dataset / shard.name):
                        key, data, shape = next(maps)
                        if key != sample.key:  # both read the manifest's order
                            raise DataError(
                                f"{shard.name}: expected sample {key!r} next, found {sample.key!r}"
                            )
                        writer.write(sample.key, {**sample.parts, LMAP.suffix: data})
                        bar.update()
                assert writer.record is not None
                records.append(writer.record)
        for name in copied:
            shutil.copyfile(dataset / name, destination / name)
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
