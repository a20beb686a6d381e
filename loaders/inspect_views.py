"""What `softshard inspect` is asked for, and what it finds: samples as they are stored and as the loader gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest
from ..shards.philox import check_seed
from ..shards.tree import LabelTree
from .crops import Augment
from .target_modes import TARGETS

MAX_SAMPLES = 200
MAX_CROP_PIXELS = 2**25  # of all crops together: about 10 MB of JPEG


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
        component_bytes: bytes of each stored component, in the order of the tar.
        soft: the soft labels it has, `tags`, `weights` and `pseudo`: (tag or class index, weight) in the order of the
            indices; 1 for tags.
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
    component_bytes: Mapping[str, int] = field(default_factory=dict)
    soft: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


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
        vocabulary: names of the tags that samples have; empty where they have none.
        class_counts: int64 [C], samples of each class.
    """

    dataset: str
    manifest: Manifest
    tree: LabelTree | None
    options: InspectOptions
    targets: str
    samples: tuple[SampleView, ...]
    tags: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    class_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def problems(self) -> list[str]:
        """Those of all samples."""
        return [problem for sample in self.samples for problem in sample.problems]
