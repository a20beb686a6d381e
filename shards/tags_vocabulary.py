"""How many images have each tag, and which tags make the vocabulary.

vocabulary.tsv    tag<TAB>images, a header and a line a tag, most frequent first, then by name; UTF-8
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TextIO

from .errors import DataError, UsageError
from .files import read_text
from .schema import MIB

HEADER = "tag\timages"
_MAX_VOCABULARY_BYTES = 256 * MIB
_MAX_PROBLEMS = 20
_TERMS_IN_MEMORY = 2_000_000  # some 250 MB of a dictionary
_SHOWN = 20


class DocumentCounts:
    """Counts in how many images each term stands, exactly, whatever the number of terms.

    Terms beyond a limit go to sorted runs on disk, which are merged in the end.

    Args:
        limit: terms that are held in memory.
    """

    def __init__(self, limit: int = _TERMS_IN_MEMORY) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self._num_runs = 0

    def __enter__(self) -> DocumentCounts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add the counts of some images; a count may be negative, to take one back."""
        known = self._counts
        for term, count in counts.items():
            known[term] = known.get(term, 0) + count
        if len(known) > self._limit:
            self._spill()

    def items(self) -> Iterator[tuple[str, int]]:
        """(term, images) of every term that is in any, by code points."""
        rest = iter(sorted(self._counts.items()))
        if self._folder is None:
            yield from ((term, count) for term, count in rest if count)
            return
        with ExitStack() as files:
            runs = [_read_run(files.enter_context(open(path, encoding="utf-8"))) for path in self._runs()]
            for term, pairs in groupby(heapq.merge(*runs, rest), itemgetter(0)):
                if total := sum(count for _, count in pairs):
                    yield term, total

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="softshard-tags-")
        self._num_runs += 1
        with open(self._runs()[-1], "w", encoding="utf-8") as file:
            file.writelines(f"{term}\t{count}\n" for term, count in sorted(self._counts.items()))
        self._counts = {}

    def _runs(self) -> list[Path]:
        assert self._folder is not None
        return [Path(self._folder.name) / f"run-{number:06d}" for number in range(self._num_runs)]


def _read_run(file: TextIO) -> Iterator[tuple[str, int]]:
    for line in file:
        term, _, count = line.rpartition("\t")
        yield term, int(count)


class Chosen(NamedTuple):
    """A vocabulary, and what was left out.

    Attributes:
        images: tag to images that have it, most frequent first, then by name.
        num_terms: terms that there were.
        too_common: terms in more images than wanted, with their images; the most frequent 20.
        num_too_common: all of them.
        num_too_rare: terms in fewer images than wanted.
        num_beyond: terms left out for the size alone.
    """

    images: dict[str, int]
    num_terms: int
    too_common: tuple[tuple[str, int], ...]
    num_too_common: int
    num_too_rare: int
    num_beyond: int


def choose_vocabulary(
    counts: Iterable[tuple[str, int]], *, num_images: int, size: int, min_images: int, max_share: float
) -> Chosen:
    """Leave out the most and the least common terms, and keep the most frequent of the rest.

    Args:
        counts: (term, images), each term once.
        num_images: images in all.
        size: tags wanted.
        min_images: terms in fewer images are left out.
        max_share: terms in more than this share of all images are left out.

    Returns:
        The vocabulary. Equal counts are ordered by name.
    """
    num_terms = num_rare = num_common = num_between = 0
    common: list[tuple[int, str]] = []

    def between() -> Iterator[tuple[int, str]]:
        nonlocal num_terms, num_rare, num_common, num_between
        for term, images in counts:
            num_terms += 1
            if images < min_images:
                num_rare += 1
            elif images > max_share * num_images:
                num_common += 1
                common.append((-images, term))
            else:
                num_between += 1
                yield -images, term

    kept = heapq.nsmallest(size, between())
    return Chosen(
        {term: -images for images, term in kept},
        num_terms,
        tuple((term, -images) for images, term in heapq.nsmallest(_SHOWN, common)),
        num_common,
        num_rare,
        num_between - len(kept),
    )


def vocabulary_text(images: Mapping[str, int]) -> str:
    """The file of a vocabulary."""
    return f"{HEADER}\n" + "".join(f"{tag}\t{count}\n" for tag, count in images.items())


def load_vocabulary(path: str | Path) -> dict[str, int]:
    """Read a vocabulary: `vocabulary.tsv` as `softshard tags build` writes it, from a path or URL.

    Returns:
        Tag to images, in the order of the file.

    Raises:
        UsageError: it cannot be read.
        DataError: it is no such file; every bad line is named.
    """
    text = read_text(str(path), _MAX_VOCABULARY_BYTES).replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n")
    if lines[0] != HEADER:
        raise DataError(
            f"{path}: line 1: expected the header {HEADER!r}, found {lines[0][:60]!r}; softshard tags build writes such "
            "files"
        )
    images: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        tag, _, count = line.rpartition("\t")
        if not tag or tag != tag.strip() or "\t" in tag or not _is_count(count):
            problems.append(f"{path}: line {number}: expected a tag, a tab and a number, found {line[:60]!r}")
        elif tag in images:
            problems.append(f"{path}: line {number}: expected each tag once, found {tag!r} again")
        else:
            images[tag] = int(count)
    if problems:
        more = f"\nand {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise DataError("\n".join(problems[:_MAX_PROBLEMS]) + more)
    if not images:
        raise DataError(f"{path}: expected tags, found none")
    return images


def _is_count(text: str) -> bool:
    return (
        text.isascii() and text.isdecimal() and len(text) < 19
    )  # Python refuses to read thousands of digits


def check_cuts(size: int, min_images: int, max_share: float) -> None:
    """Refuse cuts that leave nothing.

    Raises:
        UsageError: one of them is out of its range.
    """
    if size < 1 or min_images < 1 or not 0 < max_share <= 1:
        raise UsageError(
            f"expected a vocabulary size and min images from 1 and a max share above 0 and up to 1, found {size}, "
            f"{min_images} and {max_share}"
        )
