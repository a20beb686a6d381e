"""From a class list and relations to the parts of a label tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import relations, tree_paths
from .errors import DataError, check_choice
from .relations import INNER_RULES, PARENT_RULES, Graph
from .storage import public_name
from .tree_sources import read_wordnet_list
from .wordnet import WNID_PATTERN, wordnet


@dataclass(frozen=True)
class TreeRule:
    """How a tree came about: recorded with it, no part of the fingerprint.

    Attributes:
        parents: one of `PARENT_RULES`, or `table`: a user's own, in which every name has one parent.
        inner: one of `INNER_RULES`; `all` for a user's own table.
        source: where the relations are from: WordNet with its hash, or the name of a file.
    """

    parents: str
    inner: str
    source: str


class TreeParts(NamedTuple):
    """What `LabelTree` is made of, but for its levels; see there.

    Attributes:
        inner_would_help: whether `inner="branching"` would give a flat tree levels.
    """

    classes: tuple[str, ...]
    parents: np.ndarray
    other_parents: np.ndarray
    num_listed: int
    names: tuple[str, ...]
    rule: TreeRule
    inner_would_help: bool = False


def wordnet_parts(
    classes: Sequence[str], *, parents: str, inner: str, relations_file: str | None = None
) -> TreeParts:
    """See `LabelTree.from_wordnet`."""
    check_choice("tree: parents", parents, PARENT_RULES)
    check_choice("tree: inner", inner, INNER_RULES)
    listed, problems = relations.resolve_classes(classes)
    if relations_file is None:
        parents_of = _published_parents if parents == "published" else wordnet().hypernyms
        source = f"WordNet 3.0, data.noun sha256 {wordnet().data_noun_sha256}"
    else:
        lines = read_wordnet_list(relations_file)
        source = public_name(relations_file)
        problems += relations.cycle_problems(lines, source)

        def parents_of(wnid: str) -> Sequence[str]:
            return lines.get(wnid, ())  # a synset that no line names is a root

    if problems:
        raise DataError("\n".join(problems))
    graph = relations.ancestor_graph(listed, parents_of)
    added, above, other_parents = place_nodes(listed, graph, parents, inner)
    names = (*classes, *added)
    is_flat = not (above >= 0).any()
    return TreeParts(
        classes=names,
        parents=above,
        other_parents=other_parents,
        num_listed=len(listed),
        names=tuple(map(shown_name, names)),
        rule=TreeRule(parents, inner, source),
        inner_would_help=is_flat
        and inner == "none"
        and bool(relations.branching_nodes(listed, relations.choose_parents(parents, listed, graph))),
    )


def table_parts(
    classes: Sequence[str] | None,
    child_parent_pairs: Iterable[tuple[str, str]],
    *,
    parents: str | None,
    source: str,
) -> TreeParts:
    """See `LabelTree.from_table`."""
    if parents is not None:
        check_choice("tree: parents", parents, tuple(rule for rule in PARENT_RULES if rule != "published"))
    classes, graph = relations.table_graph(
        classes, child_parent_pairs, source, several_parents=parents is not None
    )
    order = {name: i for i, name in enumerate(graph)}
    added, above, other_parents = place_nodes(classes, graph, parents or "first", "all", order)
    nodes = (*classes, *added)
    return TreeParts(
        classes=nodes,
        parents=above,
        other_parents=other_parents,
        num_listed=len(classes),
        names=tuple(map(shown_name, nodes)),
        rule=TreeRule(parents or "table", "all", source),
    )


def place_nodes(
    listed: Sequence[str], graph: Graph, rule: str, inner: str, order: Mapping[str, int] | None = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Choose parents and inner nodes, and number them.

    Args:
        listed: the listed classes, as nodes of the graph.
        graph: holds them and all their ancestors; no cycles.
        rule: one of `PARENT_RULES`.
        inner: one of `INNER_RULES`.
        order: in which inner nodes follow; by their names where it is None.

    Returns:
        The inner nodes that become classes; the parents and further parents of all classes, as `LabelTree` has them.
    """
    chosen = relations.choose_parents(rule, listed, graph, set(listed) if inner == "none" else None)
    added = {
        "none": list,
        "branching": lambda: relations.branching_nodes(listed, chosen),
        "all": lambda: sorted(chosen.keys() - set(listed), key=order.__getitem__ if order else None),
    }[inner]()
    return added, *tree_paths.kept_parents([*listed, *added], chosen)


def shown_name(name: str) -> str:
    """A class for people: a wnid's first lemma, else its own name."""
    return wordnet().lemmas(name)[0] if WNID_PATTERN.fullmatch(name) and name in wordnet() else name


def _published_parents(wnid: str) -> list[str]:
    parent = wordnet().published_parent(wnid)
    return [] if parent is None else [parent]
