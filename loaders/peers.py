"""Other loaders on the same shards and the same job, each in a process of its own, for `softshard bench --against`.

The job: random resized crops (8 to 100 % of the area, 3/4 to 4/3) to S pixels, flips, uint8 batches of N images from
JPEGs on local disk, for as long as anybody asks, by `threads` decoder threads or worker processes.

    webdataset     WebLoader over the shards; Pillow and torchvision's transforms
    torchvision    ImageFolder over the same JPEGs as files; Pillow, DataLoader
    dali           fn.readers.webdataset, image_random_crop, resize, flip: DALI's own CPU pipeline
    ffcv           the JPEGs' own bytes in a .beton; RandomResizedCropRGBImageDecoder (bilinear, not antialiased)
    streaming      MosaicML Streaming: the JPEGs' bytes as MDS; Pillow, DataLoader
    litdata        Lightning's LitData: the same bytes in its chunks; Pillow, StreamingDataLoader
    spdl           Meta's SPDL: FFmpeg decodes, crops and scales (bilinear) in threads

This file imports nothing of softshard, so that a peer can run under another Python, which need not have softshard: by
peer_process.py.
"""

# Peers are nobody's dependency: most are missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Job:
    """What a peer is asked to do.

    Attributes:
        dataset: folder of tars with their .idx files, each sample with a `jpg` and a `cls`.
        work: folder where a peer may keep its own form of the data set; made once, then used again.
        batch_size: N.
        size: S, pixels.
        threads: decoder threads, or worker processes where that is how the peer works.
    """

    dataset: str
    work: str
    batch_size: int
    size: int
    threads: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


# ---- The samples, and each peer's own form of them


def _tars(job: Job) -> list[Path]:
    return sorted(Path(job.dataset).glob("*.tar"))


def _samples(job: Job) -> Iterator[tuple[bytes, int]]:
    """(JPEG, class) of every sample, through the .idx files: `<ext> <offset> <size> <filename>` per component."""
    for tar in _tars(job):
        data = tar.read_bytes()
        for line in tar.with_suffix(".idx").read_text().splitlines()[1:]:
            found = {}
            parts = line.split()
            for ext, offset, size in zip(parts[::4], parts[1::4], parts[2::4], strict=False):
                found[ext] = data[int(offset) : int(offset) + int(size)]
            yield found["jpg"], int(found["cls"])


def _made(job: Job, name: str, make: Callable[[Path], None]) -> Path:
    """A peer's own form of the data set, made under another name first, so that half of one is never used."""
    final = Path(job.work) / name
    if not final.exists():
        part = final.with_name(f"{name}.{os.getpid()}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(final)
    return final


def _transform(job: Job) -> Callable[[Any], Any]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(job.size, scale=SCALE, ratio=RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


class _Decode:
    """JPEG bytes to a tensor, with Pillow and torchvision; a class, so that worker processes can be given it."""

    def __init__(self, job: Job) -> None:
        self.transform = _transform(job)

    def __call__(self, jpeg: bytes) -> Any:
        import io

        from PIL import Image

        return self.transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _epochs(loader: Any) -> Iterator[int]:
    """The number of images of every batch of a loader of (images, classes), epoch after epoch."""
    while True:
        for images, _ in loader:
            yield len(images)


def _in_workers(loader: Any, dataset: Any, job: Job, **options: Any) -> Any:
    """A torch DataLoader, or one that is like it, with the job's worker processes."""
    options |= {"batch_size": job.batch_size, "num_workers": job.threads}
    return loader(dataset, drop_last=True, persistent_workers=True, **options)


# ---- The peers. Each gives the number of images of every batch.


def _webdataset(job: Job) -> Iterator[int]:
    import webdataset

    dataset = (
        webdataset.WebDataset([str(tar) for tar in _tars(job)], resampled=True, shardshuffle=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(_Decode(job), int)
        .batched(job.batch_size, partial=False)
    )
    return _epochs(webdataset.WebLoader(dataset, batch_size=None, num_workers=job.threads))


def _torchvision(job: Job) -> Iterator[int]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    def make(folder: Path) -> None:
        for number, (jpeg, label) in enumerate(_samples(job)):
            path = folder / f"{label:05d}" / f"{number:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)

    dataset = ImageFolder(str(_made(job, "files", make)), _transform(job))
    return _epochs(_in_workers(DataLoader, dataset, job, shuffle=True))


def _dali(job: Job) -> Iterator[int]:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    tars = [str(tar) for tar in _tars(job)]
    pipe = Pipeline(
        batch_size=job.batch_size, num_threads=job.threads, device_id=None, prefetch_queue_depth=2
    )
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
            jpegs, output_type=types.RGB, random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )
        images = fn.resize(images, size=(job.size, job.size), interp_type=types.INTERP_LINEAR, antialias=True)
        flips = fn.random.coin_flip(probability=0.5)
        images = fn.crop_mirror_normalize(images, dtype=types.UINT8, output_layout="HWC", mirror=flips)
        pipe.set_outputs(images, classes)
    pipe.build()
    while True:
        pipe.run()
        yield job.batch_size


def _ffcv(job: Job) -> Iterator[int]:
    import numpy as np
    from ffcv.fields import IntField, RGBImageField, rgb_image
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter

    class WithJpeg(np.ndarray):
        """Pixels that remember the JPEG they come from."""

    class Samples:
        def __init__(self) -> None:
            self.samples = list(_samples(job))

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, number: int) -> tuple[Any, int]:
            import io

            from PIL import Image

            jpeg, label = self.samples[number]
            pixels = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")).view(WithJpeg)
            pixels.jpeg = np.frombuffer(jpeg, np.uint8)
            return pixels, label

    def make(path: Path) -> None:
        # The field would encode once more: the same bytes for everybody.
        rgb_image.encode_jpeg = lambda pixels, quality: pixels.jpeg
        fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Samples())

    images = [
        RandomResizedCropRGBImageDecoder((job.size, job.size), scale=SCALE, ratio=RATIO),
        RandomHorizontalFlip(),
        ToTensor(),
    ]
    loader = Loader(
        str(_made(job, "images.beton", make)),
        batch_size=job.batch_size,
        num_workers=job.threads,
        order=OrderOption.QUASI_RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": images, "label": [IntDecoder(), ToTensor()]},
    )
    return _epochs(loader)


def _as_item(sample: tuple[bytes, int]) -> dict[str, Any]:
    return {"image": sample[0], "label": sample[1]}


class _DecodeItem(_Decode):
    def __call__(self, item: Any) -> Any:
        return super().__call__(item["image"]), item["label"]


def _streaming(job: Job) -> Iterator[int]:
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    def make(folder: Path) -> None:
        with MDSWriter(columns={"image": "bytes", "label": "int"}, out=str(folder)) as writer:
            for sample in _samples(job):
                writer.write(_as_item(sample))

    class Decoded(StreamingDataset):
        def __init__(self, folder: str) -> None:
            super().__init__(local=folder, batch_size=job.batch_size, shuffle=True)
            self.decode = _DecodeItem(job)

        def __getitem__(self, at: Any) -> Any:
            return self.decode(super().__getitem__(at))

    return _epochs(_in_workers(DataLoader, Decoded(str(_made(job, "mds", make))), job))


def _litdata(job: Job) -> Iterator[int]:
    import litdata

    def make(folder: Path) -> None:
        litdata.optimize(
            _as_item, list(_samples(job)), str(folder), chunk_bytes="64MB", num_workers=1, verbose=False
        )

    dataset = litdata.StreamingDataset(
        str(_made(job, "litdata", make)), shuffle=True, drop_last=True, transform=_DecodeItem(job)
    )
    return _epochs(_in_workers(litdata.StreamingDataLoader, dataset, job))


def _jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Height and width, from the first start-of-frame marker."""
    at = 2
    while True:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xC2:
            return int.from_bytes(jpeg[at + 5 : at + 7], "big"), int.from_bytes(jpeg[at + 7 : at + 9], "big")
        at += 2 + length


def _window(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop."""
    for _ in range(10):
        area = height * width * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    return 0, 0, height, width


def _spdl(job: Job) -> Iterator[int]:
    import numpy as np
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    samples = list(_samples(job))

    def shuffled() -> Iterator[tuple[bytes, int]]:
        while True:
            random.shuffle(samples)
            yield from samples

    def decode(sample: tuple[bytes, int]) -> Any:
        top, left, height, width = _window(*_jpeg_size(sample[0]))
        steps = [
            f"crop={width}:{height}:{left}:{top}:exact=1",
            f"scale={job.size}:{job.size}:flags=bilinear",
            *(["hflip"] if random.random() < 0.5 else []),
            "format=pix_fmts=rgb24",
        ]
        packets = spdl.io.demux_image(sample[0])
        return spdl.io.decode_packets(packets, filter_desc=",".join(steps))

    pipeline = (
        PipelineBuilder()
        .add_source(shuffled())
        .pipe(decode, concurrency=job.threads)
        .aggregate(job.batch_size)
        .pipe(lambda frames: np.asarray(spdl.io.convert_frames(frames)))
        .add_sink(2)
        .build(num_threads=job.threads)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield len(batch)


# Name: (what starts it, the module it needs, its distribution).
PEERS: dict[str, tuple[Callable[[Job], Iterator[int]], str, str]] = {
    "webdataset": (_webdataset, "webdataset", "webdataset"),
    "torchvision": (_torchvision, "torchvision", "torchvision"),
    "dali": (_dali, "nvidia.dali", "nvidia-dali-cuda120"),
    "ffcv": (_ffcv, "ffcv", "ffcv"),
    "streaming": (_streaming, "streaming", "mosaicml-streaming"),
    "litdata": (_litdata, "litdata", "litdata"),
    "spdl": (_spdl, "spdl.io", "spdl"),
}
