"""Which node is whose parent: read from WordNet by a rule, or from a user's own table.

WordNet's nouns are a graph: a synset may have several hypernyms, and a rule picks one. What comes out is a
mapping from node to parent, which `LabelTree` numbers. Nodes are wnids, or the names of a table.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from .classes import resolve_wnid
from .errors import DataError
from .files import read_text
from .schema import MAX_TREE_BYTES
from .wordnet import wordnet

PARENT_RULES = ("first", "last", "published", "longest", "shortest")
INNER_RULES = ("none", "branching", "all")

Node = TypeVar("Node", str, int)  # a wnid or a name of a table; a class index


def resolve_classes(classes: Sequence[str]) -> list[str]:
    """wnids of classes; every class without one is named, and all that share one."""
    class_of: dict[str, str] = {}
    problems: list[str] = []
    for name in classes:
        try:
            wnid = resolve_wnid(name)
        except DataError as error:
            problems.append(str(error))
            continue
        if wnid in class_of:
            problems.append(
                f"classes {class_of[wnid]!r} and {name!r}: expected different synsets, found {wnid} twice; "
                "leave one of them out, or name the sense that is meant by its wnid"
            )
        class_of[wnid] = name
    if problems:
        raise DataError("\n".join(problems))
    return list(class_of)


def wordnet_parent(rule: str, counted: set[str] | None) -> Callable[[str], str | None]:
    """The parent of a synset under a rule of `PARENT_RULES`.

    `counted` are the synsets that `longest` and `shortest` count along a path; None counts all.
    """
    table = wordnet()
    if rule == "published":
        return table.published_parent
    if rule in ("first", "last"):
        place = 0 if rule == "first" else -1
        return lambda wnid: hypernyms[place] if (hypernyms := table.hypernyms(wnid)) else None

    # Counts add up along a path, so the best path from a synset goes on along the best path from a hypernym.
    sign = 1 if rule == "longest" else -1
    best: dict[str, tuple[int, str | None]] = {}

    def best_path(wnid: str) -> tuple[int, str | None]:
        if wnid not in best:
            paths = [
                (best_path(hypernym)[0] + (counted is None or hypernym in counted), hypernym)
                for hypernym in table.hypernyms(wnid)
            ]
            best[wnid] = max(paths, key=lambda path: sign * path[0], default=(0, None))  # the first of equals
        return best[wnid]

    return lambda wnid: best_path(wnid)[1]


def climb(nodes: Iterable[str], parent: Callable[[str], str | None]) -> dict[str, str | None]:
    """Parents of the nodes and of all their ancestors."""
    parent_of: dict[str, str | None] = {}
    for node in nodes:
        above: str | None = node
        while above is not None and above not in parent_of:
            parent_of[above] = parent(above)
            above = parent_of[above]
    return parent_of


def branching_nodes(listed: Sequence[str], parent_of: Mapping[str, str | None]) -> list[str]:
    """What `inner="branching"` adds, ascending.

    Every node of `parent_of` is listed or above a listed class, so each of its children there is a branch.
    """
    num_branches = Counter(parent_of.values())
    listed_nodes = set(listed)
    branching = sorted(node for node in parent_of if num_branches[node] > 1 and node not in listed_nodes)
    kept = listed_nodes.union(branching)
    roots = [node for node in kept if _kept_parent(node, parent_of, kept) is None]
    return [node for node in branching if roots != [node]]


def kept_parents(nodes: Sequence[str], parent_of: Mapping[str, str | None]) -> np.ndarray:
    """int32 [C]. For each node the place of its nearest ancestor among the nodes, or -1."""
    place = {node: i for i, node in enumerate(nodes)}
    above = [_kept_parent(node, parent_of, place) for node in nodes]
    return np.array([-1 if node is None else place[node] for node in above], np.int32)


def _kept_parent(
    node: str, parent_of: Mapping[str, str | None], kept: Mapping[str, int] | set[str]
) -> str | None:
    above = parent_of[node]
    while above is not None and above not in kept:
        above = parent_of[above]
    return above


def find_cycles(parent_of: Mapping[Node, Node | None]) -> list[list[Node]]:
    """Every cycle of parents once, its first node repeated at the end."""
    cycles: list[list[Node]] = []
    done: set[Node] = set()
    for start in parent_of:
        path: dict[Node, None] = {}
        node: Node | None = start
        while node is not None and node not in done and node not in path:
            path[node] = None
            node = parent_of[node]
        if node is not None and node in path:
            members = list(path)
            cycles.append([*members[members.index(node) :], node])
        done.update(path)
    return cycles


def table_parents(
    classes: Sequence[str] | None, child_parent_pairs: Iterable[tuple[str, str]], source: str
) -> tuple[Sequence[str], dict[str, str | None]]:
    """The parents that a user's table states.

    Args:
        classes: the listed classes, None for the table's leaves.
        child_parent_pairs: (child, parent) names; an empty parent declares a root.
        source: where the pairs are from, for error texts.

    Returns:
        The listed classes, and the parent (None at a root) of every name in order of appearance.

    Raises:
        DataError: classes that are not in the table, children with two parents, cycles; all are named.
    """
    stated: dict[str, str | None] = {}
    appearance: dict[str, None] = {}
    problems: list[str] = []
    for child, parent in child_parent_pairs:
        appearance |= {name: None for name in (child, parent) if name}
        if stated.setdefault(child, parent or None) != (parent or None):
            problems.append(
                f"{source}: {child!r} has two parents, {stated[child] or ''!r} and {parent!r}; "
                "a tree has one, keep one of the rows"
            )
    parent_of = {name: stated.get(name) for name in appearance}
    if classes is None:
        inner_nodes = set(parent_of.values())
        classes = [name for name in appearance if name not in inner_nodes]
    problems += [
        f"{source}: class {name!r}: expected in the table, found nowhere; "
        f"add a row `{name},PARENT`, or `{name},` for a root"
        for name in classes
        if name not in parent_of
    ]
    problems += [
        f"{source}: {' -> '.join(map(repr, cycle))} is a cycle; a tree has none, correct one of the rows"
        for cycle in find_cycles(parent_of)
    ]
    if problems:
        raise DataError("\n".join(problems))
    return classes, parent_of


def read_pairs(url: str) -> list[tuple[str, str]]:
    """(child, parent) of a CSV."""
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    rows = csv.reader(io.StringIO(read_text(url, MAX_TREE_BYTES), newline=""))
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells) or (
                rows.line_num == 1 and [cell.lower() for cell in cells] == ["child", "parent"]
            ):
                continue
            if len(cells) == 2 and cells[0]:
                pairs.append((cells[0], cells[1]))
            else:
                problems.append(
                    f"{url}: line {rows.line_num}: expected `child,parent`, found {','.join(row)!r}"
                )
    except csv.Error as error:
        problems.append(f"{url}: line {rows.line_num}: expected CSV; {error}")
    if problems:
        raise DataError("\n".join(problems))
    return pairs
