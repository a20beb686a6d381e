"""`vocabulary.tsv`: the keywords that the tags of a data set point into, with the number of images that each came from.

    tag<TAB>images
    big cat<TAB>5210
    beast of prey<TAB>731

A tag's place below the header, from 0, is its index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import DataError
from .files import join_url, read_text, sha256_hex
from .schema import MAX_VOCABULARY, MAX_VOCABULARY_BYTES, VOCABULARY_NAME
from .storage import public_name
from .text_limits import every_problem

HEADER = "tag\timages"


@dataclass(frozen=True)
class Vocabulary:
    """T tags.

    Attributes:
        tags: distinct names.
        images: of how many images each was a tag when the vocabulary was made.
    """

    tags: tuple[str, ...]
    images: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tags)

    @cached_property
    def index(self) -> dict[str, int]:
        """Name to index."""
        return {tag: i for i, tag in enumerate(self.tags)}

    def to_bytes(self) -> bytes:
        """The file, in the one spelling that its fingerprint is taken of."""
        rows = (f"{tag}\t{num}\n" for tag, num in zip(self.tags, self.images, strict=True))
        return "".join((f"{HEADER}\n", *rows)).encode()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of `to_bytes`."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def load(cls, file: str | Path) -> Vocabulary:
        """Read a vocabulary, from a path or any fsspec URL.

        Raises:
            UsageError: the file cannot be read.
            DataError: no such header, rows of other cells, a tag twice or empty, too many (every problem is named, up
                to a limit).
        """
        where = public_name(str(file))
        # Not str.splitlines: that also splits at form feeds and Unicode's separators.
        first, *lines = [
            line.removesuffix("\r") for line in read_text(str(file), MAX_VOCABULARY_BYTES).split("\n")
        ]
        if first != HEADER:
            raise DataError(
                f"{where}: expected a vocabulary that begins with {HEADER!r}, found {first[:80]!r}. "
                "Make one: softshard tags build"
            )
        if lines and not lines[-1]:
            lines.pop()
        if not 0 < len(lines) <= MAX_VOCABULARY:
            raise DataError(f"{where}: expected 1 to {MAX_VOCABULARY:,} tags, found {len(lines):,}")
        return cls._of_rows(where, [line.split("\t") for line in lines])

    @classmethod
    def _of_rows(cls, where: str, rows: Sequence[Sequence[str]]) -> Vocabulary:
        seen: dict[str, int] = {}
        images: list[int] = []
        problems: list[str] = []
        for number, cells in enumerate(rows, 2):
            tag, num = cells if len(cells) == 2 else ("", "")
            if not tag or tag != tag.strip() or not (num.isascii() and num.isdigit() and len(num) < 19):
                problems.append(
                    f"{where}: line {number}: expected a tag, a tab and a number, found {cells!r:.80}"
                )
            elif tag in seen:
                problems.append(f"{where}: line {number}: {tag!r} stands on line {seen[tag]} already")
            else:
                seen[tag] = number
                images.append(int(num))
        if problems:
            raise DataError(every_problem(problems))
        return cls(tuple(seen), tuple(images))


def load_vocabulary(dataset: str | Path, sha256: str) -> Vocabulary:
    """The vocabulary of a data set.

    Args:
        dataset: folder or fsspec URL.
        sha256: that the manifest names.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, or another one than the manifest says.
    """
    url = join_url(dataset, VOCABULARY_NAME)
    vocabulary = Vocabulary.load(url)
    if vocabulary.sha256 != sha256:
        raise DataError(
            f"{public_name(url)}: expected the vocabulary {sha256[:12]} that the manifest names, found "
            f"{vocabulary.sha256[:12]}; the tags were packed with another one"
        )
    return vocabulary
