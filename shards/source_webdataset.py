"""An existing WebDataset as a source: tars of samples, each with an image and a class.

The class is the `cls` member or the field `cls`, `label` or `class` of the `json` member: an index or a name.
Indices point into the class list, which is the one given, or that of the manifest of a packed data set.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from .errors import DataError, StorageError
from .files import join_url, parse_json, read_limited
from .listing import ClassFolder, Listing, Location, Seen, Spans, in_order, not_seen
from .manifest import Manifest
from .schema import FORMAT_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, MIB, split_member_name
from .source_labels import name_classes
from .source_tars import plain_name, tar_members
from .storage import Storage, public_name
from .text_limits import every_problem

LABEL_SUFFIXES = (".cls", ".json")
_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABEL_FIELDS = ("cls", "label", "class")
_MAX_LABEL_BYTES = MIB

Sample = dict[str, Any]
Labelled = tuple[str, str, Location]  # label, member, where it is


def list_webdataset(
    storage: Storage,
    parts: tuple[str, ...] = ("",),
    class_names: Sequence[str] | None = None,
    seen: Seen = not_seen,
) -> Listing:
    """List the samples of a folder's tars, or of one tar.

    Args:
        storage: folder or tar.
        parts: the folder itself, or `train/` and `val/` below it.
        class_names: what indices point into.

    Raises:
        DataError: tars or labels that cannot be read, all of them named; or no sample.
    """
    ignored: list[str] = []
    problems: list[str] = []
    found: list[dict[str, dict[str, Location]]] = []
    for below in parts:
        labelled: dict[str, dict[str, Location]] = {}

        def list_tar(tar: str) -> tuple[list[Labelled], list[str], list[str]]:
            samples: list[Labelled] = []
            others: list[str] = []
            wrong: list[str] = []
            where = join_url(storage.name, tar) if tar else storage.name
            try:
                with storage.open(tar) as file:
                    _list_tar(file, tar, where, samples, others, wrong)
            except StorageError:  # one server, not many bad tars
                raise
            except DataError as error:
                wrong.append(str(error))
            return samples, others, wrong

        tars = _tars(storage, below, ignored)
        for tar, (samples, others, wrong) in zip(tars, in_order(storage, list_tar, tars), strict=True):
            ignored += others
            problems += wrong
            seen(len(samples))
            for label, name, location in samples:
                files = labelled.setdefault(label, {})
                # Shards may use a key again; the path must not.
                files[f"{tar}/{name}" if name in files else name] = location
        found.append(labelled)
        if class_names is None:
            class_names = _manifest_classes(storage, below)
    if problems:
        raise DataError(every_problem(problems))
    if not any(found):
        raise DataError(
            f"{storage.name}: expected samples with an image ({', '.join(_IMAGES)}) and a class (cls or json), found none"
        )
    labels = {label for labelled in found for label in labelled}
    classes, numbered = name_classes(labels, class_names, storage.name)
    folders = [_classes(labelled, classes, below) for labelled, below in zip(found, parts, strict=True)]
    return Listing(
        storage.name,
        folders[0],
        folders[1] if len(folders) > 1 else (),
        tuple(sorted(ignored)),
        class_names=numbered,
        storage=storage,
    )


def _tars(storage: Storage, below: str, ignored: list[str]) -> list[str]:
    if not storage.is_folder():
        return [""]
    tars = []
    for entry in storage.entries(below):
        if not entry.is_folder and entry.name.endswith(".tar"):
            tars.append(below + entry.name)
        elif not entry.is_folder and not entry.name.endswith((".idx", ".json", ".npy")):
            ignored.append(below + entry.name)
    return tars


def _manifest_classes(storage: Storage, below: str) -> tuple[str, ...] | None:
    """The class list of a packed data set's manifest; None where there is none, or it is somebody else's.

    Raises:
        DataError: it is damaged: without its class list the samples' numbers would become other classes.
    """
    if not storage.is_folder() or MANIFEST_NAME not in {entry.name for entry in storage.entries(below)}:
        return None
    url = join_url(storage.root, below + MANIFEST_NAME)
    data, where = read_limited(url, MAX_MANIFEST_BYTES), public_name(url)
    try:
        content = parse_json(data, where)
    except DataError:
        if data.lstrip(b"{ \n").startswith(
            f'"format": "{FORMAT_NAME}"'.encode()
        ):  # as `Manifest.save` begins it
            raise
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        return None
    return Manifest.from_json(content, where).class_names


def _list_tar(
    file: BinaryIO, tar: str, where: str, samples: list[Labelled], ignored: list[str], problems: list[str]
) -> None:
    sample: Sample = {}
    for member in tar_members(file, where):
        name = plain_name(member)
        if name is None:
            if not member.isdir():
                ignored.append(f"{tar}/{member.name}".lstrip("/"))
            continue
        key, suffix = split_member_name(name)
        if sample and sample["key"] != key:
            _end_sample(sample, tar, samples, ignored)
            sample = {}
        sample.setdefault("key", key)
        if suffix in _IMAGES:
            sample.setdefault("image", (name, Location(tar, member.offset_data, member.size)))
        elif suffix in ("cls", "json"):
            try:
                label = read_label(file, member, suffix)
            except ValueError as error:
                problems.append(f"{where}: {name!r}: {error}")
                continue
            if label is not None and (suffix == "cls" or "label" not in sample):
                sample["label"] = label
    if sample:
        _end_sample(sample, tar, samples, ignored)


def _end_sample(sample: Sample, tar: str, samples: list[Labelled], ignored: list[str]) -> None:
    if "image" not in sample or "label" not in sample:
        ignored.append(f"{tar}/{sample['key']}".lstrip("/"))
        return
    name, location = sample["image"]
    samples.append((sample["label"], name, location))


def read_label(file: BinaryIO, member: tarfile.TarInfo, suffix: str) -> str | None:
    """A sample's class, an index or a name as text; None where a `json` member says none.

    Raises:
        ValueError: it is something else.
    """
    if member.size > _MAX_LABEL_BYTES:
        raise ValueError(f"expected at most {_MAX_LABEL_BYTES} bytes, found {member.size}")
    file.seek(member.offset_data)
    data = file.read(member.size)
    try:
        text = data.decode("utf-8-sig").strip()
        value = text if suffix == "cls" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a class, found: {error}") from None
    if suffix == "json":
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, found {type(value).__name__}")
        value = next((value[field] for field in _LABEL_FIELDS if field in value), None)
        if value is None:
            return None  # other facts of the sample
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or not value or "\n" in value or len(value) > 1000:
        raise ValueError(f"expected a class index or name, found {str(value)[:40]!r}")
    return value


def _classes(
    labelled: dict[str, dict[str, Location]], classes: dict[str, str], below: str
) -> tuple[ClassFolder, ...]:
    merged: dict[str, dict[str, Location]] = {}
    for label, files in labelled.items():
        merged.setdefault(classes[label], {}).update(files)
    return tuple(
        ClassFolder(
            name, below.rstrip("/"), sorted(files), Spans.pack([files[file] for file in sorted(files)])
        )
        for name, files in sorted(merged.items())
    )
