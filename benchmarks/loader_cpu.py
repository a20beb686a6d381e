"""The loader's CPU path against a plain DALI pipeline and against decoding alone.

Job: random resized crops to 224 pixels, flip, uint8 [N, 224, 224, 3], from WebDataset shards on local disk that are
in the page cache; image and class. Contenders, each with the same number of threads and the same batch size:

    softshard        Loader(device="cpu", dtype="uint8"), image and class
    softshard maps   the same with hierarchical label vectors and label maps pooled over each crop
    dali             fn.readers.webdataset, fn.decoders.image_random_crop, fn.resize, fn.crop_mirror_normalize
    decode only      DALI decodes whole JPEGs: the ceiling

Run: python benchmarks/loader_cpu.py   (the result file has the numbers; see benchmarks/README.md for what they say)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import RESULTS, arguments, make_data_set, sweep, write_result
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from softshard.loaders import Augment, Loader
from softshard.loaders.bench import decode_only_batches, loader_batches
from softshard.loaders.measure import take_turns

CROP = 224


def dali_batches(dataset: Path, batch_size: int, num_threads: int) -> Iterator[int]:
    """DALI's own CPU pipeline over the same shards, as its documentation builds it."""
    tars = sorted(str(path) for path in dataset.glob("*.tar"))
    pipe = Pipeline(batch_size=batch_size, num_threads=num_threads, device_id=None, prefetch_queue_depth=2)
    with pipe:
        jpegs, classes = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar[:-3] + "idx" for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            missing_component_behavior="error",
            name="reader",
        )
        images = fn.decoders.image_random_crop(
            jpegs, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=(CROP, CROP), interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.UINT8, output_layout="HWC", mirror=fn.random.coin_flip(probability=0.5)
        )
        pipe.set_outputs(images, classes)
    pipe.build()
    while True:
        pipe.run()
        yield batch_size


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    samples = args.batch_size * 64

    def run(pixels: int) -> dict[str, Any]:
        dataset = make_data_set(args.data, args.photos, size=pixels, samples=samples)
        options: dict[str, Any] = dict(
            batch_size=args.batch_size, dtype="uint8", augment=Augment(size=CROP), num_threads=args.threads
        )
        with Loader(dataset, **options) as plain, Loader(dataset, targets="relabel", **options) as maps:
            results = take_turns(
                {
                    "softshard": lambda: loader_batches(plain),
                    "softshard maps": lambda: loader_batches(maps),
                    "dali": lambda: dali_batches(dataset, args.batch_size, args.threads),
                    "decode only": lambda: decode_only_batches(dataset, args.batch_size, args.threads),
                },
                warmup=8,
                steps=args.steps,
                repeats=args.repeats,
            )
        ours = results["softshard"].median
        return {
            "results": {name: result.to_json() for name, result in results.items()},
            "times_dali": round(ours / results["dali"].median, 2),
            "of_decode_only": round(ours / results["decode only"].median, 3),
            "maps_cost": round(1 - results["softshard maps"].median / ours, 3),
        }

    swept = {"pixels": [224, 256, 500]}
    write_result(
        args.out or RESULTS / "loader_cpu.json",
        benchmark="loader_cpu",
        job="random resized crop to 224, flip, uint8; local shards in the page cache",
        swept=swept,
        rows=sweep(swept, run),
        threads=args.threads,
        batch_size=args.batch_size,
        photographs="given folder" if args.photos else "scikit-image and scikit-learn",
    )


if __name__ == "__main__":
    main()
