"""The label tree: which class is whose parent, and the hierarchical label vectors that follow.

One parent per class. The *level* of a class is its number of ancestors among the classes (Ridnik et al. 2021,
"ImageNet-21K Pretraining for the Masses", sec. 3.2); its hierarchical label vector tells, for every level up
to its own, where its ancestor stands among that level's classes. In WordNet's graph a rule picks the parent. The
rule `all-paths` keeps them all: a class then has a vector for each of its paths to a root.

C classes, L hierarchy levels kept, N_k classes of level k, A paths of a class at most, E further parents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import tree_build, tree_paths, tree_text
from .destination import write_file
from .errors import DataError, UsageError
from .files import canonical_json, parse_json, read_text, sha256_hex
from .schema import MAX_TREE_BYTES
from .storage import public_name
from .tree_build import TreeRule
from .tree_json import TREE_FORMAT, TREE_VERSION, check_tree_json
from .tree_limits import check_tree, count_levels
from .tree_sources import read_pairs


@dataclass(frozen=True, eq=False)
class LabelTree:
    """A tree over classes. Compare trees by `fingerprint`.

    Attributes:
        classes: C class names: the listed ones in their order, then inner nodes that were made classes.
        parents: int32 [C]. Class index of the parent, -1 at a root; with several parents that of the longest path.
            Read-only.
        num_listed: how many classes were listed; the others are inner nodes and need no images of their own.
        max_levels: levels kept at most, None for all. Classes below the cut keep their ancestors' labels.
        names: C names for people: the first lemma of a wnid, else the class name.
        rule: how the tree came about.
        other_parents: int32 [E, 2]. (child, parent) of every further parent in a tree of all paths, ascending;
            empty in others. Read-only.
    """

    classes: tuple[str, ...]
    parents: np.ndarray
    num_listed: int
    max_levels: int | None
    names: tuple[str, ...]
    rule: TreeRule
    other_parents: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", _read_only(np.array(self.parents, np.int32)))
        object.__setattr__(self, "other_parents", _read_only(np.array(self.other_parents, np.int32)))
        check_tree(self)

    @classmethod
    def from_wordnet(
        cls,
        classes: Sequence[str],
        *,
        parents: str = "first",
        inner: str = "none",
        levels: int | None = None,
        relations_file: str | Path | None = None,
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
                `all-paths`: all of them. A class stands on the level of its longest path and has a label vector
                for each path; a parent that is above another one is left out, since it says nothing new.
            inner: which ancestors that are not listed become classes, numbered after the listed ones by
                ascending wnid.
                `none`: no ancestor (the published rule).
                `branching`: where two or more branches with listed classes meet (lowest common ancestors). A
                node with one such branch would say the same as the node below it, and a lone root over
                everything would be a level of one class: neither is added.
                `all`: every ancestor, up to `entity`.
            levels: keep that many levels from the roots; 11 reproduces the published code on fall11.
            relations_file: take the relations from ImageNet's `wordnet.is_a.txt` (lines `parent child`) rather than
                from the table inside the package. Its lines then are the order of `first` and `last`, and
                `published` is `last`. A synset that no line names is a root.

        Returns:
            The tree. Where it has a single level, a warning says that semantic softmax is plain softmax then.

        Raises:
            UsageError: an unknown rule, no level, or no classes; a file that cannot be read.
            DataError: classes that WordNet does not know, classes of one synset, cycles of the file; all of them
                are named. More paths to a class than `hier.npy` holds.
        """
        file = None if relations_file is None else str(relations_file)
        parts = tree_build.wordnet_parts(classes, parents=parents, inner=inner, relations_file=file)
        return cls._from_parts(parts, levels)

    @classmethod
    def from_table(
        cls,
        classes: Sequence[str] | None,
        child_parent_pairs: Iterable[tuple[str, str]],
        *,
        parents: str | None = None,
        levels: int | None = None,
        source: str = "table",
    ) -> LabelTree:
        """Build a tree from a user's own relations. Ancestors of listed classes are always classes.

        Args:
            classes: the listed classes, each of them a name of the table; None lists the table's leaves in
                order of appearance. Inner nodes follow in order of appearance; other names are left out.
            child_parent_pairs: (child, parent) names; an empty parent declares a root, needed only for a root
                without children.
            parents: what to do with a child of several parents: None refuses it, a rule as in `from_wordnet` (but
                for `published`) chooses, in the order of the pairs.
            levels: keep that many levels from the roots.
            source: where the pairs are from, for error texts and the record.

        Raises:
            UsageError: no level, no classes, or an unknown rule.
            DataError: classes that are not in the table, children with several parents, cycles; all are named.
        """
        parts = tree_build.table_parts(classes, child_parent_pairs, parents=parents, source=source)
        return cls._from_parts(parts, levels)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        classes: Sequence[str] | None = None,
        *,
        parents: str | None = None,
        levels: int | None = None,
    ) -> LabelTree:
        """Build a tree from a user's file: a table (`.csv`, `.tsv`) or nested YAML (`.yaml`); see `from_table`.

        Args:
            path: a local path or any fsspec URL; UTF-8 with or without a byte-order mark. `tree_sources` says what
                tables and YAML look like.
            classes: the listed classes, None for the file's leaves.
            parents: see `from_table`.
            levels: keep that many levels from the roots.

        Raises:
            UsageError: the file cannot be read or has another ending; and as `from_table`.
            DataError: what is no pair of names, with line numbers; and as `from_table`.
        """
        pairs, where = read_pairs(str(path)), public_name(str(path))
        try:
            return cls.from_table(classes, pairs, parents=parents, levels=levels, source=where)
        except (DataError, UsageError) as error:  # some are of the tree, and know of no file
            raise error if where in str(error) else type(error)(f"{where}: {error}") from error

    @classmethod
    def _from_parts(cls, parts: tree_build.TreeParts, levels: int | None) -> LabelTree:
        tree = cls(
            classes=parts.classes,
            parents=parts.parents,
            num_listed=parts.num_listed,
            max_levels=levels,
            names=parts.names,
            rule=parts.rule,
            other_parents=parts.other_parents,
        )
        _warn_if_flat(tree, inner_would_help=parts.inner_would_help)
        return tree

    @cached_property
    def levels(self) -> np.ndarray:
        """int32 [C]. Number of ancestors of each class, 0 at a root; not cut by `max_levels`. Read-only."""
        return _read_only(count_levels(self.classes, self.parents))

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
            own level) among that level's classes in ascending class index; -1 above.

            In a tree where a class has several parents, int16 [C, A, L]: a vector for each of a class's distinct
            paths, first that along `parents`; then rows of -1. A path that is not the longest passes over levels and
            has -1 there.

            Read-only, made once.
        """
        return self._vectors

    @cached_property
    def _vectors(self) -> np.ndarray:
        place = np.full(len(self.classes), -1, np.int16)
        for members in self.level_classes:
            place[members] = np.arange(len(members))
        if len(self.other_parents):
            return _read_only(
                tree_paths.path_vectors(self.parents, self.other_parents, self.levels, place, self.num_levels)
            )
        vectors = np.full((len(self.classes), self.num_levels), -1, np.int16)
        rows = ancestors = np.arange(len(self.classes))
        while len(rows):
            kept = self.levels[ancestors] < self.num_levels
            vectors[rows[kept], self.levels[ancestors[kept]]] = place[ancestors[kept]]
            ancestors = self.parents[ancestors]
            rows, ancestors = rows[ancestors >= 0], ancestors[ancestors >= 0]
        return _read_only(vectors)

    @property
    def num_paths(self) -> int:
        """A, the vectors of a class: 1 where every class has one parent at most."""
        vectors = self.vectors()
        return vectors.shape[1] if vectors.ndim == 3 else 1

    @cached_property
    def all_parents(self) -> tuple[tuple[int, ...], ...]:
        """For each of the C classes all its parents, the one in `parents` first."""
        return tuple(map(tuple, tree_paths.parents_of_classes(self.parents, self.other_parents)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the JSON of classes, num_levels, parents, and other_parents where there are any.

        ASCII, keys sorted, no spaces.
        """
        content: dict[str, Any] = {
            "classes": self.classes,
            "num_levels": self.num_levels,
            "parents": self.parents.tolist(),
        }
        if len(self.other_parents):
            content["other_parents"] = self.other_parents.tolist()
        return sha256_hex(canonical_json(content))

    def to_json(self) -> dict[str, Any]:
        """The tree as a JSON object."""
        content = {
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
        if len(self.other_parents):
            content["other_parents"] = self.other_parents.tolist()
        return content

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
                other_parents=np.array(content.get("other_parents", []), np.int32).reshape(-1, 2),
            )
        except (DataError, UsageError) as error:
            raise DataError(f"{where}: {error}") from error
        if tree.fingerprint != content["fingerprint"]:
            raise DataError(
                f"{where}: fingerprint: expected {tree.fingerprint}, found {content['fingerprint']:.64}; "
                "classes, parents or levels were changed afterwards. Run: softshard tree build"
            )
        return tree

    def save(self, path: str | Path) -> None:
        """Write the tree as JSON to a local path or any fsspec URL; it appears whole."""
        write_file(path, canonical_json(self.to_json()) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> LabelTree:
        """Read a tree from a local path or any fsspec URL.

        Raises:
            UsageError: the file cannot be read.
            DataError: not JSON, more than `MAX_TREE_BYTES`; and as `from_json`.
        """
        text, where = read_text(str(path), MAX_TREE_BYTES), public_name(str(path))
        return cls.from_json(parse_json(text, where), where=where)

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


def _warn_if_flat(tree: LabelTree, *, inner_would_help: bool) -> None:
    if tree.num_levels > 1:
        return
    hint = (
        "; inner='branching' (--inner branching) makes common ancestors classes too"
        if inner_would_help
        else ""
    )
    warnings.warn(
        f"softshard: the label tree has one level, of {tree.level_sizes[0]} classes, and semantic softmax is "
        f"plain softmax there{hint}",
        UserWarning,
        stacklevel=4,
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
