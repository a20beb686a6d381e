"""`softshard maps make`: teachers' label maps for every image of a data set (Yun et al. 2021, sec. 3).

    shard -> decode, squished to the teacher's size -> dense logits -> mean of teachers -> K best -> encode -> shard

The components that were there are copied byte by byte; or the maps go to side shards of their own. A shard of the
result depends on the shard of the source and on the options alone, so several processes share the shards, and a
run that was killed continues with those that have no receipt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from ..loaders.fetch import check_local
from ..shards.destination import open_destination
from ..shards.errors import SoftshardError, UsageError
from ..shards.labelmap import encode_label_map
from ..shards.labelmap_encode import SCORE_ENCODINGS
from ..shards.labelmap_side import (
    SideMaps,
    attach,
    check_sidecars,
    components_with_maps,
    encoder_versions,
    finish,
    settle,
)
from ..shards.manifest import LabelMapInfo, Manifest
from ..shards.progress import progress_bar
from ..shards.schema import LMAP
from ..shards.writer import ShardRecord
from .dense import DenseTeacher, mean_of_teachers, top_k_map
from .maps_images import TeacherImages
from .maps_teacher import Teacher, load_teacher, load_teachers
from .processes import process_group

__all__ = ["MapOptions", "Teacher", "load_teacher", "load_teachers", "make_label_maps"]

# The slowest process may be far behind: torch's own half an hour is a shard or two.
_LONGEST_WAIT = timedelta(days=7)

T = TypeVar("T")


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
        if self.scores not in SCORE_ENCODINGS:
            raise UsageError(
                f"label maps: expected scores of {', '.join(SCORE_ENCODINGS)}, found {self.scores!r}"
            )


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
) -> Manifest:
    """Copy a data set with a label map added to every sample, or write the maps into side shards.

    On a CPU the same call gives the same bytes with any number of processes, if torch has the same number of threads in
    each (torchrun sets OMP_NUM_THREADS=1).

    Args:
        dataset: folder of the data set; label maps that it has are replaced.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.
        teachers: what predicts; the dense logits of several are averaged.
        options: see MapOptions.
        device: where the teachers run.
        num_threads: of the decoder, and as many that encode.
        rank: of this process, of `world_size` that share the work; all see one destination. With several,
            torch.distributed must be set up, or its environment variables (torchrun does that).
        world_size: their number.

    Returns:
        The manifest of the data set with label maps; with `side`, what it would be.

    Raises:
        UsageError: the destination holds something else, the data set is a URL, a teacher's head cannot be run
            densely, or the teachers' grids differ.
        DataError: the data set is damaged. Shards that are finished stay, and the same call continues.
    """
    options = options or MapOptions()
    teachers = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    if not teachers:
        raise UsageError("label maps: expected a teacher, found none")
    check_local(dataset)
    dataset, target = Path(dataset), open_destination(destination)
    source = Manifest.load(dataset)
    check_sidecars(dataset, source)
    dense = [DenseTeacher(teacher.model.to(device), options.amp) for teacher in teachers]
    label_maps = _prove(teachers, dense, source, options, device)
    content = {
        "maps": {"dataset": source.fingerprint, "batch_size": options.batch_size, "side": options.side},
        "label_maps": {**vars(label_maps), "teacher": dict(label_maps.teacher)},
        **encoder_versions(),
    }
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
        missing = [i for i, record in enumerate(source.shards) if record.name not in done]
        images = stack.enter_context(
            TeacherImages(
                dataset,
                source,
                size=options.size,
                batch_size=options.batch_size,
                device=device,
                num_threads=num_threads,
            )
        )
        pool = stack.enter_context(ThreadPoolExecutor(num_threads or len(os.sched_getaffinity(0))))
        suffixes = (LMAP.suffix,) if options.side else components_with_maps(source)
        own = missing[rank::world_size]
        total = sum(source.shards[number].samples for number in own)
        with progress_bar(total, "label maps", "img") as bar:
            for number in own:
                maps = _encoded_maps(images, number, teachers, dense, options, source.num_classes, pool)
                attach(target, dataset, source.shards[number], suffixes, maps, plan_sha256)
                bar.update(source.shards[number].samples)
        if group is not None:
            dist.barrier(group)

        def save_side(records: tuple[ShardRecord, ...]) -> None:
            SideMaps(source.name, source.fingerprint, label_maps, records).save(target)

        def end() -> Manifest:
            save = save_side if options.side else None
            return finish(target, dataset, source, label_maps, plan_sha256, save)

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


def _prove(
    teachers: Sequence[Teacher],
    dense: Sequence[DenseTeacher],
    source: Manifest,
    options: MapOptions,
    device: str,
) -> LabelMapInfo:
    """Run the teachers on noise before anything is written: a head that is refused is refused here."""
    noise = torch.randn(2, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    logits = [model(noise.to(device)) for model in dense]
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
        "precision": f"{options.amp} amp" if options.amp else "float32",
        "device": torch.device(device).type,
        "torch": torch.__version__,
    }
    if len(teachers) == 1:
        facts["weights_sha256"] = teachers[0].weights_sha256
    return LabelMapInfo(
        top=min(options.top, source.num_classes),
        rows=mean.shape[2],
        columns=mean.shape[3],
        num_classes=source.num_classes,
        teacher=facts,
    )


def _encoded_maps(
    images: TeacherImages,
    number: int,
    teachers: Sequence[Teacher],
    dense: Sequence[DenseTeacher],
    options: MapOptions,
    num_classes: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, bytes]]:
    """Key and encoded map of every sample of a shard, in its order."""
    names = [teacher.name for teacher in teachers]
    for places, batch in images.whole(number):
        logits = [model(teacher.normalise(batch)) for teacher, model in zip(teachers, dense, strict=True)]
        best, ids = top_k_map(mean_of_teachers(logits, names), min(options.top, num_classes))
        best_NKPQ, ids_NKPQ = best.cpu().numpy(), ids.cpu().numpy()

        def encode(i: int, best_NKPQ: Any = best_NKPQ, ids_NKPQ: Any = ids_NKPQ) -> bytes:
            return encode_label_map(
                best_NKPQ[i], ids_NKPQ[i], num_classes=num_classes, score_encoding=options.scores
            )

        for (shard, place), data in zip(places, pool.map(encode, range(len(places))), strict=True):
            yield shard.index.keys[place], data
