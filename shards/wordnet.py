"""The noun hierarchy of WordNet 3.0, from the table inside the package.

ImageNet's class names are *wnids*: `n` and the eight-digit byte offset of a noun synset in WordNet 3.0's
data.noun. Hypernyms come in data.noun's pointer order, which is part of the result wherever a synset has
several; NLTK's `hypernyms()` is built on sets and changes its order with PYTHONHASHSEED.
`make_wordnet_table.py` writes the table and describes its arrays.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from .errors import DataError

TABLE_FORMAT = "softshard-wordnet 1"
TABLE_PATH = Path(__file__).with_name("wordnet.npz")
WNID_PATTERN = re.compile(r"n[0-9]{8}")


class WordNet:
    """Noun synsets by wnid: parents, lemmas and senses.

    Args:
        arrays: the arrays of a table, as `make_wordnet_table.py` describes them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.data_noun_sha256 = str(arrays["data_noun_sha256"])
        self._wnids = [f"n{offset:08d}" for offset in arrays["offsets"].tolist()]
        self._index = {wnid: i for i, wnid in enumerate(self._wnids)}
        self._pointer_starts = _starts(arrays["pointer_counts"])
        self._pointer_targets: list[int] = arrays["pointer_targets"].tolist()
        self._pointer_instance: list[int] = arrays["pointer_instance"].tolist()
        self._lemma_starts = _starts(arrays["lemma_counts"])
        self._lemmas = arrays["lemma_text"].tobytes().decode().split("\n")[:-1]
        self._lemma_ranks = arrays["lemma_ranks"]
        self._published: dict[int, int] | None = None
        if "published_children" in arrays:
            children, parents = arrays["published_children"].tolist(), arrays["published_parents"].tolist()
            self._published = dict(zip(children, parents, strict=True))

    @classmethod
    def load(cls, path: Path | str) -> WordNet:
        """Read a table written by `make_wordnet_table.py`.

        Raises:
            DataError: the file is not such a table.
        """
        return cls(read_table(path, TABLE_FORMAT))

    def __contains__(self, wnid: object) -> bool:
        return wnid in self._index

    def __len__(self) -> int:
        return len(self._wnids)

    def __iter__(self) -> Iterator[str]:
        """All wnids, ascending."""
        return iter(self._wnids)

    def hypernyms(self, wnid: str) -> tuple[str, ...]:
        """Parents of a synset, kinds (`@`) and instances (`@i`) alike, in data.noun's pointer order.

        Raises:
            DataError: WordNet 3.0 has no such noun synset.
        """
        row = self._pointers(self._synset(wnid))
        return tuple(self._wnids[target] for target in self._pointer_targets[row])

    def published_parent(self, wnid: str) -> str | None:
        """Parent of a synset in the published tree of ImageNet-21K-P, None at a root.

        It is the parent in the last line for the synset in ImageNet's `wordnet.is_a.txt`. That list knows
        kinds (`@`) only: a synset with nothing but instance pointers (`@i`), such as the sun, is a root.

        Raises:
            DataError: WordNet 3.0 has no such noun synset, or the table was written without these facts.
        """
        if self._published is None:
            raise DataError(
                "WordNet table: it does not record the published parents. "
                "Run: python -m softshard.shards.make_wordnet_table DICT_DIR --is-a wordnet.is_a.txt -o FILE"
            )
        synset = self._synset(wnid)
        parent = self._published.get(synset)
        if parent is None:
            row = self._pointers(synset)
            targets, instance = self._pointer_targets[row], self._pointer_instance[row]
            kinds = [target for target, is_instance in zip(targets, instance, strict=True) if not is_instance]
            parent = kinds[-1] if kinds else -1
        return None if parent < 0 else self._wnids[parent]

    def lemmas(self, wnid: str) -> tuple[str, ...]:
        """Names of a synset in data.noun's order, with spaces for its underscores.

        Raises:
            DataError: WordNet 3.0 has no such noun synset.
        """
        synset = self._synset(wnid)
        words = self._lemmas[self._lemma_starts[synset] : self._lemma_starts[synset + 1]]
        return tuple(word.replace("_", " ") for word in words)

    def sense_name(self, wnid: str) -> str:
        """What NLTK calls a synset: `dog.n.01`, its first lemma and which of that lemma's senses it is.

        Raises:
            DataError: WordNet 3.0 has no such noun synset.
        """
        first = self._lemma_starts[self._synset(wnid)]
        return f"{self._lemmas[first].lower()}.n.{1 + int(self._lemma_ranks[first]):02d}"

    def senses(self, name: str) -> tuple[str, ...]:
        """Synsets that a name stands for, the most frequent sense first (the order of index.noun).

        Args:
            name: a lemma such as `tabby cat`; case does not matter, underscores count as spaces.

        Returns:
            wnids; empty when WordNet has no such noun.
        """
        return tuple(self._wnids[synset] for _, synset in sorted(self._senses.get(_spelling(name), ())))

    @cached_property
    def _senses(self) -> dict[str, list[tuple[int, int]]]:
        # Built on the first look-up of a name: trees over wnids never need it.
        starts = self._lemma_starts
        synset_of_lemma = np.repeat(np.arange(len(self._wnids)), np.diff(starts)).tolist()
        senses: dict[str, list[tuple[int, int]]] = {}
        for lemma, rank, synset in zip(
            self._lemmas, self._lemma_ranks.tolist(), synset_of_lemma, strict=True
        ):
            found = senses.setdefault(_spelling(lemma), [])
            if (rank, synset) not in found:  # `A` and `a` are lemmas of one synset
                found.append((rank, synset))
        return senses

    def _pointers(self, synset: int) -> slice:
        return slice(self._pointer_starts[synset], self._pointer_starts[synset + 1])

    def _synset(self, wnid: str) -> int:
        try:
            return self._index[wnid]
        except KeyError:
            raise DataError(
                f"{wnid!r}: not a noun synset of WordNet 3.0; expected `n` and eight digits"
            ) from None


def read_table(
    path: Path | str, table_format: str, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Some arrays of a table of the package, or all of them.

    Raises:
        DataError: the file is not such a table.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = str(archive["format"]) if "format" in archive.files else "nothing"
            wanted = archive.files if names is None else names
            arrays = {name: archive[name] for name in wanted} if found == table_format else {}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a WordNet table; {error}; install softshard again") from error
    if found != table_format:
        raise DataError(
            f"{path}: expected a WordNet table of format {table_format!r}, found {found!r}; written by another "
            "softshard. Install softshard again"
        )
    return arrays


@lru_cache(maxsize=1)
def wordnet() -> WordNet:
    """The table inside the package, read once per process."""
    return WordNet.load(TABLE_PATH)


def _spelling(name: str) -> str:
    return "_".join(name.replace("_", " ").lower().split())


def _starts(counts: np.ndarray) -> list[int]:
    """Row borders of a ragged array: row i is [starts[i], starts[i + 1])."""
    return [0, *np.cumsum(counts, dtype=np.int64).tolist()]
