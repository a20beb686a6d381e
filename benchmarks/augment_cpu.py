"""What augmentation costs on the CPU path, beside the same batches without it.

Job: random resized crops to 224 pixels, flip, float32 normalised, label maps pooled over each crop, from shards on
local disk that are in the page cache. Contenders, each with the same number of threads and the same batch size:

    plain            crop, resize, flip
    jitter, lighting ReLabel's: factors 0.4, noise 0.1
    cutout, ops      ImageNet-21K-P's: Cutout 0.5, the package randaugment's operations
    randaugment      RandAugment(2, 9)
    erasing          a quarter of the images
    mixup            every pair
    cutmix           every pair
    visible cutmix   the same, with both parts of each crop pooled from the label maps

Run: python benchmarks/augment_cpu.py   (read images per CPU-second where the machine is shared)
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness import arguments, make_data_set, sweep, write_result

from softshard.loaders import RANDAUGMENT_21K, Augment, CutMix, Erasing, Loader, Mixup, RandAugment
from softshard.loaders.bench import loader_batches
from softshard.loaders.measure import take_turns

AUGMENTS = {
    "plain": Augment(),
    "jitter, lighting": Augment(color_jitter=0.4, lighting=0.1),
    "cutout, ops": Augment(cutout=0.5, randaugment=RANDAUGMENT_21K),
    "randaugment": Augment(randaugment=RandAugment(2, 9)),
    "erasing": Augment(erasing=Erasing()),
    "mixup": Augment(mixup=Mixup()),
    "cutmix": Augment(cutmix=CutMix()),
    "visible cutmix": Augment(cutmix=CutMix(visible=True)),
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    def run(pixels: int) -> dict[str, Any]:
        dataset = make_data_set(args.data, args.photos, size=pixels, samples=args.batch_size * 64)
        with ExitStack() as stack:
            loaders = {
                name: stack.enter_context(
                    Loader(
                        dataset,
                        batch_size=args.batch_size,
                        targets="relabel",
                        augment=augment,
                        num_threads=args.threads,
                    )
                )
                for name, augment in AUGMENTS.items()
            }
            results = take_turns(
                {name: lambda loader=loader: loader_batches(loader) for name, loader in loaders.items()},
                warmup=4,
                steps=args.steps,
                repeats=args.repeats,
            )
        rates = {name: result.to_json()["images_per_cpu_s"] for name, result in results.items()}
        return {
            "results": {name: result.to_json() for name, result in results.items()},
            "cpu_ms_an_image_more": {
                name: round(1000 / rate - 1000 / rates["plain"], 3) for name, rate in rates.items()
            },
        }

    swept = {"pixels": [256]}
    write_result(
        args.out,
        benchmark="augment_cpu",
        job="random resized crop to 224, flip, float32, label maps; local shards in the page cache",
        swept=swept,
        rows=sweep(swept, run),
        threads=args.threads,
        batch_size=args.batch_size,
        photographs="given folder" if args.photos else "scikit-image and scikit-learn",
    )


if __name__ == "__main__":
    main()
