"""softshard's own tokenizer: the words that NLTK's `word_tokenize(text, preserve_line=True)` finds, many times as fast.

NLTK runs some twenty substitutions over every text. Here a text is cut at white space, and each *run* between is cut
further by the same rules and remembered: of a hundred runs all but a few have been seen before.

Tokens that are no words may differ (`([` is one here): only words become tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Marks that NLTK sets apart wherever they stand.
_ALONE = r";@#$%&?!*()\[\]{}<>\"“”„‘’«»`‒-―"
_PIECES = re.compile(rf"[^{_ALONE}]+|[{_ALONE}]+")
_CLOSING = "])}>\"'»”’ \t\r\n\f\v\xa0"  # what may follow the period that ends a text
_CLITIC = re.compile(r"(?<=[^'])('(?:[sSmMdD]|ll|LL|re|RE|ve|VE)?|n't|N'T)$")
_OPENING = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_INNER = re.compile(r"[,:](?!\d)|\.{2,}|--|''")
_JOINED = re.compile(
    r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon)(na)\b|\b(wan)(na)$|\b(got)(ta)\b", re.IGNORECASE
)
LONGEST_TAG = 100  # characters; what is longer is no word
_RUNS_REMEMBERED = 200_000
_LONGEST_REMEMBERED = 40  # characters; longer ones are addresses and the like, seen once

_remembered: dict[str, tuple[str, ...]] = {}


def tokenize(text: str) -> list[str]:
    """Cut a text into words and marks.

    Args:
        text: one or more sentences. As with NLTK's `preserve_line`, only the period that ends the text is cut off its
            word; sentences inside keep theirs (`the dog. It`).

    Returns:
        Tokens in order, as they are spelled.
    """
    tokens: list[str] = []
    for run in without_final_period(text).split():
        tokens += _remembered.get(run) or _cut(run)
    return tokens


def without_final_period(text: str) -> str:
    """A text with the period that ends it, and quotes or brackets behind, set apart."""
    end = text.rstrip(_CLOSING)
    return f"{end[:-1]} ." if end.endswith(".") and not end.endswith("..") else text


def _cut(run: str) -> tuple[str, ...]:
    """The tokens of one run."""
    tokens = tuple(token for piece in _PIECES.findall(_OPENING.sub("' ", run)) for token in _cut_piece(piece))
    if len(run) <= _LONGEST_REMEMBERED:
        if len(_remembered) >= _RUNS_REMEMBERED:
            _remembered.clear()
        _remembered[run] = tokens
    return tokens


def _cut_piece(piece: str) -> Iterator[str]:
    for word in _INNER.sub(lambda match: f" {match[0]} ", piece).split():
        if len(word) > LONGEST_TAG:  # one clitic at a time, its end would be looked at again and again
            yield word
            continue
        clitics: list[str] = []
        while match := _CLITIC.search(word):
            clitics.insert(0, match[1])
            word = word[: match.start()]
        yield from _JOINED.sub(lambda match: f" {' '.join(filter(None, match.groups()))} ", word).split()
        yield from clitics
