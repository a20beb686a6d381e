"""Tags, class weights and pseudo labels: what it costs the loader to make targets of them.

The data set that `make_data_set` makes of photographs (256 pixels), with five tags of 35,000 and twenty class weights of
1,000 in every sample's `msgpack`; random crops to 224 pixels, uint8 batches of 256, on the CPU. Contenders take turns:
no targets, tags, weights, both; sparse ones (`keep_targets`) and dense ones. `cpu_s` are CPU-seconds of the process for
the batches of a round, medians over rounds; `share` is what a contender adds to those of no targets. On a busy machine
that difference is mostly noise, so that `make_ms`, the CPU time that the making of a batch's targets takes the thread that
does it, stands beside it, and `make_share`, its part of a batch without targets. `decode_ms` is what the plain decoder
takes for 256 samples' `msgpack`, `find_ms` the compiled one.

What came out, on two cores with a load of 18 (nine rounds of ten batches): 1,930 images for a CPU-second without
targets, give or take 5 %, in which all shares lie (-5 % to +5 %). The making takes 0.7 ms a batch for tags (0.5 % of its
CPU time), 0.9 ms for weights (0.7 %), 1.4 ms for both (1.1 %); dense, 1.0 ms (1,000 classes, 0.7 %) and 1.7 ms (35,000
tags, 36 MB of zeros a batch, 1.3 %). Without the compiled loops and with new memory for each batch it was 1.2, 3.3 and
2.1 ms, dense 2.1 and 17.6 ms, and ten more for giving the memory back. Decoding alone: 1.6 ms for a batch's tags and
weights, 0.4 ms compiled.

Run: python benchmarks/soft_targets.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, cpu_s, make_data_set, write_result

from softshard.loaders import Augment, Loader
from softshard.loaders.bench import loader_batches
from softshard.loaders.soft_compiled import find_compiled, load_soft_kernels
from softshard.loaders.soft_targets import SoftTargets
from softshard.shards.components import decode_meta
from softshard.shards.manifest import Manifest, save_sidecar
from softshard.shards.reader import read_shard
from softshard.shards.schema import META, VOCABULARY_NAME
from softshard.shards.soft_labels import SoftLabelInfo, decode_soft_labels, encode_meta
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.writer import ShardWriter

SAMPLES, BATCH = 2048, 256
NUM_TAGS, TAGS_EACH, WEIGHTS_EACH = 35_000, 5, 20
CONTENDERS: dict[str, dict[str, Any]] = {
    "none": {},
    "tags, the 8 largest": {"targets": "tags", "keep_targets": 8},
    "weights, the 20 largest": {"targets": "weights", "keep_targets": WEIGHTS_EACH},
    "both, the 20 largest": {"targets": ("tags", "weights"), "keep_targets": WEIGHTS_EACH},
    "weights, dense": {"targets": "weights"},
    "tags, dense": {"targets": "tags"},
}


def with_soft_labels(source: Path, folder: Path) -> Path:
    """The same samples with tags and weights drawn at random."""
    if (folder / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    manifest = Manifest.load(source)
    vocabulary = Vocabulary(tuple(f"tag {i}" for i in range(NUM_TAGS)), (1,) * NUM_TAGS)
    (folder / VOCABULARY_NAME).write_bytes(vocabulary.to_bytes())
    records, classes = [], []
    kept = tuple(suffix for suffix in manifest.components if suffix in ("jpg", "cls", "msgpack"))
    num_weighted = min(WEIGHTS_EACH, manifest.num_classes)
    for record in manifest.shards:
        with ShardWriter(folder / record.name, kept) as writer:
            for sample in read_shard(source / record.name):
                tags = sorted(rng.choice(NUM_TAGS, TAGS_EACH, replace=False).tolist())
                ids = sorted(rng.choice(manifest.num_classes, num_weighted, replace=False).tolist())
                weights = [ids, rng.uniform(0, 1, len(ids)).tolist()]
                meta = decode_meta(sample.parts["msgpack"], sample.key)
                parts = {name: sample.parts[name] for name in kept}
                parts["msgpack"] = encode_meta({**meta, "tags": tags, "weights": weights})
                writer.write(sample.key, parts)
                classes.append(int(sample.parts["cls"]))
        assert writer.record is not None
        records.append(writer.record)
    Manifest(
        name=manifest.name,
        components=kept,
        class_names=manifest.class_names,
        classes_sha256=manifest.classes_sha256,
        tree_sha256=None,
        num_levels=0,
        label_maps=None,
        recipe=manifest.recipe,
        pixel_stack=manifest.pixel_stack,
        sidecar_sha256=save_sidecar(folder, np.array(classes, np.int32)),
        shards=tuple(records),
        soft_labels=SoftLabelInfo(NUM_TAGS, vocabulary.sha256, {"by": "chance"}),
    ).save(folder)
    return folder


class TimedTargets:
    """CPU-seconds that loaders' threads spend in making soft targets, and how many they make."""

    def __init__(self) -> None:
        self.cpu_s, self.made = 0.0, 0
        make = SoftTargets.make

        def timed(*args: Any) -> Any:
            started = time.thread_time()
            targets = make(*args)
            self.cpu_s += time.thread_time() - started
            self.made += 1
            return targets

        SoftTargets.make = timed

    def take(self, kinds: int) -> float:
        """Milliseconds for a batch with so many kinds of targets, since the last look."""
        ms = self.cpu_s / max(1, self.made) * kinds * 1e3
        self.cpu_s, self.made = 0.0, 0
        return ms


def main() -> None:
    args = arguments(str(__doc__).splitlines()[0]).parse_args()
    plain = make_data_set(args.data, args.photos, size=256, samples=SAMPLES)
    dataset = with_soft_labels(plain, plain.with_name(f"{plain.name}-soft"))
    manifest = Manifest.load(dataset)
    members = [sample.parts["msgpack"] for sample in read_shard(dataset / manifest.shards[0].name)][:BATCH]
    kinds = (("tags", NUM_TAGS), ("weights", manifest.num_classes))
    decode_ms = 1e3 * cpu_s(lambda: [decode_soft_labels(kind, members, num, str) for kind, num in kinds], 20)
    kernels = load_soft_kernels()
    find_ms = kernels and 1e3 * cpu_s(
        lambda: [find_compiled(kernels.find_labels, kind, members, num) for kind, num in kinds], 20
    )
    timed = TimedTargets()
    loaders = {
        name: Loader(
            dataset,
            batch_size=BATCH,
            augment=Augment(size=224),
            dtype="uint8",
            num_threads=args.threads,
            **options,
        )
        for name, options in CONTENDERS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    made: dict[str, list[float]] = {name: [] for name in loaders}
    for loader in loaders.values():
        batches = loader_batches(loader)
        next(batches)
        batches.close()
    for _ in range(args.repeats):
        for name, loader in loaders.items():
            batches = loader_batches(loader)
            next(batches)
            timed.take(1)
            started = time.process_time()
            for _ in range(args.steps):
                next(batches)
            seconds[name].append(time.process_time() - started)
            made[name].append(timed.take(2 if name.startswith("both") else 1))
            batches.close()
    for loader in loaders.values():
        loader.close()
    base = statistics.median(seconds["none"])
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        images = args.steps * BATCH / median
        make_ms = statistics.median(made[name])
        rows.append(
            {
                "targets": name,
                "cpu_s": median,
                "images_per_cpu_s": images,
                "share": median / base - 1,
                "make_ms": make_ms,
                "make_share": make_ms * args.steps / 1e3 / base,
            }
        )
        print(rows[-1])
    print(
        f"decode alone: {decode_ms:.2f} ms of CPU, compiled {find_ms or 0:.2f}, for {BATCH} samples' {META.suffix}"
    )
    write_result(
        args.out,
        benchmark="soft_targets",
        job=f"random crops to 224 pixels, uint8, batches of {BATCH}, {args.threads} threads",
        swept={"targets": list(CONTENDERS)},
        rows=rows,
        decode_ms=decode_ms,
        find_ms=find_ms,
        rounds=args.repeats,
        steps=args.steps,
    )


if __name__ == "__main__":
    main()
