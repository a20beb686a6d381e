"""`manifest.json`: what a data set is, written last, so that a data set with a manifest is complete."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .destination import Destination, open_destination
from .errors import DataError
from .files import canonical_json, check_version, join_url, parse_json, read_limited, sha256_hex
from .manifest_check import manifest_problems
from .no_manifest import hint
from .schema import (
    CLASSES_NAME,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    TIMM_INFO_NAME,
    TREE_NAME,
)
from .shard_files import dataset_path
from .soft_labels import SoftLabelInfo
from .storage import is_remote, public_name
from .teacher_info import LabelMapInfo, TeacherInfo
from .tree import LabelTree
from .writer import ShardRecord

Entry = TypeVar("Entry", LabelMapInfo, TeacherInfo, ShardRecord)


@dataclass(frozen=True)
class Manifest:
    """A data set's manifest.

    Attributes:
        name: `train`, `val` or any other name; shards are called `<name>-000000.tar`.
        components: component suffixes, in the order of the tar; the same for every sample.
        class_names: the class list; a `cls` value indexes it.
        classes_sha256: fingerprint of the class list.
        tree_sha256: fingerprint of the label tree in `tree.json`, or None without one.
        num_levels: L of the hierarchical label vectors, 0 without a tree.
        label_maps: geometry of the label maps, or None without them.
        recipe: how images were stored and split, with the seeds.
        pixel_stack: versions of the libraries that decided the stored bytes.
        sidecar_sha256: of `classes.npy` (int32 [samples]: every sample's class, in shard order).
        shards: one record a shard, in order.
        version: (major, minor) of the format.
        teacher: origin of the stored distillation teacher; None without one, or where nobody wrote it down.
        soft_labels: tags, class weights and pseudo labels that samples have; None without any.
    """

    name: str
    components: tuple[str, ...]
    class_names: tuple[str, ...]
    classes_sha256: str
    tree_sha256: str | None
    num_levels: int
    label_maps: LabelMapInfo | None
    recipe: Mapping[str, Any]
    pixel_stack: Mapping[str, str]
    sidecar_sha256: str
    shards: tuple[ShardRecord, ...]
    version: tuple[int, int] = FORMAT_VERSION
    teacher: TeacherInfo | None = None
    soft_labels: SoftLabelInfo | None = None

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def vocabulary_sha256(self) -> str | None:
        """Of the vocabulary that tags point into; None without tags."""
        return None if self.soft_labels is None else self.soft_labels.vocabulary_sha256

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what a reader gets: components, classes, tree and shards."""
        return sha256_hex(
            canonical_json(
                {
                    "components": self.components,
                    "classes": self.classes_sha256,
                    "tree": self.tree_sha256,
                    **({"vocabulary": sha256} if (sha256 := self.vocabulary_sha256) else {}),
                    "shards": [(shard.name, shard.samples, shard.sha256) for shard in self.shards],
                }
            )
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "version": list(self.version),
            "name": self.name,
            "num_samples": self.num_samples,
            "components": list(self.components),
            "classes": {"sha256": self.classes_sha256, "names": list(self.class_names)},
            "tree": {"sha256": self.tree_sha256, "num_levels": self.num_levels} if self.tree_sha256 else None,
            "label_maps": self.label_maps.to_json() if self.label_maps else None,
            **({"teacher": self.teacher.to_json()} if self.teacher else {}),
            **({"soft_labels": self.soft_labels.to_json()} if self.soft_labels else {}),
            "recipe": dict(self.recipe),
            "pixel_stack": dict(self.pixel_stack),
            "sidecar": {"name": CLASSES_NAME, "sha256": self.sidecar_sha256},
            "shards": [shard.to_json() for shard in self.shards],
        }

    def save(self, folder: str | Path | Destination) -> None:
        """Write `manifest.json`, and `_info.json` for timm's reader before it, into a folder or any fsspec URL."""
        info = {
            "splits": {
                self.name: {
                    "name": self.name,
                    "num_samples": self.num_samples,
                    "filenames": [shard.name for shard in self.shards],
                    "shard_lengths": [shard.samples for shard in self.shards],
                }
            }
        }
        destination = open_destination(folder)
        destination.write(TIMM_INFO_NAME, json.dumps(info).encode("ascii"))
        destination.write(MANIFEST_NAME, json.dumps(self.to_json(), indent=1).encode("ascii"))

    @classmethod
    def load(cls, dataset: str | Path) -> Manifest:
        """Read a data set's manifest.

        Args:
            dataset: directory or fsspec URL.

        Raises:
            DataError: no manifest, a newer major version, a damaged one (every problem is named), no server.
        """
        url = join_url(dataset, MANIFEST_NAME)
        where = public_name(url)
        try:
            data = read_limited(url, MAX_MANIFEST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(
                f"{public_name(str(dataset))}: expected a data set, found no {MANIFEST_NAME}; {hint(dataset)}"
            ) from error
        return cls.from_json(parse_json(data, where), where)

    @classmethod
    def from_json(cls, content: object, where: str = MANIFEST_NAME) -> Manifest:
        """Check and read a parsed manifest.

        Raises:
            DataError: see `load`.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
            raise DataError(f"{where}: expected a {FORMAT_NAME} manifest, found something else")
        version = check_version(content.get("version"), FORMAT_VERSION, where)
        problems = manifest_problems(content)
        if problems:
            raise DataError(f"{where}: " + "; ".join(problems))
        maps, tree, teacher = (content.get(entry) for entry in ("label_maps", "tree", "teacher"))
        return cls(
            name=content["name"],
            components=tuple(content["components"]),
            class_names=tuple(content["classes"]["names"]),
            classes_sha256=content["classes"]["sha256"],
            tree_sha256=tree["sha256"] if tree else None,
            num_levels=tree["num_levels"] if tree else 0,
            label_maps=_entry(LabelMapInfo, maps) if maps else None,
            recipe=content["recipe"],
            pixel_stack=content["pixel_stack"],
            sidecar_sha256=content["sidecar"]["sha256"],
            shards=tuple(_entry(ShardRecord, shard) for shard in content["shards"]),
            version=version,
            teacher=_entry(TeacherInfo, teacher) if teacher else None,
            soft_labels=SoftLabelInfo.from_json(soft) if (soft := content.get("soft_labels")) else None,
        )


def _entry(kind: type[Entry], content: Mapping[str, Any]) -> Entry:
    """A dataclass from JSON, whose other fields are ignored."""
    return kind(**{field.name: content[field.name] for field in fields(kind)})


def save_sidecar(folder: str | Path | Destination, classes: np.ndarray) -> str:
    """Write `classes.npy` (int32 [samples]); returns its SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(classes, np.int32), allow_pickle=False)
    open_destination(folder).write(CLASSES_NAME, buffer.getvalue())
    return sha256_hex(buffer.getvalue())


def load_sidecar(dataset: str | Path, manifest: Manifest) -> np.ndarray:
    """Read `classes.npy`: int32 [samples], every sample's class in shard order; mapped where it is local.

    Raises:
        DataError: missing, or of another shape than the manifest says; or its server is away.
    """
    url = join_url(dataset_path(dataset), CLASSES_NAME)
    where = public_name(url)
    try:
        # Not np.load, which would open an archive too.
        if is_remote(url):
            data = read_limited(url, 4 * manifest.num_samples + 4096)
            file = io.BytesIO(data)
            np.lib.format.read_magic(file)
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            classes = np.frombuffer(data, dtype, offset=file.tell())  # as long as its bytes, not as claimed
        else:
            classes = np.lib.format.open_memmap(url, mode="r")
    except (DataError, MemoryError):
        raise
    except Exception as error:  # NumPy evaluates the header as a Python literal, which fails in many ways
        raise DataError(f"{where}: expected every sample's class as int32, found: {error}") from error
    hint = f"Run: softshard verify {public_name(str(dataset))}"
    if classes.dtype != np.int32 or classes.shape != (manifest.num_samples,):
        raise DataError(
            f"{where}: expected int32 [{manifest.num_samples}], found {classes.dtype} {list(classes.shape)}; "
            f"it belongs to another data set. {hint}"
        )
    if classes.min() < 0 or classes.max() >= manifest.num_classes:
        raise DataError(
            f"{where}: expected classes from 0 to {manifest.num_classes - 1}, found {classes.min()} to "
            f"{classes.max()}; it is damaged. {hint}"
        )
    return classes


def check_sidecar(dataset: str | Path, manifest: Manifest) -> None:
    """Make sure that `classes.npy` is still the file that the manifest names.

    Raises:
        DataError: it has another SHA-256.
    """
    url = join_url(dataset, CLASSES_NAME)
    found = sha256_hex(read_limited(url, 4 * manifest.num_samples + 4096))
    if found != manifest.sidecar_sha256:
        raise DataError(
            f"{public_name(url)}: expected SHA-256 {manifest.sidecar_sha256[:12]}, found {found[:12]}; it has changed"
        )


def sample_classes(dataset: str | Path, manifest: Manifest) -> np.ndarray:
    """`load_sidecar` and `check_sidecar`: int32 [samples], every sample's class."""
    classes = load_sidecar(dataset, manifest)
    check_sidecar(dataset, manifest)
    return classes


def load_tree(dataset: str | Path, manifest: Manifest) -> LabelTree | None:
    """The data set's label tree, or None.

    Raises:
        DataError: `tree.json` is missing or has another fingerprint than the manifest says.
    """
    if manifest.tree_sha256 is None:
        return None
    url = join_url(dataset, TREE_NAME)
    tree = LabelTree.load(url)
    if tree.fingerprint != manifest.tree_sha256:
        raise DataError(
            f"{public_name(url)}: expected the label tree {manifest.tree_sha256[:12]} that the manifest names, "
            f"found {tree.fingerprint[:12]}; the labels were packed with another tree"
        )
    return tree
