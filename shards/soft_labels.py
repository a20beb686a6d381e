"""Soft labels of a sample: tags and class weights in `msgpack`, pseudo labels in `soft` (Yan et al. 2020).

    msgpack   {"path": ..., "size": ..., "tags": [3, 17], "weights": [[0, 2], [1.0, 0.4]]}
    soft      [[0, 2], [0.9, 0.1]]

Tags are indices into the data set's vocabulary; weights and pseudo labels are those of classes of its class list. Ids
ascend, so none comes twice; weights are float32, from 0. An image may have none.

N samples, M entries of all of them, T tags, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np

from .components import decode_meta
from .errors import DataError
from .schema import MAX_VOCABULARY, META, SOFT, VOCABULARY_NAME
from .text_limits import shortened

TAGS, WEIGHTS = "tags", "weights"  # fields of `msgpack`
KINDS = (TAGS, WEIGHTS, "pseudo")

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_MOST_SHOWN = 200  # characters of one value of `how`


@dataclass(frozen=True)
class SoftLabelInfo:
    """What a manifest says of a data set's soft labels.

    Attributes:
        num_tags: T, entries of the vocabulary; 0 where samples have no tags.
        vocabulary_sha256: of `vocabulary.tsv`; None without tags.
        weights: how the class weights were made; None where samples have none.
        pseudo: how the pseudo labels were made: model, threshold, top k; None where samples have none.
        tags: how the tags were made: tokenizer, tagger, cuts; None where nobody said, or samples have none.
    """

    num_tags: int = 0
    vocabulary_sha256: str | None = None
    weights: Mapping[str, Any] | None = None
    pseudo: Mapping[str, Any] | None = None
    tags: Mapping[str, Any] | None = None

    def has(self, kind: str) -> bool:
        """Whether samples have soft labels of this kind, one of KINDS."""
        return {TAGS: self.num_tags > 0, WEIGHTS: self.weights is not None}.get(kind, self.pseudo is not None)

    def to_json(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        if self.vocabulary_sha256 is not None:
            entries[TAGS] = {"name": VOCABULARY_NAME, "size": self.num_tags, "sha256": self.vocabulary_sha256}
            if self.tags is not None:
                entries[TAGS]["how"] = dict(self.tags)
        for name in (WEIGHTS, "pseudo"):
            if (how := getattr(self, name)) is not None:
                entries[name] = {"how": dict(how)}
        return entries

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> SoftLabelInfo:
        """From an entry that `soft_labels_problem` finds nothing wrong with."""
        tags, weights, pseudo = (entry.get(name) for name in KINDS)
        return cls(
            tags["size"] if tags else 0,
            tags["sha256"] if tags else None,
            weights["how"] if weights else None,
            pseudo["how"] if pseudo else None,
            tags.get("how") if tags else None,
        )


def soft_labels_problem(entry: object, components: object) -> str | None:
    """What is wrong with a manifest's entry `soft_labels` beside its list of components, or None."""
    entries = {} if entry is None else entry
    text = "expected `soft_labels` with tags (name, size, sha256), weights (how) and pseudo (how), of which some may miss"
    if not isinstance(entries, dict):
        return text
    tags = entries.get(TAGS)
    fine = tags is None or (
        isinstance(tags, dict)
        and tags.get("name") == VOCABULARY_NAME
        and type(tags.get("size")) is int
        and 0 < tags["size"] <= MAX_VOCABULARY
        and isinstance(tags.get("sha256"), str)
        and len(tags["sha256"]) == 64
        and isinstance(tags.get("how", {}), dict)
    )
    for name in (WEIGHTS, "pseudo"):
        how = entries.get(name)
        fine = fine and (how is None or (isinstance(how, dict) and isinstance(how.get("how"), dict)))
    if not fine:
        return text
    if isinstance(components, list) and (SOFT.suffix in components) != (entries.get("pseudo") is not None):
        return f"expected pseudo labels described where samples have {SOFT.suffix!r}, and only there"
    return None


def soft_labels_text(entries: Mapping[str, Any]) -> dict[str, str]:
    """A manifest's entry `soft_labels` for people: what samples have, and how that was made, in a line each."""
    lines = {}
    for kind, title in ((TAGS, "tags"), (WEIGHTS, "class weights"), ("pseudo", "pseudo labels")):
        if (entry := entries.get(kind)) is not None:
            what = f"vocabulary of {entry['size']:,}, {entry['sha256'][:12]}; " if kind == TAGS else ""
            lines[title] = what + _how_text(entry.get("how") or {})
    return lines


def _how_text(how: Mapping[str, Any]) -> str:
    """Names and values, hashes cut short."""
    shown = []
    for name, value in how.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        is_hash = len(text) == 64 and not text.strip("0123456789abcdef")
        shown.append(f"{name.replace('_', ' ')} {text[:12] if is_hash else shortened(text, _MOST_SHOWN)}")
    return ", ".join(shown) or "how they were made is not recorded"


class SparseLabels(NamedTuple):
    """Soft labels of N samples.

    Attributes:
        rows: int64 [M], the sample of each entry, ascending.
        ids: int64 [M], tags or classes, ascending within a sample.
        weights: float32 [M]; 1 for tags.
    """

    rows: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """The `msgpack` component of a map; its `weights` are packed as float32.

    Raises:
        ValueError, OverflowError: what MessagePack cannot hold.
    """
    weights = meta.get(WEIGHTS)
    if weights is None:
        return msgpack.packb(meta)  # type: ignore[return-value]
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(meta))
    data = packer.bytes()
    for name, value in meta.items():
        data += msgpack.packb(name)  # type: ignore[operator]
        data += msgpack.packb(value, use_single_float=name == WEIGHTS)  # type: ignore[operator]
    return data


def encode_pseudo_labels(
    ids: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, num_classes: int
) -> bytes:
    """The `soft` component of one image.

    Args:
        ids: integers [K], classes, ascending.
        weights: float [K], from 0; stored as float32.
        num_classes: C, ids are below it.

    Raises:
        DataError: ids or weights that are none.
    """
    pair = [np.asarray(ids).tolist(), [float(weight) for weight in np.asarray(weights).tolist()]]
    if problem := weights_problem(pair, num_classes):
        raise DataError(f"pseudo labels: {problem}")
    return msgpack.packb(pair, use_single_float=True)  # type: ignore[return-value]


def tags_problem(value: object, num_tags: int) -> str | None:
    """What is wrong with one sample's tags, or None."""
    if not isinstance(value, list | tuple):
        return f"expected a list of tags, found {value!r:.40}"
    if len(value) > num_tags:
        return f"expected at most the {num_tags:,} tags of the vocabulary, found {len(value):,}"
    if not all(type(tag) is int and 0 <= tag < num_tags for tag in value):
        wrong = next(tag for tag in value if type(tag) is not int or not 0 <= tag < num_tags)
        return f"expected tags from 0 to {num_tags - 1}, found {wrong!r:.40}"
    if any(tag >= following for tag, following in pairwise(value)):
        return f"expected ascending tags, each once, found {list(value)!r:.60}"
    return None


def weights_problem(value: object, num_classes: int) -> str | None:
    """What is wrong with one sample's class weights or pseudo labels, or None."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(part, list | tuple) for part in value)
    ):
        return f"expected a list of class ids and one of weights, found {value!r:.40}"
    ids, weights = value
    if problem := tags_problem(ids, num_classes):
        return problem.replace("tags of the vocabulary", "classes").replace("tags", "class ids")
    if len(weights) != len(ids):
        return f"expected a weight for each of {len(ids)} classes, found {len(weights)}"
    for weight in weights:
        if (
            type(weight) not in (int, float)
            or not 0 <= weight <= _LARGEST_WEIGHT
            or not math.isfinite(weight)
        ):
            return f"expected weights from 0, found {weight!r:.40}"
    return None


def merged_classes(pair: object, class_map: np.ndarray, where: str) -> list[list[Any]]:
    """One sample's class weights or pseudo labels over other classes, by the rule of the loader.

    Args:
        pair: class ids and weights, as in the shard.
        class_map: int32 [C_old], the new class of each old one, -1 for those that are left out.
        where: names shard, sample and component, for messages.

    Returns:
        Ids and weights: those of classes that become one are added, those of classes that are left out go.

    Raises:
        DataError: what is no such pair.
    """
    if problem := weights_problem(pair, len(class_map)):
        raise DataError(f"{where}: {problem}; it is damaged")
    ids, weights = cast("list[list[Any]]", pair)
    sums: dict[int, float] = {}
    for old, weight in zip(ids, weights, strict=True):
        if (new := int(class_map[old])) >= 0:
            sums[new] = sums.get(new, 0.0) + float(weight)
    return [sorted(sums), [min(sums[new], _LARGEST_WEIGHT) for new in sorted(sums)]]


def decode_soft_labels(
    kind: str, members: Sequence[bytes | memoryview], num_ids: int, where: Callable[[int], str]
) -> SparseLabels:
    """The soft labels of N samples.

    Args:
        kind: one of KINDS.
        members: their components `msgpack`, for pseudo labels `soft`.
        num_ids: T, or C: ids are below it.
        where: names shard and sample of the i-th, for messages.

    Raises:
        DataError: no MessagePack, a field that misses, ids out of range or not ascending, weights that are none.
    """
    values = _values(kind, members, where)
    found = _arrays(values, num_ids, tags=kind == TAGS)
    if found is not None:
        return found
    # One at a time, to say which is wrong, and how.
    problem_of = tags_problem if kind == TAGS else weights_problem
    component = META.suffix if kind in (TAGS, WEIGHTS) else SOFT.suffix
    for i, value in enumerate(values):
        if problem := problem_of(value, num_ids):
            raise DataError(f"{where(i)}, component {component!r}, {kind}: {problem}; it is damaged")
    raise AssertionError("the fast path refused what the slow one takes")


def _values(kind: str, members: Sequence[bytes | memoryview], where: Callable[[int], str]) -> list[Any]:
    if kind in (TAGS, WEIGHTS):
        try:
            return [msgpack.unpackb(data)[kind] for data in members]
        except (ValueError, msgpack.UnpackException, KeyError, TypeError, IndexError):
            values = []
            for i, data in enumerate(members):
                meta = decode_meta(data, where(i))
                if kind not in meta:
                    raise DataError(
                        f"{where(i)}, component {META.suffix!r}: expected a field {kind!r}, which the manifest says that "
                        f"samples have, found {', '.join(map(str, meta))!r:.80}"
                    ) from None
                values.append(meta[kind])
            return values
    values = []
    for i, data in enumerate(members):
        try:
            values.append(msgpack.unpackb(data))
        except (ValueError, msgpack.UnpackException) as error:
            raise DataError(
                f"{where(i)}, component {SOFT.suffix!r}: expected MessagePack, found: {error}"
            ) from error
    return values


def _arrays(values: list[Any], num_ids: int, *, tags: bool) -> SparseLabels | None:
    """All of them as arrays; None where one is wrong."""
    lists: list[Any] = values
    weights = None
    if not tags:
        if not all(isinstance(value, list) and len(value) == 2 for value in values):
            return None
        lists, weight_lists = [value[0] for value in values], [value[1] for value in values]
        if not all(isinstance(part, list) for part in weight_lists) or not all(
            isinstance(part, list) for part in lists
        ):
            return None
        if list(map(len, weight_lists)) != list(map(len, lists)):
            return None
        weights = list(chain.from_iterable(weight_lists))
        if not {float, int}.issuperset(map(type, weights)):
            return None
    elif not all(isinstance(part, list) for part in lists):
        return None
    flat = list(chain.from_iterable(lists))
    if not {int}.issuperset(map(type, flat)):
        return None
    rows = np.repeat(np.arange(len(lists)), list(map(len, lists)))
    try:
        ids = np.array(flat, np.int64)
        amounts = np.ones(len(ids)) if weights is None else np.array(weights, np.float64)
    except OverflowError:
        return None
    ascending = (np.diff(ids) > 0) | (np.diff(rows) > 0)
    fine = ascending.all() and ids.min(initial=0) >= 0 and ids.max(initial=-1) < num_ids
    if not fine or not ((amounts >= 0) & (amounts <= _LARGEST_WEIGHT)).all():  # False for NaN
        return None
    return SparseLabels(rows, ids, amounts.astype(np.float32))
