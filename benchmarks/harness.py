"""What every benchmark shares: a data set to measure on, the sweep, and the result file.

A benchmark states what it sweeps, warms up outside the clock, lets contenders take turns within one run, repeats,
and writes one JSON file into `results/`; its docstring says in prose what came out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
import simplejpeg

from softshard.loaders.measure import machine
from softshard.shards.classes import class_list_sha256
from softshard.shards.components import encode_levels
from softshard.shards.images import ImageRecipe, pixel_stack, store_image
from softshard.shards.labelmap import encode_label_map
from softshard.shards.manifest import LabelMapInfo, Manifest, save_sidecar
from softshard.shards.pictures import as_rgb
from softshard.shards.tree import LabelTree
from softshard.shards.writer import ShardWriter

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parents[1] / "build" / "benchmarks"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--photos",
        type=Path,
        help="folder of photographs (default: those inside scikit-image and scikit-learn)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=KEPT,
        help="where data sets are made and kept",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="decoder threads of every contender (default: 2)"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="rounds in which every contender runs once (default: 7)"
    )
    parser.add_argument(
        "--steps", type=int, default=30, help="batches on the clock in each round (default: 30)"
    )
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/<benchmark>.json)")
    return parser


def sweep(
    variables: Mapping[str, Sequence[Any]], run: Callable[..., Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Run every combination of the swept variables.

    Args:
        variables: name to values; the first one changes slowest.
        run: takes one value of each by name, returns its figures.

    Returns:
        One row a combination: the variables and the figures.
    """
    rows = []
    for values in itertools.product(*variables.values()):
        setting = dict(zip(variables, values, strict=True))
        row = {**setting, **run(**setting)}
        print(json.dumps(row))
        rows.append(row)
    return rows


def in_own_process(
    function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **options: Any
) -> Any:
    """What a function of the script gives in a new process, whose peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, args, options).get(timeout_s)


def peak_mb() -> int:
    """The most memory that this process has had, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def cpu_s(function: Callable[[], object], repeats: int) -> float:
    """Median CPU-seconds of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def write_result(
    out: Path | None,
    *,
    benchmark: str,
    job: str,
    swept: Mapping[str, Sequence[Any]],
    rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Write one benchmark's result file, by default `results/<benchmark>.json`."""
    path = out or RESULTS / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": benchmark,
        "job": job,
        "date": date.today().isoformat(),
        "swept": {name: list(values) for name, values in swept.items()},
        "machine": machine(),
        **more,
        "rows": list(rows),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")


def photographs(folder: Path | None) -> Iterator[bytes]:
    """Encoded photographs: a folder's, or those inside scikit-image and scikit-learn."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise SystemExit(f"{folder}: expected photographs, found none")
        for file in files:
            yield file.read_bytes()
        return
    from softshard.training.demo_photos import PHOTOS, read_photo

    for photo in PHOTOS:
        pixels = as_rgb(read_photo(photo))
        height, width = pixels.shape[:2]
        # Quarters and the whole: more pictures, and of a size that photographs in collections have.
        for top, left in ((0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)):
            part = np.ascontiguousarray(pixels[top : top + height // 2, left : left + width // 2])
            yield simplejpeg.encode_jpeg(part, quality=95, colorspace="RGB")
        yield simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorspace="RGB")


def make_data_set(
    folder: Path, photos: Path | None, *, size: int, samples: int, components: str = "all"
) -> Path:
    """A data set of `samples` samples at `size` pixels squished: the photographs, repeated under new keys.

    Args:
        folder: where data sets are kept; one made before is used again.
        photos: see `photographs`.
        size: stored pixels a side.
        samples: samples in all, 2,048 a shard.
        components: `jpg` (image and class only) or `all` (label vectors and simulated label maps too).

    Returns:
        The data set's folder.
    """
    kind = "given" if photos else "packaged"
    home = folder / f"{kind}-{size}px-{samples}-{components}"
    if (home / "manifest.json").exists():
        return home
    home.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(0)
    recipe = ImageRecipe(size=size, upscale=True)
    jpegs = [store_image(data, recipe).jpeg for data in photographs(photos)]
    names = tuple(f"n{8_000_000 + i:08d}" for i in range(1000))
    tree = LabelTree.from_table(names, [(name, f"inner{i // 100}") for i, name in enumerate(names)])
    vectors, rng = tree.vectors(), np.random.default_rng(0)
    maps = [simulated_map(rng, len(tree.classes)) for _ in range(256)] if components == "all" else []
    suffixes = ["jpg", "cls", "msgpack", *(["hier.npy", "lmap"] if components == "all" else [])]
    records, classes = [], rng.integers(0, len(names), samples)
    for number, start in enumerate(range(0, samples, 2048)):
        with ShardWriter(home / f"bench-{number:06d}.tar", suffixes) as writer:
            for i in range(start, min(start + 2048, samples)):
                parts = {
                    "jpg": jpegs[i % len(jpegs)],
                    "cls": str(classes[i]).encode(),
                    "msgpack": msgpack.packb({"path": f"{i}.jpg", "size": [size, size]}),
                }
                if components == "all":
                    parts |= {"hier.npy": encode_levels(vectors[classes[i]]), "lmap": maps[i % len(maps)]}
                writer.write(f"sample_{i:08d}", parts)
        assert writer.record is not None
        records.append(writer.record)
    if components == "all":
        tree.save(home / "tree.json")
    Manifest(
        name="bench",
        components=writer.suffixes,
        class_names=tree.classes,
        classes_sha256=class_list_sha256(tree.classes),
        tree_sha256=tree.fingerprint if components == "all" else None,
        num_levels=tree.num_levels if components == "all" else 0,
        label_maps=LabelMapInfo(5, 15, 15, len(tree.classes)) if components == "all" else None,
        recipe={"size": size, "photographs": kind},
        pixel_stack=pixel_stack(),
        sidecar_sha256=save_sidecar(home, classes),
        shards=tuple(records),
    ).save(home)
    return home


def simulated_arrays(
    rng: np.random.Generator, num_classes: int, top: int = 5, cells: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids [K, P, Q] somewhat like a teacher's: a few classes over smooth regions."""
    few = rng.choice(num_classes, 24, replace=False)
    coarse = rng.normal(0, 3, (24, 4, 4)).astype(np.float32)
    logits = (
        np.stack([cv2.resize(layer, (cells, cells), interpolation=cv2.INTER_CUBIC) for layer in coarse]) + 6
    )
    best = np.argsort(-logits, axis=0, kind="stable")[:top]
    return np.take_along_axis(logits, best, axis=0), few[best]


def simulated_map(rng: np.random.Generator, num_classes: int) -> bytes:
    """The same as the `lmap` that `softshard maps make --scores uint8` writes."""
    return encode_label_map(
        *simulated_arrays(rng, num_classes), num_classes=num_classes, score_encoding="uint8"
    )
