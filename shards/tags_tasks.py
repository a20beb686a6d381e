"""What a process does with one block of records: count its candidate tags, or write its lines.

Pure but for reading the block: the same block gives the same result in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .source_labels import is_index
from .source_lists import VALIDATION, moved_path
from .tags_source import Block, Record, TextSource
from .tags_text import LONGEST_TEXT, TextTagger, image_text, label_words

FEW_TAGS = 11  # the last column of the report's histogram: eleven or more


@dataclass(frozen=True)
class TagSettings:
    """What decides which tags an image gets, given a vocabulary.

    Attributes:
        tokenizer: `softshard` or `nltk`.
        tagger: `wordnet` or `nltk`.
        fallback: whether the words of the query or label stand in where the text gives none.
        max_tags: tags of an image at most, the rarest of the vocabulary; 0 keeps all.
        keep: fields of the source that are written beside the tags.
        class_names: what whole-number labels mean, for the fallback; may be empty.
        path_prefix: what turns the source's paths into those of the result.
    """

    tokenizer: str = "softshard"
    tagger: str = "wordnet"
    fallback: bool = True
    max_tags: int = 0
    keep: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    path_prefix: str = ""


class CountTask(NamedTuple):
    """A block to count; of its records only those at `only`, in order, where that is given."""

    block: Block
    only: tuple[int, ...] | None = None


class BlockCounts(NamedTuple):
    """What counting a block gives.

    Attributes:
        images: candidate tag to images of the block that have it.
        hashes: uint64, one a record, of path and label.
        num_validation: records of the validation part, whose tags are not counted.
        num_problems: rows that cannot be used.
        num_textless: images whose text is missing or damaged.
        examples: the first few problems.
    """

    images: dict[str, int]
    hashes: np.ndarray
    num_validation: int
    num_problems: int
    num_textless: int
    examples: list[str]


class WriteTask(NamedTuple):
    """A block to write; the records at `skip`, in order, are there a second time."""

    block: Block
    skip: tuple[int, ...] = ()


@dataclass
class BlockStats:
    """What is counted while lines are written.

    Attributes:
        images: lines.
        tags: tags on all lines.
        by_number: lines with 0, 1, 2, ... tags, the last one with more.
        by_source: lines whose tags come from the text, the query, the label, or that have none.
        candidates: candidate tags, whether they are in the vocabulary or not.
        candidates_kept: those that are.
        fields_cut: fields that were too long.
    """

    images: int = 0
    tags: int = 0
    by_number: list[int] = field(default_factory=lambda: [0] * (FEW_TAGS + 1))
    by_source: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    candidates_kept: int = 0
    fields_cut: int = 0

    def add(self, other: BlockStats) -> None:
        self.images += other.images
        self.tags += other.tags
        self.by_number = [a + b for a, b in zip(self.by_number, other.by_number, strict=True)]
        self.by_source.update(other.by_source)
        self.candidates += other.candidates
        self.candidates_kept += other.candidates_kept
        self.fields_cut += other.fields_cut


class BlockLines(NamedTuple):
    """What writing a block gives: lines of the result, lines of the ledger, and counts."""

    lines: bytes
    ledger: bytes
    stats: BlockStats


@lru_cache(maxsize=1)
def tagger_of(tokenizer: str, tagger: str) -> TextTagger:
    """The tagger of a process; its tables are read once.

    Raises:
        MissingExtraError, UsageError: NLTK or its data are not there.
    """
    from .tags_nltk import nltk_parts_of_speech, nltk_tokenizer
    from .tags_tokens import tokenize

    return TextTagger(
        tokenizer=nltk_tokenizer() if tokenizer == "nltk" else tokenize,
        parts_of_speech=nltk_parts_of_speech() if tagger == "nltk" else None,
    )


def count_block(shared: tuple[TextSource, TagSettings, bool], task: CountTask) -> BlockCounts:
    """Count candidate tags, each once a training image; or, where the last of `shared` is False, only look for problems."""
    source, settings, with_tags = shared
    records, problems = source.read(task.block)
    textless = [record.problem for record in records if record.problem]
    if task.only is not None:
        records = [records[i] for i in task.only]
    images: Counter[str] = Counter()
    training = [record for record in records if not _is_validation(record)]
    if with_tags:
        for record in training:
            images.update(candidates(record, settings)[0])
    hashes = np.array([_hash(record) for record in records], np.uint64)
    return BlockCounts(
        dict(images),
        hashes,
        len(records) - len(training),
        len(problems),
        len(textless),
        [*problems, *dict.fromkeys(textless)][:5],
    )


def _is_validation(record: Record) -> bool:
    return record.fields.get("split") == VALIDATION


def candidates(record: Record, settings: TagSettings) -> tuple[list[str], str, int]:
    """(candidate tags, whose words they are, fields cut short) of an image: of its text, else of its query or label."""
    text, num_cut = image_text(record.fields)
    tagger = tagger_of(settings.tokenizer, settings.tagger)
    if found := tagger(text):
        return found, "text", num_cut
    for name, words in _fallbacks(record, settings):
        if found := tagger(words):
            return found, name, num_cut
    return [], "none", num_cut


def _fallbacks(record: Record, settings: TagSettings) -> Iterable[tuple[str, str]]:
    if not settings.fallback:
        return
    query = record.fields.get("query")
    if isinstance(query, str):
        yield "query", query[:LONGEST_TEXT]
    words = record.fields.get("label_words")
    if not isinstance(words, str):
        words = label_words(_class_name(record.label, settings))
    yield "label", words[:LONGEST_TEXT]


def _class_name(label: str, settings: TagSettings) -> str:
    names = settings.class_names
    return names[int(label)] if is_index(label) and int(label) < len(names) else label


def write_block(shared: tuple[TextSource, TagSettings, Mapping[str, int]], task: WriteTask) -> BlockLines:
    """Write a line for every image of a block, with the tags that are in the vocabulary."""
    source, settings, vocabulary = shared
    records, problems = source.read(task.block)
    stats = BlockStats()
    lines: list[str] = []
    ledger = [{"kind": "row", "reason": problem} for problem in problems]
    skip = set(task.skip)
    for i, record in enumerate(records):
        where = {"path": record.path, "label": record.label}
        if i in skip:
            ledger.append(
                {**where, "kind": "duplicate", "reason": "path and label stand in the source before"}
            )
            continue
        tags, origin = _tags(record, settings, vocabulary, stats)
        if record.problem:
            ledger.append({**where, "kind": "no-text", "reason": record.problem})
        stats.images += 1
        stats.tags += len(tags)
        stats.by_number[min(len(tags), FEW_TAGS)] += 1
        stats.by_source[origin] += 1
        kept = {name: record.fields[name] for name in settings.keep if name in record.fields}
        if _is_validation(record):
            kept["split"] = VALIDATION
        lines.append(list_line(record.path, record.label, settings.path_prefix, **kept, tags=tags))
    return BlockLines(_json_lines(lines), _json_lines(map(json.dumps, ledger)), stats)


def _tags(
    record: Record, settings: TagSettings, vocabulary: Mapping[str, int], stats: BlockStats
) -> tuple[list[str], str]:
    """An image's tags in the order of its text, and whose words they are."""
    found, origin, num_cut = candidates(record, settings)
    stats.candidates += len(found)
    stats.fields_cut += num_cut
    tags = [tag for tag in found if tag in vocabulary]
    stats.candidates_kept += len(tags)
    if not tags and origin != "label":  # nothing of the text is in the vocabulary
        tagger = tagger_of(settings.tokenizer, settings.tagger)
        for name, words in _fallbacks(record, settings):
            if tags := [tag for tag in tagger(words) if tag in vocabulary]:
                origin = name
                break
    if settings.max_tags and len(tags) > settings.max_tags:
        rarest = set(sorted(tags, key=lambda tag: (vocabulary[tag], tag))[: settings.max_tags])
        tags = [tag for tag in tags if tag in rarest]
    return tags, origin if tags else "none"


def list_line(path: str, label: str, path_prefix: str, **fields: object) -> str:
    """A line of the result, without its end."""
    return json.dumps({"path": moved_path(path, path_prefix), "label": label, **fields})


def _json_lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _hash(record: Record) -> int:
    """64 bits: two of 16 million images are taken for one with a probability of 7e-6."""
    data = f"{record.path}\0{record.label}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
