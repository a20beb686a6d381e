"""How near classes are in a hierarchy: path, Wu-Palmer, Leacock-Chodorow, Lin and Jiang-Conrath similarity.

The values are those of NLTK's measures of the same names over WordNet 3.0, bit by bit but for the last digit. NLTK walks
the hierarchy for every pair; here one row of the [C, C] matrix takes a few vector operations for each ancestor of its class.

C classes, A nodes: the classes and all their ancestors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .errors import UsageError
from .tree import LabelTree
from .wordnet import wordnet

Node = Hashable
ParentsOf = Callable[[Node], Sequence[Node]]
ROOT = ""  # above the roots of a tree that has several


class _Ancestors(NamedTuple):
    """The ancestors of one class, itself among them.

    Attributes:
        nodes: their numbers.
        steps: edges to each on the shortest way up.
        paths: edges to each on the shortest way at all, which may lead over a common ancestor.
    """

    nodes: list[int]
    steps: list[int]
    paths: list[int]


class ConceptGraph:
    """A hierarchy, seen from C classes.

    Args:
        classes: their nodes; several classes may share one.
        parents_of: a node's parents.
        name_of: what decides between subsumers of one depth: the first name in order.
        depth: edges from the root to the deepest node of the whole hierarchy; None: of these nodes.
    """

    def __init__(
        self,
        classes: Sequence[Node],
        parents_of: ParentsOf,
        name_of: Callable[[Node], str] = str,
        depth: int | None = None,
    ) -> None:
        self.num_classes = len(classes)
        walk = _Walk(parents_of)
        self._number: dict[Node, int] = {}
        self._ancestors = [self._look_up(walk, node) for node in classes]
        nodes = [*self._number]
        depths = [walk.depths(node) for node in nodes]
        self._min_depths = [shortest for shortest, _ in depths]
        self._max_depths = np.array([longest for _, longest in depths], np.int64)
        self.depth = int(self._max_depths.max()) if depth is None else depth
        self._own = [self._number[node] for node in classes]
        self.nodes = nodes
        by_name = sorted(range(len(nodes)), key=lambda number: name_of(nodes[number]))
        self._places = {number: place for place, number in enumerate(by_name)}
        self._turn_round()

    def _look_up(self, walk: _Walk, node: Node) -> _Ancestors:
        up = walk.steps_up(node)
        numbers = [self._number.setdefault(each, len(self._number)) for each in up]
        paths = []
        for each in up:
            beyond = walk.steps_up(each)
            paths.append(min(up[common] + steps for common, steps in beyond.items()))
        return _Ancestors(numbers, list(up.values()), paths)

    def _turn_round(self) -> None:
        """For each node the classes below it, side by side."""
        counts = [len(ancestors.nodes) for ancestors in self._ancestors]
        flat = [np.array([x for part in self._ancestors for x in part[i]], np.int64) for i in range(3)]
        order = np.argsort(flat[0], kind="stable")
        self._classes = np.repeat(np.arange(self.num_classes), counts)[order]
        self._steps, self._paths = flat[1][order], flat[2][order]
        self._starts = np.searchsorted(flat[0][order], np.arange(len(self._number) + 1))

    def _below(self, node: int) -> slice:
        return slice(self._starts[node], self._starts[node + 1])

    def distances(self, i: int) -> np.ndarray:
        """int64 [C], edges of the shortest way from class i over a common ancestor to each class."""
        far = np.full(self.num_classes, np.iinfo(np.int64).max)
        own = self._ancestors[i]
        for node, steps in zip(own.nodes, own.steps, strict=True):
            some = self._below(node)
            members = self._classes[some]
            far[members] = np.minimum(far[members], steps + self._steps[some])
        return far

    def path(self, i: int) -> np.ndarray:
        """float64 [C], 1 / (1 + edges)."""
        return 1 / (1 + self.distances(i))

    def lch(self, i: int) -> np.ndarray:
        """float64 [C], -log((1 + edges) / (2 depth)) (Leacock and Chodorow 1998); log(2 depth) for the class itself."""
        return -np.log((self.distances(i) + 1) / (2 * max(1, self.depth)))

    def wup(self, i: int) -> np.ndarray:
        """float64 [C], 2 depth(s) / (depth(i) + depth(j)) for the deepest common ancestor s (Wu and Palmer 1994).

        As NLTK has it: s has the largest depth by the shortest way to the root, of several i itself or else the first by
        name; its depth then counts along the longest way, and those of i and j from there. A class with a short way to the
        root and a long one is so less than 1 like itself (a dog 0.93).
        """
        own = self._ancestors[i]
        subsumer = np.zeros(self.num_classes, np.int64)
        ways = np.zeros(self.num_classes, np.int64)
        rows = zip(own.nodes, own.paths, strict=True)
        # The last one that is written stays.
        for node, mine in sorted(rows, key=lambda row: self._rank(row[0], self._own[i])):
            some = self._below(node)
            members = self._classes[some]
            subsumer[members] = node
            ways[members] = mine + self._paths[some]
        depths = self._max_depths[subsumer] + 1
        return 2.0 * depths / (ways + 2 * depths)

    def _rank(self, node: int, own: int) -> tuple[int, bool, int]:
        return self._min_depths[node], node == own, -self._places[node]

    def lin(self, i: int, contents: np.ndarray) -> np.ndarray:
        """float64 [C], 2 IC(s) / (IC(i) + IC(j)) (Lin 1998); 0 where a class was never counted, 1 for the class itself.

        Args:
            i: the class.
            contents: float64 [A], information content of `nodes`, infinite where nothing was counted.
        """
        own, shared = contents[self._own], self._shared_content(i, contents)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = 2 * shared / (own[i] + own)
        values[~np.isfinite(values)] = 0
        values[np.array(self._own) == self._own[i]] = 1
        return values

    def jcn_distance(self, i: int, contents: np.ndarray) -> np.ndarray:
        """float64 [C], IC(i) + IC(j) - 2 IC(s) (Jiang and Conrath 1997), infinite where a class was never counted.

        NLTK's similarity is 1 over it.
        """
        own, shared = contents[self._own], self._shared_content(i, contents)
        with np.errstate(invalid="ignore"):
            values = own[i] + own - 2 * shared
        values[~np.isfinite(values)] = math.inf
        values[np.array(self._own) == self._own[i]] = 0
        return np.maximum(values, 0)

    def _shared_content(self, i: int, contents: np.ndarray) -> np.ndarray:
        """float64 [C], the largest information content of a common ancestor."""
        shared = np.zeros(self.num_classes)
        for node in sorted(self._ancestors[i].nodes, key=contents.__getitem__):
            shared[self._classes[self._below(node)]] = contents[node]
        return shared

    def add_up(self, counts: np.ndarray) -> np.ndarray:
        """float64 [A], of each node the sum of `counts` [C] over the classes at or below it."""
        sums = np.zeros(len(self.nodes))
        np.add.at(sums, np.repeat(np.arange(len(self.nodes)), np.diff(self._starts)), counts[self._classes])
        return sums


class _Walk:
    """Walks up a hierarchy, and remembers."""

    def __init__(self, parents_of: ParentsOf) -> None:
        self._parents_of = parents_of
        self._up: dict[Node, dict[Node, int]] = {}
        self._depths: dict[Node, tuple[int, int]] = {}

    def steps_up(self, node: Node) -> dict[Node, int]:
        """Every ancestor, and the node itself, with the edges of the shortest way."""
        if node not in self._up:
            found, level, steps = {node: 0}, [node], 0
            while level:
                steps += 1
                level = [parent for each in level for parent in self._parents_of(each) if parent not in found]
                found.update(dict.fromkeys(level, steps))
            self._up[node] = found
        return self._up[node]

    def depths(self, node: Node) -> tuple[int, int]:
        """Edges of the shortest and of the longest way to a root."""
        # No recursion: a chain may be longer than Python's stack.
        waiting = [node]
        while waiting:
            parents = self._parents_of(waiting[-1])
            missing = [parent for parent in parents if parent not in self._depths]
            if missing:
                if len(waiting) > 100_000:
                    raise UsageError(
                        "hierarchy: expected one without circles, found a way up that never ends"
                    )
                waiting += missing
                continue
            depths = [self._depths[parent] for parent in parents] or [(-1, -1)]
            self._depths[waiting.pop()] = (
                1 + min(low for low, _ in depths),
                1 + max(high for _, high in depths),
            )
        return self._depths[node]


def wordnet_graph(wnids: Sequence[str]) -> ConceptGraph:
    """WordNet 3.0's nouns, seen from some classes.

    Raises:
        DataError: a wnid that WordNet does not have.
    """
    nouns = wordnet()
    return ConceptGraph(wnids, nouns.hypernyms, nouns.sense_name, _noun_depth())  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _noun_depth() -> int:
    """Edges from `entity` to the deepest noun of WordNet: 19."""
    walk = _Walk(wordnet().hypernyms)  # type: ignore[arg-type]
    return max(walk.depths(wnid)[1] for wnid in wordnet())


def tree_graph(tree: LabelTree) -> ConceptGraph:
    """A label tree, seen from its classes; several roots get one above them."""
    parents: dict[Node, list[Node]] = {name: [] for name in tree.classes}
    for name, parent in zip(tree.classes, tree.parents.tolist(), strict=True):
        parents[name].append(ROOT if parent < 0 else tree.classes[parent])
    for child, parent in tree.other_parents.tolist():
        parents[tree.classes[child]].append(tree.classes[parent])
    parents[ROOT] = []
    return ConceptGraph(tree.classes, parents.__getitem__)


def contents_of_counts(graph: ConceptGraph, counts: np.ndarray) -> np.ndarray:
    """Information content -log(share of all) from images of each class.

    Args:
        graph: of C classes.
        counts: integer [C]; every class counts one more, so that none is infinitely rare.

    Returns:
        float64 [A].
    """
    sums = graph.add_up(np.asarray(counts, np.float64) + 1)
    return -np.log(sums / (counts.sum() + len(counts)))


def contents_of_file(graph: ConceptGraph, offsets: Mapping[int, float], root: float) -> np.ndarray:
    """Information content from counts of WordNet's synsets, as a file of NLTK's has them.

    Args:
        graph: of wnids.
        offsets: count by byte offset; what misses was never seen.
        root: of all.

    Returns:
        float64 [A], infinite where nothing was counted.
    """
    counts = np.array([offsets.get(int(str(wnid)[1:]), 0.0) for wnid in graph.nodes])
    with np.errstate(divide="ignore"):
        return -np.log(counts / root)
