"""`softshard maps make`: teachers' label maps for every image of a data set (Yun et al. 2021, sec. 3).

    shard -> decode, squished to the teacher's size -> dense logits -> mean of teachers -> K best -> encode -> shard

The components that were there are copied byte by byte; or the maps go to side shards of their own. shard_run.py
walks over the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..loaders.cache import Cache
from ..loaders.samples import Place
from ..shards.added_component import check_sidecars
from ..shards.destination import open_destination
from ..shards.errors import UsageError, check_choice
from ..shards.labelmap import encode_label_map
from ..shards.labelmap_encode import SCORE_ENCODINGS
from ..shards.labelmap_side import SideMaps, label_maps_component
from ..shards.manifest import LabelMapInfo, Manifest, load_sidecar
from ..shards.shard_files import dataset_path
from ..shards.writer import ShardRecord
from .dense import DenseTeacher, mean_of_teachers, top_k_map
from .maps_teacher import Teacher, load_teacher, load_teachers
from .precision import how_it_runs
from .shard_run import run_over_shards
from .teacher_outputs import check_all_known

__all__ = ["MapOptions", "Teacher", "load_teacher", "load_teachers", "make_label_maps"]


@dataclass(frozen=True)
class MapOptions:
    """How label maps are made.

    Attributes:
        size: pixels that images are squished to, both sides.
        top: K, classes kept per cell.
        scores: `uint8` (affine per map), or `float16` in twice the bytes: pooled probabilities differ by less than
            0.005 for the most part.
        batch_size: images a step.
        amp: `bfloat16` or `float16`: the layers before the head in mixed precision; None for float32.
        side: write side shards instead of a whole data set.
    """

    size: int = 475
    top: int = 5
    scores: str = "uint8"
    batch_size: int = 32
    amp: str | None = None
    side: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.top < 1 or self.batch_size < 1:
            raise UsageError(
                f"label maps: expected size, top and batch_size from 1, found {self.size}, {self.top} and {self.batch_size}"
            )
        check_choice("label maps: scores", self.scores, SCORE_ENCODINGS)


def make_label_maps(
    dataset: str | Path,
    destination: str | Path,
    teachers: Teacher | Sequence[Teacher],
    options: MapOptions | None = None,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    cache: Cache | None = None,
) -> Manifest:
    """Copy a data set with a label map added to every sample, or write the maps into side shards.

    On a CPU the same call gives the same bytes with any number of processes, if torch has the same number of threads in
    each (torchrun sets OMP_NUM_THREADS=1).

    Args:
        dataset: folder or fsspec URL of the data set; label maps that it has are replaced.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.
        teachers: what predicts; the dense logits of several are averaged.
        options: see MapOptions.
        device: where the teachers run, and images are decoded to.
        num_threads: of the decoder, and as many that encode.
        rank: of this process, of `world_size` that share the work; all see one destination. With several,
            torch.distributed must be set up, or its environment variables (torchrun does that).
        world_size: their number.
        cache: where the shards of a remote data set are kept while they are looked at.

    Returns:
        The manifest of the data set with label maps; with `side`, what it would be.

    Raises:
        UsageError: the destination holds something else, a teacher's head cannot be run
            densely, or the teachers' grids differ.
        DataError: the data set is damaged, or a teacher does not know a class that has images. Shards that are
            finished stay, and the same call continues.
    """
    options = options or MapOptions()
    teachers = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    if not teachers:
        raise UsageError("label maps: expected a teacher, found none")
    dataset, target = dataset_path(dataset), open_destination(destination)
    source = Manifest.load(dataset)
    check_sidecars(dataset, source)
    dense = [DenseTeacher(teacher.model.to(device), options.amp) for teacher in teachers]
    classes = load_sidecar(dataset, source)
    for teacher in teachers:
        if teacher.outputs is not None:
            check_all_known(teacher.name, teacher.outputs, source, classes)
    label_maps = _prove(teachers, dense, source, options, device)
    names = [teacher.name for teacher in teachers]
    top = label_maps.top

    def encoded(images: Tensor, _places: list[Place]) -> Iterator[Callable[[], bytes]]:
        logits = [
            teacher.to_classes(model(teacher.normalise(images)))
            for teacher, model in zip(teachers, dense, strict=True)
        ]
        best, ids = top_k_map(mean_of_teachers(logits, names), top)
        for scores_KPQ, ids_KPQ in zip(best.cpu().numpy(), ids.cpu().numpy(), strict=True):
            yield partial(
                encode_label_map,
                scores_KPQ,
                ids_KPQ,
                num_classes=source.num_classes,
                score_encoding=options.scores,
            )

    def save_side(records: tuple[ShardRecord, ...]) -> None:
        SideMaps(source.name, source.fingerprint, label_maps, records).save(target)

    return run_over_shards(
        dataset,
        source,
        target,
        label_maps_component(label_maps),
        encoded,
        plan={
            "maps": {"dataset": source.fingerprint, "batch_size": options.batch_size, "side": options.side}
        },
        title="label maps",
        size=options.size,
        batch_size=options.batch_size,
        save_side=save_side if options.side else None,
        device=device,
        num_threads=num_threads,
        rank=rank,
        world_size=world_size,
        cache=cache,
    )


def _prove(
    teachers: Sequence[Teacher],
    dense: Sequence[DenseTeacher],
    source: Manifest,
    options: MapOptions,
    device: str,
) -> LabelMapInfo:
    """Run the teachers on noise before anything is written: a head that is refused is refused here."""
    noise = torch.randn(2, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    logits = [
        teacher.to_classes(model(noise.to(device))) for teacher, model in zip(teachers, dense, strict=True)
    ]
    for teacher, predicted in zip(teachers, logits, strict=True):
        if predicted.shape[1] != source.num_classes:
            raise UsageError(
                f"teacher {teacher.name}: expected {source.num_classes} classes as the data set has, found "
                f"{predicted.shape[1]}"
            )
    mean = mean_of_teachers(logits, [teacher.name for teacher in teachers])
    facts: dict[str, Any] = {
        "model": " + ".join(teacher.name for teacher in teachers),
        "teachers": [teacher.facts() for teacher in teachers],
        "size": options.size,
        "scores": options.scores,
        **how_it_runs(device, options.amp),
    }
    if len(teachers) == 1:
        facts["weights_sha256"] = teachers[0].weights_sha256
    num_known = int(mean[0, :, 0, 0].isfinite().sum())  # by all of the teachers
    return LabelMapInfo(
        top=min(options.top, num_known),
        rows=mean.shape[2],
        columns=mean.shape[3],
        num_classes=source.num_classes,
        teacher=facts,
    )
