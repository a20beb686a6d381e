"""How much each class has to do with a label, by one measure or several, every one from 0 to 1.

    path, wup      as in WordNet (concept_graph.py), the label itself 1
    lch            the same, divided by what the label itself has
    lin            the same
    jcn            1 / (1 + Jiang and Conrath's distance): NLTK's 1 / distance has no largest value
    confusion      how often a model takes the label for the class, by how often it is right
    text           how much of the class's words stands in the image's text (text_overlap.py)

C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .classes import class_list_sha256, resolve_wnid, timm_info_folder
from .concept_graph import ConceptGraph, contents_of_counts, contents_of_file, tree_graph, wordnet_graph
from .confusion_file import load_confusion
from .errors import DataError, UsageError, check_choice
from .files import file_record, read_text
from .information_content import load_counts
from .schema import MIB
from .storage import public_name
from .text_overlap import TextOverlap
from .tree import LabelTree
from .wordnet import WNID_PATTERN, wordnet

GRAPH_MEASURES = ("path", "wup", "lch", "lin", "jcn")
CONTENT_MEASURES = ("lin", "jcn")
MEASURES = (*GRAPH_MEASURES, "confusion", "text")
COMBINATIONS = ("sum", "product")
COUNTS = "counts"  # information content from the list's own labels
_MAX_DEFINITIONS_BYTES = 256 * MIB
_ROWS_BYTES = 2**30  # of rows that are kept: all of them up to some 16,000 classes


@dataclass(frozen=True)
class Measures:
    """What is measured.

    Attributes:
        shares: measure to its share, all positive.
        combine: `sum`: the mean with these shares; `product`: the product of powers of these shares.
        information_content: for lin and jcn: a file of NLTK's format, or `counts`.
        confusion: for confusion: a file [C, C].
        definitions: for text: a file of lines class, tab, definition; None: timm's, where classes are wnids and timm is
            installed.
    """

    shares: Mapping[str, float]
    combine: str = "sum"
    information_content: str | None = None
    confusion: str | None = None
    definitions: str | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.shares if name not in MEASURES]:
            raise UsageError(f"by: expected measures of {', '.join(MEASURES)}, found {', '.join(unknown)}")
        if not self.shares or not all(0 < share < float("inf") for share in self.shares.values()):
            raise UsageError(f"by: expected measures with shares above 0, found {dict(self.shares)}")
        check_choice("combine", self.combine, COMBINATIONS)
        wants_content = any(name in self.shares for name in CONTENT_MEASURES)
        for name, wanted, value in (
            ("information content", wants_content, self.information_content),
            ("confusion", "confusion" in self.shares, self.confusion),
        ):
            if wanted != (value is not None):
                found = "no file" if value is None else "a file, and no measure that reads it"
                raise UsageError(f"{name}: expected a file where a measure reads it, found {found}")

    @classmethod
    def parse(cls, text: str, **options: Any) -> Measures:
        """From `wup`, or `wup=0.7,text=0.3`.

        Raises:
            UsageError: something else.
        """
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, equals, share = part.partition("=")
            try:
                shares[name.strip()] = float(share) if equals else 1.0
            except ValueError as error:
                raise UsageError(f"by: expected measures such as wup=0.7,text=0.3, found {part!r}") from error
        return cls(shares, **options)

    def to_json(self) -> dict[str, Any]:
        """What decides the values; files by their hash. Which definitions are read is for the classes to say."""
        files = {"information_content": self.information_content, "confusion": self.confusion}
        hashes = {
            name: value if value == COUNTS else file_record(value)["sha256"]
            for name, value in files.items()
            if value is not None
        }
        return {"by": dict(self.shares), "combine": self.combine, **hashes}


class Similarities:
    """Scores of C classes for a label and a text.

    Args:
        class_names: C names.
        measures: what is measured.
        tree: hierarchy of these classes; None takes WordNet's.
        counts: integer [C], images of each class, for information content from counts.

    Raises:
        DataError: names that WordNet does not know (every one is named), or a file that is damaged or of other classes.
        UsageError: a file that cannot be read.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        measures: Measures,
        tree: LabelTree | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        self.class_names, self.measures = tuple(class_names), measures
        self.graph, self.contents, self._confusion, self._text = None, None, None, None
        self._definitions: dict[str, Any] = {}
        if any(name in measures.shares for name in GRAPH_MEASURES):
            self.graph = tree_graph(tree) if tree is not None else wordnet_graph(_wnids(self.class_names))
        if measures.information_content is not None and self.graph is not None:
            self.contents = _contents(self.graph, measures.information_content, tree, counts)
        if measures.confusion is not None:
            self._confusion = _relative(load_confusion(measures.confusion, self.class_names))
        if "text" in measures.shares:
            names, definitions = class_words(self.class_names, tree, measures.definitions)
            self._text = TextOverlap(names, definitions)
            if file := definitions_file(self.class_names, measures.definitions):
                self._definitions = {"definitions": file_record(file)}
        num_rows = max(1, _ROWS_BYTES // (4 * len(self.class_names)))
        # Each row of the [C, C] matrix is made once, however many images have the label.
        self._of_label = lru_cache(num_rows)(self._measure_label)

    @property
    def reads_text(self) -> bool:
        """Whether scores depend on more than the label."""
        return self._text is not None

    def measure(self, name: str, i: int, text: str = "") -> np.ndarray:
        """float64 [C], what one measure of a label, or `text` of an image's text, says, from 0 to 1."""
        if name == "text":
            assert self._text is not None
            return self._text.scores(text)
        if name == "confusion":
            assert self._confusion is not None
            return self._confusion[i]
        assert self.graph is not None
        if name in CONTENT_MEASURES:
            assert self.contents is not None
            if name == "lin":
                return np.clip(self.graph.lin(i, self.contents), 0, 1)
            return 1 / (1 + self.graph.jcn_distance(i, self.contents))
        values = getattr(self.graph, name)(i)
        values = values / values[i] if name == "lch" else values
        # A class is as much like itself as can be; Wu and Palmer's measure, as NLTK has it, does not always say so.
        values[self.graph.distances(i) == 0] = 1
        return np.clip(values, 0, 1)

    def _measure_label(self, i: int) -> np.ndarray:
        """float32 [C], the label's part of the scores."""
        shares = {name: share for name, share in self.measures.shares.items() if name != "text"}
        return self._combined([(share, self.measure(name, i)) for name, share in shares.items()]).astype(
            np.float32
        )

    def scores(self, i: int, text: str = "") -> np.ndarray:
        """float64 [C], from 0 to 1.

        Args:
            i: the label.
            text: of the image.
        """
        if self._text is None:
            return self._of_label(i).astype(np.float64)
        parts = [(self.measures.shares["text"], self._text.scores(text))]
        if others := sum(share for name, share in self.measures.shares.items() if name != "text"):
            # The label's part is combined already: in a sum with all its shares, in a product as it is.
            parts.append(
                (others if self.measures.combine == "sum" else 1.0, self._of_label(i).astype(np.float64))
            )
        return self._combined(parts)

    def _combined(self, parts: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
        if self.measures.combine == "sum":
            total = sum(share for share, _ in parts)
            return sum((share * values for share, values in parts), np.zeros(len(self.class_names))) / (
                total or 1
            )
        product = np.ones(len(self.class_names))
        for share, values in parts:
            product *= values**share
        return product

    def to_json(self) -> dict[str, Any]:
        """What decides the scores."""
        return {
            **self.measures.to_json(),
            **self._definitions,
            "classes": class_list_sha256(self.class_names),
        }


def _wnids(class_names: Sequence[str]) -> list[str]:
    found, problems = [], []
    for name in class_names:
        try:
            found.append(resolve_wnid(name))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join([*problems, "Give a hierarchy of these classes: --tree"]))
    return found


def _contents(
    graph: ConceptGraph, source: str, tree: LabelTree | None, counts: np.ndarray | None
) -> np.ndarray:
    if source == COUNTS:
        if counts is None:
            raise UsageError("information content: expected the images of each class for counts, found none")
        return contents_of_counts(graph, counts)
    if tree is not None:
        raise UsageError(
            "information content: expected counts with a tree, found a file, which is about WordNet's synsets. Use "
            "--information-content counts, or --classes"
        )
    offsets, root = load_counts(source)
    return contents_of_file(graph, offsets, root)


def _relative(confusion: np.ndarray) -> np.ndarray:
    """float64 [C, C]: each row by its diagonal, at most 1; by its largest entry where a model is never right."""
    own = np.diag(confusion).copy()
    own[own == 0] = confusion.max(axis=1)[own == 0]
    shares = np.minimum(1, confusion / np.where(own == 0, 1, own)[:, None])
    np.fill_diagonal(shares, 1)
    return shares


def definitions_file(class_names: Sequence[str], definitions: str | None = None) -> str | None:
    """The file of definitions that is read: the one given, else timm's, where classes are wnids and timm is installed."""
    if definitions is not None:
        return definitions
    folder = timm_info_folder()
    if folder is None or not any(map(WNID_PATTERN.fullmatch, class_names)):
        return None
    return str(folder / "imagenet_synset_to_definition.txt")


def class_words(
    class_names: Sequence[str], tree: LabelTree | None = None, definitions: str | None = None
) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """What classes are called, and their definitions by index.

    Raises:
        UsageError, DataError: of the file of definitions.
    """
    shown = dict(zip(tree.classes, tree.names, strict=True)) if tree is not None else {}
    names = []
    for name in class_names:
        if WNID_PATTERN.fullmatch(name):
            names.append(wordnet().lemmas(name))
        else:
            names.append(tuple(dict.fromkeys((name.replace("_", " "), shown.get(name, name)))))
    index = {name: i for i, name in enumerate(class_names)}
    definitions = definitions_file(class_names, definitions)
    if definitions is None:
        return names, {}
    text, where = read_text(definitions, _MAX_DEFINITIONS_BYTES), public_name(definitions)
    said = {}
    for number, line in enumerate(text.split("\n"), 1):
        name, tab, definition = line.partition("\t")
        if line.strip() and not tab:
            raise DataError(f"{where}: line {number}: expected class, tab, definition, found {line[:60]!r}")
        if name in index:
            said[index[name]] = definition
    return names, said
