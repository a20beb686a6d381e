"""The GPU path: the loader against decoding alone, training against a cached batch, pooling against the memory's bandwidth.

Four parts (`--only`), on one GPU:

    rate      images/s of the loader, without and with label maps, against a DALI pipeline that only decodes the same
              JPEGs on the same GPU, for each number of threads and batch size; aim: 0.95 of it
    share     images/s of decoding, resizing and normalising alone, for each share of a batch that the GPU's JPEG
              engines get (`hw_decoder_load`)
    train     images/s of training a ResNet-50 in bfloat16 with the loader, against the same step on one batch that
              stays on the device; aim: 0.98 while the GPU, not the decoder, is the limit
    pooling   milliseconds of pooling 256 label maps on the device, with the host's work and without, beside the time
              in which the device's memory could move the bytes of maps and targets

Nothing of this has run on a GPU yet. `--device cpu` runs the same code without one (not `share`): it shows that the
parts work together, and its figures mean nothing.

Run: python benchmarks/gpu.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from harness import arguments, make_data_set, simulated_map, sweep, write_result

from softshard.loaders import Augment, Loader, pool_label_maps
from softshard.loaders.ceilings import decoded_batches
from softshard.loaders.decode import MEAN, STD, GpuDecoder, usable_device
from softshard.shards.manifest import Manifest
from softshard.shards.reader import read_shard

PARTS = ("rate", "share", "train", "pooling")
SIZE, NUM_CLASSES, NUM_MAPS = 224, 1000, 256
COPY_BYTES = 1 << 28


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_per_s(batches: Iterator[int], steps: int, device: torch.device) -> float:
    """Images a second over `steps` batches, after three that are not counted."""
    for _ in range(3):
        next(batches)
    synchronize(device)
    begun, num = time.perf_counter(), 0
    for _ in range(steps):
        num += next(batches)
    synchronize(device)
    return num / (time.perf_counter() - begun)


def by_turns(contenders: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each contender's figure over rounds in which all take their turn."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            found[name].append(run())
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def loaded(
    dataset: Path, device: torch.device, batch_size: int, threads: int, **options: Any
) -> Iterator[int]:
    """Batch sizes of a loader's endless batches."""
    options = {"dtype": "float16", "augment": Augment(size=SIZE), **options}
    with Loader(dataset, batch_size=batch_size, device=device, num_threads=threads, **options) as loader:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            for batch in loader:
                yield len(batch)


def stored_jpegs(dataset: Path, num: int) -> list[np.ndarray]:
    shard = sorted(dataset.glob("*.tar"))[0]
    return [
        np.frombuffer(sample.parts["jpg"], np.uint8) for sample in itertools.islice(read_shard(shard), num)
    ]


def rate(
    dataset: Path, device: torch.device, steps: int, repeats: int, threads: int, batch: int
) -> dict[str, Any]:
    jpegs = stored_jpegs(dataset, 2 * batch)
    halves = itertools.cycle([jpegs[:batch], jpegs[batch:]])

    def timed(batches: Iterator[int]) -> float:
        try:
            return images_per_s(batches, steps, device)
        finally:
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]

    figures = by_turns(
        {
            "decode_only": lambda: timed(decoded_batches(halves, batch, threads, str(device))),
            "loader": lambda: timed(loaded(dataset, device, batch, threads)),
            "loader_maps": lambda: timed(loaded(dataset, device, batch, threads, targets="relabel")),
        },
        repeats,
    )
    of_decode = {
        f"{name}_of_decode_only": round(figures[name] / figures["decode_only"], 3)
        for name in ("loader", "loader_maps")
    }
    return {**figures, **of_decode}


def share(
    dataset: Path, device: torch.device, steps: int, repeats: int, threads: int, load: float
) -> dict[str, Any]:
    jpegs = stored_jpegs(dataset, NUM_MAPS)
    windows = np.tile(np.array([0, 0, SIZE, SIZE], np.int32), (len(jpegs), 1))
    flips, slots = np.zeros(len(jpegs), bool), np.arange(len(jpegs))

    def run() -> float:
        decoder = GpuDecoder(len(jpegs), SIZE, "float16", MEAN, STD, threads, device, hw_decoder_load=load)

        def batches() -> Iterator[int]:
            decoder.submit(jpegs, windows, flips)
            while True:
                decoder.submit(jpegs, windows, flips)
                decoder.take(slots, len(jpegs))
                yield len(jpegs)

        try:
            return images_per_s(batches(), steps, device)
        finally:
            decoder.close()

    return by_turns({"images_per_s": run}, repeats)


def train(
    dataset: Path, device: torch.device, steps: int, repeats: int, threads: int, batch: int, model: str
) -> dict[str, Any]:
    num_classes = Manifest.load(dataset).num_classes
    net = timm.create_model(model, num_classes=num_classes).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(images), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def cached() -> Iterator[int]:
        images = torch.rand(batch, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
        targets = torch.full((batch, num_classes), 1 / num_classes, device=device)
        while True:
            step(images, targets)
            yield batch

    def streamed() -> Iterator[int]:
        with Loader(
            dataset,
            batch_size=batch,
            device=device,
            num_threads=threads,
            targets="relabel",
            augment=Augment(size=SIZE),
        ) as loader:
            for epoch in itertools.count():
                loader.set_epoch(epoch)
                for each in loader:
                    assert isinstance(each.targets, torch.Tensor)
                    step(each.images, each.targets)
                    yield batch

    figures = by_turns(
        {
            "cached": lambda: images_per_s(cached(), steps, device),
            "loader": lambda: images_per_s(streamed(), steps, device),
        },
        repeats,
    )
    return {**figures, "of_cached": round(figures["loader"] / figures["cached"], 3)}


def copied_bytes_per_s(device: torch.device) -> float:
    """What the device's memory moves, read and written, in a plain copy."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    synchronize(device)
    return 20 * 2 * COPY_BYTES / (time.perf_counter() - begun)


def device_ms(run: Callable[[], object], device: torch.device) -> float | None:
    """Milliseconds of the kernels alone, by the profiler; None on the CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            run()
        synchronize(device)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 10 / 1e3


def pooling(device: torch.device, steps: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    maps = [simulated_map(rng, NUM_CLASSES) for _ in range(NUM_MAPS)]
    corners = rng.uniform(0, 0.5, (NUM_MAPS, 2)).astype(np.float32)
    crops = np.concatenate([corners, corners + rng.uniform(0.2, 0.5, (NUM_MAPS, 2)).astype(np.float32)], 1)

    def run() -> None:
        pool_label_maps(maps, crops, num_classes=NUM_CLASSES, device=device)

    def ms() -> float:
        run()
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(steps):
            run()
        synchronize(device)
        return (time.perf_counter() - begun) / steps * 1e3

    figures = [ms() for _ in range(repeats)]
    # 5 x 15 x 15 ids and scores in, targets out: what any pooling must move.
    num_bytes = NUM_MAPS * (5 * 15 * 15 * (2 + 4) + 4 * NUM_CLASSES)
    kernels = device_ms(run, device)
    floor = num_bytes / copied_bytes_per_s(device) * 1e3
    return {
        "ms": round(statistics.median(figures), 3),
        "device_ms": None if kernels is None else round(kernels, 4),
        "memory_floor_ms": round(floor, 4),
        "largest_difference_from_cpu": float(
            (
                pool_label_maps(maps, crops, num_classes=NUM_CLASSES, device=device).cpu()
                - pool_label_maps(maps, crops, num_classes=NUM_CLASSES)
            ).abs().max()
        ),
    }  # fmt: skip


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--device", default="cuda", help="cuda, or cpu to see that the parts work (default: cuda)"
    )
    parser.add_argument("--samples", type=int, default=8192, help="of the data set (default: 8192)")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[128, 256], help="batch sizes (default: 128 256)"
    )
    parser.add_argument(
        "--sweep-threads", type=int, nargs="+", default=[4, 8, 16], metavar="N", help="default: 4 8 16"
    )
    parser.add_argument("--loads", type=float, nargs="+", default=[0, 0.4, 0.65, 0.8, 1.0], metavar="SHARE")
    parser.add_argument("--model", default="resnet50", help="of timm, to train (default: resnet50)")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "gpu.py: no NVIDIA GPU here, nothing was measured. --device cpu shows that the parts work together"
        )
        return
    device = usable_device(args.device)
    dataset = make_data_set(args.data, args.photos, size=256, samples=args.samples)
    common = {"steps": args.steps, "repeats": args.repeats}
    swept = {"threads": args.sweep_threads, "batch": args.batch}
    parts: dict[str, Any] = {}
    for part in args.only:
        if part == "rate":
            parts[part] = sweep(swept, lambda **at: rate(dataset, device, **common, **at))
        elif part == "share" and device.type == "cuda":
            loads = {"threads": args.sweep_threads, "load": args.loads}
            parts[part] = sweep(loads, lambda **at: share(dataset, device, **common, **at))
        elif part == "train":
            parts[part] = sweep(
                {"threads": args.sweep_threads[-1:], "batch": args.batch},
                lambda **at: train(dataset, device, **common, model=args.model, **at),
            )
        elif part == "pooling":
            parts[part] = sweep({"maps": [NUM_MAPS]}, lambda maps: pooling(device, **common))
    write_result(
        args.out,
        benchmark="gpu",
        job="random resized crop of 256 pixels to 224, flip, float16; label pooling of 256 maps of 1,000 classes",
        swept={**swept, "load": args.loads},
        rows=[{"part": part, **row} for part, rows in parts.items() for row in rows],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        model=args.model,
        **common,
    )


if __name__ == "__main__":
    main()
