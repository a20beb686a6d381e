"""The faults of `faults.py`: what each does to a copy of the data set, or to the server before it."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from softshard.shards import Manifest, read_shard

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import spoiling

SIZE, SAMPLES, SHARD_SAMPLES = 96, 256, 64
VICTIM = 100  # in the second shard
SHARD = "set-000001.tar"
TIMEOUT_S = 45

Change = Callable[[bytes], bytes]


def png(jpeg: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(out, "PNG")
    return out.getvalue()


# In the victim's components; index, hash and manifest follow.
IN_SAMPLES: dict[str, tuple[str, Change]] = {
    "image: zeros": ("jpg", lambda data: bytes(len(data))),
    "image: text": ("jpg", lambda data: b"<html>not found</html>"),
    "image: nothing": ("jpg", lambda data: b""),
    "image: cut short": ("jpg", spoiling.cut_in_the_middle),
    "image: bad Huffman table": ("jpg", spoiling.broken_huffman_table),
    "image: no quantisation table": ("jpg", spoiling.without_segment(0xDB)),
    "image: 65,535 pixels a side": ("jpg", spoiling.with_frame(hw=(65535, 65535))),
    "image: progressive header": ("jpg", spoiling.with_frame(marker=0xC2)),
    "image: lossless header": ("jpg", spoiling.with_frame(marker=0xC3)),
    "image: 12-bit header": ("jpg", spoiling.with_frame(precision=12)),
    "image: CMYK": ("jpg", spoiling.cmyk),
    "image: PNG under jpg": ("jpg", png),
    "image: wrong entropy data": ("jpg", spoiling.noise_in_the_pixels),
    "label: class not a number": ("cls", lambda data: b"cat"),
    "label: class empty": ("cls", lambda data: b""),
    "label: class out of range": ("cls", lambda data: b"99999"),
    "label: levels of floats": ("hier.npy", lambda data: data.replace(b"<i2", b"<f2")),
    "label: levels out of range": ("hier.npy", spoiling.levels_out_of_range),
    "label: map checksum": ("lmap", lambda data: data[:-1] + bytes([data[-1] ^ 255])),
    "label: map with NaN": ("lmap", spoiling.map_with_nan),
    "label: map of a hostile size": ("lmap", spoiling.map_of_hostile_size),
    "label: map of another shape": ("lmap", spoiling.map_of_another_shape),
}


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def as_plain_tars(folder: Path, change: Callable[[str], int]) -> None:
    """Somebody else's tars: jpg and cls alone, no index, no manifest; `change` says how often a victim's member comes."""
    number = 0
    for record in Manifest.load(folder).shards:
        members = []
        for sample in list(read_shard(folder / record.name)):
            for suffix in ("jpg", "cls"):
                times = change(suffix) if number == VICTIM else 1
                members += [(f"{sample.key}.{suffix}", sample.parts[suffix])] * times
            number += 1
        write_tar(folder / record.name, members)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".tar":
            path.unlink()


IN_TARS: dict[str, Callable[[str], int]] = {
    "tar: sample without jpg": lambda suffix: 0 if suffix == "jpg" else 1,
    "tar: sample without cls": lambda suffix: 0 if suffix == "cls" else 1,
    "tar: member twice": lambda suffix: 2 if suffix == "jpg" else 1,
}


def cut(folder: Path, *, at_boundary: bool) -> None:
    path = folder / SHARD
    lines = path.with_suffix(".idx").read_text().splitlines()
    offset = int(lines[1 + 32].split()[1])  # of the first component of the shard's 33rd sample
    os.truncate(path, offset - 512 if at_boundary else offset + 700)


def never_answers(folder: Path) -> None:
    for path in (folder / SHARD, (folder / SHARD).with_suffix(".idx")):
        path.unlink()
        os.mkfifo(path)


def damage_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-200])


def another_index(folder: Path) -> None:
    shutil.copy(folder / "set-000002.idx", folder / "set-000001.idx")


def another_shard(folder: Path) -> None:
    """Of the same length: what lies behind its end is zeros, or cut."""
    size = (folder / SHARD).stat().st_size
    shutil.copy(folder / "set-000002.tar", folder / SHARD)
    os.truncate(folder / SHARD, size)


IN_SHARDS: dict[str, Callable[[Path], object]] = {
    "shard: cut inside a member": lambda folder: cut(folder, at_boundary=False),
    "shard: cut between two members": lambda folder: cut(folder, at_boundary=True),
    "shard: missing": lambda folder: (folder / SHARD).unlink(),
    "shard: another in its place": another_shard,
    "shard: empty": lambda folder: os.truncate(folder / SHARD, 0),
    "shard: index missing": lambda folder: (folder / "set-000001.idx").unlink(),
    "shard: another shard's index": another_index,
    "shard: manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "shard: manifest damaged": damage_manifest,
    "shard: cut while in use": lambda folder: None,
    "storage: never answers": never_answers,
    "storage: a worker killed": lambda folder: None,
}


def break_once() -> Callable[[str, int, bytes], bytes | None]:
    seen: set[tuple[str, int]] = set()

    def spoil(name: str, start: int, answer: bytes) -> bytes | None:
        if not name.endswith(".tar") or (name, start) in seen:
            return answer
        seen.add((name, start))
        return None

    return spoil


def answer_never(name: str, start: int, answer: bytes) -> bytes | None:
    if name == SHARD:
        threading.Event().wait(2 * TIMEOUT_S)
    return answer


ON_SERVERS: dict[str, Callable[[], Any]] = {
    "storage: web server, every answer broken once": break_once,
    "storage: web server, a shard always broken": lambda: (
        lambda name, start, answer: None if name == SHARD else answer
    ),
    "storage: web server, a shard never comes": lambda: answer_never,
    "storage: no room for the cache": lambda: lambda name, start, answer: answer,
}
FAULTS = (*IN_SAMPLES, *IN_TARS, *IN_SHARDS, *ON_SERVERS)


def prepare(fault: str, base: Path, folder: Path) -> None:
    shutil.copytree(base, folder)
    if fault in IN_SAMPLES:
        suffix, change = IN_SAMPLES[fault]
        spoiling.rewrite(folder, {VICTIM: {suffix: change}})
    elif fault in IN_TARS:
        as_plain_tars(folder, IN_TARS[fault])
    elif fault in IN_SHARDS:
        IN_SHARDS[fault](folder)
