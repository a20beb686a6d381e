"""What a data set holds: the files beside its shards, shards, and their components."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from softshard.loaders import pool_label_maps
from softshard.loaders.fetch import checked_index
from softshard.loaders.pooling_compiled import load_kernels
from softshard.loaders.samples import read_size
from softshard.loaders.soft_compiled import find_compiled, load_soft_kernels
from softshard.shards import LabelTree, Manifest, decode_label_map
from softshard.shards.components import decode_class, decode_levels, decode_meta
from softshard.shards.errors import DataError
from softshard.shards.files import sha256_hex
from softshard.shards.html import Page
from softshard.shards.images import ImageRecipe, decode_rgb
from softshard.shards.index import parse_index, tar_members
from softshard.shards.jpeg import read_jpeg_header
from softshard.shards.labelmap_header import HEADER, pack_header
from softshard.shards.labelmap_published import read_published_map
from softshard.shards.labelmap_side import SideMaps
from softshard.shards.manifest import load_sidecar
from softshard.shards.reader import read_shard
from softshard.shards.shard_keys import shard_keys
from softshard.shards.soft_labels import decode_soft_labels
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.subset_file import SubsetFile
from softshard.shards.teacher_levels import HEADER as TEACHER_HEADER
from softshard.shards.teacher_levels import decode_teacher_levels

from . import whole_files as whole
from .judge import Target
from .mutate import BINARY, JSON, TEXT

WHERE = "train-000000.tar: sample 'a'"


def in_file(name: str, parse: Callable[[str], Any]) -> Callable[[bytes, Path], Any]:
    """Calls a parser of files with one that holds the bytes."""

    def run(data: bytes, folder: Path) -> Any:
        path = folder / name
        path.write_bytes(data)
        return parse(str(path))

    return run


def pickles(archive: bytes) -> tuple[bytes, ...]:
    """The pickle inside what torch.save wrote."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return tuple(opened.read(name) for name in opened.namelist() if name.endswith("/data.pkl"))


def in_archive(archive: bytes, name: str, parse: Callable[[str], Any]) -> Callable[[bytes, Path], Any]:
    """The same with bytes in the place of the pickle inside what torch.save wrote, under checksums that are right."""

    def run(data: bytes, folder: Path) -> Any:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
            for entry in old.namelist():
                new.writestr(entry, data if entry.endswith("/data.pkl") else old.read(entry))
        return in_file(name, parse)(file.getvalue(), folder)

    return run


def in_folder(name: str, parse: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """The same of a parser that is given the folder."""
    return in_file(name, lambda path: parse(Path(path).parent))


def member(decode: Callable[[bytes, str], Any]) -> Callable[[bytes, Path], Any]:
    """Calls a decoder of components."""
    return lambda data, folder: decode(data, WHERE)


@lru_cache(maxsize=1)
def _manifest() -> Manifest:
    return Manifest.from_json(json.loads(whole.packed().train["manifest.json"]))


def _shard() -> tuple[str, bytes, bytes]:
    """Name, tar and index of a shard."""
    name = _manifest().shards[0].name
    return name, whole.packed().train[name], whole.packed().train[name.replace(".tar", ".idx")]


def _sidecar(folder: Path) -> np.ndarray:
    return np.array(load_sidecar(folder, _manifest()))


def _hashed_index(data: bytes, folder: Path) -> None:
    """An index whose hash is right: of a data set whose maker means harm."""
    (folder / "train-000000.idx").write_bytes(data)
    record = replace(_manifest().shards[0], index_sha256=sha256_hex(data))
    manifest = replace(_manifest(), shards=(record,))
    shard_keys(folder, manifest, 0)
    checked_index(data, record, manifest.components, "Run: softshard verify")


def _map_pooled(data: bytes, folder: Path) -> None:
    """A label map by both decoders, which must agree on whether it can be read."""
    answers = []
    for num_threads in (1, None) if load_kernels() else (None,):
        try:
            crops = np.array([[0, 0, 1, 1]], np.float32)
            pool_label_maps([data], crops, num_classes=70_000, wheres=[WHERE], num_threads=num_threads)
            answers.append("")
        except DataError as error:
            answers.append(str(error))
    try:
        decode_label_map(data, WHERE)
        answers.append("")
    except DataError as error:
        answers.append(str(error))
    if len({not answer for answer in answers}) > 1:
        raise AssertionError(f"decoders that do not agree: {answers}")
    if answers[0]:
        raise DataError(answers[0])


def _map_with_checksum(data: bytes, folder: Path) -> None:
    """The same with a checksum that is right: what is behind it must be checked, too."""
    if len(data) > HEADER.size:
        fields = list(HEADER.unpack(data[: HEADER.size]))[2:-1]
        data = pack_header(fields, data[HEADER.size :])
    _map_pooled(data, folder)


def _teacher(data: bytes, folder: Path) -> None:
    decode_teacher_levels([data], whole.TREE.level_sizes, [WHERE])


def _teacher_with_checksum(data: bytes, folder: Path) -> None:
    size = TEACHER_HEADER.size
    if len(data) > size:
        checksum = zlib.crc32(data[size:], zlib.crc32(data[: size - 4]))
        data = data[: size - 4] + checksum.to_bytes(4, "little") + data[size:]
    _teacher(data, folder)


def _soft(kind: str) -> Callable[[bytes, Path], Any]:
    def run(data: bytes, folder: Path) -> None:
        kernels = load_soft_kernels()
        fast = None if kernels is None else find_compiled(kernels.find_labels, kind, [data], 10)
        try:
            found = decode_soft_labels(kind, [data], 10, lambda _: WHERE)
        except DataError:
            assert fast is None, f"the compiled loops take {data!r}"
            raise
        assert fast is None or all(map(np.array_equal, fast, found)), f"two readings of {data!r}"

    return run


def _published(path: str) -> None:
    read_published_map(Path(path), 1000)


def _open_members(path: str) -> None:
    with open(path, "rb") as file:
        list(tar_members(file, Path(path).name))


def _page(data: bytes, folder: Path) -> None:
    """Whatever stands in a data set can be shown, and is text there."""
    from html_elements import Elements

    text = data.decode("utf-8", "surrogateescape")
    page = Page(text)
    page.paragraph(text)
    page.table([text], [[text]], caption=text)
    page.key_values({text: text})
    page.line_chart(text, {text: [(0, 0), (1, 1)]}, x_label=text, y_label=text)
    path = folder / "page.html"
    page.write(path)
    found = Elements(path.read_text("utf-8"))
    if any(found.named(tag) for tag in ("script", "iframe", "xss")):
        raise AssertionError("text that became an element")


def _subset() -> bytes:
    from softshard.shards.subset_file import ClassGroup

    groups = (
        ClassGroup("fish", whole.CLASSES[:2], 0.5),
        ClassGroup(whole.CLASSES[2], whole.CLASSES[2:], None),
    )
    source = {"name": "train", "sha256": "0" * 64}
    subset = SubsetFile(
        groups, {"method": "file"}, source, ("a_1", "b_2"), {"method": "top"}, source, ("a note",)
    )
    return json.dumps(subset.to_json()).encode()


def _side() -> bytes:
    from softshard.shards.labelmap_side import SIDE_FORMAT, SIDE_VERSION

    manifest = json.loads(whole.packed().train["manifest.json"])
    return json.dumps(
        {"format": SIDE_FORMAT, "version": SIDE_VERSION, "name": "train", "dataset": "0" * 64,
         "label_maps": manifest["label_maps"], "shards": manifest["shards"]}
    ).encode()  # fmt: skip


def _published_seeds() -> tuple[bytes, ...]:
    import torch

    files = []
    for new in (True, False):
        file = io.BytesIO()
        planes = torch.stack([torch.rand(3, 4, 5), torch.randint(0, 1000, (3, 4, 5)).float()])
        torch.save(planes, file, _use_new_zipfile_serialization=new)
        files.append(file.getvalue())
    return tuple(files)


def targets() -> list[Target]:
    load_kernels()  # compiled here, not in the first call, whose memory is limited
    files = whole.packed().train
    _, tar, index = _shard()
    sizes = len(tar)
    maps = tuple(
        whole.label_map(seed, classes, score_encoding=scores, compression=packing)
        for seed, (classes, scores, packing) in enumerate(
            [(9, "float16", "zstd"), (9, "uint8", "lz4"), (70, "float16", "lz4"), (5000, "uint8", "zstd"),
                (3, "float16", "lz4")]
        )
    )  # fmt: skip
    meta = (whole.soft_metadata(), msgpack.packb({"path": "x.jpg", "size": [3, 4]}))
    jpegs = (
        whole.jpeg(0),
        whole.jpeg(1, quality=70, progressive=True),
        whole.image("JPEG", 2, "CMYK"),
        whole.image("JPEG", 2, "L"),
    )
    others = tuple(whole.image(kind, 3) for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"))
    html = (b"<script>alert(1)</script>", b'"><iframe src=x>', b"caf\xc3\xa9 & <b>", b"]]><xss a='\"'>")
    return [
        Target("manifest", in_folder("manifest.json", Manifest.load), (files["manifest.json"],), JSON,
            "manifest.json"),
        Target("index", lambda data, _: parse_index(data.decode("ascii", "replace"), "a.idx", sizes),
            (index,), TEXT, "a.idx"),
        Target("hashed index", _hashed_index, (index,), TEXT, "train-000000."),
        Target("tar", in_file("a.tar", lambda path: list(read_shard(path))), (tar,), BINARY, "a.tar"),
        Target("tar members", in_file("a.tar", _open_members), (tar,), BINARY, "a.tar"),
        Target("classes.npy", in_folder("classes.npy", _sidecar), (files["classes.npy"],), BINARY,
            "classes.npy"),
        Target("tree.json", in_file("tree.json", LabelTree.load), (files["tree.json"],), JSON, "tree.json"),
        Target("vocabulary.tsv", in_file("vocabulary.tsv", Vocabulary.load),
            (b"tag\timages\nbig cat\t7\nfish\t3\n",), TEXT,
               "vocabulary.tsv"),
        Target("subset", in_file("subset.json", SubsetFile.load), (_subset(),), JSON, "subset.json"),
        Target("side shards", in_folder("label_maps.json", SideMaps.load), (_side(),), JSON,
            "label_maps.json"),
        Target("cls", member(decode_class), (b"17", b"0"), TEXT, WHERE),
        Target("hier.npy", member(decode_levels), tuple(whole.npy(np.zeros(shape, "<i2")) for shape in (3,
            (2, 4))), BINARY, WHERE),
        Target("msgpack", member(decode_meta), meta, BINARY, WHERE),
        Target("tags", _soft("tags"), meta[:1], BINARY, WHERE),
        Target("weights", _soft("weights"), meta[:1], BINARY, WHERE),
        Target("soft", _soft("pseudo"), (msgpack.packb([[1, 4], [0.5, 0.5]]),), BINARY, WHERE),
        Target("kd", _teacher, (whole.teacher_levels(),), BINARY, WHERE),
        Target("kd behind its checksum", _teacher_with_checksum, (whole.teacher_levels(),), BINARY, WHERE),
        Target("lmap", _map_pooled, maps, BINARY, WHERE),
        Target("lmap behind its checksum", _map_with_checksum, maps, BINARY, WHERE),
        Target("published label map", in_file("a.pt", _published), _published_seeds(), BINARY, "a.pt"),
        Target("published label map behind its checksum", in_archive(_published_seeds()[0], "a.pt",
            _published),
               pickles(_published_seeds()[0]), BINARY, "a.pt"),
        Target("JPEG header", member(read_jpeg_header), jpegs, BINARY, WHERE),
        Target("JPEG size", member(read_size), jpegs, BINARY, WHERE),
        Target("image", member(lambda data, where: decode_rgb(data, ImageRecipe(16), where)), jpegs + others,
            BINARY, WHERE),
        Target("page", _page, html, TEXT),
    ]  # fmt: skip
