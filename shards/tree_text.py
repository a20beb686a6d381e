"""The label tree in words, for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import relations
from .classes import resolve_wnid
from .errors import UsageError
from .text_limits import counted, some
from .wordnet import wordnet

if TYPE_CHECKING:
    from .tree import LabelTree

OUTLINE_LINES = 60  # by default
_SHOWN_CHILDREN = 40


def summary(tree: LabelTree) -> str:
    """See `LabelTree.summary`."""
    kept, cut = tree.level_sizes[: tree.num_levels], tree.level_sizes[tree.num_levels :]
    lines = [
        f"parents {tree.rule.parents}, inner {tree.rule.inner}, from {tree.rule.source}",
        f"{counted(len(tree.classes), 'class')}: {tree.num_listed:,} listed, "
        f"{counted(len(tree.classes) - tree.num_listed, 'inner node')}",
        f"{counted(len(kept), 'level')} of {_classes(kept)}",
        f"fingerprint {tree.fingerprint}",
    ]
    if len(tree.other_parents):
        lines.insert(
            3,
            f"{counted(len(np.unique(tree.other_parents[:, 0])), 'class')} with several parents; "
            f"label vectors [{tree.num_paths}, {tree.num_levels}]",
        )
    if cut:
        lines.insert(3, f"levels left out: {_classes(cut)}")
    return "\n".join(lines)


def _classes(sizes: Sequence[int]) -> str:
    return f"{' '.join(map(str, sizes))} {'class' if list(sizes) == [1] else 'classes'}"


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


def find_one(tree: LabelTree, name: str) -> int:
    """The class that a name stands for.

    Raises:
        UsageError: none, or several.
    """
    found = _found(tree, name)
    if len(found) > 1:
        titles = ", ".join(title(tree, class_index) for class_index in found)
        raise UsageError(
            f"tree: expected the name of one class, found {name!r} for {titles}; use one of these"
        )
    return found[0]


def show(tree: LabelTree, name: str) -> str:
    """See `LabelTree.show`."""
    return "\n\n".join(_describe(tree, class_index) for class_index in _found(tree, name))


def outline(
    tree: LabelTree, top: int | None = None, *, depth: int | None = None, lines: int = OUTLINE_LINES
) -> str:
    """The tree, or the branch of a class, as indented lines; each class below its parent on the longest path.

    Args:
        tree: the tree.
        top: class index of the branch's top, None for all roots.
        depth: levels below the top (or the roots) that are shown; None for as many as fit into `lines`.
        lines: at most; one more says what is left out.

    Raises:
        UsageError: a negative depth, or no lines.
    """
    if lines < 1 or (depth is not None and depth < 0):
        raise UsageError(f"tree: expected a depth from 0 and lines from 1, found {depth} and {lines}")
    children = children_of_classes(tree)
    tops = roots(tree) if top is None else [top]
    if depth is None:
        depth, num_shown, layer = -1, 0, tops
        while layer and (depth < 0 or num_shown + len(layer) <= lines):
            depth, num_shown = depth + 1, num_shown + len(layer)
            layer = [child for node in layer for child in children[node]]
    num_below = count_below(tree)
    shown: list[str] = []
    total = sum(1 + num_below[node] for node in tops)
    hidden = total
    for node, steps in walk(children, tops, depth):
        if len(shown) == lines:
            break
        hidden -= 1
        cut = num_below[node] if steps == depth else 0
        hidden -= cut
        shown.append("  " * steps + title(tree, node) + (f": {cut:,} below" if cut else ""))
    if hidden:
        shown.append(
            f"and {counted(hidden, 'more class')} of {total:,}; raise --lines, lower --depth, or name a branch"
        )
    return "\n".join(shown)


def walk(children: Sequence[Sequence[int]], tops: Sequence[int], depth: int) -> Iterator[tuple[int, int]]:
    """(class, steps from its top) of all classes down to a depth, each before its children."""
    waiting = [(node, 0) for node in reversed(tops)]
    while waiting:
        node, steps = waiting.pop()
        yield node, steps
        if steps < depth:
            waiting += [(child, steps + 1) for child in reversed(children[node])]


def roots(tree: LabelTree) -> list[int]:
    """Classes without a parent, ascending."""
    return np.flatnonzero(tree.parents < 0).tolist()


def children_of_classes(tree: LabelTree) -> list[list[int]]:
    """For each class those whose parent (on the longest path) it is, ascending."""
    children: list[list[int]] = [[] for _ in tree.classes]
    for child, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            children[parent].append(child)
    return children


def count_below(tree: LabelTree) -> list[int]:
    """For each class the number of classes below it (on longest paths)."""
    num_below = [0] * len(tree.classes)
    parents = tree.parents.tolist()
    for node in np.argsort(-tree.levels, kind="stable").tolist():
        if parents[node] >= 0:
            num_below[parents[node]] += 1 + num_below[node]
    return num_below


def title(tree: LabelTree, class_index: int) -> str:
    """A class on a line: its name, and that for people."""
    name, shown = tree.classes[class_index], tree.names[class_index]
    return name if shown == name else f"{name} {shown}"


def parents_not_chosen(tree: LabelTree, class_indices: Iterable[int]) -> list[list[str]]:
    """For some classes the wnids of the hypernyms that the tree's rule passed over.

    None where its relations are not WordNet's own.
    """
    if not tree.rule.source.startswith("WordNet ") or tree.rule.parents == "all-paths":
        return [[] for _ in class_indices]
    rule, hypernyms = tree.rule.parents, wordnet().hypernyms
    counted = None
    if rule in ("longest", "shortest") and tree.rule.inner == "none":
        counted = {resolve_wnid(name) for name in tree.classes}
    passed_over = []
    for class_index in class_indices:
        wnid = resolve_wnid(tree.classes[class_index])
        if rule == "published":
            chosen = [wordnet().published_parent(wnid)]
        else:
            graph = relations.ancestor_graph([wnid], hypernyms)
            chosen = relations.choose_parents(rule, [wnid], graph, counted)[wnid]
        passed_over.append([hypernym for hypernym in hypernyms(wnid) if hypernym not in chosen])
    return passed_over


def _describe(tree: LabelTree, class_index: int) -> str:
    chain = [class_index]
    while (parent := int(tree.parents[chain[-1]])) >= 0:
        chain.append(parent)
    lines = [f"{title(tree, class_index)}: class {class_index}, level {len(chain) - 1}"]
    for level, node in enumerate(reversed(chain)):
        lines.append(
            f"  level {level:2d}  {'  ' * level}{title(tree, node)}  (class {node}, {_place(tree, node)})"
        )
    if others := [title(tree, parent) for parent in tree.all_parents[class_index][1:]]:
        lines.append(f"  further parents: {', '.join(others)}")
    if missed := [
        f"{wnid} {wordnet().lemmas(wnid)[0]}" for wnid in parents_not_chosen(tree, [class_index])[0]
    ]:
        lines.append(f"  parents not chosen by {tree.rule.parents!r}: {', '.join(missed)}")
    children = [title(tree, child) for child in np.flatnonzero(tree.parents == class_index).tolist()]
    lines.append(f"  children: {some(children, _SHOWN_CHILDREN, str) or 'none'}")
    vectors = tree.vectors()[class_index].reshape(-1, tree.num_levels)
    paths = [row for row in vectors.tolist() if max(row) >= 0]
    lines += [f"  vector: {row}" for row in paths]
    return "\n".join(lines)


def _place(tree: LabelTree, node: int) -> str:
    level = int(tree.levels[node])
    if level >= tree.num_levels:
        return "level left out"
    place = int(np.searchsorted(tree.level_classes[level], node))
    return f"index {place} of {tree.level_sizes[level]}"


def _found(tree: LabelTree, name: str) -> list[int]:
    found = find(tree, name)
    if not found:
        raise UsageError(
            f"tree: expected one of its {len(tree.classes)} classes, by name or wnid, found {name!r}"
        )
    return found


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()
