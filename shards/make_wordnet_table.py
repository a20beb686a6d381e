"""Write `wordnet.npz`, the noun hierarchy of WordNet 3.0 that softshard carries in its wheel.

    python -m softshard.shards.make_wordnet_table /usr/share/wordnet --is-a wordnet.is_a.txt \\
        -o shards/wordnet.npz

The dictionary folder is WordNet's own (`data.noun`, `index.noun`; Debian's package wordnet-base), read as the
manual page wndb(5) describes it. `wordnet.is_a.txt` is ImageNet's list of `parent child` lines: where its
last line for a child names another parent than the child's last `@` pointer, the table records that fact, so
that the published label tree can be built without the file.

Arrays of the table (S synsets, E hypernym pointers, N pairs of synset and lemma):

    format             str          "softshard-wordnet 1"
    data_noun_sha256   str          of the data.noun that was read
    offsets            uint32 [S]   byte offsets in data.noun, ascending; a wnid is `n%08d` of one
    pointer_counts     uint8 [S]    hypernym pointers of each synset
    pointer_targets    uint32 [E]   index of the hypernym in `offsets`, in data.noun's order
    pointer_instance   uint8 [E]    1 for `@i` (instance of), 0 for `@` (kind of)
    lemma_counts       uint8 [S]    lemmas of each synset
    lemma_text         uint8 [...]  UTF-8, each lemma followed by a newline, in data.noun's order
    lemma_ranks        uint8 [N]    place of the synset among the lemma's senses in index.noun, from 0
    published_children uint32 [X]   synsets whose published parent is not their last `@` pointer (with --is-a)
    published_parents  int32 [X]    that parent, an index in `offsets`, or -1 for none (with --is-a)
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import DataError, SoftshardError, UsageError
from .wordnet import TABLE_FORMAT

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: the same table gives the same bytes


def read_dictionary(folder: Path) -> dict[str, np.ndarray]:
    """Read the nouns of a WordNet dictionary folder.

    Args:
        folder: holds `data.noun` and `index.noun`.

    Returns:
        The arrays of the table, without the published parents.

    Raises:
        UsageError: a file is not there.
        DataError: a line cannot be read, or the two files do not belong together.
    """
    data_bytes = _read_bytes(folder / "data.noun")
    offsets: list[int] = []
    pointers: list[list[tuple[int, bool]]] = []
    lemmas: list[list[str]] = []
    for number, line in _records(data_bytes):
        try:
            offset, hypernyms, words = _parse_synset(line)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"data.noun: line {number}: expected a synset as wndb(5) describes it, found {line[:60]!r}; "
                "the file is cut short or not WordNet's"
            ) from error
        offsets.append(offset)
        pointers.append(hypernyms)
        lemmas.append(words)
    index = {offset: i for i, offset in enumerate(offsets)}
    if not offsets or offsets != sorted(index):
        raise DataError(
            "data.noun: expected synsets with ascending offsets; the file is empty or not WordNet's"
        )
    unknown = sorted({target for row in pointers for target, _ in row if target not in index})
    if unknown:
        raise DataError(f"data.noun: hypernym pointers lead to synsets that are not there: {unknown[:5]}")

    ranks = _sense_ranks(_read_bytes(folder / "index.noun"))
    try:
        lemma_ranks = [
            ranks[word.lower()][offset] for offset, row in zip(offsets, lemmas, strict=True) for word in row
        ]
    except KeyError as error:
        raise DataError(
            f"index.noun: no entry for {error.args[0]!r} of data.noun; the files are of different versions"
        ) from error
    return {
        "format": np.array(TABLE_FORMAT),
        "data_noun_sha256": np.array(hashlib.sha256(data_bytes).hexdigest()),
        "offsets": np.array(offsets, np.uint32),
        "pointer_counts": np.array([len(row) for row in pointers], np.uint8),
        "pointer_targets": np.array([index[target] for row in pointers for target, _ in row], np.uint32),
        "pointer_instance": np.array([instance for row in pointers for _, instance in row], np.uint8),
        "lemma_counts": np.array([len(row) for row in lemmas], np.uint8),
        "lemma_text": np.frombuffer(
            "".join(f"{word}\n" for row in lemmas for word in row).encode(), np.uint8
        ),
        "lemma_ranks": np.array(lemma_ranks, np.uint8),
    }


def published_exceptions(table: dict[str, np.ndarray], is_a: Path) -> dict[str, np.ndarray]:
    """Find the synsets whose published parent is not their last `@` pointer.

    In the published tree of ImageNet-21K-P the last line of a child wins; a synset without a line is a root.

    Args:
        table: what `read_dictionary` returned.
        is_a: ImageNet's `wordnet.is_a.txt`, lines `parent child`, both wnids.

    Returns:
        The arrays `published_children` and `published_parents` of the table.

    Raises:
        UsageError: the file is not there.
        DataError: a line is not two wnids of the table.
    """
    index = {f"n{offset:08d}": i for i, offset in enumerate(table["offsets"].tolist())}
    published: dict[int, int] = {}
    for number, line in enumerate(_read_bytes(is_a).decode("utf-8", "replace").splitlines(), 1):
        try:
            parent, child = line.split()
            published[index[child]] = index[parent]
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{is_a.name}: line {number}: expected `parent child`, two wnids of data.noun, "
                f"found {line[:60]!r}"
            ) from error

    children: list[int] = []
    parents: list[int] = []
    start = 0
    for synset, count in enumerate(table["pointer_counts"].tolist()):
        row = slice(start, start + count)
        start += count
        kinds = table["pointer_targets"][row][table["pointer_instance"][row] == 0]
        last = int(kinds[-1]) if len(kinds) else -1
        if published.get(synset, -1) != last:
            children.append(synset)
            parents.append(published.get(synset, -1))
    return {
        "published_children": np.array(children, np.uint32),
        "published_parents": np.array(parents, np.int32),
    }


def write_table(table: dict[str, np.ndarray], path: Path) -> None:
    """Write a compressed `.npz` whose bytes depend on nothing but the arrays (and zlib's version)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in table.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
            member.create_system = 3  # Unix, whatever system writes it
            member.external_attr = 0o644 << 16
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _parse_synset(line: str) -> tuple[int, list[tuple[int, bool]], list[str]]:
    """Split a line of data.noun into (offset, [(hypernym's offset, is it `@i`)], lemmas)."""
    fields = line.split(" | ")[0].split()
    num_lemmas = int(fields[3], 16)
    lemmas = fields[4 : 4 + 2 * num_lemmas : 2]
    first = 4 + 2 * num_lemmas
    num_pointers = int(fields[first])
    pointers = fields[first + 1 : first + 1 + 4 * num_pointers]
    if len(lemmas) != num_lemmas or len(pointers) != 4 * num_pointers:
        raise ValueError("fewer fields than the line announces")
    hypernyms = [
        (int(offset), symbol == "@i")
        for symbol, offset in zip(pointers[0::4], pointers[1::4], strict=True)
        if symbol in ("@", "@i")
    ]
    return int(fields[0]), hypernyms, lemmas


def _sense_ranks(index_bytes: bytes) -> dict[str, dict[int, int]]:
    """Read index.noun: lower-case lemma -> {offset of a synset: its rank, 0 the most frequent sense}."""
    ranks: dict[str, dict[int, int]] = {}
    for number, line in _records(index_bytes):
        fields = line.split()
        try:
            offsets = [int(offset) for offset in fields[6 + int(fields[3]) :]]
            expected = int(fields[2])
        except (ValueError, IndexError):
            offsets, expected = [], -1
        if len(offsets) != expected:
            raise DataError(
                f"index.noun: line {number}: expected a lemma as wndb(5) describes it, found {line[:60]!r}; "
                "the file is cut short or not WordNet's"
            )
        ranks[fields[0]] = {offset: rank for rank, offset in enumerate(offsets)}
    return ranks


def _records(content: bytes) -> list[tuple[int, str]]:
    """Lines with their numbers, without the licence, whose lines begin with a space."""
    lines = content.decode("utf-8", "replace").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith(" ")]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read; {error.strerror}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the packaged WordNet table.")
    parser.add_argument(
        "dictionary", type=Path, metavar="DICT_DIR", help="folder of data.noun and index.noun"
    )
    parser.add_argument("--is-a", type=Path, metavar="FILE", help="ImageNet's wordnet.is_a.txt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .npz to write")
    args = parser.parse_args(argv)
    try:
        table = read_dictionary(args.dictionary)
        if args.is_a is not None:
            table |= published_exceptions(table, args.is_a)
    except SoftshardError as error:
        print(f"make_wordnet_table: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    write_table(table, args.output)
    print(
        f"{args.output}: {len(table['offsets'])} synsets, {len(table['pointer_targets'])} hypernym pointers, "
        f"{len(table['lemma_ranks'])} lemmas, {len(table.get('published_children', ()))} published exceptions"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
