"""Writes a label tree for other programs: a child,parent table, nested YAML, Graphviz, the original project's JSON.

Tables and YAML can be read back (`LabelTree.from_file`): with the tree's own class list, and `parents="all-paths"` where
classes have several parents, the fingerprint is the same.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable

from .errors import UsageError
from .tree import LabelTree
from .tree_text import roots

# Words that YAML readers take for something else than text: YAML 1.1 knows these beside numbers and dates.
_PLAIN_YAML = re.compile(r"[A-Za-z][A-Za-z0-9_'-]*( [A-Za-z0-9_'-]+)*")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_csv(tree: LabelTree, *, delimiter: str = ",") -> str:
    """`child,parent` rows by class index, one for each parent; an empty parent at a root."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(("child", "parent"))
    for name, parents in zip(tree.classes, tree.all_parents, strict=True):
        writer.writerows((name, tree.classes[parent]) for parent in parents)
        if not parents:
            writer.writerow((name, ""))
    return text.getvalue()


def to_yaml(tree: LabelTree) -> str:
    """Nested maps. Below a further parent a class stands without its children."""
    children: list[list[tuple[int, bool]]] = [[] for _ in tree.classes]
    for child, parents in enumerate(tree.all_parents):
        for place, parent in enumerate(parents):
            children[parent].append((child, place == 0))
    lines: list[str] = []
    waiting = [(node, True, 0) for node in reversed(roots(tree))]
    while waiting:
        node, with_children, depth = waiting.pop()
        lines.append(f"{'  ' * depth}{_yaml_text(tree.classes[node])}:")
        if with_children:
            waiting += [(child, first, depth + 1) for child, first in reversed(children[node])]
    return "\n".join(lines) + "\n"


def to_dot(tree: LabelTree) -> str:
    """A Graphviz graph; edges to further parents are dashed. Run: dot -Tsvg tree.dot -o tree.svg"""
    lines = ["digraph tree {", "  rankdir=LR;", "  node [shape=box, fontname=sans];"]
    for i, (name, shown) in enumerate(zip(tree.classes, tree.names, strict=True)):
        label = name if shown == name else f"{shown}\n{name}"
        lines.append(f"  {i} [label={_dot_text(label)}];")
    for child, parents in enumerate(tree.all_parents):
        lines += [
            f"  {parent} -> {child}{' [style=dashed]' if place else ''};"
            for place, parent in enumerate(parents)
        ]
    return "\n".join([*lines, "}"]) + "\n"


def to_original(tree: LabelTree) -> str:
    """What the tree file of ImageNet-21K-P holds (there a pickle of these four), as JSON.

    `class_list`: names; `class_description`: name to name for people; `class_tree_list`: for each class its index, its
    parent's and so on to the root; `child_2_parent`: name to parent's name, without the roots.

    Raises:
        UsageError: a tree with several parents, which that file cannot hold.
    """
    if len(tree.other_parents):
        raise UsageError(
            "tree: expected one parent for each class, found several; the original project's file cannot hold them. "
            "Run: softshard tree build with another --parents rule"
        )
    chains: list[list[int]] = []
    for node in range(len(tree.classes)):
        chain = [node]
        while (parent := int(tree.parents[chain[-1]])) >= 0:
            chain.append(parent)
        chains.append(chain)
    content = {
        "class_list": tree.classes,
        "class_description": dict(zip(tree.classes, tree.names, strict=True)),
        "class_tree_list": chains,
        "child_2_parent": {
            tree.classes[child]: tree.classes[parent]
            for child, parent in enumerate(tree.parents.tolist())
            if parent >= 0
        },
    }
    return json.dumps(content) + "\n"


def to_class_list(tree: LabelTree) -> str:
    """All class names, one a line: with a table or YAML, what it takes to build the same tree again."""
    return "".join(f"{name}\n" for name in tree.classes)


EXPORTERS: dict[str, Callable[[LabelTree], str]] = {
    "csv": to_csv,
    "tsv": lambda tree: to_csv(tree, delimiter="\t"),
    "yaml": to_yaml,
    "dot": to_dot,
    "original": to_original,
    "classes": to_class_list,
}


def _yaml_text(name: str) -> str:
    if _PLAIN_YAML.fullmatch(name) and name.lower() not in _YAML_WORDS:
        return name
    return json.dumps(name, ensure_ascii=False)  # a JSON text is a quoted YAML text


def _dot_text(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{quoted}"'
