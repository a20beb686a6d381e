"""The label tree: which class is whose parent, and the hierarchical label vectors that follow.

One parent per class. The *level* of a class is its number of ancestors among the classes (Ridnik et al. 2021,
"ImageNet-21K Pretraining for the Masses", sec. 3.2); its hierarchical label vector tells, for every level up
to its own, where its ancestor stands among that level's classes. In WordNet's graph a rule picks the parent.

C classes, L hierarchy levels kept, N_k classes of level k.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from . import relations, tree_text
from .errors import DataError, UsageError
from .files import read_text
from .relations import INNER_RULES, PARENT_RULES
from .schema import HIER, MAX_LEVEL_CLASSES, MAX_TREE_BYTES, MIB
from .storage import public_name
from .tree_json import TREE_FORMAT, TREE_VERSION, check_tree_json, compact_json
from .wordnet import WNID_PATTERN, wordnet

MAX_LEVELS = (HIER.max_bytes - 128) // 2  # int16 behind the 128 bytes of an .npy header
MAX_VECTOR_ELEMENTS = 64 * MIB  # C * L


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
        listed = relations.resolve_classes(classes)
        parent_of = relations.climb(
            listed, relations.wordnet_parent(parents, set(listed) if inner == "none" else None)
        )
        branching = relations.branching_nodes(listed, parent_of)
        added = {"none": [], "branching": branching, "all": sorted(parent_of.keys() - set(listed))}[inner]
        nodes = [*listed, *added]
        names = (*classes, *added)
        tree = cls(
            classes=names,
            parents=relations.kept_parents(nodes, parent_of),
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
        classes, parent_of = relations.table_parents(classes, child_parent_pairs, source)
        above = relations.climb(classes, lambda name: parent_of[name])
        listed = set(classes)
        nodes = (*classes, *(name for name in parent_of if name in above and name not in listed))
        tree = cls(
            classes=nodes,
            parents=relations.kept_parents(nodes, above),
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
        return cls.from_table(classes, relations.read_pairs(str(path)), levels=levels, source=str(path))

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
        cycles = relations.find_cycles(
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
        return hashlib.sha256(compact_json(content).encode()).hexdigest()

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
        check_tree_json(content, where)
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
        filesystem.pipe_file(inner_path, (compact_json(self.to_json()) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> LabelTree:
        """Read a tree from a local path or any fsspec URL.

        Raises:
            UsageError: the file cannot be read.
            DataError: not JSON, more than `MAX_TREE_BYTES`; and as `from_json`.
        """
        text, where = read_text(str(path), MAX_TREE_BYTES), public_name(str(path))
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: expected JSON; {error}; the file is cut short or not a tree"
            ) from error
        return cls.from_json(content, where=where)

    def summary(self) -> str:
        """The tree in a few lines: rule, classes, classes per level, fingerprint."""
        return tree_text.summary(self)

    def find(self, name: str) -> list[int]:
        """Class index of a class name; else those of a wnid, a lemma or a noun, ascending; maybe none."""
        return tree_text.find(self, name)

    def show(self, name: str) -> str:
        """Describe a class: its chain from the root with indices, its children, its label vector.

        Args:
            name: a class name, a wnid or a noun; every class that it may stand for is described.

        Raises:
            UsageError: the tree has no such class.
        """
        return tree_text.show(self, name)


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


def _shown_name(name: str) -> str:
    return wordnet().lemmas(name)[0] if WNID_PATTERN.fullmatch(name) else name


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


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
