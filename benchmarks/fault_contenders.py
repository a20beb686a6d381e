"""One loader over one of the data sets of `faults.py`, in a process of its own: a line of JSON for every sample.

Run by it: python fault_contenders.py CONTENDER FOLDER FAULT WORK
"""

# Peers are nobody's dependency: they may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fault_list import IN_TARS, SAMPLES, SHARD_SAMPLES, SIZE

BATCH = 16
GIVE_UP_S = 20


def say(key: str, pixels: np.ndarray | None, label: int | None) -> None:
    means = None if pixels is None else np.asarray(pixels, np.float32).reshape(8, 12, 8, 12, 3).mean((1, 3))
    print(json.dumps([key, label, None if means is None else means.round(1).ravel().tolist()]), flush=True)


def names_of(folder: str) -> list[str]:
    return [f"{folder}/set-{number:06d}.tar" for number in range(SAMPLES // SHARD_SAMPLES)]


def run_softshard(folder: str, fault: str, work: str) -> None:
    from softshard.loaders import Augment, Cache, Faults, Loader

    with Loader(
        folder,
        batch_size=BATCH,
        targets="none" if fault in IN_TARS or "manifest missing" in fault else "relabel",
        augment=Augment(size=SIZE, scale=None, flip=False),
        dtype="uint8",
        shuffle=False,
        last_batch="pad",
        num_threads=2,
        prefetch=1,
        cache=Cache(f"{work}/cache", deadline_s=8),
        faults=Faults(give_up_s=GIVE_UP_S),
    ) as loader:
        for number, batch in enumerate(loader):
            pixels = batch.images.permute(0, 2, 3, 1).numpy()
            for i, (key, valid) in enumerate(zip(batch.keys, batch.valid.tolist(), strict=True)):
                if valid:
                    say(key, pixels[i], int(batch.classes[i]))
            in_use(folder, fault, number)


def in_use(folder: str, fault: str, number: int) -> None:
    if fault == "shard: cut while in use" and number == 0:
        for name in names_of(folder):
            os.truncate(name, 4096)


def as_array(sample: dict[str, Any]) -> dict[str, Any]:
    image = np.asarray(sample["jpg"])
    if image.shape != (SIZE, SIZE, 3):
        raise ValueError(f"expected {SIZE} x {SIZE} pixels, found {image.shape}")
    return {"__key__": sample["__key__"], "jpg": image, "cls": sample["cls"]}


def run_webdataset(folder: str, fault: str, work: str, warn: bool) -> None:
    import multiprocessing

    import webdataset as wds

    handler = wds.warn_and_continue if warn else wds.reraise_exception
    urls = names_of(folder)
    if folder.startswith("http"):
        urls = [f"pipe:curl -s -f -L {url}" for url in urls]
    cached = {"cache_dir": f"{work}/wds"} if "cache" in fault else {}
    if cached:
        Path(f"{work}/wds").mkdir()
    data = (
        wds.WebDataset(urls, shardshuffle=False, handler=handler, **cached)
        .decode("pilrgb", handler=handler)
        .map(as_array, handler=handler)
        .to_tuple("__key__", "jpg", "cls", handler=handler)
        .batched(BATCH, partial=True, collation_fn=list)
    )
    for number, batch in enumerate(wds.WebLoader(data, batch_size=None, num_workers=1)):
        for key, pixels, label in batch:
            say(key, pixels, int(label))
        in_use(folder, fault, number)
        if "worker killed" in fault and not number:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def run_dali(folder: str, fault: str, work: str, known: dict[str, str]) -> None:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    urls = names_of(folder)
    indexes = None if fault in IN_TARS else [name[:-3] + "idx" for name in urls]
    pipe = Pipeline(batch_size=BATCH, num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipe:
        jpegs, classes = fn.readers.webdataset(
            paths=urls,
            index_paths=indexes,
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            pad_last_batch=True,
            name="reader",
        )
        pipe.set_outputs(jpegs, fn.decoders.image(jpegs, output_type=types.RGB), classes)
    pipe.build()
    left = pipe.epoch_size("reader")
    number = 0
    while left > 0:
        jpegs, images, classes = pipe.run()
        for i in range(min(BATCH, left)):
            jpeg = np.asarray(jpegs[i]).tobytes()
            key = known.get(hashlib.sha256(jpeg).hexdigest(), "?")
            say(key, np.asarray(images[i]), int(np.asarray(classes[i]).tobytes().decode()))
        left -= BATCH
        in_use(folder, fault, number)
        number += 1


def contend(contender: str, folder: str, fault: str, work: str) -> None:
    if "no room" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # EFBIG, which Python turns into an error
    if contender == "softshard":
        run_softshard(folder, fault, work)
    elif contender == "DALI":
        run_dali(folder, fault, work, json.loads(Path(work, "known.json").read_text()))
    else:
        run_webdataset(folder, fault, work, contender.endswith("warn"))


if __name__ == "__main__":
    contend(*sys.argv[1:])
