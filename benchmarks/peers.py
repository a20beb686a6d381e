"""The loader's CPU path against decoding alone and against seven other loaders.

Job: random resized crops to 224 pixels, flip, uint8 [N, 224, 224, 3], from local shards in the page cache; image and
class. Contenders take turns, each with the same number of threads (or worker processes) and the same batch size:

    softshard            Loader(device="cpu", dtype="uint8"), image and class
    softshard maps       the same with hierarchical label vectors and label maps pooled over each crop
    softshard float32    the first, normalised
    decode only          DALI decodes whole JPEGs: the ceiling
    webdataset, ...      loaders/peers.py says what each is; every one in a process of its own

Swept: the stored side, 224, 256 and 500 pixels. Peers that this Python does not have run under another one:

    python benchmarks/peers.py --against webdataset,torchvision,dali,ffcv=/opt/ffcv/bin/python,spdl=/opt/spdl/bin/python
    python benchmarks/peers.py --repeats 3 --steps 15      # with all of them about six minutes

The result file has the numbers; see benchmarks/README.md for what they say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, make_data_set, sweep, write_result

from softshard.loaders import Augment, Loader
from softshard.loaders.against import Peer, described, parse_peers
from softshard.loaders.bench import loader_batches
from softshard.loaders.ceilings import decoded_batches
from softshard.loaders.fetch import ShardFiles
from softshard.loaders.measure import take_turns
from softshard.loaders.peers import PEERS, Job
from softshard.shards import Manifest, UsageError
from softshard.shards.schema import JPG

CROP = 224
VARIANTS: dict[str, dict[str, Any]] = {
    "softshard": {"dtype": "uint8"},
    "softshard maps": {"dtype": "uint8", "targets": "relabel"},
    "softshard float32": {"dtype": "float32"},
}


def installed_peers() -> dict[str, str]:
    """The peers that this Python can run."""
    found: dict[str, str] = {}
    for name in PEERS:
        with suppress(UsageError):
            found |= parse_peers(name)
    return found


def decode_only_batches(dataset: str | Path, batch_size: int, num_threads: int) -> Iterator[int]:
    """The ceiling over a whole local data set, shard after shard: DALI decodes whole JPEGs."""
    manifest = Manifest.load(dataset)
    files = ShardFiles(dataset, manifest)

    def jpegs() -> Iterator[list[np.ndarray]]:
        batch = []
        while True:
            for number in range(len(manifest.shards)):
                shard = files[number]
                column = shard.index.column(JPG.suffix)
                for sample in range(len(shard.index.keys)):
                    batch.append(shard.member_array(sample, column))
                    if len(batch) == batch_size:
                        yield batch
                        batch = []

    return decoded_batches(jpegs(), batch_size, num_threads)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pixels", type=int, nargs="+", default=[224, 256, 500], help="stored sides")
    parser.add_argument("--samples", type=int, default=8192, help="of each data set (default: 8192)")
    parser.add_argument(
        "--against",
        type=parse_peers,
        metavar="NAME[=PYTHON],...",
        help="other loaders (default: those that are installed)",
    )
    args = parser.parse_args()
    pythons = args.against or installed_peers()
    versions: dict[str, str] = {}

    def run(pixels: int) -> dict[str, Any]:
        dataset = make_data_set(args.data, args.photos, size=pixels, samples=args.samples)
        work = args.data / "peers" / dataset.name
        job = Job(str(dataset.resolve()), str(work.resolve()), args.batch_size, CROP, args.threads)
        with ExitStack() as stack:
            started = [stack.enter_context(Peer(name, job, python)) for name, python in pythons.items()]
            versions.update(described(started))
            loaders = {
                name: stack.enter_context(
                    Loader(
                        dataset,
                        batch_size=args.batch_size,
                        augment=Augment(size=CROP),
                        num_threads=args.threads,
                        **options,
                    )
                )
                for name, options in VARIANTS.items()
            }
            results = take_turns(
                {
                    **{
                        name: lambda loader=loader: loader_batches(loader) for name, loader in loaders.items()
                    },
                    "decode only": lambda: decode_only_batches(dataset, args.batch_size, args.threads),
                },
                warmup=4,
                steps=args.steps,
                repeats=args.repeats,
                elsewhere={peer.name: peer.measure for peer in started},
            )
        figures = {name: result.to_json() for name, result in results.items()}

        def ratio(one: str, other: str) -> dict[str, float]:
            """By the clock on the wall, and by CPU time, which a busy machine disturbs less."""
            return {
                unit: round(figures[one][f"images_per_{unit}"] / figures[other][f"images_per_{unit}"], 3)
                for unit in ("s", "cpu_s")
            }

        return {
            "results": figures,
            "of_decode_only": ratio("softshard", "decode only"),
            "float32_of_decode_only": ratio("softshard float32", "decode only"),
            "maps_to_plain": ratio("softshard maps", "softshard"),
            "times": {name: ratio("softshard", name) for name in pythons},
        }

    swept = {"pixels": args.pixels}
    rows = sweep(swept, run)
    write_result(
        args.out,
        benchmark="peers",
        job="random resized crop to 224, flip, uint8; local shards in the page cache",
        swept=swept,
        rows=rows,
        threads=args.threads,
        batch_size=args.batch_size,
        steps=args.steps,
        repeats=args.repeats,
        load_average=os.getloadavg(),
        peers=versions,
        photographs="given folder" if args.photos else "scikit-image and scikit-learn",
    )


if __name__ == "__main__":
    main()
