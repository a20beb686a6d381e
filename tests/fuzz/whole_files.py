"""The whole files that are damaged: a small data set with every component, and what its makers read."""

from __future__ import annotations

import io
import tarfile
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import msgpack
import numpy as np
import simplejpeg
from PIL import Image

from softshard.shards import ImageRecipe, LabelTree, PackOptions, encode_label_map, pack
from softshard.shards.teacher_levels import encode_teacher_levels, num_kept

CLASSES = ("n01440764", "n01443537", "n02123045")
TREE = LabelTree.from_wordnet(CLASSES, inner="branching")
NUM_CLASSES = len(TREE.classes)
MAP_SHAPE = (3, 4, 5)


def picture(seed: int, height: int = 30, width: int = 40) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(seed: int = 0, **options: object) -> bytes:
    """A JPEG of 30 by 40 pixels; with options as Pillow writes it."""
    if not options:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(picture(seed)), quality=85, colorspace="RGB")
    return image("JPEG", seed, **options)


def image(kind: str, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def label_map(seed: int = 0, num_classes: int = NUM_CLASSES, **options: object) -> bytes:
    generator = np.random.default_rng(seed)
    shape = (min(MAP_SHAPE[0], num_classes), *MAP_SHAPE[1:])
    scores = -np.sort(-generator.normal(0, 5, shape).astype(np.float32), axis=0)
    ids = generator.permuted(np.tile(np.arange(num_classes), (*shape[1:], 1)), axis=2)
    return encode_label_map(scores, np.moveaxis(ids, 2, 0)[: shape[0]], num_classes=num_classes, **options)


def teacher_levels() -> bytes:
    kept = num_kept(TREE.level_sizes)
    ids = np.concatenate([np.arange(num) for num in kept])
    parts = [np.sort(np.random.default_rng(0).dirichlet(np.ones(num)))[::-1] for num in kept]
    return encode_teacher_levels(ids, np.concatenate(parts) * 0.99, TREE.level_sizes)


def soft_metadata() -> bytes:
    fields = {"path": "a/b.jpg", "size": [30, 40], "tags": [0, 3, 7], "weights": [[0, 2], [0.25, 0.75]]}
    return msgpack.packb(fields)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def tar(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Packed(NamedTuple):
    """What `softshard pack` wrote: file name to bytes, of `train`, of its receipts, and of the run."""

    train: dict[str, bytes]
    receipts: dict[str, bytes]
    run: dict[str, bytes]


@lru_cache(maxsize=1)
def packed() -> Packed:
    """A data set of nine samples in two shards, with label vectors and label maps."""
    with TemporaryDirectory() as folder:
        source, maps, out = (Path(folder, name) for name in ("source", "maps", "set"))
        for i, name in enumerate(CLASSES):
            for part in (source, maps):
                (part / name).mkdir(parents=True)
            for j in range(3):
                (source / name / f"{j}.jpg").write_bytes(jpeg(3 * i + j))
                (maps / name / f"{j}.lmap").write_bytes(label_map(3 * i + j))
        options = PackOptions(image=ImageRecipe(16), shard_samples=5, label_maps=maps)
        pack(source, out, options, tree=TREE, workers=1)
        return Packed(*(_files(out / below) for below in ("train", "train/receipts", "")))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
