"""Fewer classes by a table of coarse labels (METHODS' fifth way; Gao 2021), made fewer or more by merging or splitting.

A table says a class a row (`synset,categories`), or a coarse label a row with its classes beside it (`category,labels`).
A name of two classes of the list is an error that says how to choose; so is one that two classes of ImageNet-1K are known
to share (`SHARED_NAMES`) where the list has only one of them. Any other name means the one class of the list that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from .choose_classes import check_num
from .confusion_groups import group_sizes
from .errors import DataError, UsageError
from .files import table_rows
from .schema import MAX_TREE_BYTES
from .storage import public_name
from .subset_file import ClassGroup
from .wordnet import WNID_PATTERN, wordnet

_CLASS_COLUMNS = ("synset", "wnid", "class", "name")
_LABEL_COLUMNS = ("categories", "category", "coarse", "label", "group", "superclass")
_WIDE_HEADER = ["category", "labels"]
# Names that two classes of ImageNet-1K share: a part of ImageNet may have one of them alone, and the table mean the other.
SHARED_NAMES = {"crane": ("n02012849", "n03126707"), "maillot": ("n03710637", "n03710721")}


class CoarseLabels(NamedTuple):
    """What a table says of a class list.

    Attributes:
        groups: the coarse labels with classes of the list, in the table's order.
        uncovered: classes of the list that no row names.
        num_ignored: rows about classes that the list does not have.
    """

    groups: tuple[ClassGroup, ...]
    uncovered: tuple[str, ...]
    num_ignored: int


class _Row(NamedTuple):
    line: int
    name: str
    label: str


def read_coarse_labels(
    url: str, names: Sequence[str], meanings: Mapping[str, Sequence[str]] | None = None
) -> CoarseLabels:
    """Read a table of coarse labels.

    Args:
        url: `.csv` or `.tsv`; UTF-8 with or without a byte-order mark, any line ends. A header says what the columns
            are: one of `synset wnid class name` and one of `categories category coarse label group superclass`, or
            `category,labels` where a row is a label and its classes.
        names: the class list: wnids, or names as the table spells them.
        meanings: which classes a name of the table stands for, where that is not clear.

    Raises:
        UsageError: the file cannot be read; a meaning of a name that the table does not have.
        DataError: a header that is none of these, rows of another width, empty cells, a class twice or with two
            labels, names of no class or of several; all are named, with their lines.
    """
    where = public_name(url)
    meanings = dict(meanings or {})
    rows, problems = _read_rows(url, where)
    finder = _Finder(names, meanings)
    label_of: dict[str, _Row] = {}
    num_ignored = 0
    for row in rows:
        found = finder.find(row.name)
        if isinstance(found, str):
            problems.append(f"{where}: line {row.line}: {found}")
            continue
        num_ignored += not found
        for name in found:
            earlier = label_of.setdefault(name, row)
            # A name that stands for several classes may come as often as it has classes.
            again = earlier is not row and not (earlier.label == row.label and row.name in meanings)
            if again:
                problems.append(
                    f"{where}: line {row.line}: {row.name!r} ({name}) has the label {row.label!r}; it stands on line "
                    f"{earlier.line} already, with {earlier.label!r}"
                )
    if problems:
        raise DataError("\n".join(problems))
    if unused := meanings.keys() - {row.name for row in rows}:
        raise UsageError(
            f"{where}: expected names of the table, found meanings of {sorted(unused)}, which it does not have"
        )
    place = {name: i for i, name in enumerate(names)}
    members: dict[str, list[str]] = {}
    for row in rows:
        members.setdefault(row.label, [])
    for name in sorted(label_of, key=place.__getitem__):
        members[label_of[name].label].append(name)
    groups = tuple(ClassGroup(label, tuple(found)) for label, found in members.items() if found)
    if not groups:
        raise DataError(
            f"{where}: expected labels of the {len(names):,} classes (the first is {names[0]!r}), found none"
        )
    return CoarseLabels(groups, tuple(name for name in names if name not in label_of), num_ignored)


def _read_rows(url: str, where: str) -> tuple[list[_Row], list[str]]:
    """The (class, label) pairs of a table, and everything that is wrong with its form."""
    suffix = PurePosixPath(where).suffix.lower()
    if suffix not in (".csv", ".tsv"):
        raise UsageError(f"{where}: expected a table (.csv or .tsv), found the ending {suffix!r}")
    lines = list(table_rows(url, MAX_TREE_BYTES))
    if not lines:
        raise DataError(f"{where}: expected a table with a header, found an empty file")
    header = [cell.lower() for cell in lines[0][1]]
    if header[:2] == _WIDE_HEADER and not any(header[2:]):
        return _wide_rows(lines[1:], where)
    columns = [
        next((header.index(name) for name in choices if name in header), None)
        for choices in (_CLASS_COLUMNS, _LABEL_COLUMNS)
    ]
    class_column, label_column = columns
    if class_column is None or label_column is None:
        raise DataError(
            f"{where}: line {lines[0][0]}: expected a header with one of {', '.join(_CLASS_COLUMNS)} and one of "
            f"{', '.join(_LABEL_COLUMNS)}, or {','.join(_WIDE_HEADER)}; found {','.join(lines[0][1])[:80]!r}"
        )
    rows, problems = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            problems.append(f"{where}: line {number}: expected {len(header)} cells, found {len(cells)}")
        elif not cells[class_column] or not cells[label_column]:
            problems.append(f"{where}: line {number}: expected a class and a label, found an empty cell")
        else:
            rows.append(_Row(number, cells[class_column], cells[label_column]))
    return rows, problems


def _wide_rows(lines: Sequence[tuple[int, list[str]]], where: str) -> tuple[list[_Row], list[str]]:
    rows, problems = [], []
    first_line: dict[str, int] = {}
    for number, (label, *cells) in lines:
        found = [cell for cell in cells if cell]
        if not label or not found:
            problems.append(
                f"{where}: line {number}: expected a label and its classes, found {label!r} alone"
            )
        elif label in first_line:
            problems.append(f"{where}: line {number}: {label!r} stands on line {first_line[label]} already")
        else:
            first_line[label] = number
            rows += [_Row(number, name, label) for name in found]
    return rows, problems


class _Finder:
    """Which classes of a list a table's name stands for."""

    def __init__(self, names: Sequence[str], meanings: Mapping[str, Sequence[str]]) -> None:
        self.names = set(names)
        self.meanings = meanings
        self.by_lemma: dict[str, list[str]] = {}
        for name in names:
            if WNID_PATTERN.fullmatch(name) and name in wordnet():
                self.by_lemma.setdefault(wordnet().lemmas(name)[0], []).append(name)

    def find(self, name: str) -> list[str] | str:
        """Its classes; none where it is of WordNet and not of the list; or what is wrong."""
        if name in self.meanings:
            wrong = [
                meant for meant in self.meanings[name] if meant not in self.names and not _is_known(meant)
            ]
            if wrong:
                return f"{name!r}: expected it to mean a class, found {wrong[0]!r}, which there is none of"
            return [meant for meant in self.meanings[name] if meant in self.names]
        if name in self.names:
            return [name]
        spelled = name.replace("_", " ")
        # Spelled exactly: `Cardigan` is a dog, `cardigan` a garment.
        found = self.by_lemma.get(spelled, [])
        shared = [wnid for wnid in SHARED_NAMES.get(spelled, ()) if wnid in self.names]
        candidates = list(dict.fromkeys([*found, *(SHARED_NAMES.get(spelled, ()) if shared else ())]))
        if len(candidates) > 1:
            options = " or ".join(f"--meaning '{name}={wnid}'" for wnid in candidates)
            return f"{name!r} may be any of {', '.join(map(_described, candidates))}; say which: {options}"
        if not found and not _is_known(name):
            return (
                f"{name!r}: expected the name or wnid of a class, found neither; correct it, or say what it stands "
                f"for: --meaning '{name}=CLASS'"
            )
        return found


def _is_known(name: str) -> bool:
    """Whether WordNet has it: then it may be a class that the list does not have."""
    return name in wordnet() or bool(wordnet().senses(name))


def _described(wnid: str) -> str:
    parents = [wordnet().lemmas(parent)[0] for parent in wordnet().hypernyms(wnid)[:1]]
    return (
        f"{wnid} ({', '.join(wordnet().lemmas(wnid)[:2])}: a kind of {parents[0] if parents else 'entity'})"
    )


def adjust_number(
    groups: Sequence[ClassGroup], num: int, paths: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[ClassGroup, ...], tuple[str, ...]]:
    """Make groups exactly N.

    While there are too many, the smallest (of several the first) is merged with its nearest: that whose members share
    the most ancestors with its own, on average over all pairs; of several the smallest, then the first. While there are
    too few, that with the most classes a part gets one part more; its classes, in the order of the tree, are cut into
    parts that differ by one at most.

    Args:
        groups: of one class or more each.
        num: N.
        paths: of every member the names from the root of the tree to itself.

    Returns:
        The groups, and notes of what was done.

    Raises:
        UsageError: N is not 1 to the number of classes in them.
    """
    check_num([member for group in groups for member in group.members], num)
    left, notes = list(groups), []
    if len(left) > num:
        notes.append(
            f"{len(left):,} labels became {num:,}: the smallest was merged with the nearest, again and again"
        )
        left = _merged(left, num, paths)
    parts = [1] * len(left)
    for _ in range(num - len(left)):
        most = max(range(len(left)), key=lambda i: (len(left[i].members) / parts[i], -i))
        parts[most] += 1
    notes += [f"{group.name!r} was split into {n}" for group, n in zip(left, parts, strict=True) if n > 1]
    split = [part for group, n in zip(left, parts, strict=True) for part in _split(group, n, paths)]
    return tuple(split), tuple(notes)


def _merged(groups: list[ClassGroup], num: int, paths: Mapping[str, tuple[str, ...]]) -> list[ClassGroup]:
    nodes = {
        node: i for i, node in enumerate(dict.fromkeys(node for path in paths.values() for node in path))
    }
    # How many members of each group are at or below each node: products of rows count shared ancestors over all pairs.
    below = np.zeros((len(groups), len(nodes)))
    for i, group in enumerate(groups):
        for member in group.members:
            below[i, [nodes[node] for node in paths[member]]] += 1
    sizes = np.array([len(group.members) for group in groups])
    while len(groups) > num:
        smallest = int(sizes.argmin())
        shared = below @ below[smallest] / (sizes * sizes[smallest])
        shared[smallest] = -1
        nearest = int(np.lexsort((np.arange(len(groups)), sizes, -shared))[0])
        one, two = sorted((smallest, nearest))
        groups[one] = ClassGroup(
            f"{groups[one].name} + {groups[two].name}", groups[one].members + groups[two].members
        )
        del groups[two]
        below[one] += below[two]
        sizes[one] += sizes[two]
        below, sizes = np.delete(below, two, axis=0), np.delete(sizes, two)
    return groups


def _split(group: ClassGroup, parts: int, paths: Mapping[str, tuple[str, ...]]) -> Iterator[ClassGroup]:
    if parts == 1:
        yield group
        return
    members = sorted(group.members, key=paths.__getitem__)
    start = 0
    for i, size in enumerate(group_sizes(len(members), parts), 1):
        yield ClassGroup(f"{group.name} {i}", tuple(members[start : start + size]))
        start += size
