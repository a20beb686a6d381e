"""Label maps: bytes and time of each encoding, and pooling against the dense form.

Codec: bytes per map (15 x 15 cells, 5 classes a cell, 1,000 classes), what the encoding changes in the pooled
probabilities (20 random resized crops of every map; the largest change of any class), and time per map to encode,
to decode, and to decode and pool. Raw ids and scores in float32 take 9,000 bytes, as published; in 16 bits 4,500.

    teacher      maps of a real ImageNet teacher on 300 photographs; see teacher_maps.py
    simulated    24 classes over smooth regions; see harness.py

Pooling: 256 uint8 maps over 256 crops to probabilities, against the dense form (scatter to [N, C, P, Q],
torchvision's roi_align, softmax) from maps that are decoded already. Each contender runs in a process of its own
for its peak memory, and all in turn in one process for the time; ratios are medians over the rounds. `numpy` is what
softshard does where numba is missing.

Loader: batches of 128 crops of 224-pixel images: image, class and key; the same with label vectors; and with label
vectors and label maps (simulated ones). What the last adds to the first is the share of maps and vectors.

Run: python benchmarks/label_maps.py --maps build/benchmarks/maps.npz
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import (
    arguments,
    cpu_s,
    in_own_process,
    make_data_set,
    simulated_arrays,
    sweep,
    write_result,
)
from torchvision.ops import roi_align

from softshard.loaders import Augment, LabelPooling, Loader, pool_label_maps, pool_top_classes
from softshard.loaders import pooling as pooling_module
from softshard.loaders.bench import loader_batches
from softshard.loaders.crops import crop_fractions, draw_crops
from softshard.shards.labelmap import decode_label_maps, encode_label_map

BATCH, NUM_CLASSES, CROPS_A_MAP = 256, 1000, 20


def load_maps(kind: str, file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) [N, K, P, Q]."""
    if kind == "teacher":
        if file is None:
            raise SystemExit("expected --maps FILE for a teacher's maps; see teacher_maps.py")
        content = np.load(file)
        return content["scores"], content["ids"]
    rng = np.random.default_rng(0)
    parts = [simulated_arrays(rng, NUM_CLASSES) for _ in range(BATCH)]
    scores, ids = (np.stack(part) for part in zip(*parts, strict=True))
    return scores, ids


def random_crops(num: int, epoch: int = 0) -> np.ndarray:
    """Random resized crops of square images, float32 [num, 4]."""
    hw = np.full((num, 2), 475)
    tlhw, _ = draw_crops(Augment(), hw, np.arange(num), seed=1, epoch=epoch)
    return crop_fractions(tlhw, hw)


def cpu_us(function: Callable[[], Any], num: int, repeats: int) -> float:
    """CPU time, microseconds a map."""
    return round(cpu_s(function, repeats) / num * 1e6, 2)


def changes(scores: np.ndarray, ids: np.ndarray, decoded: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Largest change of any pooled probability, for every map and crop."""
    found = []
    for epoch in range(CROPS_A_MAP):
        crops = random_crops(len(scores), epoch)
        one = pool_label_maps((scores, ids), crops, num_classes=NUM_CLASSES)
        other = pool_label_maps(decoded, crops, num_classes=NUM_CLASSES)
        found.append((one - other).abs().amax(dim=1).numpy())
    return np.concatenate(found)


def codec(file: Path | None, repeats: int) -> Callable[..., dict[str, Any]]:
    def run(maps: str, scores: str, compression: str) -> dict[str, Any]:
        values, ids = load_maps(maps, file)

        def encode() -> list[bytes]:
            return [
                encode_label_map(
                    s, i, num_classes=NUM_CLASSES, score_encoding=scores, compression=compression
                )
                for s, i in zip(values, ids, strict=True)
            ]

        encoded = encode()
        sizes, num = np.array([len(data) for data in encoded]), len(encoded)
        change = changes(values, ids, decode_label_maps(encoded))
        crops = random_crops(num)
        return {
            "num_maps": num,
            "bytes_mean": round(float(sizes.mean())),
            "bytes_p95": round(float(np.percentile(sizes, 95))),
            "bytes_max": int(sizes.max()),
            "within_1536": round(float((sizes <= 1536).mean()), 3),
            "within_2048": round(float((sizes <= 2048).mean()), 3),
            "tar_bytes_mean": round(float((-(-sizes // 512) * 512).mean())),
            "change_mean": float(f"{change.mean():.2g}"),
            "change_p99": float(f"{np.percentile(change, 99):.2g}"),
            "change_max": float(f"{change.max():.2g}"),
            "changed_above_0.005": float(f"{(change > 0.005).mean():.2g}"),
            "encode_us": cpu_us(encode, num, max(1, repeats // 3)),
            "decode_us": cpu_us(lambda: decode_label_maps(encoded), num, repeats),
            "decode_and_pool_us": cpu_us(
                lambda: pool_label_maps(encoded, crops, num_classes=NUM_CLASSES), num, repeats
            ),
        }

    return run


# ---- Pooling


def pooling_job(kind: str, file: Path | None) -> tuple[list[bytes], np.ndarray]:
    scores, ids = (part[:BATCH] for part in load_maps(kind, file))
    maps = [
        encode_label_map(s, i, num_classes=NUM_CLASSES, score_encoding="uint8")
        for s, i in zip(scores, ids, strict=True)
    ]
    return maps, random_crops(BATCH)


def dense(scores: np.ndarray, ids: np.ndarray, crops: np.ndarray) -> torch.Tensor:
    """Scatter to [N, C, P, Q], RoIAlign, softmax."""
    num, _, rows, columns = scores.shape
    full = torch.zeros(num, NUM_CLASSES, rows, columns)
    full.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores))
    boxes = torch.from_numpy(crops) * torch.tensor([columns, rows, columns, rows]) - 0.5
    boxes = torch.cat([torch.arange(num)[:, None].float(), boxes], dim=1)
    pooled = roi_align(full, boxes, (1, 1), sampling_ratio=-1, aligned=False)
    return torch.softmax(pooled[:, :, 0, 0], dim=1)


def contenders(maps: list[bytes], crops: np.ndarray) -> dict[str, Callable[[], Any]]:
    decoded = decode_label_maps(maps)
    call: dict[str, Any] = {"num_classes": NUM_CLASSES}
    grid = LabelPooling(grid=(14, 14))
    return {
        "softshard": lambda: pool_label_maps(maps, crops, **call),
        "softshard one thread": lambda: pool_label_maps(maps, crops, num_threads=1, **call),
        "softshard numpy": lambda: in_numpy(pool_label_maps, maps, crops, **call),
        "dense": lambda: dense(*decoded, crops),
        "softshard floor": lambda: pool_label_maps(maps, crops, pooling=LabelPooling(fill="floor"), **call),
        "softshard single": lambda: pool_label_maps(maps, crops, pooling=LabelPooling(multi=False), **call),
        "softshard grid 14x14 top 5": lambda: pool_top_classes(maps, crops, keep=5, pooling=grid, **call),
        "softshard numpy grid 14x14 top 5": lambda: in_numpy(
            pool_top_classes, maps, crops, keep=5, pooling=grid, **call
        ),
    }


def in_numpy(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A call as it runs where numba is missing."""
    load, pooling_module.load_kernels = pooling_module.load_kernels, lambda: None
    try:
        return function(*args, **options)
    finally:
        pooling_module.load_kernels = load


def peak_memory(name: str, kind: str, file: Path | None, threads: int) -> float:
    """In a process of its own: megabytes of resident memory that one call adds at its peak."""
    torch.set_num_threads(threads)
    maps, crops = pooling_job(kind, file)
    run = contenders(maps, crops)[name]
    pool_label_maps(maps[:2], crops[:2], num_classes=NUM_CLASSES)  # libraries loaded, threads started
    dense(*decode_label_maps(maps[:2]), crops[:2])

    gc.collect()

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # what the heap keeps would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    run()
    return round((resident("VmHWM") - before) / 1024, 1)


def pooling(file: Path | None, threads: int, repeats: int) -> Callable[..., dict[str, Any]]:
    def run(pooled: str) -> dict[str, Any]:
        maps, crops = pooling_job(pooled, file)
        runs = contenders(maps, crops)
        difference = float((runs["softshard"]() - runs["dense"]()).abs().max())
        assert difference <= 1e-5, f"expected targets equal to 1e-5, found {difference}"
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, function in runs.items():
                function()  # off the clock: what ran before it has emptied the caches
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
        memory = {
            name: in_own_process(peak_memory, name, pooled, file, threads, timeout_s=120) for name in runs
        }
        results = {
            name: {
                "ms": round(statistics.median(values) * 1e3, 2),
                "low_ms": round(min(values) * 1e3, 2),
                "high_ms": round(max(values) * 1e3, 2),
                "peak_mb": memory[name],
            }
            for name, values in times.items()
        }
        rounds = {name: np.array(values) for name, values in times.items()}

        def times_as_fast(ours: str, other: str) -> float:
            return round(float(np.median(rounds[other] / rounds[ours])), 1)

        return {
            "results": results,
            "times_dense": times_as_fast("softshard", "dense"),
            "times_dense_one_thread": times_as_fast("softshard one thread", "dense"),
            "times_numpy": times_as_fast("softshard one thread", "softshard numpy"),
            "times_numpy_grid": times_as_fast(
                "softshard grid 14x14 top 5", "softshard numpy grid 14x14 top 5"
            ),
            "largest_difference": float(f"{difference:.1e}"),
        }

    return run


# ---- The loader


def loader_share(data: Path, photos: Path | None, threads: int, rounds: int) -> dict[str, Any]:
    """What label vectors and label maps add to a loader's time, as medians over rounds in which all take turns."""
    bare = make_data_set(data, photos, size=224, samples=128 * 64, components="jpg")
    whole = make_data_set(data, photos, size=224, samples=128 * 64)
    options: dict[str, Any] = {"batch_size": 128, "dtype": "uint8", "num_threads": threads}
    times = []
    with (
        Loader(bare, **options) as images,
        Loader(whole, **options) as vectors,
        Loader(whole, targets="relabel", **options) as maps,
    ):
        batches = [loader_batches(loader) for loader in (images, vectors, maps)]
        for loaded in batches:
            for _ in range(8):
                next(loaded)
        for number in range(rounds):
            spent = np.empty((3, 2))
            for which in np.roll(np.arange(3), number):
                wall, cpu = time.perf_counter(), time.process_time()
                num = sum(next(batches[which]) for _ in range(12))
                spent[which] = (time.perf_counter() - wall) / num, (time.process_time() - cpu) / num
            times.append(spent)
    wall, cpu = np.moveaxis(np.array(times) * 1e6, 2, 0)

    def added(spent: np.ndarray, with_: int, without: int) -> float:
        return round(float(np.median(1 - spent[:, without] / spent[:, with_])), 3)

    return {
        "stored_pixels": 224,
        "rounds": rounds,
        "cpu_us_per_image": dict(
            zip(("images", "vectors", "maps"), np.median(cpu, axis=0).round(1).tolist(), strict=True)
        ),
        "cpu_us_added_by_maps": round(float(np.median(cpu[:, 2] - cpu[:, 1])), 1),
        "maps_share_of_cpu_time": added(cpu, 2, 1),
        "maps_share_of_wall_time": added(wall, 2, 1),
        "maps_and_vectors_share_of_cpu_time": added(cpu, 2, 0),
        "maps_and_vectors_share_of_wall_time": added(wall, 2, 0),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--maps", type=Path, help="a teacher's maps, from teacher_maps.py")
    parser.add_argument(
        "--only", choices=("codec", "pooling", "loader"), help="print one part; write nothing"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kinds = ["teacher", "simulated"] if args.maps else ["simulated"]
    swept = {"maps": kinds, "scores": ["uint8", "float16"], "compression": ["zstd", "lz4"]}
    parts: dict[str, Callable[[], Any]] = {
        "codec": lambda: sweep(swept, codec(args.maps, args.repeats)),
        "pooling": lambda: sweep({"pooled": kinds}, pooling(args.maps, args.threads, args.repeats)),
        "loader": lambda: loader_share(args.data, args.photos, args.threads, rounds=24 * args.repeats),
    }
    if args.only:
        print(parts[args.only]())
        return
    codec_rows, pooling_rows, share = (part() for part in parts.values())
    print(share)
    write_result(
        args.out,
        benchmark="label_maps",
        job=f"15 x 15 cells, 5 classes a cell, {NUM_CLASSES} classes; pooling {BATCH} maps",
        swept={**swept, "pooled": kinds},
        rows=codec_rows,
        pooling=pooling_rows,
        loader=share,
        threads=args.threads,
        repeats=args.repeats,
    )


if __name__ == "__main__":
    main()
