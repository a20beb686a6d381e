"""Packing photographs to 256 pixels short side, against plain loops, img2dataset and Pillow with `ShardWriter`.

Job: read a JPEG from memory, decode, shrink the shorter side to 256 pixels by area averages, encode at quality 90 in
4:2:0. Contenders on one thread, taking turns, by CPU time and by the wall clock:

    softshard      store_image: also orientation, limits, strict decoding
    opencv         imdecode, resize, imencode
    simplejpeg     libjpeg-turbo at the halvings that fit, OpenCV's resize
    pillow         Image.open, convert, resize (bicubic, its default), save, and webdataset's ShardWriter
    pillow fast    the same with draft and box, its cheapest way to an antialiased picture
    img2dataset    its Resizer, where a Python with img2dataset is given: it needs other versions of OpenCV

And the whole of `pack` from files to shards with two workers: its CPU time, how busy the cores are, and the peak
memory of its processes as the photographs are repeated. `cores_busy` is CPU time over wall time and cores, which other
programs on the machine take from; `cores_wanted` adds the time that a worker stood in the queue for a core: what it
would use of cores of its own.

Run: python benchmarks/sharder.py --img2dataset PYTHON   (the result file has the numbers)
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import webdataset
from harness import arguments, photographs, write_result
from PIL import Image

from softshard.loaders.measure import take_turns
from softshard.shards import ImageRecipe
from softshard.shards.images import decode_rgb, shrink, store_image

SIZE, QUALITY = 256, 90
RECIPE = ImageRecipe(SIZE, "short-edge", QUALITY)

# Runs in the other Python, once a round; reads a folder, prints images per CPU-second and per second.
IMG2DATASET = """
import io, os, sys, time, types
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network
from pathlib import Path
try:
    import imghdr
except ImportError:
    sys.modules["imghdr"] = types.SimpleNamespace(what=lambda stream: "jpeg")
from img2dataset.resizer import Resizer
import cv2
cv2.setNumThreads(1)
resize = Resizer(int(sys.argv[2]), "keep_ratio", True, encode_quality=int(sys.argv[3]))
data = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
assert all(resize(io.BytesIO(item))[5] is None for item in data[:20])
wall, cpu = time.perf_counter(), time.process_time()
for item in data:
    resize(io.BytesIO(item))
print(len(data) / (time.perf_counter() - wall), len(data) / (time.process_time() - cpu))
"""


def opencv(data: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    height, width = RECIPE.target(*pixels.shape[:2])
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def simplejpeg_opencv(data: bytes) -> bytes:
    size = simplejpeg.decode_jpeg_header(data)[:2]
    target = RECIPE.target(*size)
    scaled = [tuple(-(-side // factor) for side in size) for factor in (8, 4, 2)]
    least = next((s for s in scaled if s[0] >= target[0] and s[1] >= target[1]), (0, 0))
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    pixels = cv2.resize(pixels, target[::-1], interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420")


def pillow(data: bytes, fast: bool) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        height, width = RECIPE.target(image.height, image.width)
        if fast:
            image.draft("RGB", (width, height))
        way = Image.Resampling.BOX if fast else Image.Resampling.BICUBIC
        small = image.convert("RGB").resize((width, height), way)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def each(convert: Callable[[bytes], Any], photos: Sequence[bytes]) -> Iterator[int]:
    while True:
        for data in photos:
            convert(data)
            yield 1


def with_shard_writer(photos: Sequence[bytes], folder: Path, fast: bool) -> Iterator[int]:
    with webdataset.ShardWriter(str(folder / "pillow-%06d.tar"), maxcount=1000, verbose=0) as writer:
        number = 0
        while True:
            for data in photos:
                writer.write({"__key__": f"{number:08d}", "jpg": pillow(data, fast), "cls": "0"})
                number += 1
                yield 1


def make_source(folder: Path, photos: Sequence[bytes], times: int) -> Path:
    """The photographs `times` over, as links to one file each, so that the page cache holds them."""
    for number, data in enumerate(photos):
        one = folder / "photos" / f"{number:04d}.jpg"
        if not one.exists():
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(data)
    source = folder / f"source-{times}"
    for number in range(len(photos)):
        name = source / f"class{number % 10}"
        name.mkdir(parents=True, exist_ok=True)
        for i in range(times):
            os.link(folder / "photos" / f"{number:04d}.jpg", name / f"{number:04d}_{i}.jpg")
    return source


# A process of its own: the peak of memory is a process's for its whole life.
PACK = """
import json, multiprocessing, resource, sys, threading, time
from softshard.shards import ImageRecipe, PackOptions, pack

wanted = {}  # process to nanoseconds that its main thread ran, or stood in the queue for a core

def watch():
    while True:
        for child in multiprocessing.active_children():
            try:
                ran, queued, _ = map(int, open(f"/proc/{child.pid}/schedstat").read().split())
                wanted[child.pid] = ran + queued
            except (OSError, ValueError):
                pass  # it has just ended
        time.sleep(0.02)

if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    source, out, size, quality, workers, samples = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
    options = PackOptions(ImageRecipe(size, "short-edge", quality), shard_samples=samples)
    wall, cpu = time.perf_counter(), time.process_time()
    summary = pack(source, out, options, workers=workers)
    wall = time.perf_counter() - wall
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not ru_maxrss, which a new process inherits from the one that started it.
    own = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    cpu = time.process_time() - cpu + children.ru_utime + children.ru_stime
    print(json.dumps({
        "images": summary.packed, "images_per_s": round(summary.packed / wall, 1),
        "images_per_cpu_s": round(summary.packed / cpu, 1), "cores_busy": round(cpu / wall / workers, 3),
        "cores_wanted": round(sum(wanted.values()) / 1e9 / wall / workers, 3),
        "parent_peak_mib": round(own / 1024, 1), "worker_peak_mib": round(children.ru_maxrss / 1024, 1),
    }))
"""


def pack_once(folder: Path, source: Path, workers: int, shard_samples: int) -> dict[str, Any]:
    script = folder / "pack_once.py"  # a file: spawned workers import it again
    script.write_text(PACK)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = [source, Path(out) / "set", SIZE, QUALITY, workers, shard_samples]
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, check=True
        )
    return json.loads(done.stdout)


def img2dataset_round(python: str, folder: Path) -> tuple[float, float]:
    command = [python, "-c", IMG2DATASET, str(folder / "photos"), str(SIZE), str(QUALITY)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "low": round(min(values), 1),
        "high": round(max(values), 1),
    }


def quality_db(photos: Sequence[bytes]) -> dict[str, float]:
    """PSNR of what is encoded, against the area average of every pixel in float."""
    found = []
    for data in photos:
        pixels, size = decode_rgb(data, RECIPE, "photograph")
        height, width = RECIPE.target(*size)
        whole = simplejpeg.decode_jpeg(data, "RGB").astype(np.float32)
        if whole.shape[:2] != size:
            continue  # turned by its EXIF orientation
        expected = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        error = np.mean((shrink(pixels, height, width) - expected) ** 2)
        found.append(10 * np.log10(255**2 / max(float(error), 1e-9)))
    return spread(found)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--img2dataset", metavar="PYTHON", help="a Python that has img2dataset")
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 10, 100], help="for memory (default: 1 10 100)"
    )
    args = parser.parse_args()
    cv2.setNumThreads(0)
    photos = list(photographs(args.photos))
    args.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.data) as scratch:
        folder = Path(scratch)
        sources = {times: make_source(folder, photos, times) for times in args.times}
        pairs: dict[str, list[tuple[float, float]]] = {}
        packs: list[dict[str, Any]] = []
        packed = sources[max(t for t in args.times if t <= 10)]
        for _ in range(args.repeats):
            one_round = take_turns(
                {
                    "softshard": lambda: each(lambda data: store_image(data, RECIPE), photos),
                    "opencv": lambda: each(opencv, photos),
                    "simplejpeg": lambda: each(simplejpeg_opencv, photos),
                    "pillow": lambda: with_shard_writer(photos, folder, False),
                    "pillow fast": lambda: with_shard_writer(photos, folder, True),
                },
                warmup=10,
                steps=len(photos),
                repeats=1,
            )
            for name, result in one_round.items():
                pairs.setdefault(name, []).append((result.median, result.images_per_cpu_s[0]))
            if args.img2dataset:
                pairs.setdefault("img2dataset", []).append(img2dataset_round(args.img2dataset, folder))
            packs.append(pack_once(folder, packed, 2, 256))
        memory = [{"times": times, **pack_once(folder, sources[times], 2, 64)} for times in args.times]
    results = {
        name: {
            "images_per_s": spread([wall for wall, _ in values]),
            "images_per_cpu_s": spread([cpu for _, cpu in values]),
        }
        for name, values in pairs.items()
    }
    whole = {key: spread([run[key] for run in packs]) for key in ("images_per_s", "images_per_cpu_s")}
    for key in ("cores_busy", "cores_wanted"):
        whole[key] = spread([100 * run[key] for run in packs])

    def ratio(name: str) -> float | str:
        """Median over the rounds of ours to theirs, by CPU time."""
        if name not in pairs:
            return "not run"
        rounds = zip(pairs["softshard"], pairs[name], strict=True)
        return round(statistics.median(ours / theirs for (_, ours), (_, theirs) in rounds), 2)

    row = {
        "results": results,
        "pack_2_workers": whole,
        "store_image_to": {
            name: ratio(name) for name in ("opencv", "simplejpeg", "pillow", "pillow fast", "img2dataset")
        },
        "pack_of_store_image_per_cpu_s": round(
            whole["images_per_cpu_s"]["median"] / results["softshard"]["images_per_cpu_s"]["median"], 2
        ),
        "psnr_to_area_average_db": quality_db(photos),
    }
    print(json.dumps({**row, "memory": memory}, indent=1))
    write_result(
        args.out,
        benchmark="sharder",
        job=f"JPEG to {SIZE} pixels short side, area average, quality {QUALITY}, 4:2:0; from the page cache",
        swept={"times": args.times},
        rows=[row],
        memory=memory,
        repeats=args.repeats,
        images=len(photos),
        photographs="given folder" if args.photos else "scikit-image and scikit-learn",
    )


if __name__ == "__main__":
    main()
