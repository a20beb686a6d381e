"""`softshard teacher make`: what a teacher says of every image of a data set, stored for a later distillation.

    shard -> decode, squished to the teacher's size -> logits -> softmax in each level -> ceil(N_k / 20) best -> `kd`

The teacher sees each image whole and once, so its student learns from one answer for all crops of an image; a live
teacher (`train --teacher`) answers for every crop, and costs its forward pass in every step. Everything else in the
shards keeps its bytes. shard_run.py walks over the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from ..loaders.cache import Cache
from ..loaders.samples import Place
from ..shards.added_component import NewComponent, check_sidecars
from ..shards.destination import open_destination
from ..shards.errors import UsageError
from ..shards.manifest import Manifest, load_tree
from ..shards.schema import KD
from ..shards.shard_files import dataset_path
from ..shards.teacher_info import TeacherInfo
from ..shards.teacher_levels import encode_teacher_levels
from .distillation import teacher_levels
from .label_space import LabelSpace
from .level_layout import LevelLayout
from .precision import autocast, check_amp, how_it_runs
from .shard_run import run_over_shards
from .teacher import CheckpointTeacher


def store_teacher(
    dataset: str | Path,
    destination: str | Path,
    checkpoint: str | Path,
    *,
    batch_size: int = 64,
    amp: str | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    cache: Cache | None = None,
) -> Manifest:
    """Copy a data set with a teacher's best classes of every level added to every sample (`kd`).

    On a CPU the same call gives the same bytes with any number of processes, if torch has the same number of threads in
    each (torchrun sets OMP_NUM_THREADS=1).

    Args:
        dataset: folder or fsspec URL of the data set; a teacher that it has is replaced.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.
        checkpoint: the teacher: a file that `train` wrote, for the data set's class list and tree. It sees images of
            the size that it was trained on.
        batch_size: images a step.
        amp: `bfloat16` or `float16`: the teacher in mixed precision; None for float32.
        device: where the teacher runs, and images are decoded to.
        num_threads: of the decoder, and as many that encode.
        rank: of this process, of `world_size` that share the work; all see one destination. With several,
            torch.distributed must be set up, or its environment variables (torchrun does that).
        world_size: their number.
        cache: where the shards of a remote data set are kept while they are looked at.

    Returns:
        The manifest of the data set with the stored teacher.

    Raises:
        UsageError: the destination holds something else, the data set has no tree or one with several paths
            to a class, or there is no such `amp`.
        DataError: the checkpoint or the data set is damaged, or they have another class list or tree. Shards that are
            finished stay, and the same call continues.
    """
    if batch_size < 1:
        raise UsageError(f"stored teacher: expected a batch size from 1, found {batch_size}")
    check_amp(amp)
    dataset, target = dataset_path(dataset), open_destination(destination)
    source = Manifest.load(dataset)
    check_sidecars(dataset, source)
    tree = load_tree(dataset, source)
    if tree is None or tree.num_paths > 1:
        found = "none" if tree is None else f"one with up to {tree.num_paths} paths to a class"
        raise UsageError(
            f"{dataset}: expected a label tree with one path to every class, whose levels a teacher speaks of, found "
            f"{found}. Run: softshard tree build, then softshard reshard --tree"
        )
    teacher = CheckpointTeacher(
        checkpoint, labels=LabelSpace.of(source, tree), dataset=str(dataset), device=device
    )
    layout = LevelLayout(tree).to(device)
    level_sizes = layout.level_sizes
    info = TeacherInfo(
        model=teacher.name,
        checkpoint_sha256=teacher.sha256,
        levels=teacher.levels or tree.num_levels,
        how={"size": teacher.image_size, **how_it_runs(device, amp)},
    )

    def encoded(images: Tensor, _places: list[Place]) -> Iterator[Callable[[], bytes]]:
        with autocast(device, amp):
            logits = teacher(images.float() / 255)
        ids, probabilities = (part.cpu().numpy() for part in teacher_levels(logits, layout))
        for ids_K, probabilities_K in zip(ids, probabilities, strict=True):
            yield partial(encode_teacher_levels, ids_K, probabilities_K, level_sizes)

    return run_over_shards(
        dataset,
        source,
        target,
        NewComponent(KD.suffix, {"teacher": info}, ("lz4",)),
        encoded,
        plan={"kd": {"dataset": source.fingerprint, "batch_size": batch_size}},
        title="stored teacher",
        size=teacher.image_size,
        batch_size=batch_size,
        device=device,
        num_threads=num_threads,
        rank=rank,
        world_size=world_size,
        cache=cache,
    )
