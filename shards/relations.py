"""Which node is whose parent: a graph of relations, and the rules that make a tree of it.

WordNet's nouns are a graph: a synset may have several hypernyms. So may a name of a user's own table. A rule picks
one parent, or keeps them all. Nodes are wnids, or the names of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import TypeVar

from .classes import resolve_wnid
from .errors import DataError

ONE_PARENT_RULES = ("first", "last", "published", "longest", "shortest")
PARENT_RULES = (*ONE_PARENT_RULES, "all-paths")
INNER_RULES = ("none", "branching", "all")

Node = TypeVar("Node", str, int)  # a wnid or a name of a table; a class index
Graph = Mapping[str, Sequence[str]]  # node to its parents, in the order of their source

MAX_CYCLES = 100  # named in an error
_SHOWN_OF_CYCLE = 10  # nodes


def resolve_classes(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The wnids of classes.

    Returns:
        wnids in the order of the classes; and every problem: classes without a wnid, classes that share one.
    """
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
    return list(class_of), problems


def ancestor_graph(nodes: Iterable[str], parents_of: Callable[[str], Sequence[str]]) -> dict[str, list[str]]:
    """The graph of some nodes and all their ancestors."""
    graph: dict[str, list[str]] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in graph:
            graph[node] = list(dict.fromkeys(parents_of(node)))
            waiting += graph[node]
    return graph


def choose_parents(
    rule: str, nodes: Sequence[str], graph: Graph, counted: set[str] | None = None
) -> dict[str, list[str]]:
    """The graph of some nodes and their ancestors in which a rule has left every node its parents.

    Args:
        rule: one of `PARENT_RULES`; `published` is `last` here.
        nodes: what to climb from.
        graph: holds the nodes and all their ancestors; no cycles.
        counted: the nodes that `longest` and `shortest` count along a path; None counts all.
    """
    if rule == "all-paths":
        return ancestor_graph(nodes, graph.__getitem__)
    if rule in ("first", "last", "published"):
        place = slice(0, 1) if rule == "first" else slice(-1, None)
        return ancestor_graph(nodes, lambda node: graph[node][place])
    # Counts add up along a path, so the best path from a node goes on along the best path from a parent.
    sign = 1 if rule == "longest" else -1
    length: dict[str, int] = {}
    best: dict[str, list[str]] = {}
    for node in TopologicalSorter(graph).static_order():
        paths = [(length[above] + (counted is None or above in counted), above) for above in graph[node]]
        chosen = max(paths, key=lambda path: sign * path[0], default=None)  # the first of equals
        length[node], best[node] = (0, []) if chosen is None else (chosen[0], [chosen[1]])
    return ancestor_graph(nodes, best.__getitem__)


def branching_nodes(listed: Sequence[str], graph: Graph) -> list[str]:
    """What `inner="branching"` adds, ascending: nodes where two or more branches with listed classes meet.

    A node that has a child over the same listed classes would say what the child says; a lone root over everything
    would be a level of one class: neither is added.

    Args:
        listed: the listed classes.
        graph: of these and their ancestors, no others.
    """
    bit = {node: 1 << i for i, node in enumerate(listed)}
    if len(graph) == len(bit):
        return []
    # Listed classes at or below each node, as bits. Children come first, so that a node's are complete.
    below = dict.fromkeys(graph, 0) | bit
    covered: set[str] = set()
    for node in reversed(list(TopologicalSorter(graph).static_order())):
        for above in graph[node]:
            below[above] |= below[node]
    for node, parents in graph.items():
        covered.update(above for above in parents if below[above] == below[node])
    branching = sorted(node for node in graph if node not in bit and node not in covered)
    kept = bit.keys() | set(branching)
    with_ancestor = nearest_kept(graph, kept)
    roots = [node for node in kept if not with_ancestor[node]]
    return [node for node in branching if roots != [node]]


def nearest_kept(graph: Graph, kept: Iterable[str]) -> dict[str, list[str]]:
    """For every node of a graph its nearest kept ancestors, in the order of the graph's parents.

    With several parents one of them may be above another: it is still listed, see `tree_paths.kept_parents`.
    """
    kept = set(kept)
    nearest: dict[str, list[str]] = {}
    for node in TopologicalSorter(graph).static_order():
        found: dict[str, None] = {}
        for above in graph[node]:
            found.update(dict.fromkeys([above] if above in kept else nearest[above]))
        nearest[node] = list(found)
    return nearest


def find_cycles(graph: Mapping[Node, Sequence[Node]]) -> list[list[Node]]:
    """Cycles of a graph, the first node of each repeated at the end; `MAX_CYCLES` at most.

    Where every node has one parent, all cycles are found. In any graph, what is left without one edge of each has
    none (unless there were more than `MAX_CYCLES`).
    """
    cycles: list[list[Node]] = []
    done: set[Node] = set()
    for start in graph:
        if start in done:
            continue
        path = [start]
        to_try: list[Iterator[Node]] = [iter(graph[start])]  # for each node of the path its other parents
        place = {start: 0}
        while path:
            for above in to_try[-1]:
                if above in place:
                    cycles.append([*path[place[above] :], above])
                    if len(cycles) == MAX_CYCLES:
                        return cycles
                elif above not in done:
                    place[above] = len(path)
                    path.append(above)
                    to_try.append(iter(graph[above]))
                    break
            else:
                node = path.pop()
                to_try.pop()
                done.add(node)
                del place[node]
    return cycles


def cycle_problems(graph: Graph, source: str) -> list[str]:
    """A line for every cycle of a user's relations."""
    problems = []
    for cycle in find_cycles(graph):
        shown = [repr(name) for name in cycle]
        if len(shown) > _SHOWN_OF_CYCLE:
            shown[_SHOWN_OF_CYCLE - 1 : -1] = [f"({len(shown) - _SHOWN_OF_CYCLE} more)"]
        problems.append(
            f"{source}: {' -> '.join(shown)} is a cycle; a tree has none, correct one of the rows"
        )
    if len(problems) == MAX_CYCLES:
        problems.append(f"{source}: only {MAX_CYCLES} cycles are named; there may be more")
    return problems


def table_graph(
    classes: Sequence[str] | None,
    child_parent_pairs: Iterable[tuple[str, str]],
    source: str,
    *,
    several_parents: bool = False,
) -> tuple[Sequence[str], dict[str, list[str]]]:
    """The graph that a user's table states.

    Args:
        classes: the listed classes, None for the table's leaves.
        child_parent_pairs: (child, parent) names; an empty parent declares a root.
        source: where the pairs are from, for error texts.
        several_parents: whether a child may have several.

    Returns:
        The listed classes, and the parents of every name in order of appearance.

    Raises:
        DataError: classes that are not in the table, several parents where one is allowed, names that are declared
            roots and have a parent, cycles; all are named.
    """
    stated: dict[str, dict[str, None]] = {}
    appearance: dict[str, None] = {}
    for child, parent in child_parent_pairs:
        appearance |= {name: None for name in (child, parent) if name}
        stated.setdefault(child, {})[parent] = None
    problems: list[str] = []
    for child, parents in stated.items():
        if len(parents) > 1 and "" in parents:
            others = ", ".join(repr(parent) for parent in parents if parent)
            problems.append(
                f"{source}: {child!r} is declared a root and has the parent {others}; keep one of the rows"
            )
        elif len(parents) > 1 and not several_parents:
            *most, last = map(repr, parents)
            count = "two" if len(parents) == 2 else len(parents)
            problems.append(
                f"{source}: {child!r} has {count} parents, {', '.join(most)} and {last}; keep one of the rows, or "
                "choose a rule. Run: softshard tree build --parents first|last|longest|shortest|all-paths"
            )
    graph = {name: [parent for parent in stated.get(name, ()) if parent] for name in appearance}
    if classes is None:
        inner_nodes = {parent for parents in graph.values() for parent in parents}
        classes = [name for name in graph if name not in inner_nodes]
    problems += [
        f"{source}: class {name!r}: expected in the table, found nowhere; "
        f"add a row `{name},PARENT`, or `{name},` for a root"
        for name in classes
        if name not in graph
    ]
    problems += cycle_problems(graph, source)
    if problems:
        raise DataError("\n".join(problems))
    return classes, graph
