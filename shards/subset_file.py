"""A part of a data set, as a small file over shards that stay as they are: which classes or groups, which images.

`softshard subset` writes it; the loader reads a data set with it (`Loader(subset=...)`), and `reshard --subset` and
`pack --subset` write it out as shards. SUBSETS.md describes the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .destination import write_file
from .errors import DataError, SoftshardError, UsageError
from .files import are_texts, canonical_json, check_version, read_text, sha256_hex
from .relabel import Relabelling, restrict_tree
from .storage import public_name
from .text_limits import some
from .tree import LabelTree
from .tree_build import shown_name

FORMAT_NAME = "softshard-subset"
FORMAT_VERSION = (1, 0)
MAX_SUBSET_BYTES = 2**30  # 14 million keys take half of it


@dataclass(frozen=True)
class ClassGroup:
    """One class of a subset.

    Attributes:
        name: what it is called; its place among the groups is its class index.
        members: classes of the data set that become it; a class that is kept as it is has itself alone.
        value: what its method says of it, such as the confusion inside; or None.
    """

    name: str
    members: tuple[str, ...]
    value: float | None = None

    @classmethod
    def single(cls, name: str) -> ClassGroup:
        """A class that is kept as it is."""
        return cls(name, (name,))

    def to_json(self) -> dict[str, Any]:
        # The title is for people: a wnid says nothing to them.
        title = shown_name(self.name)
        return {
            "name": self.name,
            **({} if title == self.name else {"title": title}),
            "members": list(self.members),
            **({} if self.value is None else {"value": self.value}),
        }


@dataclass(frozen=True, eq=False)
class SubsetFile:
    """Classes, and maybe images, that were chosen from a data set.

    Attributes:
        groups: the classes, in the order of their indices; no class of the data set is in two.
        class_method: how they were chosen: method, seed, options, SHA-256 of the files that were read.
        class_source: name and class list (SHA-256) that they were chosen from, with a data set its fingerprint.
        keys: the images, each by its key, or None for all images of these classes.
        image_method: how these were chosen, or None.
        image_source: name and fingerprint of the data set that the keys are of, or None.
        notes: what a person should know, such as that the number asked for could not be met.
    """

    groups: tuple[ClassGroup, ...]
    class_method: Mapping[str, Any]
    class_source: Mapping[str, Any]
    keys: tuple[str, ...] | None = None
    image_method: Mapping[str, Any] | None = None
    image_source: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problems := _group_problems(self.groups) + _key_problems(self.keys):
            raise DataError("\n".join(f"subset: {problem}" for problem in problems))

    @property
    def class_names(self) -> tuple[str, ...]:
        """N names, in the order of their indices."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def class_of(self) -> dict[str, str]:
        """For each class of the data set that is kept, the class that it becomes."""
        return {member: group.name for group in self.groups for member in group.members}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what is chosen, however it was: names and members in order, and keys in any order."""
        groups = [[group.name, sorted(group.members)] for group in self.groups]
        keys = None if self.keys is None else sorted(self.keys)
        return sha256_hex(canonical_json({"groups": groups, "keys": keys}))

    def record(self) -> dict[str, Any]:
        """What a manifest says of it: everything but the lists."""
        return {
            "fingerprint": self.fingerprint,
            "classes": {"num": len(self.groups), "method": dict(self.class_method)},
            "images": None
            if self.keys is None
            else {"num": len(self.keys), "method": dict(self.image_method or {})},
        }

    def without_keys(self) -> SubsetFile:
        """The classes alone: what a validation set is read with."""
        return replace(self, keys=None, image_method=None, image_source=None)

    def relabelling(self, class_names: Sequence[str], tree: LabelTree | None = None) -> Relabelling:
        """What becomes of a data set's classes.

        Args:
            class_names: the data set's class list.
            tree: its label tree, or None. The result's tree is over the subset's classes: the parent of each is its
                nearest ancestor among them, and a group that the tree does not know by name is a root.

        Raises:
            DataError: members that the class list does not have; they are named.
        """
        known = set(class_names)
        if missing := [name for name in self.class_of if name not in known]:
            raise DataError(
                f"subset: expected classes of the data set's {len(class_names):,}, found {len(missing):,} that it does "
                f"not have: {some(missing)}; it was chosen from {self.class_source.get('name')!r}, another class list"
            )
        index = {group.name: i for i, group in enumerate(self.groups)}
        becomes = [self.class_of.get(name) for name in class_names]
        class_map = np.array([-1 if new is None else index[new] for new in becomes], np.int32)
        class_map.flags.writeable = False
        pairs = list(zip(class_names, becomes, strict=True))
        return Relabelling(
            class_map=class_map,
            class_names=self.class_names,
            tree=None if tree is None else restrict_tree(tree, self.class_names),
            dropped=tuple(old for old, new in pairs if new is None),
            merged=tuple((old, new) for old, new in pairs if new is not None and new != old),
            without_source=(),
        )

    def to_json(self) -> dict[str, Any]:
        images = None
        if self.keys is not None:
            images = {
                "method": dict(self.image_method or {}),
                "source": dict(self.image_source or {}),
                "keys": list(self.keys),
            }
        return {
            "format": FORMAT_NAME,
            "version": list(FORMAT_VERSION),
            "notes": list(self.notes),
            "classes": {
                "method": dict(self.class_method),
                "source": dict(self.class_source),
                "groups": [group.to_json() for group in self.groups],
            },
            "images": images,
        }

    def save(self, path: str | Path) -> None:
        """Write the file, a line a class and a line a key, to a path or any fsspec URL."""
        write_file(path, _lines(self.to_json()).encode("ascii"))

    @classmethod
    def load(cls, path: str | Path) -> SubsetFile:
        """Read a file that `save` wrote, or that was edited since.

        Args:
            path: a local path or any fsspec URL.

        Raises:
            UsageError: it cannot be read, or is YAML, which `softshard subset classes --method file` turns into one.
            DataError: it is something else, of a newer version, or damaged; every problem is named.
        """
        where = public_name(str(path))
        if PurePosixPath(where).suffix.lower() in (".yaml", ".yml"):
            raise UsageError(
                f"{where}: expected a subset (.json), found YAML. Make one of it: softshard subset classes DATASET "
                f"--method file --from {where} -o subset.json"
            )
        text = read_text(str(path), MAX_SUBSET_BYTES)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected a subset in JSON, found: {error}") from error
        return cls.from_json(content, where)

    @classmethod
    def from_json(cls, content: object, where: str = "subset") -> SubsetFile:
        """Check and read the parsed file.

        Raises:
            DataError: see `load`.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
            raise DataError(
                f"{where}: expected a file of `softshard subset` ({FORMAT_NAME}), found something else"
            )
        check_version(content.get("version"), FORMAT_VERSION, where)
        classes, images = content.get("classes"), content.get("images")
        problems = _problems(classes, images)
        if problems:
            raise DataError("\n".join(f"{where}: {problem}" for problem in problems))
        assert isinstance(classes, dict)
        groups = tuple(
            ClassGroup(group["name"], tuple(group["members"]), group.get("value"))
            for group in classes["groups"]
        )
        try:
            return cls(
                groups=groups,
                class_method=classes["method"],
                class_source=classes["source"],
                keys=None if images is None else tuple(images["keys"]),
                image_method=None if images is None else images["method"],
                image_source=None if images is None else images["source"],
                notes=tuple(map(str, notes)) if isinstance(notes := content.get("notes"), list) else (),
            )
        except DataError as error:
            raise DataError(str(error).replace("subset:", f"{where}:")) from error


def load_subset(subset: str | Path | SubsetFile) -> SubsetFile:
    """A subset from its file; one that is read already comes back as it is."""
    return subset if isinstance(subset, SubsetFile) else SubsetFile.load(subset)


def is_subset_file(path: str | Path) -> bool:
    """Whether a file begins as `save` writes it; False also where it cannot be read."""
    try:
        return f'"{FORMAT_NAME}"' in read_text(str(path), MAX_SUBSET_BYTES)[:200]
    except SoftshardError:
        return False


def _group_problems(groups: Sequence[ClassGroup]) -> list[str]:
    """What is wrong with groups, each by itself and among each other."""
    if not groups:
        return ["expected classes, found none"]
    problems = [
        f"group {group.name!r}: expected members, found none" for group in groups if not group.members
    ]
    for what, names in (
        ("names of groups", [group.name for group in groups]),
        ("classes in one group each", [member for group in groups for member in group.members]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            problems.append(f"expected distinct {what}, found twice: {some(twice)}")
    odd = [group.name for group in groups if not group.name or "\n" in group.name]
    if odd:
        problems.append(f"expected names of one line, found {odd[0]!r}")
    return problems


def _key_problems(keys: Sequence[str] | None) -> list[str]:
    if keys is None:
        return []
    if not keys:
        return ["expected keys of images, found none"]
    if len(set(keys)) == len(keys):
        return []
    twice = [key for key, count in Counter(keys).items() if count > 1]
    return [f"expected every key once, found {len(twice):,} more often: {some(twice)}"]


def _problems(classes: object, images: object) -> list[str]:
    """Everything of the wrong type."""
    if not isinstance(classes, dict) or not isinstance(classes.get("groups"), list):
        return ["expected a map 'classes' with a list 'groups', found another thing"]
    problems = [
        f"classes: expected a map {part!r}, found {classes.get(part)!r:.40}"
        for part in ("method", "source")
        if not isinstance(classes.get(part), dict)
    ]
    for i, group in enumerate(classes["groups"]):
        fine = (
            isinstance(group, dict)
            and isinstance(group.get("name"), str)
            and are_texts(group.get("members"))
            and isinstance(group.get("value"), int | float | None)
        )
        if not fine:
            problems.append(f"group {i}: expected a name and a list of members, found {group!r:.60}")
    if images is not None:
        fine = isinstance(images, dict) and are_texts(images.get("keys"))
        fine = fine and all(isinstance(images.get(part), dict) for part in ("method", "source"))  # type: ignore[union-attr]
        if not fine:
            problems.append(
                f"images: expected null, or method, source and a list of keys, found {images!r:.60}"
            )
    return problems


def _lines(content: dict[str, Any]) -> str:
    """JSON with a line for each class and each key: `indent` alone would give every member one."""

    def listed(values: Sequence[Any], indent: str) -> str:
        if not values:
            return "[]"
        rows = f",\n{indent} ".join(json.dumps(value) for value in values)
        return f"[\n{indent} {rows}\n{indent}]"

    classes, images = content["classes"], content["images"]
    parts = [
        f' "format": {json.dumps(content["format"])}',
        f' "version": {json.dumps(content["version"])}',
        f' "notes": {listed(content["notes"], " ")}',
        f' "classes": {{\n  "method": {json.dumps(classes["method"])},\n  "source": {json.dumps(classes["source"])},\n'
        f'  "groups": {listed(classes["groups"], "  ")}\n }}',
    ]
    if images is None:
        parts.append(' "images": null')
    else:
        parts.append(
            f' "images": {{\n  "method": {json.dumps(images["method"])},\n  "source": {json.dumps(images["source"])},\n'
            f'  "keys": {listed(images["keys"], "  ")}\n }}'
        )
    return "{\n" + ",\n".join(parts) + "\n}\n"
