"""Write `wordnet_words.npz`: what tagging text needs of WordNet 3.0 beside the nouns in `wordnet.npz`.

    python -m softshard.shards.make_words_table /usr/share/wordnet -o shards/wordnet_words.npz

The dictionary folder is WordNet's own (Debian's package wordnet-base), read as the manual pages wndb(5) and
cntlist(5) describe it.

Arrays of the table; every text is UTF-8, a line each, in code-point order:

    format             str          "softshard-words 1"
    adjectives         uint8 [...]  lemmas of index.adj, lower case, with underscores
    noun_exceptions    uint8 [...]  noun.exc: an inflected form and its base forms
    adjective_exceptions uint8 [...]  adj.exc: the same
    seldom             uint8 [...]  nouns and adjectives that are verbs or adverbs ten times as often (see `seldom_words`)
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .errors import DataError, SoftshardError, UsageError
from .make_wordnet_table import write_table
from .tags_words import WORDS_FORMAT

_VERB_OR_ADVERB = ("2", "4")  # types of synsets in a sense key; 1 is a noun, 3 and 5 are adjectives
_SELDOM_FACTOR = 10
_SELDOM_USES = 20


def read_words(folder: Path) -> dict[str, np.ndarray]:
    """Read the words of a WordNet dictionary folder.

    Args:
        folder: holds index.noun, index.adj, noun.exc, adj.exc and cntlist.rev.

    Returns:
        The arrays of the table.

    Raises:
        UsageError: a file is not there.
        DataError: a line cannot be read.
    """
    nouns, adjectives = (
        {line.partition(" ")[0] for line in _lines(folder / name)} for name in ("index.noun", "index.adj")
    )
    return {
        "format": np.array(WORDS_FORMAT),
        "adjectives": _text(adjectives),
        "noun_exceptions": _text(_lines(folder / "noun.exc")),
        "adjective_exceptions": _text(_lines(folder / "adj.exc")),
        "seldom": _text(seldom_words(nouns | adjectives, _lines(folder / "cntlist.rev"))),
    }


def seldom_words(words: set[str], count_lines: Iterable[str]) -> set[str]:
    """Words that the texts behind WordNet have as nouns or adjectives hardly ever: `see`, `then`, `up`.

    Those with 20 uses or more as verb or adverb, and ten times as many as uses as noun or adjective, plus one. So
    `watch` (17 to 176), `fly` and `crane` stay; `walk` (15 to 192) goes.

    Args:
        words: lemmas of nouns and adjectives.
        count_lines: of cntlist.rev: sense key, sense number, uses.

    Raises:
        DataError: a line is not that.
    """
    wanted: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for line in count_lines:
        try:
            key, _, uses = line.split(" ")
            lemma, _, sense = key.partition("%")
            (others if sense.startswith(_VERB_OR_ADVERB) else wanted)[lemma] += int(uses)
        except ValueError as error:
            raise DataError(
                f"cntlist.rev: expected lines of sense key, number and uses, found {line[:60]!r}"
            ) from error
    return {
        word
        for word, uses in others.items()
        if word in words and uses >= _SELDOM_USES and uses > _SELDOM_FACTOR * (wanted[word] + 1)
    }


def _lines(path: Path) -> list[str]:
    """Lines without the licence, whose lines begin with a space."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, found: {error}") from error
    return [line.rstrip() for line in text.split("\n") if line and not line.startswith(" ")]


def _text(lines: Iterable[str]) -> np.ndarray:
    return np.frombuffer("".join(f"{line}\n" for line in sorted(lines)).encode(), np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the packaged table of words.")
    parser.add_argument("dictionary", type=Path, metavar="DICT_DIR", help="folder of index.adj and the rest")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .npz to write")
    args = parser.parse_args(argv)
    try:
        table = read_words(args.dictionary)
    except SoftshardError as error:
        print(f"make_words_table: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    write_table(table, args.output)
    print(
        f"{args.output}: "
        + ", ".join(f"{len(text)} bytes of {name}" for name, text in table.items() if text.ndim)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
