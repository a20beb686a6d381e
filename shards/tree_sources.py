"""Relations as people keep them: a child,parent table, nested YAML, ImageNet's `wordnet.is_a.txt`.

What comes out are (child, parent) pairs in order of appearance; an empty parent declares a root. Nothing is
constructed from YAML: its events are read, so that a name is the text that stands there (`no` stays `no`), no alias is
followed and no tag means anything.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from .errors import DataError, UsageError
from .files import read_text
from .schema import MAX_TREE_BYTES, MIB
from .storage import public_name
from .wordnet import WNID_PATTERN

MAX_YAML_BYTES = 4 * MIB  # 60,000 names; libyaml reads about 3 MB a second
MAX_YAML_NESTING = 200

# libyaml's parser where PyYAML was built with it, else the one in Python; both without any constructor.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_NOTHING = ("", "~", "null", "Null", "NULL")


def is_wordnet_list(url: str) -> bool:
    """Whether a file of relations is read as ImageNet's `wordnet.is_a.txt`: by its ending."""
    return _suffix(url) == ".txt"


def read_pairs(url: str) -> list[tuple[str, str]]:
    """The (child, parent) pairs of a user's file: `.csv`, `.tsv`, `.yaml` or `.yml`.

    Raises:
        UsageError: the file cannot be read, or has another ending.
        DataError: see `read_table` and `read_yaml`.
    """
    suffix = _suffix(url)
    if suffix in (".csv", ".tsv"):
        return read_table(url)
    if suffix in (".yaml", ".yml"):
        return read_yaml(url)
    raise UsageError(
        f"{public_name(url)}: expected relations in a .csv or .tsv (child,parent), a .yaml (nested names) or ImageNet's "
        f"wordnet.is_a.txt, found the ending {suffix!r}; give the file the ending of what it is"
    )


def read_table(url: str) -> list[tuple[str, str]]:
    """The pairs of a table of two columns.

    A first row `child,parent`, or `parent,child`, is a header and gives the order; blank rows do not count. Columns
    are parted by commas, in a `.tsv` by tabs.

    Raises:
        UsageError: the file cannot be read.
        DataError: rows that are not two columns, with their line numbers.
    """
    where = public_name(url)
    delimiter, between = ("\t", "<tab>") if _suffix(url) == ".tsv" else (",", ",")
    expected = f"child{between}parent"
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    parent_first = False
    rows = csv.reader(io.StringIO(read_text(url, MAX_TREE_BYTES), newline=""), delimiter=delimiter)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            header = [cell.lower() for cell in cells] if rows.line_num == 1 else []
            if header == ["parent", "child"]:
                parent_first, expected = True, f"parent{between}child"
            if not any(cells) or sorted(header) == ["child", "parent"]:
                continue
            if parent_first:
                cells.reverse()
            if len(cells) == 2 and cells[0]:
                pairs.append((cells[0], cells[1]))
            else:
                problems.append(
                    f"{where}: line {rows.line_num}: expected `{expected}`, found {delimiter.join(row)!r}"
                )
    except csv.Error as error:
        problems.append(f"{where}: line {rows.line_num}: expected CSV; {error}")
    if problems:
        raise DataError("\n".join(problems))
    return pairs


def read_yaml(url: str) -> list[tuple[str, str]]:
    """The pairs of nested YAML: the keys of a map are nodes, what is nested in them are their children.

        animal:
          bird: [swan, goose]     # a list of leaves; or of maps, for nodes with children
          fish:                   # a leaf
        plant:
          tree: oak

    Raises:
        UsageError: the file cannot be read.
        DataError: not YAML, or more than names in maps and lists: aliases, tags, a second document, a key that is
            no text, a name twice below the same parent; more than `MAX_YAML_BYTES` or `MAX_YAML_NESTING`. Names at
            a wrong place are all named, with their lines.
    """
    where = public_name(url)
    reader = _YamlReader(where)
    text = read_text(url, MAX_YAML_BYTES)
    try:
        for event in yaml.parse(text, Loader=_YAML_LOADER):
            reader.take(event)
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{where}: expected YAML of nested names; {problem}") from error
    if reader.problems:
        raise DataError("\n".join(reader.problems))
    return list(reader.lines)


@dataclass
class _Nest:
    """A map or list of YAML that is open: whose children its names are, and in a map the key before a value."""

    is_map: bool
    parent: str
    key: str | None = None


class _YamlReader:
    """Turns a stream of YAML events into pairs; holds the way from the root to here."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.lines: dict[tuple[str, str], int] = {}  # pair -> the line where it stands
        self.problems: list[str] = []
        self._nests: list[_Nest] = []
        self._num_documents = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._num_documents += 1
            if self._num_documents > 1:
                raise DataError(f"{self._at(event)}: expected one document, found a second one")
        elif isinstance(event, yaml.AliasEvent):
            raise DataError(
                f"{self._at(event)}: expected a name, found the alias *{event.anchor}; aliases are not followed, "
                "write the names out"
            )
        elif isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            if event.tag not in (None, "!"):
                raise DataError(
                    f"{self._at(event)}: expected names, found the tag {event.tag!r}; leave it out"
                )
            if isinstance(event, yaml.ScalarEvent):
                self._take_scalar(event)
            else:
                self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._nests.pop()
            self._end_value()

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._nests) >= MAX_YAML_NESTING:
            raise DataError(
                f"{self._at(event)}: expected maps and lists nested at most {MAX_YAML_NESTING} deep, found more"
            )
        if self._at_key():
            raise DataError(f"{self._at(event)}: expected a name before a colon, found a map or a list")
        self._nests.append(_Nest(isinstance(event, yaml.MappingStartEvent), self._parent()))

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        name = event.value.strip()
        is_empty = not name or (not event.style and name in _YAML_NOTHING)
        if self._at_key():
            self._add(event, name, is_empty)
            self._nests[-1].key = name
            return
        # A key without a value is a leaf, and so has no children; an empty file has no names at all.
        is_leaf_mark = is_empty and (not self._nests or self._nests[-1].is_map)
        if not is_leaf_mark:
            self._add(event, name, is_empty)
        self._end_value()

    def _at_key(self) -> bool:
        return bool(self._nests) and self._nests[-1].is_map and self._nests[-1].key is None

    def _parent(self) -> str:
        """Of the names that come next; empty above the roots."""
        if not self._nests:
            return ""
        nest = self._nests[-1]
        return nest.parent if nest.key is None else nest.key

    def _end_value(self) -> None:
        if self._nests:
            self._nests[-1].key = None

    def _add(self, event: yaml.ScalarEvent, name: str, is_empty: bool) -> None:
        pair = (name, self._parent())
        if is_empty:
            self.problems.append(
                f"{self._at(event)}: expected a name, found {event.value!r}; quote it where it is one"
            )
        elif pair in self.lines:
            below = f" below {pair[1]!r}" if pair[1] else ""
            self.problems.append(
                f"{self._at(event)}: {name!r} stands{below} on line {self.lines[pair]} already"
            )
        else:
            self.lines[pair] = event.start_mark.line + 1

    def _at(self, event: yaml.Event) -> str:
        return f"{self._where}: line {event.start_mark.line + 1}"


def read_wordnet_list(url: str) -> dict[str, list[str]]:
    """The graph in a file like ImageNet's `wordnet.is_a.txt`: lines `parent child`, both wnids.

    Returns:
        The parents of every wnid of the file, in the order of its lines.

    Raises:
        UsageError: the file cannot be read.
        DataError: lines that are not two wnids, with their numbers.
    """
    where = public_name(url)
    graph: dict[str, list[str]] = {}
    problems: list[str] = []
    for number, line in enumerate(read_text(url, MAX_TREE_BYTES).split("\n"), 1):
        words = line.split()
        if len(words) == 2 and all(map(WNID_PATTERN.fullmatch, words)):
            parent, child = words
            graph.setdefault(parent, [])
            # The last line counts for `last`: a line that comes again goes to the end.
            parents = graph.setdefault(child, [])
            if parent in parents:
                parents.remove(parent)
            parents.append(parent)
        elif words:
            problems.append(
                f"{where}: line {number}: expected two wnids, `parent child`, found {line[:60]!r}"
            )
    if problems:
        hint = (
            f"{where}: a .txt of relations is ImageNet's wordnet.is_a.txt; give a table of your own as .csv"
        )
        raise DataError("\n".join([*problems, hint]))
    return graph


def _suffix(url: str) -> str:
    return PurePosixPath(public_name(url)).suffix.lower()  # not that of a signed query
