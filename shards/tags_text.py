"""From an image's own text to its candidate tags: nouns, adjectives and collocations, in the order of the text.

title, description, tags -> clean -> tokens -> collocations kept whole -> nouns and adjectives -> base forms
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .tags_tokens import LONGEST_TAG, tokenize
from .tags_words import Word, word_table
from .wordnet import WNID_PATTERN, wordnet

TEXT_FIELDS = ("title", "description", "tags")
LONGEST_TEXT = 20_000  # characters of a field; who has more pasted a page
TAGGERS = ("wordnet", "nltk")
TOKENIZERS = ("softshard", "nltk")
_WORDS_REMEMBERED = 200_000
_PAUSE = " , "  # between fields and tags, so that no collocation reaches across
_MARKUP = re.compile(r"<[^<>]*>")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_SEPARATORS = ("|", ";", ",")

PartsOfSpeech = Callable[[list[str]], list[str]]  # Penn Treebank's tags of tokens: NN, JJ, ...


class ImageText(NamedTuple):
    """The text of one image.

    Attributes:
        text: title, description and tags.
        num_cut: fields of more than 20,000 characters, of which the rest was cut off.
    """

    text: str
    num_cut: int


def image_text(record: dict[str, Any]) -> ImageText:
    """Join title, description and tags of a record. Values that are neither text nor lists of text are none."""
    parts: list[str] = []
    num_cut = 0
    for field in TEXT_FIELDS:
        value = record.get(field)
        values = split_tags(value) if field == "tags" else [value] if isinstance(value, str) else []
        length = 0
        for text in values:
            if length + len(text) > LONGEST_TEXT:
                text = text[: LONGEST_TEXT - length]
                num_cut += 1
                parts.append(text)
                break
            length += len(text)
            parts.append(text)
    return ImageText(_PAUSE.join(filter(None, parts)), num_cut)


def split_tags(value: object) -> list[str]:
    """The tags of a list or of a text: separated by `|`, `;` or `,`, whichever comes first in this order, else spaces."""
    if isinstance(value, str):
        separator = next((mark for mark in _SEPARATORS if mark in value), None)
        return [tag.strip() for tag in value.split(separator) if tag.strip()]
    if isinstance(value, list):
        return [tag for tag in value if isinstance(tag, str)]
    return []


def clean(text: str) -> str:
    """Text without markup and web addresses, its HTML entities read (`&amp;`)."""
    if "<" in text:
        text = _MARKUP.sub(_PAUSE, text)
    if "&" in text:
        text = html.unescape(text)
    if "://" in text or "www." in text.lower():
        text = _ADDRESS.sub(_PAUSE, text)
    return text


def label_words(label: str) -> str:
    """What a class is called: the names of a wnid's synset, else the label with spaces for underscores."""
    if WNID_PATTERN.fullmatch(label) and label in wordnet():
        return _PAUSE.join(wordnet().lemmas(label))
    return label.replace("_", " ")


class TextTagger:
    """Finds the candidate tags of texts.

    Args:
        tokenizer: text to tokens.
        parts_of_speech: says what each token is; None lets WordNet decide: every word that it has as a noun or
            adjective, but for function words and those that are verbs or adverbs far more often.
    """

    def __init__(
        self, tokenizer: Callable[[str], list[str]] = tokenize, parts_of_speech: PartsOfSpeech | None = None
    ) -> None:
        self._table = word_table()
        self._tokenizer, self._parts_of_speech = tokenizer, parts_of_speech
        self._words: dict[str, Word] = {}

    def __call__(self, text: str) -> list[str]:
        """The candidate tags of a text, each once, in the order in which they first stand there."""
        tokens = self._tokenizer(clean(text))
        known = self._words
        words = [known.get(token) or self._look_up(token) for token in tokens]
        tags = [word.tag for word in words]
        if self._parts_of_speech is not None:
            tags = [
                _tag_of(word, part) for word, part in zip(words, self._parts_of_speech(tokens), strict=True)
            ]
        found: dict[str, None] = {}
        longest = self._table.longest
        i, last = 0, len(words) - 1
        while i <= last:
            word = words[i]
            if i < last:
                after = words[i + 1]
                num = longest.get(f"{word.lower} {after.lower}", 0)
                if (
                    word.base is not word.lower
                    or after.base is not after.lower
                    or after.last is not after.lower
                ):
                    seconds = {after.lower, after.base, after.last, after.last_base}
                    for first in {word.lower, word.base}:
                        for second in seconds:
                            num = max(num, longest.get(f"{first} {second}", 0))
                if num:
                    collocation, num_words = self._collocation(words[i : i + num])
                    if collocation:
                        found[collocation] = None
                        i += num_words
                        continue
            if tags[i]:
                found[tags[i]] = None
            i += 1
        return list(found)

    def _collocation(self, words: list[Word]) -> tuple[str, int]:
        """The longest collocation that the words begin with, and its words; inflected are its last word, its first
        (`beasts of prey`) or all. Only behind its last word may a sentence end.
        """
        collocations = self._table.collocations
        for num in range(len(words), 1, -1):
            lower = [word.lower for word in words[:num]]
            base = [word.base for word in words[:num]]
            end = words[num - 1]
            ends = [(end.lower, end.base)]
            if end.last is not end.lower:
                ends.append((end.last, end.last_base))
            for last, last_base in ends:
                for form in (
                    [*lower[:-1], last],
                    [*lower[:-1], last_base],
                    [base[0], *lower[1:-1], last],
                    [*base[:-1], last_base],
                ):
                    if found := collocations.get(" ".join(form)):
                        return found, num
        return "", 1

    def _look_up(self, token: str) -> Word:
        word = self._table.word(token)
        if len(token) > LONGEST_TAG:
            return word
        if len(self._words) >= _WORDS_REMEMBERED:
            self._words.clear()
        self._words[token] = word
        return word


def _tag_of(word: Word, part: str) -> str:
    """The tag of a word whose part of speech is known."""
    if part.startswith("NN"):
        return word.noun or word.adjective
    if part.startswith("JJ"):
        return word.adjective or word.noun
    return ""
