"""The label tree: which class is whose parent, and the hierarchical label vectors that follow.

One parent per class. The *level* of a class is its number of ancestors among the classes (Ridnik et al. 2021,
"ImageNet-21K Pretraining for the Masses", sec. 3.2); its hierarchical label vector tells, for every level up
to its own, where its ancestor stands among that level's classes. In WordNet's graph a rule picks the parent.

C classes, L hierarchy levels kept, N_k classes of level k.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fsspec.core import url_to_fs

from .classes import resolve_wnid
from .errors import DataError, UsageError
from .schema import HIER, MAX_LEVEL_CLASSES, MIB
from .wordnet import WNID_PATTERN, wordnet

TREE_FORMAT = "softshard-tree"
TREE_VERSION = (1, 0)
PARENT_RULES = ("first", "last", "published", "longest", "shortest")
INNER_RULES = ("none", "branching", "all")

MAX_TREE_BYTES = 64 * MIB
MAX_LEVELS = (HIER.max_bytes - 128) // 2  # int16 behind the 128 bytes of an .npy header
MAX_VECTOR_ELEMENTS = 64 * MIB  # C * L

Node = TypeVar("Node", str, int)  # a wnid or a name of a table; a class index


@dataclass(frozen=True)
class TreeRule:
    """How a tree came about: recorded with it, no part of the fingerprint.

    Attributes:
        parents: one of `PARENT_RULES`, or `table`.
        inner: one of `INNER_RULES`; `all` for a user's own table.
        source: where the relations are from: WordNet with its hash, or the name of a table.
    """

    parents: str
    inner: str
    source: str


@dataclass(frozen=True, eq=False)
class LabelTree:
    """A tree over classes. Compare trees by `fingerprint`.

    Attributes:
        classes: C class names: the listed ones in their order, then inner nodes that were made classes.
        parents: int32 [C]. Class index of the parent, -1 at a root. Read-only.
        num_listed: how many classes were listed; the others are inner nodes and need no images of their own.
        max_levels: levels kept at most, None for all. Classes below the cut keep their ancestors' labels.
        names: C names for people: the first lemma of a wnid, else the class name.
        rule: how the tree came about.
    """

    classes: tuple[str, ...]
    parents: np.ndarray
    num_listed: int
    max_levels: int | None
    names: tuple[str, ...]
    rule: TreeRule

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", _read_only(np.array(self.parents, np.int32)))
        _check(self)

    @classmethod
    def from_wordnet(
        cls,
        classes: Sequence[str],
        *,
        parents: str = "first",
        inner: str = "none",
        levels: int | None = None,
    ) -> LabelTree:
        """Build the tree of a class list from WordNet 3.0.

        Args:
            classes: wnids, or nouns of WordNet, which stand for their first sense (`resolve_wnid`).
            parents: which hypernym of a synset is its parent.
                `first`, `last`: in data.noun's pointer order (`@` and `@i`).
                `published`: as in the published tree of ImageNet-21K-P; see `WordNet.published_parent`.
                `longest`, `shortest`: on the path with the most or the fewest kept ancestors, so that levels
                are as deep or as shallow as they can be; between equals the first pointer wins. The listed
                classes count; with inner nodes every ancestor does, since each may become a class.
            inner: which ancestors that are not listed become classes, numbered after the listed ones by
                ascending wnid.
                `none`: no ancestor (the published rule).
                `branching`: where two or more branches with listed classes meet (lowest common ancestors). A
                node with one such branch would say the same as the node below it, and a lone root over
                everything would be a level of one class: neither is added.
                `all`: every ancestor, up to `entity`.
            levels: keep that many levels from the roots; 11 reproduces the published code on fall11.

        Returns:
            The tree. Where it has a single level, a warning says that semantic softmax is plain softmax then.

        Raises:
            UsageError: an unknown rule, no level, or no classes.
            DataError: classes that WordNet does not know, or classes of one synset; all of them are named.
        """
        if parents not in PARENT_RULES:
            raise UsageError(f"tree: parents: expected one of {', '.join(PARENT_RULES)}, found {parents!r}")
        if inner not in INNER_RULES:
            raise UsageError(f"tree: inner: expected one of {', '.join(INNER_RULES)}, found {inner!r}")
        listed = _resolve_all(classes)
        parent_of = _climb(listed, _wordnet_parent(parents, set(listed) if inner == "none" else None))
        branching = _branching_nodes(listed, parent_of)
        added = {"none": [], "branching": branching, "all": sorted(parent_of.keys() - set(listed))}[inner]
        nodes = [*listed, *added]
        names = (*classes, *added)
        tree = cls(
            classes=names,
            parents=_kept_parents(nodes, parent_of),
            num_listed=len(listed),
            max_levels=levels,
            names=tuple(_shown_name(name) for name in names),
            rule=TreeRule(parents, inner, f"WordNet 3.0, data.noun sha256 {wordnet().data_noun_sha256}"),
        )
        _warn_if_flat(tree, inner_would_help=inner == "none" and bool(branching))
        return tree

    @classmethod
    def from_table(
        cls,
        classes: Sequence[str] | None,
        child_parent_pairs: Iterable[tuple[str, str]],
        *,
        levels: int | None = None,
        source: str = "table",
    ) -> LabelTree:
        """Build a tree from a user's own relations. Ancestors of listed classes are always classes.

        Args:
            classes: the listed classes, each of them a name of the table; None lists the table's leaves in
                order of appearance. Inner nodes follow in order of appearance; other names are left out.
            child_parent_pairs: (child, parent) names; an empty parent declares a root, needed only for a root
                without children.
            levels: keep that many levels from the roots.
            source: where the pairs are from, for error texts and the record.

        Raises:
            UsageError: no level, or no classes.
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
            for cycle in _cycles(parent_of)
        ]
        if problems:
            raise DataError("\n".join(problems))

        above = _climb(classes, lambda name: parent_of[name])
        listed = set(classes)
        nodes = (*classes, *(name for name in appearance if name in above and name not in listed))
        tree = cls(
            classes=nodes,
            parents=_kept_parents(nodes, above),
            num_listed=len(classes),
            max_levels=levels,
            names=nodes,
            rule=TreeRule("table", "all", source),
        )
        _warn_if_flat(tree, inner_would_help=False)
        return tree

    @classmethod
    def from_csv(
        cls, path: str | Path, classes: Sequence[str] | None = None, *, levels: int | None = None
    ) -> LabelTree:
        """Build a tree from a CSV of two columns, child and parent; see `from_table`.

        Args:
            path: a local path or any fsspec URL; UTF-8 with or without a byte-order mark. A first row
                `child,parent` is a header; blank rows do not count.
            classes: the listed classes, None for the table's leaves.
            levels: keep that many levels from the roots.

        Raises:
            UsageError: the file cannot be read; no level, or no classes.
            DataError: rows that are not two columns, with their line numbers; and as `from_table`.
        """
        return cls.from_table(classes, _read_pairs(str(path)), levels=levels, source=str(path))

    @cached_property
    def levels(self) -> np.ndarray:
        """int32 [C]. Number of ancestors of each class, 0 at a root; not cut by `max_levels`. Read-only."""
        levels = np.zeros(len(self.classes), np.int32)
        above = self.parents
        # A cycle would climb for ever, and the vectors of a very deep tree would not fit anywhere.
        for _ in range(min(MAX_LEVELS, MAX_VECTOR_ELEMENTS // len(levels))):
            if not (below_root := above >= 0).any():
                return _read_only(levels)
            levels += below_root
            above = np.where(below_root, self.parents[above], -1)
        cycles = _cycles(
            {node: None if above < 0 else above for node, above in enumerate(self.parents.tolist())}
        )
        if cycles:
            raise DataError(
                f"tree: parents: {' -> '.join(self.classes[i] for i in cycles[0][:10])} is a cycle"
            )
        raise DataError(
            f"tree: expected at most {MAX_LEVELS} levels and {MAX_VECTOR_ELEMENTS} label-vector elements, "
            f"found more with {len(levels)} classes; make the tree less deep"
        )

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """N_k of every level, also of those that `max_levels` cuts."""
        return tuple(np.bincount(self.levels).tolist())

    @property
    def num_levels(self) -> int:
        """L, the length of a label vector."""
        depth = len(self.level_sizes)
        return depth if self.max_levels is None else min(self.max_levels, depth)

    @cached_property
    def level_classes(self) -> tuple[np.ndarray, ...]:
        """For each of the L levels int64 [N_k], its class indices, ascending. Read-only."""
        by_level = _read_only(np.argsort(self.levels, kind="stable").astype(np.int64))
        return tuple(np.split(by_level, np.cumsum(self.level_sizes)[:-1])[: self.num_levels])

    @cached_property
    def class_index(self) -> Mapping[str, int]:
        """Class name -> class index."""
        return {name: i for i, name in enumerate(self.classes)}

    def vectors(self) -> np.ndarray:
        """Hierarchical label vectors of all classes.

        Returns:
            int16 [C, L]. For each level up to the class's own, the place of its ancestor (of itself at its
            own level) among that level's classes in ascending class index; -1 above. Read-only, made once.
        """
        return self._vectors

    @cached_property
    def _vectors(self) -> np.ndarray:
        place = np.full(len(self.classes), -1, np.int16)
        for members in self.level_classes:
            place[members] = np.arange(len(members))
        vectors = np.full((len(self.classes), self.num_levels), -1, np.int16)
        rows = ancestors = np.arange(len(self.classes))
        while len(rows):
            kept = self.levels[ancestors] < self.num_levels
            vectors[rows[kept], self.levels[ancestors[kept]]] = place[ancestors[kept]]
            ancestors = self.parents[ancestors]
            rows, ancestors = rows[ancestors >= 0], ancestors[ancestors >= 0]
        return _read_only(vectors)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the JSON of classes, num_levels and parents: ASCII, keys sorted, no spaces."""
        content = {"classes": self.classes, "num_levels": self.num_levels, "parents": self.parents.tolist()}
        return hashlib.sha256(_compact_json(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The tree as a JSON object."""
        return {
            "format": TREE_FORMAT,
            "version": list(TREE_VERSION),
            "fingerprint": self.fingerprint,
            "rule": asdict(self.rule),
            "max_levels": self.max_levels,
            "num_listed": self.num_listed,
            "classes": list(self.classes),
            "parents": self.parents.tolist(),
            "names": list(self.names),
        }

    @classmethod
    def from_json(cls, content: Any, *, where: str = "tree") -> LabelTree:
        """Read what `to_json` made.

        Args:
            content: parsed JSON; fields that are not known are ignored.
            where: the file, for error texts.

        Raises:
            DataError: not a tree, of a newer major version, or with a fingerprint that does not fit.
        """
        _check_json(content, where)
        rule = content["rule"]
        try:
            tree = cls(
                classes=tuple(content["classes"]),
                parents=np.array(content["parents"], np.int32),
                num_listed=content["num_listed"],
                max_levels=content["max_levels"],
                names=tuple(content["names"]),
                rule=TreeRule(rule["parents"], rule["inner"], rule["source"]),
            )
        except (DataError, UsageError) as error:
            raise DataError(f"{where}: {error}") from error
        if tree.fingerprint != content["fingerprint"]:
            raise DataError(
                f"{where}: fingerprint: expected {tree.fingerprint}, found {content['fingerprint']}; "
                "classes, parents or levels were changed afterwards. Run: softshard tree build"
            )
        return tree

    def save(self, path: str | Path) -> None:
        """Write the tree as JSON to a local path or any fsspec URL."""
        filesystem, inner_path = url_to_fs(str(path))
        filesystem.pipe_file(inner_path, (_compact_json(self.to_json()) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> LabelTree:
        """Read a tree from a local path or any fsspec URL.

        Raises:
            UsageError: the file cannot be read.
            DataError: not JSON, more than `MAX_TREE_BYTES`; and as `from_json`.
        """
        text = _read_text(str(path))
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: expected JSON; {error}; the file is cut short or not a tree") from error
        return cls.from_json(content, where=str(path))

    def summary(self) -> str:
        """The tree in a few lines: rule, classes, classes per level, fingerprint."""
        kept, cut = self.level_sizes[: self.num_levels], self.level_sizes[self.num_levels :]
        lines = [
            f"parents {self.rule.parents}, inner {self.rule.inner}, from {self.rule.source}",
            f"{len(self.classes)} classes: {self.num_listed} listed, "
            f"{len(self.classes) - self.num_listed} inner nodes",
            f"{len(kept)} levels of {' '.join(map(str, kept))} classes",
            f"fingerprint {self.fingerprint}",
        ]
        if cut:
            lines.insert(3, f"levels left out: {' '.join(map(str, cut))} classes")
        return "\n".join(lines)

    def find(self, name: str) -> list[int]:
        """Class index of a class name; else those of a wnid, a lemma or a noun, ascending; maybe none."""
        if name in self.class_index:
            return [self.class_index[name]]
        wanted = {_folded(name)}
        if name in wordnet():
            wanted |= {_folded(lemma) for lemma in wordnet().lemmas(name)}
        wnids = set(wordnet().senses(name))
        return [
            i
            for i, (class_name, shown) in enumerate(zip(self.classes, self.names, strict=True))
            if _folded(shown) in wanted or class_name in wnids
        ]

    def show(self, name: str) -> str:
        """Describe a class: its chain from the root with indices, its children, its label vector.

        Args:
            name: a class name, a wnid or a noun; every class that it may stand for is described.

        Raises:
            UsageError: the tree has no such class.
        """
        found = self.find(name)
        if not found:
            raise UsageError(
                f"tree: expected one of its {len(self.classes)} classes, by name or wnid, found {name!r}"
            )
        return "\n\n".join(self._describe(class_index) for class_index in found)

    def _describe(self, class_index: int) -> str:
        chain = [class_index]
        while (parent := int(self.parents[chain[-1]])) >= 0:
            chain.append(parent)
        vector = self.vectors()[class_index].tolist()
        lines = [f"{self._title(class_index)}: class {class_index}, level {len(chain) - 1}"]
        for level, node in enumerate(reversed(chain)):
            place = (
                f"index {vector[level]} of {self.level_sizes[level]}"
                if level < len(vector)
                else "level left out"
            )
            lines.append(f"  level {level:2d}  {'  ' * level}{self._title(node)}  (class {node}, {place})")
        children = [self._title(child) for child in np.flatnonzero(self.parents == class_index).tolist()]
        return "\n".join([*lines, f"  children: {', '.join(children) or 'none'}", f"  vector: {vector}"])

    def _title(self, class_index: int) -> str:
        name, shown = self.classes[class_index], self.names[class_index]
        return name if shown == name else f"{name} {shown}"


def _check(tree: LabelTree) -> None:
    """Refuse what no tree can be, before more memory is taken."""
    num_classes = len(tree.classes)
    if num_classes == 0:
        raise UsageError("tree: expected classes, found none")
    if tree.max_levels is not None and tree.max_levels < 1:
        raise UsageError(f"tree: levels: expected 1 or more, found {tree.max_levels}")
    if twice := [name for name, count in Counter(tree.classes).items() if count > 1]:
        raise DataError(f"tree: classes: expected distinct names, found twice: {', '.join(map(repr, twice))}")
    if len(tree.names) != num_classes or tree.parents.shape != (num_classes,):
        raise DataError(
            f"tree: expected a name and a parent for each of {num_classes} classes, "
            f"found {len(tree.names)} names and parents of shape {tree.parents.shape}"
        )
    if not 1 <= tree.num_listed <= num_classes:
        raise DataError(f"tree: num_listed: expected 1 to {num_classes}, found {tree.num_listed}")
    lowest, highest = int(tree.parents.min()), int(tree.parents.max())
    if lowest < -1 or highest >= num_classes:
        raise DataError(
            f"tree: parents: expected -1 to {num_classes - 1}, found {lowest if lowest < -1 else highest}"
        )
    for level, size in enumerate(tree.level_sizes):
        if size > MAX_LEVEL_CLASSES:
            raise DataError(
                f"tree: level {level}: expected at most {MAX_LEVEL_CLASSES} classes, found {size}; "
                "a hierarchical label is an int16; list fewer classes, or make inner nodes classes"
            )


def _check_json(content: Any, where: str) -> None:
    """Check format, version and the types of all fields."""
    if not isinstance(content, dict) or content.get("format") != TREE_FORMAT:
        raise DataError(
            f"{where}: expected a label tree, JSON with format {TREE_FORMAT!r}, found another file"
        )
    version = content.get("version")
    if not isinstance(version, list) or len(version) != 2 or not all(map(_is_count, version)):
        raise DataError(f"{where}: version: expected [major, minor], found {version!r}")
    if version[0] > TREE_VERSION[0]:
        raise DataError(
            f"{where}: version: expected {TREE_VERSION[0]}.x, found {version[0]}.{version[1]}; "
            "written by a newer softshard. Run: pip install --upgrade softshard"
        )
    max_levels, parents, rule = (content.get(name) for name in ("max_levels", "parents", "rule"))
    is_right = {
        "fingerprint": isinstance(content.get("fingerprint"), str),
        "rule": isinstance(rule, dict)
        and _is_texts([rule.get(key) for key in ("parents", "inner", "source")]),
        "max_levels": max_levels is None or _is_count(max_levels),
        "num_listed": _is_count(content.get("num_listed")),
        "classes": _is_texts(content.get("classes")),
        "names": _is_texts(content.get("names")),
        "parents": isinstance(parents, list) and all(item == -1 or _is_count(item) for item in parents),
    }
    for name, right in is_right.items():
        if not right:
            found = str(content.get(name, "nothing"))[:60]
            raise DataError(f"{where}: {name}: expected as `softshard tree build` writes it, found {found}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31  # not isinstance: True is an int


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _resolve_all(classes: Sequence[str]) -> list[str]:
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


def _wordnet_parent(rule: str, counted: set[str] | None) -> Callable[[str], str | None]:
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


def _climb(nodes: Iterable[str], parent: Callable[[str], str | None]) -> dict[str, str | None]:
    """Parents of the nodes and of all their ancestors."""
    parent_of: dict[str, str | None] = {}
    for node in nodes:
        above: str | None = node
        while above is not None and above not in parent_of:
            parent_of[above] = parent(above)
            above = parent_of[above]
    return parent_of


def _branching_nodes(listed: Sequence[str], parent_of: Mapping[str, str | None]) -> list[str]:
    """What `inner="branching"` adds, ascending.

    Every node of `parent_of` is listed or above a listed class, so each of its children there is a branch.
    """
    num_branches = Counter(parent_of.values())
    listed_nodes = set(listed)
    branching = sorted(node for node in parent_of if num_branches[node] > 1 and node not in listed_nodes)
    kept = listed_nodes.union(branching)
    roots = [node for node in kept if _kept_parent(node, parent_of, kept) is None]
    return [node for node in branching if roots != [node]]


def _kept_parents(nodes: Sequence[str], parent_of: Mapping[str, str | None]) -> np.ndarray:
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


def _cycles(parent_of: Mapping[Node, Node | None]) -> list[list[Node]]:
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


def _shown_name(name: str) -> str:
    return wordnet().lemmas(name)[0] if WNID_PATTERN.fullmatch(name) else name


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()


def _warn_if_flat(tree: LabelTree, *, inner_would_help: bool) -> None:
    if tree.num_levels > 1:
        return
    hint = "; inner='branching' makes common ancestors classes too" if inner_would_help else ""
    warnings.warn(
        f"softshard: the label tree has one level, of {tree.level_sizes[0]} classes, and semantic softmax is "
        f"plain softmax there{hint}",
        UserWarning,
        stacklevel=3,
    )


def _read_pairs(url: str) -> list[tuple[str, str]]:
    """(child, parent) of a CSV."""
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    rows = csv.reader(io.StringIO(_read_text(url), newline=""))
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


def _read_text(url: str) -> str:
    filesystem, inner_path = url_to_fs(url)
    try:
        content: bytes = filesystem.cat_file(inner_path, end=MAX_TREE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{url}: cannot be read; {error.strerror or error}") from error
    if len(content) > MAX_TREE_BYTES:
        raise DataError(f"{url}: expected at most {MAX_TREE_BYTES} bytes, found more; is it another file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: expected UTF-8 text, found byte {content[error.start]:#04x}") from error


def _compact_json(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
