"""`softshard pseudo make`: labels that models give the images of a data set, for training on them (Yan et al. 2020).

    shard -> decode, squished -> probabilities, mean over models -> threshold -> the best classes -> `soft`

Each image is seen whole and once. Everything else in the shards keeps its bytes, the labels they came with included;
`softshard train pseudo` learns from the new ones. shard_run.py walks over the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..loaders.cache import Cache
from ..loaders.samples import Place, read_classes
from ..shards.added_component import check_sidecars
from ..shards.destination import open_destination
from ..shards.errors import DataError, UsageError
from ..shards.manifest import Manifest, load_tree
from ..shards.pseudo_labels import pseudo_component
from ..shards.schema import CLS
from ..shards.shard_files import dataset_path
from ..shards.soft_labels import encode_pseudo_labels
from .label_space import LabelSpace
from .precision import AMP, autocast, how_it_runs
from .shard_run import run_over_shards
from .teacher import CheckpointTeacher

# What becomes of an image that no class is probable enough for.
BELOW = ("own", "none")


@dataclass(frozen=True)
class PseudoOptions:
    """Which answers become labels.

    Attributes:
        threshold: least probability of the best class.
        top: how many classes an image gets, the most probable ones, weighted by their probabilities, which are scaled
            to add up to 1; with 1 the best class alone, with the weight 1.
        below: an image whose best class is less probable keeps its `own` label, with the weight 1, or has `none`.
        batch_size: images a step.
        amp: `bfloat16` or `float16`: the models in mixed precision; None for float32.
    """

    threshold: float = 0.5
    top: int = 1
    below: str = "own"
    batch_size: int = 64
    amp: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.threshold <= 1.0:
            problems.append(f"threshold: expected a probability from 0 to 1, found {self.threshold}")
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.below not in BELOW:
            problems.append(f"below: expected one of {', '.join(BELOW)}, found {self.below!r}")
        if self.amp is not None and self.amp not in AMP:
            problems.append(f"amp: expected one of {', '.join(AMP)}, found {self.amp!r}")
        if problems:
            raise UsageError("pseudo labels: " + "; ".join(problems))


def make_pseudo_labels(
    dataset: str | Path,
    destination: str | Path,
    checkpoints: Sequence[str | Path],
    options: PseudoOptions | None = None,
    *,
    labelled: Callable[[int, int], object] | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    cache: Cache | None = None,
) -> Manifest:
    """Copy a data set with what models say of each image added to every sample (`soft`).

    On a CPU the same call gives the same bytes with any number of processes, if torch has the same number of threads in
    each (torchrun sets OMP_NUM_THREADS=1).

    Args:
        dataset: folder or fsspec URL of the data set; pseudo labels that it has are replaced.
        destination: a new folder or fsspec URL, or that of an earlier run of the same call, which is continued.
        checkpoints: files that `train` wrote, for the data set's class list, of models with one softmax over the
            classes. The mean of their probabilities counts. Images are decoded for the largest size that one of them
            was trained on; the others see them resized.
        options: which answers become labels.
        labelled: told of every batch how many images got a model's label, of how many.
        device: where the models run, and images are decoded to.
        num_threads: of the decoder, and as many that encode.
        rank: of this process, of `world_size` that share the work; all see one destination. With several,
            torch.distributed must be set up, or its environment variables (torchrun does that).
        world_size: their number.
        cache: where the shards of a remote data set are kept while they are looked at.

    Returns:
        The manifest of the data set with pseudo labels.

    Raises:
        UsageError: the destination holds something else, or a model has no probabilities over all classes.
        DataError: a checkpoint or the data set is damaged, or they have other class lists. Shards that are finished
            stay, and the same call continues.
    """
    options = options or PseudoOptions()
    if not checkpoints:
        raise UsageError("pseudo labels: expected at least one checkpoint, found none")
    dataset, target = dataset_path(dataset), open_destination(destination)
    source = Manifest.load(dataset)
    check_sidecars(dataset, source)
    labels = LabelSpace.of(source, load_tree(dataset, source))
    teachers = [
        CheckpointTeacher(path, labels=labels, dataset=str(dataset), device=device) for path in checkpoints
    ]
    for path, teacher in zip(checkpoints, teachers, strict=True):
        if not teacher.one_softmax:
            raise UsageError(
                f"{path}: expected a model of one softmax over all classes, whose probabilities are those of labels, found "
                "one that was trained level by level, or with a sigmoid for each class. Give one of the recipes "
                "single-label, fine-tune, label-weighted or relabel"
            )
    size = max(teacher.image_size for teacher in teachers)
    made_by = {
        "models": [{"model": teacher.name, "checkpoint_sha256": teacher.sha256} for teacher in teachers],
        "threshold": options.threshold,
        "top": options.top,
        "below": options.below,
        "size": size,
        **how_it_runs(device, options.amp),
    }
    column = source.components.index(CLS.suffix)

    def encoded(images: Tensor, places: list[Place]) -> Iterator[Callable[[], bytes]]:
        with autocast(device, options.amp):
            logits = [teacher(images.float() / 255) for teacher in teachers]
        said = [each.double().softmax(dim=1) for each in logits]
        for path, each in zip(checkpoints, said, strict=True):
            if not each.isfinite().all():
                raise DataError(
                    f"{path}: expected finite probabilities, found others; the model's weights or outputs are not finite. "
                    f"Give another model{', or compute in float32: without --amp' if options.amp else ''}"
                )
        probabilities = torch.stack(said).mean(dim=0)
        own = read_classes(places, [shard.member(i, column) for shard, i in places], source.num_classes)
        values, ids, sure = (part.cpu().numpy() for part in best_classes(probabilities, options))
        if labelled is not None:
            labelled(int(sure.sum()), len(sure))
        for values_K, ids_K, is_sure, index in zip(values, ids, sure, own, strict=True):
            yield partial(
                _encode, values_K, ids_K, bool(is_sure), int(index), options.below, source.num_classes
            )

    return run_over_shards(
        dataset,
        source,
        target,
        pseudo_component(source, made_by),
        encoded,
        plan={"pseudo": {"dataset": source.fingerprint, "batch_size": options.batch_size}},
        title="pseudo labels",
        size=size,
        batch_size=options.batch_size,
        device=device,
        num_threads=num_threads,
        rank=rank,
        world_size=world_size,
        cache=cache,
    )


def best_classes(probabilities: Tensor, options: PseudoOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The labels that probabilities make.

    Args:
        probabilities: floating [N, C], rows that add up to 1.
        options: threshold and top.

    Returns:
        (values, ids, sure): floating and int64 [N, K], K the smaller of `top` and C: the best classes, the most probable
        first, with weights that add up to 1; bool [N], whether the best one reaches the threshold.
    """
    values, ids = probabilities.topk(min(options.top, probabilities.shape[1]), dim=1)
    return values / values.sum(dim=1, keepdim=True), ids, values[:, 0] >= options.threshold


def _encode(
    values_K: np.ndarray, ids_K: np.ndarray, sure: bool, own: int, below: str, num_classes: int
) -> bytes:
    """One image's component: the model's labels, its own, or none."""
    if not sure:
        has_own = below == "own" and own >= 0
        return encode_pseudo_labels([own] if has_own else [], [1.0] if has_own else [], num_classes)
    order = ids_K.argsort()
    return encode_pseudo_labels(ids_K[order], values_K[order], num_classes)
