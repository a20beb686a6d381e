"""The plan of ImageNet-21K: 14,197,122 files of 21,841 classes, from a listing, with no image touched.

Job: a listing with names as ImageNet has them (`n01440764_10026.JPEG`), as class folders and as class tars inside one
tar (the same and an offset and size each); `make_plan` with 50 validation images a class by hash; then one shard of
2,048 samples looked up. Each row runs in a process of its own: its peak is the resident memory of all of it, the
interpreter and libraries included (`before_mb`).

What came out, on the two shared cores named in the result file: 13 to 16 s to plan 14.2 million files, most of it
one SHA-256 a name, and a peak of 542 MB as class folders or 660 MB inside tars, of which 62 MB are the interpreter
and its libraries. A listing itself takes 9 bytes a file, 17 inside tars.

Run: python benchmarks/plan_scale.py
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from harness import arguments, in_own_process, peak_mb, sweep, write_result

from softshard.shards.listing import ClassFolder, Listing, Spans
from softshard.shards.plan import make_plan

NUM_CLASSES = 21_841
VAL_PER_CLASS = 50


def class_counts(num_files: int) -> np.ndarray:
    """Sizes of classes, near-equal."""
    ends = np.arange(NUM_CLASSES + 1) * num_files // NUM_CLASSES
    return np.diff(ends)


def make_listing(num_files: int, inside_tar: bool) -> Listing:
    """What listing a real source of this size gives."""
    folders, offset = [], 0
    for i, count in enumerate(class_counts(num_files).tolist()):
        wnid = f"n{1_440_764 + 537 * i:08d}"
        files = sorted(f"{wnid}_{37 * j % 100_003}.JPEG" for j in range(count))
        spans = None
        if inside_tar:
            blocks = offset + 2 + np.arange(count) * 217
            spans = Spans(
                ("",), np.zeros(1, np.uint32), blocks.astype(np.uint32), np.full(count, 110_000, np.uint32)
            )
            offset = int(blocks[-1]) + 217
        folders.append(ClassFolder(wnid, wnid, files, spans))
    return Listing("source", tuple(folders))


def measure(num_files: int, source: str) -> dict[str, Any]:
    """One row."""
    before = peak_mb()
    start = time.perf_counter()
    listing = make_listing(num_files, source == "tar of class tars")
    listed = time.perf_counter()
    listing_peak = peak_mb()
    plan = make_plan(listing, val_per_class=min(VAL_PER_CLASS, num_files // NUM_CLASSES // 2))
    planned = time.perf_counter()
    plan.splits[0].samples(0, 2048)
    return {
        "samples": plan.num_samples,
        "listing_s": round(listed - start, 2),
        "plan_s": round(planned - listed, 2),
        "shard_lookup_s": round(time.perf_counter() - planned, 4),
        "before_mb": before,
        "listing_peak_mb": listing_peak,
        "peak_mb": peak_mb(),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[1_000_000, 14_197_122])
    args = parser.parse_args()
    swept = {"num_files": args.files, "source": ["class folders", "tar of class tars"]}
    write_result(
        args.out,
        benchmark="plan_scale",
        job=f"make_plan over {NUM_CLASSES} classes, {VAL_PER_CLASS} validation images a class by hash",
        swept=swept,
        rows=sweep(swept, partial(in_own_process, measure)),
    )


if __name__ == "__main__":
    main()
