"""Tags and class weights on their way from a list into samples: names become indices.

    {"path": ..., "label": ..., "tags": ["big cat", "zoo"], "weights": {"n02129604": 1.0, "n02129165": 0.4}}

In a CSV a cell of tags is separated by `|`, `;`, `,` or spaces, as `softshard tags build` reads it, and a cell of weights
is that map as JSON.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .destination import open_destination
from .errors import DataError, ImageError, RefusedError, UsageError
from .files import parse_json, read_limited, split_url
from .listing import Listing
from .schema import MIB
from .soft_labels import TAGS, WEIGHTS, SoftLabelInfo, weights_problem
from .storage import is_remote, public_name
from .stored_vocabulary import Vocabulary
from .tags_text import split_tags
from .text_limits import some

_SHOWN = 60
# What `how` says of a vocabulary and of the build that chose it.
_OF_VOCABULARY = ("vocabulary_sha256", "vocabulary_size", "min_images", "max_share", "images")
UNKNOWN_TAGS, WITHOUT_TAGS, WITHOUT_WEIGHTS = "unknown_tags", "without_tags", "without_weights"


@dataclass(frozen=True)
class SoftColumns:
    """Which columns become soft labels.

    Attributes:
        tags: tag to index, or None where tags stay what they are: metadata.
        classes: class name to index, or None where weights are not taken.
        of_subset: whether `classes` names the members of a subset's groups: weights of those that become one class are
            added, as the loader does, and those of classes that the subset leaves out go.
    """

    tags: Mapping[str, int] | None = None
    classes: Mapping[str, int] | None = None
    of_subset: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that every sample gets."""
        given = ((TAGS, self.tags), (WEIGHTS, self.classes))
        return tuple(name for name, value in given if value is not None)

    def take(self, row: dict[str, Any], where: str, counts: Counter[str]) -> dict[str, Any]:
        """Take the columns out of a row: the fields of `msgpack` that they become.

        Args:
            row: of the list; what is taken is removed.
            where: names the image.
            counts: of tags outside the vocabulary (they are left out), of images without tags, without weights.

        Raises:
            ImageError: tags that are neither a list of strings nor a text, weights that are no map from classes to
                numbers from 0.
        """
        fields: dict[str, Any] = {}
        if self.tags is not None:
            fields[TAGS] = self._tags(self.tags, row.pop(TAGS, None), where, counts)
        if self.classes is not None:
            fields[WEIGHTS] = _weights(self.classes, row.pop(WEIGHTS, None), where, self.of_subset)
            counts[WITHOUT_WEIGHTS] += not fields[WEIGHTS][0]
        return fields

    @staticmethod
    def _tags(known: Mapping[str, int], value: object, where: str, counts: Counter[str]) -> list[int]:
        names = [] if value is None else split_tags(value) if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ImageError(
                f"{where}: expected tags as a list of strings, found {value!r:.{_SHOWN}}", kind="bad-tags"
            )
        indices = sorted({known[name] for name in names if name in known})
        counts[UNKNOWN_TAGS] += sum(name not in known for name in set(names))
        counts[WITHOUT_TAGS] += not indices
        return indices


def _weights(known: Mapping[str, int], value: object, where: str, of_subset: bool) -> list[list[Any]]:
    named = {} if value is None else _parsed(value) if isinstance(value, str) else value
    if not isinstance(named, dict):
        raise ImageError(
            f"{where}: expected weights as a map from class names to numbers, found {value!r:.{_SHOWN}}",
            kind="bad-weights",
        )
    unknown = [name for name in named if name not in known]
    if unknown and not of_subset:
        raise ImageError(
            f"{where}: expected weights of classes of the class list, found "
            f"{some(unknown, 1, lambda name: repr(name)[:_SHOWN])}; they were made with another list. Give that "
            "one, or make them again: softshard tags weigh",
            kind="bad-weights",
        )
    if problem := weights_problem([list(range(len(named))), list(named.values())], len(named)):
        raise ImageError(f"{where}: {problem}", kind="bad-weights")
    sums: dict[int, float] = {}
    for name, weight in named.items():
        if name in known:
            # MessagePack would keep whole numbers as such; all weights are float32.
            sums[known[name]] = sums.get(known[name], 0.0) + float(weight)
    return [sorted(sums), [sums[index] for index in sorted(sums)]]


def _parsed(cell: str) -> object:
    """What a cell of a CSV holds; the cell itself where that is no JSON."""
    try:
        return json.loads(cell) if cell.strip() else {}
    except (ValueError, RecursionError):
        return cell


def soft_columns(
    vocabulary: Vocabulary | None,
    weights: Mapping[str, Any] | None,
    class_names: tuple[str, ...],
    class_of: Mapping[str, str] | None = None,
) -> SoftColumns | None:
    """What is taken; None where that is nothing. `class_of` is a subset's: member to class."""
    if vocabulary is None and weights is None:
        return None
    classes = None
    if weights is not None:
        classes = {name: i for i, name in enumerate(class_names)}
        if class_of is not None:
            classes = {member: classes[name] for member, name in class_of.items() if name in classes}
    return SoftColumns(
        None if vocabulary is None else vocabulary.index, classes, of_subset=class_of is not None
    )


def soft_info(
    vocabulary: Vocabulary | None, weights: Mapping[str, Any] | None, tags: Mapping[str, Any] | None = None
) -> SoftLabelInfo | None:
    """What the manifest says of it, `weights` and `tags` being how they were made; None where there is nothing to say.

    Where tags were made with another vocabulary than the one given, the cuts that chose that one are not told, and
    `made_with_vocabulary` is its SHA-256.
    """
    if vocabulary is None and weights is None:
        return None
    if vocabulary is None:
        return SoftLabelInfo(weights=weights)
    how = _tags_how(tags or {}, vocabulary.sha256)
    return SoftLabelInfo(len(vocabulary), vocabulary.sha256, weights=weights, tags=how or None)


def _tags_how(how: Mapping[str, Any], vocabulary_sha256: str) -> dict[str, Any]:
    """How tags were made, without what made their vocabulary where that is not the one that is used."""
    if how.get("vocabulary_sha256", vocabulary_sha256) == vocabulary_sha256:
        return dict(how)
    others = {name: value for name, value in how.items() if name not in _OF_VOCABULARY}
    return {**others, "made_with_vocabulary": how["vocabulary_sha256"]}


def check_has_rows(listing: Listing) -> None:
    """Refuse a source that says nothing of its images but their classes.

    Raises:
        UsageError: it is no list, or one of path and label only.
    """
    folders = (*listing.folders, *listing.validation)
    if not any(folder.metadata is not None for folder in folders):
        raise UsageError(
            f"{public_name(str(listing.root))}: expected a list with a column of tags or weights, found a source without "
            "columns. Make one: softshard tags build, softshard tags weigh"
        )


def how_name(list_name: str, kind: str) -> str:
    """The file beside a list that says how its `tags` or `weights` were made: `web.jsonl` has `web.weights.json`."""
    return f"{list_name.rpartition('.')[0] or list_name}.{kind}.json"


def load_how(source: str | Path, kind: str) -> dict[str, Any]:
    """How the tags or weights of a list were made, as `softshard tags build` or `tags weigh` wrote it beside the list.

    Empty without such a file, and with a warning where a server refuses it (401, 403): many say so of files that are
    not there.

    Raises:
        DataError: the file is damaged, or its server is away.
    """
    path, mark, query = str(source).partition("?") if is_remote(source) else (str(source), "", "")
    folder, name = split_url(path)
    url = f"{folder}/{how_name(name, kind)}{mark}{query}"  # a signature may be of the whole folder
    try:
        data = read_limited(url, MIB)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except RefusedError as error:  # what a server that lists nothing says of a file that is not there
        warnings.warn(
            f"softshard: {error}. Where the file is there, how the {kind} were made is not recorded",
            stacklevel=2,
        )
        return {}
    how = parse_json(data, public_name(url))
    if not isinstance(how, dict):
        raise DataError(f"{public_name(url)}: expected a JSON object, found {type(how).__name__}")
    return how


def save_how(output: str | Path, kind: str, how: Mapping[str, Any]) -> None:
    """Write beside a list how its tags or weights were made; what an earlier list of that name had goes.

    Args:
        output: the list, a path or the URL of an object in a bucket.
        kind: `tags` or `weights`.
        how: empty where nobody knows, and then no file is written.
    """
    folder, name = split_url(output)
    destination = open_destination(folder)
    if how:
        destination.write(how_name(name, kind), json.dumps(how, indent=1).encode("ascii"))
    else:
        destination.remove(how_name(name, kind))
