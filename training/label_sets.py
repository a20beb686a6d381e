"""Several right classes for one image: ImageNet's ReaL labels, or a file; any of them counts as right.

ReaL (Beyer et al. 2020, "Are we done with ImageNet?") gives each of ImageNet's 50,000 validation images every class that
people saw in it: several, one, or none. An image with none is left out. The labels come inside timm's wheel, in the
order of the images' numbers, so an image is known by ILSVRC2012_val_00000001 in its path or key.

Shape letters: N batch, C classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import timm
import torch
from torch import Tensor

from ..loaders.fetch import OpenShard
from ..loaders.loader import Loader
from ..loaders.whole_shards import in_order
from ..shards.classes import load_class_list
from ..shards.components import decode_meta
from ..shards.errors import DataError
from ..shards.files import read_text
from ..shards.schema import META, MIB
from .average_precision import MeanAveragePrecision
from .counted import Counted

REAL = "real"
IMAGENET_VAL = re.compile(r"ILSVRC2012_val_(\d{8})")
_MAX_FILE_BYTES = 1024 * MIB

Names = Mapping[str, Sequence[str | int]]


@dataclass(frozen=True)
class LabelSets:
    """The right classes of a data set's samples.

    Attributes:
        source: `real` or the file.
        num_classes: C.
        classes: key of a sample to its right classes, indices below C; samples that the source does not list have
            no entry, and those of which it says that nothing is right an empty one.
    """

    source: str
    num_classes: int
    classes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of_loader(cls, source: str | Path, loader: Loader) -> LabelSets:
        """Read the right classes of a loader's samples, in its class list.

        Args:
            source: `real`, or a JSON file: an object of image to a list of its classes, by name or by index. Images are
                known by their original path, its file name, that name without its ending, or the sample's key.
            loader: its data set's images are looked up, and its class names.

        Raises:
            UsageError: the file cannot be read.
            DataError: the file is damaged, it or ReaL lists none of the images, or it names classes that the data set
                does not have. (Of ReaL's those are passed over; an image without any other is left out.)
        """
        if str(source) == REAL:
            classes = _real_classes(loader)
        else:
            classes = _listed_classes(str(source), loader)
        return cls(str(source), loader.num_classes, classes)

    def table(self, keys: Sequence[str]) -> Tensor:
        """bool [N, C], which classes are right for the samples of these keys; no class for padding and unlisted ones."""
        right = torch.zeros(len(keys), self.num_classes, dtype=torch.bool)
        for row, key in zip(right, keys, strict=True):
            row[list(self.classes.get(key, ()))] = True
        return right


class AnyOfAccuracy(Counted):
    """Share of samples for which the best class, or one of the best five, is among the right ones.

    Samples without a right class are left out.
    """

    def __init__(self) -> None:
        # Right within 1, right within 5, counted, left out.
        self.counts = torch.zeros(4, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, right: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], right bool [N, C], valid bool [N] or None."""
        valid = self._begin(logits, right.shape[1], valid)
        counted = right.any(dim=1) & valid
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = right.gather(1, best) & counted[:, None]
        self.counts += torch.stack(
            [hits[:, 0].sum(), hits.any(dim=1).sum(), counted.sum(), (valid & ~counted).sum()]
        )

    def compute(self) -> dict[str, Any]:
        """`any_top1` and `any_top5`, shares in [0, 1] or None where nothing was counted; `any_samples`, how many were
        counted, and `any_left_out`, how many have no right class."""
        top1, top5, counted, left_out = self.counts.tolist()
        return {
            "any_top1": top1 / counted if counted else None,
            "any_top5": top5 / counted if counted else None,
            "any_samples": counted,
            "any_left_out": left_out,
        }


class AnyOfPrecision:
    """Mean average precision over classes: are the images that a class is right for scored above the others?

    Images without a right class are left out, as for AnyOfAccuracy. Works as a Counted does.

    Args:
        num_classes: C.
        num_samples: of all ranks together.
        scores: makes of logits [N, C] what compares a class between images, [N, C]; by default the logarithm of the
            softmax: the logits of a softmax are only known up to a number that is another for each image.
    """

    def __init__(
        self, num_classes: int, num_samples: int, scores: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.precision = MeanAveragePrecision.within_memory(num_classes, num_samples)
        self._scores = scores or partial(torch.log_softmax, dim=1)

    @torch.no_grad()
    def update(self, logits: Tensor, right: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch: logits floating [N, C], right bool [N, C], valid bool [N] or None."""
        counted = right.any(dim=1) if valid is None else right.any(dim=1) & valid
        self.precision.update(self._scores(logits), right, counted)

    def reduce(self) -> None:
        """Bring the ranks of torch.distributed together; afterwards every rank computes the same."""
        self.precision.reduce()

    def compute(self) -> dict[str, Any]:
        """See MeanAveragePrecision; `any_` stands before every name."""
        return {f"any_{name}": value for name, value in self.precision.compute().items()}


def real_labels() -> list[list[int]]:
    """ReaL's classes of every validation image, in the order of their numbers; indices into `imagenet-1k`."""
    folder = Path(timm.__file__).parent / "data" / "_info"
    return json.loads((folder / "imagenet_real_labels.json").read_text())


def _real_classes(loader: Loader) -> dict[str, tuple[int, ...]]:
    place = {name: i for i, name in enumerate(loader.class_names)}
    ours = [place.get(name) for name in load_class_list("imagenet-1k")]
    if not any(index is not None for index in ours):
        raise DataError(
            f"{loader.dataset}: expected classes of imagenet-1k (wnids) for ReaL's labels, found none; the first is "
            f"{loader.class_names[0]!r}. Pack with class folders named by wnid"
        )
    labels = real_labels()
    found = {}
    for key, path in sample_names(loader):
        match = IMAGENET_VAL.search(path) or IMAGENET_VAL.search(key)
        if match is not None and 1 <= int(match[1]) <= len(labels):
            kept = (ours[index] for index in labels[int(match[1]) - 1])
            found[key] = tuple(index for index in kept if index is not None)
    if not found:
        key, path = next(iter(sample_names(loader)))
        raise DataError(
            f"{loader.dataset}: expected ImageNet's validation images, ILSVRC2012_val_00000001.JPEG and so on, for ReaL's "
            f"labels, found {path or key!r}; the images were renamed. Pack them under their own names"
        )
    return found


def _listed_classes(source: str, loader: Loader) -> dict[str, tuple[int, ...]]:
    listed = _read_sets(source)
    place = {name: i for i, name in enumerate(loader.class_names)}
    found, unknown = {}, {}
    for key, path in sample_names(loader):
        file = PurePosixPath(path)
        name = next((name for name in (path, file.name, file.stem, key) if name in listed), None)
        if name is None:
            continue
        indices = []
        for label in listed[name]:
            index = place.get(label) if isinstance(label, str) else label
            if index is None or not 0 <= index < loader.num_classes:
                unknown[label] = name
            else:
                indices.append(index)
        found[key] = tuple(indices)
    if unknown:
        label, name = next(iter(unknown.items()))
        raise DataError(
            f"{source}: expected classes of {loader.dataset}, found {len(unknown)} others, such as {label!r} of {name!r}; "
            "it is for another class list, or read the data set with --labels"
        )
    if not found:
        raise DataError(
            f"{source}: expected images of {loader.dataset}, such as {next(iter(sample_names(loader)))[1]!r}, found none "
            f"of them; the first of {len(listed)} is {next(iter(listed), None)!r}"
        )
    return found


def _read_sets(source: str) -> Names:
    text = read_text(source, _MAX_FILE_BYTES)
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: expected JSON, found: {error}") from error
    if not isinstance(listed, dict) or not all(map(_is_set, listed.values())):
        raise DataError(
            f"{source}: expected an object of image to a list of its classes, by name or index, such as "
            '{"dog_and_cat.jpg": ["dog", "cat"]}, found another'
        )
    return listed


def _is_set(value: object) -> TypeGuard[list[str | int]]:
    return isinstance(value, list) and all(type(label) in (str, int) for label in value)


def sample_names(loader: Loader) -> Iterator[tuple[str, str]]:
    """Key and original path of every sample of a loader's data set; the path is empty where it was not stored.

    The loader must not iterate meanwhile.

    Raises:
        DataError: a shard is damaged.
    """
    manifest = loader.manifest
    column = manifest.components.index(META.suffix) if META.suffix in manifest.components else None
    for shard in in_order(loader.source.parts[0].shards, range(len(manifest.shards))):
        for place, key in enumerate(shard.index.keys):
            yield key, "" if column is None else _path(shard, place, column)


def _path(shard: OpenShard, place: int, column: int) -> str:
    path = decode_meta(shard.member(place, column), shard.sample(place)).get("path")
    return path if isinstance(path, str) else ""
