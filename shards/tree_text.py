"""The label tree in words, for people at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import UsageError
from .wordnet import wordnet

if TYPE_CHECKING:
    from .tree import LabelTree


def summary(tree: LabelTree) -> str:
    """See `LabelTree.summary`."""
    kept, cut = tree.level_sizes[: tree.num_levels], tree.level_sizes[tree.num_levels :]
    lines = [
        f"parents {tree.rule.parents}, inner {tree.rule.inner}, from {tree.rule.source}",
        f"{len(tree.classes)} classes: {tree.num_listed} listed, "
        f"{len(tree.classes) - tree.num_listed} inner nodes",
        f"{len(kept)} levels of {' '.join(map(str, kept))} classes",
        f"fingerprint {tree.fingerprint}",
    ]
    if cut:
        lines.insert(3, f"levels left out: {' '.join(map(str, cut))} classes")
    return "\n".join(lines)


def find(tree: LabelTree, name: str) -> list[int]:
    """See `LabelTree.find`."""
    if name in tree.class_index:
        return [tree.class_index[name]]
    wanted = {_folded(name)}
    if name in wordnet():
        wanted |= {_folded(lemma) for lemma in wordnet().lemmas(name)}
    wnids = set(wordnet().senses(name))
    return [
        i
        for i, (class_name, shown) in enumerate(zip(tree.classes, tree.names, strict=True))
        if _folded(shown) in wanted or class_name in wnids
    ]


def show(tree: LabelTree, name: str) -> str:
    """See `LabelTree.show`."""
    found = find(tree, name)
    if not found:
        raise UsageError(
            f"tree: expected one of its {len(tree.classes)} classes, by name or wnid, found {name!r}"
        )
    return "\n\n".join(_describe(tree, class_index) for class_index in found)


def _describe(tree: LabelTree, class_index: int) -> str:
    chain = [class_index]
    while (parent := int(tree.parents[chain[-1]])) >= 0:
        chain.append(parent)
    vector = tree.vectors()[class_index].tolist()
    lines = [f"{_title(tree, class_index)}: class {class_index}, level {len(chain) - 1}"]
    for level, node in enumerate(reversed(chain)):
        place = (
            f"index {vector[level]} of {tree.level_sizes[level]}" if level < len(vector) else "level left out"
        )
        lines.append(f"  level {level:2d}  {'  ' * level}{_title(tree, node)}  (class {node}, {place})")
    children = [_title(tree, child) for child in np.flatnonzero(tree.parents == class_index).tolist()]
    return "\n".join([*lines, f"  children: {', '.join(children) or 'none'}", f"  vector: {vector}"])


def _title(tree: LabelTree, class_index: int) -> str:
    name, shown = tree.classes[class_index], tree.names[class_index]
    return name if shown == name else f"{name} {shown}"


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()
