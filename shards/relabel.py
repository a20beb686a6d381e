"""Reads a data set with other classes than it was packed with: another tree, a subset, another order.

Pure: names in, a table from old to new class indices out. Nothing is rewritten; whoever reads looks each sample's
class up and takes the new one's label vectors, or leaves the sample out.

    relabelling = relabel(manifest.class_names, new_tree)
    new_classes = relabelling.class_map[old_classes]      # -1: leave the sample out
    levels = relabelling.vectors[new_classes]             # of the others

C_old classes of the data set, C_new classes after it, L levels and A paths of the new tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import relations, tree_build
from .classes import class_list_sha256
from .errors import DataError, UsageError, check_choice
from .files import canonical_json, sha256_hex
from .text_limits import counted, some
from .tree import LabelTree
from .wordnet import WNID_PATTERN, wordnet

ParentsOf = Callable[[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Relabelling:
    """What becomes of a data set's classes.

    Attributes:
        class_map: int32 [C_old]. The new index of each old class, -1 where its samples are left out. Read-only.
        class_names: C_new names.
        tree: the new tree, whose classes are `class_names`; None where there is none.
        dropped: old classes whose samples are left out, in their order.
        merged: (old, new) names of the classes that became an ancestor, in the old order.
        without_source: new classes that no old class became, in their order: samples there are none of. Inner nodes
            that were made classes are not among them.
    """

    class_map: np.ndarray
    class_names: tuple[str, ...]
    tree: LabelTree | None
    dropped: tuple[str, ...]
    merged: tuple[tuple[str, str], ...]
    without_source: tuple[str, ...]

    @property
    def vectors(self) -> np.ndarray | None:
        """int16 [C_new, L], or [C_new, A, L] where classes have several parents; None without a tree. Read-only."""
        return None if self.tree is None else self.tree.vectors()

    @property
    def is_identity(self) -> bool:
        """Whether every sample keeps its class index."""
        return np.array_equal(self.class_map, np.arange(len(self.class_names)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides what a reader gets: new names, new tree and the table."""
        content = {
            "classes": class_list_sha256(self.class_names),
            "tree": self.tree.fingerprint if self.tree else None,
            "class_map": self.class_map.tolist(),
        }
        return sha256_hex(canonical_json(content))

    def summary(self) -> str:
        """What happened, in lines for a person."""
        lines = [f"from {counted(len(self.class_map), 'class')} to {len(self.class_names):,}"]
        for what, names in (
            ("merged into an ancestor", [f"{old} -> {new}" for old, new in self.merged]),
            ("dropped", self.dropped),
            ("without samples", self.without_source),
        ):
            if names:
                lines.append(f"  {what}: {len(names):,}: {some(names, show=str)}")
        return "\n".join(lines)


def relabel(
    old_classes: Sequence[str],
    new: LabelTree | Sequence[str],
    *,
    old_tree: LabelTree | None = None,
    to_ancestor: bool = False,
    inner: str = "none",
    allow_missing: bool = False,
) -> Relabelling:
    """Say what becomes of each class of a data set.

    Args:
        old_classes: the data set's class list.
        new: the tree to read it with; or class names, a subset of the old ones or all in another order. Classes are
            matched by name. With `to_ancestor` new classes may be ancestors that the data set does not list.
        old_tree: the data set's tree. With names as `new` it gives the new tree: among the new classes, a class's
            parent is its nearest ancestor that is left. Without it there is none.
        to_ancestor: an old class that is not among the new ones becomes its nearest ancestor that is, rather than
            being left out. Ancestors are those in `old_tree`; beyond its roots, and without it, those in WordNet of
            classes that are named by wnids. Of several the nearest, between equals that of the first parent.
        inner: with names as `new`: which of their ancestors become classes too, as in `LabelTree.from_wordnet`.
        allow_missing: names as `new` may name classes that no old class becomes; by default a mistyped name is an
            error. (A tree may always have classes without samples.)

    Returns:
        The table and all that was left out.

    Raises:
        UsageError: no old class is left; `inner` without an old tree; an unknown `inner`.
        DataError: an old tree of other classes; names twice; with names as `new`: all that no old class becomes.
    """
    old_classes = tuple(old_classes)
    if old_tree is not None and old_tree.classes != old_classes:
        raise DataError(
            f"relabel: expected the tree of the class list {class_list_sha256(old_classes)[:12]}, found a tree of "
            f"{class_list_sha256(old_tree.classes)[:12]}; it is another data set's"
        )
    if isinstance(new, LabelTree):
        tree, names, num_listed = new, new.classes, new.num_listed
    else:
        names, num_listed = tuple(new), len(new)
        if not names:
            raise UsageError("relabel: expected new classes, found none")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"relabel: expected distinct new classes, found twice: {some(twice)}")
        if inner != "none" and old_tree is None:
            raise UsageError(
                "relabel: expected the data set's tree where inner nodes become classes, found none"
            )
        if old_tree is None:
            tree = None
        else:
            tree = restrict_tree(old_tree, names, inner=inner, beyond_roots=to_ancestor)
            names = tree.classes
    index = {name: i for i, name in enumerate(names)}
    parents_of = _parents_lookup(old_tree, beyond_roots=True) if to_ancestor else None
    class_map = np.full(len(old_classes), -1, np.int32)
    merged: list[tuple[str, str]] = []
    for i, name in enumerate(old_classes):
        if name in index:
            class_map[i] = index[name]
        elif parents_of is not None and (above := _nearest(name, index, parents_of)) is not None:
            class_map[i] = index[above]
            merged.append((name, above))
    filled = set(class_map.tolist())
    without_source = tuple(name for i, name in enumerate(names[:num_listed]) if i not in filled)
    if without_source and not isinstance(new, LabelTree) and not allow_missing:
        raise DataError(
            f"relabel: expected classes of the data set, found {len(without_source)} of {num_listed} that it has "
            f"nothing for: {some(without_source)}; correct the names, leave them out, or give a label tree, which may have "
            "classes without samples (softshard tree build --classes LIST)"
            + ("" if to_ancestor else "; in Python an inner node takes its descendants with to_ancestor")
        )
    if filled == {-1}:
        raise UsageError(
            f"relabel: expected new classes that the data set has, found none of its {len(old_classes):,} among "
            f"{len(names):,}; the names are another data set's, such as nouns for wnids"
        )
    class_map.flags.writeable = False
    return Relabelling(
        class_map=class_map,
        class_names=names,
        tree=tree,
        dropped=tuple(name for name, new in zip(old_classes, class_map.tolist(), strict=True) if new < 0),
        merged=tuple(merged),
        without_source=without_source,
    )


def restrict_tree(
    tree: LabelTree, names: Sequence[str], *, inner: str = "none", beyond_roots: bool = False
) -> LabelTree:
    """The tree of some of a tree's classes: the parent of each is its nearest ancestor among them.

    Args:
        tree: the tree.
        names: the new classes, in their order. A name that the tree does not have is a root.
        inner: which of their other ancestors become classes too, numbered after them by name: `none`, `branching`
            or `all`; see `LabelTree.from_wordnet`.
        beyond_roots: ancestors go on above the tree's roots as in WordNet, for classes named by wnids.

    Raises:
        UsageError: no names, or an unknown `inner`.
        DataError: a name twice.
    """
    check_choice("tree: inner", inner, relations.INNER_RULES)
    graph = relations.ancestor_graph(names, _parents_lookup(tree, beyond_roots=beyond_roots))
    rule = "all-paths" if len(tree.other_parents) else "first"
    added, parents, other_parents = tree_build.place_nodes(names, graph, rule, inner)
    classes = (*names, *added)
    return LabelTree(
        classes=classes,
        parents=parents,
        num_listed=len(names),
        max_levels=tree.max_levels,
        names=tuple(
            tree.names[tree.class_index[name]] if name in tree.class_index else tree_build.shown_name(name)
            for name in classes
        ),
        rule=tree_build.TreeRule(tree.rule.parents, inner, f"the tree {tree.fingerprint}"),
        other_parents=other_parents,
    )


def _parents_lookup(tree: LabelTree | None, *, beyond_roots: bool) -> ParentsOf:
    """A function from a name to its parents in a tree; beyond its roots in WordNet."""

    def parents_of(name: str) -> Sequence[str]:
        if tree is not None and name in tree.class_index:
            above = [tree.classes[parent] for parent in tree.all_parents[tree.class_index[name]]]
            if above:
                return above
        if not beyond_roots or not WNID_PATTERN.fullmatch(name) or name not in wordnet():
            return ()
        # The way never leads back into the tree: its own relations count there, and a user's may contradict WordNet's.
        return [wnid for wnid in wordnet().hypernyms(name) if tree is None or wnid not in tree.class_index]

    return parents_of


def _nearest(name: str, kept: Container[str], parents_of: ParentsOf) -> str | None:
    """The kept ancestor that is the fewest steps away."""
    layer, seen = [name], {name}
    while layer:
        above = [parent for node in layer for parent in parents_of(node)]
        layer = [node for node in dict.fromkeys(above) if node not in seen]
        for node in layer:
            if node in kept:
                return node
        seen.update(layer)
    return None
