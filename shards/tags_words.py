"""Words of WordNet 3.0 that may become tags: nouns, adjectives, collocations, and the base forms of inflected words.

Nouns come from `wordnet.npz`, the rest from `wordnet_words.npz`, which `make_words_table.py` writes and describes; both
lie inside the package, so that tagging needs no data of NLTK's, and reading them takes a fifth of a second where NLTK's
WordNet takes six.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from .tags_tokens import tokenize
from .wordnet import TABLE_FORMAT, TABLE_PATH, read_table

WORDS_FORMAT = "softshard-words 1"
WORDS_PATH = Path(__file__).with_name("wordnet_words.npz")
_TEXTS = ("adjectives", "noun_exceptions", "adjective_exceptions", "seldom")
_ABBREVIATIONS = frozenset({"st.", "mt.", "ft.", "dr.", "mr.", "mrs."})  # which a name goes on behind

# Endings and what stands for them (morphy(7WN)), in WordNet's order.
_NOUN_ENDINGS = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"),
)  # fmt: skip
_ADJECTIVE_ENDINGS = (("er", ""), ("est", ""), ("er", "e"), ("est", "e"))

# Words that only hold a sentence together. WordNet has some of them as nouns: `a` is a vitamin, `in` an inch, `can` a
# tin; such a tin is found as part of `beer can` or `milk can`.
_FUNCTION_WORDS = (
    "a about above across after against all along also although am among amid an and another any anybody "
    "anyone anything are around as at be because been before behind being below beneath beside besides "
    "between beyond both but by can could dare despite did do does doing done down during each either "
    "else enough etc ever every everybody everyone everything except few for from get gets getting got "
    "had has have having he hence her here hers herself him himself his how however i if in inside "
    "instead into is it its itself just least less lest let like made make makes making many may me might "
    "mine more most much must my myself near need neither never no nobody none nor not nothing of off on "
    "once one ones only onto or other others otherwise ought our ours ourselves out outside over own past "
    "per perhaps please quite rather same several shall she should since so some somebody someone "
    "something somewhat still such than that the their theirs them themselves then there therefore these "
    "they this those though through thus till to together too toward towards under unless until up upon "
    "us use used uses using very via was we well were what whatever when where whereas whether which "
    "whichever while who whoever whom whose why will with within without would yes yet you your yours "
    "yourself yourselves"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split(" "))
# Kept whole by Yan et al. (2020), and not in WordNet 3.0.
MORE_COLLOCATIONS = ("beast_of_prey",)


class Word(NamedTuple):
    """What is known of one token.

    Attributes:
        lower: the token in lower case.
        base: its base form as a noun, which collocations are also looked up by; `lower` where there is none.
        noun: the base form where the word may be a noun, else empty.
        adjective: the base form where it may be an adjective, else empty.
        tag: the tag that it becomes where WordNet decides the part of speech, else empty.
        last: what stands for `lower` at the end of a collocation: the same, without a period that ends a sentence.
        last_base: what stands for `base` there.
    """

    lower: str
    base: str
    noun: str
    adjective: str
    tag: str
    last: str
    last_base: str


class WordTable:
    """Nouns, adjectives and collocations, with the way from an inflected form to its base.

    Args:
        nouns: lemmas, lower case, underscores for spaces.
        adjectives: the same.
        noun_exceptions: irregular form to base forms.
        adjective_exceptions: the same.
        seldom: lemmas that are nouns or adjectives too seldom to be taken for such.
    """

    def __init__(
        self,
        nouns: Iterable[str],
        adjectives: Iterable[str],
        noun_exceptions: Mapping[str, Sequence[str]],
        adjective_exceptions: Mapping[str, Sequence[str]],
        seldom: Iterable[str] = (),
    ) -> None:
        self.nouns, self.adjectives = frozenset(nouns), frozenset(adjectives)
        self._noun_exceptions, self._adjective_exceptions = noun_exceptions, adjective_exceptions
        self._seldom = frozenset(seldom)
        # Its tokens with spaces between, as a text has them (`adam 's apple`), to the collocation itself.
        self.collocations: dict[str, str] = {}
        # Two first words to the most words of a collocation that begins with them.
        self.longest: dict[str, int] = {}
        for lemma in chain(self.nouns, self.adjectives, MORE_COLLOCATIONS):
            if "_" in lemma:
                tokens = _collocation_tokens(lemma)
                self.collocations[" ".join(tokens)] = lemma.replace("_", " ")
                pair = " ".join(tokens[:2])
                self.longest[pair] = max(self.longest.get(pair, 0), len(tokens))

    @classmethod
    def load(cls, nouns: Path = TABLE_PATH, words: Path = WORDS_PATH) -> WordTable:
        """Read the two tables of the package.

        Raises:
            DataError: a file is not such a table.
        """
        texts = read_table(nouns, TABLE_FORMAT, ("lemma_text",)) | read_table(words, WORDS_FORMAT, _TEXTS)
        lines = {name: text.tobytes().decode().split("\n")[:-1] for name, text in texts.items()}
        return cls(
            map(str.lower, lines["lemma_text"]),
            lines["adjectives"],
            _exceptions(lines["noun_exceptions"]),
            _exceptions(lines["adjective_exceptions"]),
            lines["seldom"],
        )

    def noun_base(self, form: str) -> str:
        """The base form of a noun in lower case, or empty: the form itself, an irregular one's, or by its ending."""
        return _base(form, self.nouns, self._noun_exceptions, _NOUN_ENDINGS)

    def adjective_base(self, form: str) -> str:
        """The base form of an adjective in lower case, or empty."""
        return _base(form, self.adjectives, self._adjective_exceptions, _ADJECTIVE_ENDINGS)

    def word(self, token: str) -> Word:
        """What is known of a token."""
        lower = token.lower()
        if not lower[:1].isalpha() or len(lower) < 2:  # numbers, marks, letters: WordNet has them all
            last = lower.rstrip(".") or lower  # `World War 2.`
            return Word(lower, lower, "", "", "", last, last)
        form = lower
        if form.endswith(".") and form not in self.nouns:  # the last word of a sentence, or `St.`
            form = form.rstrip(".")
        noun, adjective = self.noun_base(form), self.adjective_base(form)
        base = last_base = noun or form
        if form is not lower and lower not in _ABBREVIATIONS:
            base = lower  # a collocation may end here, and none goes on in the next sentence
        if form in FUNCTION_WORDS or len(form) < 2:
            return Word(lower, base, "", "", "", form, last_base)
        tag = noun or adjective
        tag = "" if tag in self._seldom or form in self._seldom else tag
        return Word(lower, base, noun, adjective, tag, form, last_base)


def _base(
    form: str,
    lemmas: frozenset[str],
    exceptions: Mapping[str, Sequence[str]],
    endings: Sequence[tuple[str, str]],
) -> str:
    if form in lemmas:
        return form
    if form in exceptions:
        candidates = list(exceptions[form])
    else:
        candidates = [form[: -len(old)] + new for old, new in endings if form.endswith(old)]
    return next((candidate for candidate in candidates if candidate in lemmas), "")


def _collocation_tokens(lemma: str) -> list[str]:
    words = lemma.split("_")
    if "'" not in lemma and "," not in lemma:
        return words
    return [token for word in words for token in tokenize(word)]


def _exceptions(lines: Iterable[str]) -> dict[str, list[str]]:
    rows = [line.split(" ") for line in lines]
    return {row[0]: row[1:] for row in rows}


@lru_cache(maxsize=1)
def word_table() -> WordTable:
    """The table inside the package, read once per process."""
    return WordTable.load()
