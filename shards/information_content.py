"""Reads files of information content as NLTK's corpus `wordnet_ic` has them: counts of WordNet's synsets.

wnver::eOS9lXC6GvMWznF1wkZofDdtbBU
1740n 1915712 ROOT
1930n 859272
"""

from __future__ import annotations

from .errors import DataError
from .files import read_text
from .schema import MIB
from .storage import public_name
from .text_limits import every_problem

_MAX_BYTES = 256 * MIB


def load_counts(file: str) -> tuple[dict[int, float], float]:
    """Read the nouns' counts.

    Args:
        file: such as `ic-brown.dat`; a path or any fsspec URL.

    Returns:
        (count by the synset's byte offset, count of all roots).

    Raises:
        UsageError: it cannot be read.
        DataError: it is no such file (every bad line is named, up to a limit), or has no count of a root.
    """
    where = public_name(file)
    first, *lines = read_text(file, _MAX_BYTES).split("\n")
    if not first.startswith("wnver"):
        raise DataError(
            f"{where}: expected information content that begins with 'wnver', found {first[:40]!r}. NLTK has such files "
            "in its corpus wordnet_ic"
        )
    counts: dict[int, float] = {}
    root = 0.0
    problems: list[str] = []
    for number, line in enumerate(lines, 2):
        fields = line.split()
        if not fields or fields[0].endswith("v"):
            continue
        try:
            if not fields[0].endswith("n") or len(fields) not in (2, 3):
                raise ValueError
            offset, count = int(fields[0][:-1]), float(fields[1])
            if not 0 <= count < float("inf"):
                raise ValueError
        except ValueError:
            problems.append(
                f"{where}: line {number}: expected an offset with n or v, and a count, found {line[:60]!r}"
            )
            continue
        counts[offset] = count
        root += count if fields[2:] == ["ROOT"] else 0
    if problems:
        raise DataError(every_problem(problems))
    if not root:
        raise DataError(f"{where}: expected the count of a root of nouns, found none")
    return counts, root
