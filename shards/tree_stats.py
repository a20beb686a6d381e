"""Counts of a label tree: classes per level, leaves, branching, classes with several parents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from .classes import resolve_wnid
from .text_limits import counted, some
from .tree import LabelTree
from .tree_text import count_below, parents_not_chosen, title
from .wordnet import wordnet

_SHOWN = 10


def tree_stats(tree: LabelTree) -> dict[str, Any]:
    """Count a tree.

    Returns:
        A JSON-ready dict:
        `classes`, `listed`, `inner_nodes` (made classes), `leaves`, `roots`, `lone_roots` (names of roots without
        children), `depth` (levels, also those that `max_levels` cuts), `num_levels` (L), `num_paths` (A);
        `levels`: per level its classes, leaves, whether it is kept;
        `children`: smallest, mean and largest number of children of the classes that have any, and the name of the
        class with the most;
        `single_class_levels`: levels on which semantic softmax has nothing to tell apart;
        `several_parents`: classes with further parents in the tree; `several_hypernyms`: classes with several in
        WordNet, whatever the rule made of them (None for relations of another source), `parents_not_chosen`: those
        of them whose rule passed some over;
        `rule`, `fingerprint`.
    """
    num_children = np.bincount(
        np.concatenate([tree.parents[tree.parents >= 0], tree.other_parents[:, 1]]),
        minlength=len(tree.classes),
    )
    is_leaf, inner = num_children == 0, num_children[num_children > 0]
    leaves = np.bincount(tree.levels[is_leaf], minlength=len(tree.level_sizes)).tolist()
    from_wordnet = tree.rule.source.startswith("WordNet ")
    several = [
        i
        for i, name in enumerate(tree.classes)
        if from_wordnet and len(wordnet().hypernyms(resolve_wnid(name))) > 1
    ]
    below = count_below(tree)
    is_root = tree.parents < 0
    largest = max(np.flatnonzero(is_root).tolist(), key=below.__getitem__)
    return {
        "classes": len(tree.classes),
        "listed": tree.num_listed,
        "inner_nodes": len(tree.classes) - tree.num_listed,
        "leaves": int(is_leaf.sum()),
        "roots": int(is_root.sum()),
        "largest_root": {"name": title(tree, largest), "classes_below": below[largest]},
        "lone_roots": [tree.classes[i] for i in np.flatnonzero(is_root & is_leaf).tolist()],
        "depth": len(tree.level_sizes),
        "num_levels": tree.num_levels,
        "num_paths": tree.num_paths,
        "levels": [
            {"level": level, "classes": size, "leaves": leaves[level], "kept": level < tree.num_levels}
            for level, size in enumerate(tree.level_sizes)
        ],
        "children": {
            "smallest": int(inner.min()) if len(inner) else 0,
            "mean": round(float(inner.mean()), 3) if len(inner) else 0.0,
            "largest": int(num_children.max()),
            "largest_name": title(tree, int(num_children.argmax())) if len(inner) else None,
        },
        "single_class_levels": [level for level, size in enumerate(tree.level_sizes) if size == 1],
        "several_parents": len(np.unique(tree.other_parents[:, 0])),
        "several_hypernyms": len(several) if from_wordnet else None,
        "parents_not_chosen": sum(map(bool, parents_not_chosen(tree, several))) if from_wordnet else None,
        "rule": asdict(tree.rule),
        "fingerprint": tree.fingerprint,
    }


def format_tree_stats(stats: dict[str, Any]) -> str:
    """The counts as text for a terminal."""
    children, lone, rule = stats["children"], stats["lone_roots"], stats["rule"]
    most = f", most: {children['largest_name']}" if children["largest_name"] else ""
    lines = [
        f"{counted(stats['classes'], 'class')}: {stats['listed']:,} listed, "
        f"{counted(stats['inner_nodes'], 'inner node')}; {counted(stats['leaves'], 'leaf', 'leaves')}",
        f"  roots         {stats['roots']:,}; the largest: {stats['largest_root']['name']}, "
        f"{stats['largest_root']['classes_below']:,} below",
        f"  lone roots    {len(lone):,} without children" + (f": {some(lone, _SHOWN, str)}" if lone else ""),
        f"  children      {children['smallest']} to {children['largest']}, mean {children['mean']:.2f}{most}",
    ]
    if stats["several_hypernyms"] is not None:
        lines.append(
            f"  parents       {counted(stats['several_hypernyms'], 'class')} with several in WordNet; "
            f"{rule['parents']!r} passed some over for {stats['parents_not_chosen']:,}"
        )
    if stats["several_parents"]:
        lines.append(
            f"  paths         {counted(stats['several_parents'], 'class')} with several parents here; "
            f"{counted(stats['num_paths'], 'path')} at most"
        )
    for level in stats["levels"]:
        notes = [] if level["kept"] else ["left out of the label vectors"]
        notes += ["a single class: nothing to tell apart"] if level["classes"] == 1 else []
        lines.append(
            f"  level {level['level']:<7} {counted(level['classes'], 'class')}, "
            + counted(level["leaves"], "leaf", "leaves")
            + (f" ({'; '.join(notes)})" if notes else "")
        )
    return "\n".join([*lines, f"  fingerprint   {stats['fingerprint']}"])
