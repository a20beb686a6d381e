"""How much of a class's words stands in an image's text.

A class has phrases: its names, and its definition, which counts half. A phrase overlaps by the share of its words that the
text has, rare words weighing more (log of classes over classes with the word); a class by its best phrase.

C classes, P phrases.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

DEFINITION_SHARE = 0.5
_WORD = re.compile(r"[^\W_]+")
_MOST_CHARACTERS = 100_000  # of a text: a caption of megabytes says nothing more
# Words that every definition has.
STOP_WORDS = frozenset(
    """a an and any are as at be been but by for from had has have having in into is it its not of off on or other out over s
    some such than that the their them then they this those to up used usually was were when where which who with
    without""".split()  # noqa: SIM905
)


def words_of(text: str) -> list[str]:
    """The words of a text in their order: letters and digits of any script, lower case, without the commonest."""
    return [word for word in _WORD.findall(text[:_MOST_CHARACTERS].casefold()) if word not in STOP_WORDS]


class TextOverlap:
    """Compares texts with the words of C classes.

    Args:
        names: each class's names.
        definitions: a definition by class, where there is one.
    """

    def __init__(self, names: Sequence[Sequence[str]], definitions: Mapping[int, str] | None = None) -> None:
        phrases: list[tuple[int, float, set[str]]] = []
        for i, row in enumerate(names):
            phrases += [(i, 1.0, set(words_of(name))) for name in row]
            if definition := (definitions or {}).get(i):
                phrases.append((i, DEFINITION_SHARE, set(words_of(definition))))
        phrases = [phrase for phrase in phrases if phrase[2]]
        self.num_classes = len(names)
        of_class: dict[int, set[str]] = {}
        for i, _, words in phrases:
            of_class.setdefault(i, set()).update(words)
        counts = Counter(word for words in of_class.values() for word in words)
        rarity = {word: math.log(1 + len(names) / count) for word, count in counts.items()}
        self._classes = np.array([i for i, _, _ in phrases], np.int64)
        totals = np.array([sum(rarity[word] for word in sorted(words)) for _, _, words in phrases])
        self._scale = np.array([share for _, share, _ in phrases]) / totals
        places: dict[str, list[int]] = {}
        for place, (_, _, words) in enumerate(phrases):
            for word in words:
                places.setdefault(word, []).append(place)
        self._places = {word: (np.array(found), rarity[word]) for word, found in places.items()}

    def scores(self, text: str) -> np.ndarray:
        """float64 [C], from 0 to 1: 1 where a whole name of the class stands in the text."""
        sums = np.zeros(len(self._classes))
        for word in sorted(set(words_of(text))):
            if word in self._places:
                places, rarity = self._places[word]
                sums[places] += rarity
        found = np.zeros(self.num_classes)
        some = np.flatnonzero(sums)
        np.maximum.at(found, self._classes[some], np.minimum(1, sums[some] * self._scale[some]))
        return found
