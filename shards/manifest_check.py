"""What is wrong with a manifest, field by field; every problem is found, not the first alone."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from .classes import class_list_sha256
from .files import are_texts
from .schema import COMPONENT_BY_SUFFIX, HIER, KD, LMAP, MAX_TAR_MEMBERS
from .soft_labels import soft_labels_problem
from .teacher_info import label_maps_problem, teacher_problem


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def manifest_problems(content: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a manifest of a version that we read."""
    found: list[str] = []

    def expect(fine: bool, text: str) -> None:
        if not fine:
            found.append(text)

    expect(isinstance(content.get("name"), str), "expected a name")
    components = content.get("components")
    expect(are_texts(components), "expected a list of components")
    if isinstance(components, list):
        for component in COMPONENT_BY_SUFFIX.values():
            if component.required:
                expect(component.suffix in components, f"expected component {component.suffix!r}, found none")
    for part in ("classes", "recipe", "pixel_stack", "sidecar"):
        expect(isinstance(content.get(part), dict), f"expected a map {part!r}")
    if isinstance(classes := content.get("classes"), dict):
        found += _class_problems(classes)
    sidecar = content.get("sidecar")
    if isinstance(sidecar, dict):
        expect(_is_sha256(sidecar.get("sha256")), "expected the sidecar's SHA-256")
    tree = content.get("tree")
    if tree is not None:
        fine = (
            isinstance(tree, dict)
            and _is_sha256(tree.get("sha256"))
            and type(tree.get("num_levels")) is int
            and tree["num_levels"] > 0
        )
        expect(fine, "expected the tree's SHA-256 and number of levels")
    for entry, problem in (("label_maps", label_maps_problem), ("teacher", teacher_problem)):
        if content.get(entry) is not None and (text := problem(content[entry])):
            found.append(text)
    if text := soft_labels_problem(content.get("soft_labels"), components):
        found.append(text)
    if isinstance(components, list):
        for suffix, entry in ((HIER.suffix, "tree"), (LMAP.suffix, "label_maps")):
            expect(
                (suffix in components) == (content.get(entry) is not None),
                f"expected {entry!r} described where samples have {suffix!r}, and only there",
            )
        expect(
            KD.suffix in components or content.get("teacher") is None,
            f"expected 'teacher' described only where samples have {KD.suffix!r}",
        )
    return found + _shard_problems(content.get("shards"), content.get("num_samples"))


def _class_problems(classes: dict[str, Any]) -> list[str]:
    names = classes.get("names")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return ["expected a list of class names"]
    try:
        computed = class_list_sha256(names)
    except UnicodeEncodeError as error:  # JSON can spell halves of characters
        return [f"expected class names that are text, found {error}"]
    if classes.get("sha256") == computed:
        return []
    return [
        f"expected class list fingerprint {computed}, found {classes.get('sha256')}; the list was edited after packing"
    ]


def _shard_problems(shards: object, num_samples: object) -> list[str]:
    if not isinstance(shards, list):
        return ["expected a list of shards"]
    found = []
    total = 0
    seen: set[str] = set()
    for i, shard in enumerate(shards):
        if not is_shard_record(shard):
            found.append(
                f"shard {i}: expected name, samples, bytes and SHA-256 of tar and index, found {shard!r:.80}"
            )
            continue
        name = shard["name"]
        if "/" in name or "\\" in name or not name.endswith(".tar"):
            found.append(f"shard {name!r}: not a tar's name")
        if name in seen:
            found.append(f"shard {name!r}: listed twice")
        seen.add(name)
        total += shard["samples"]
    if not shards:
        found.append("expected at least one shard")
    if num_samples != total:
        found.append(f"expected {total} samples in all, found {num_samples}")
    return found


def is_shard_record(shard: object) -> TypeGuard[dict[str, Any]]:
    """Whether JSON has what `ShardRecord` needs."""
    return (
        isinstance(shard, dict)
        and isinstance(shard.get("name"), str)
        and type(shard.get("samples")) is int
        and 0 < shard["samples"] <= MAX_TAR_MEMBERS
        and type(shard.get("bytes")) is int
        and 0 < shard["bytes"] < 2**63
        and _is_sha256(shard.get("sha256"))
        and _is_sha256(shard.get("index_sha256"))
    )
