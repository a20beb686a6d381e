"""Class lists: files of names, the ImageNet lists inside timm's wheel, and what a name means in WordNet.

The order of a list is the numbering of its classes. Mixing two lists (fall11 and winter21 of ImageNet-21K-P
above all) trains on wrong labels without any error, so a list always goes with its SHA-256.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import DataError, MissingExtraError, UsageError
from .files import read_text, sha256_hex
from .names import name_bytes
from .schema import MIB
from .storage import is_remote, open_storage, public_name
from .text_limits import counted
from .wordnet import WNID_PATTERN, wordnet

_MAX_LIST_BYTES = 64 * MIB
_SHOWN_NOUNS = 40

# Files of timm's wheel, in timm/data/_info. `imagenet-21k` is the fall11 release as it was: 21,841 classes.
# Google's list has two more, Microsoft's another one.
KNOWN_LISTS = {
    "imagenet-1k": "imagenet_synsets.txt",
    "imagenet-12k": "imagenet12k_synsets.txt",
    "imagenet-21k": "imagenet22k_synsets.txt",
    "imagenet-21k-p-fall11": "imagenet21k_miil_synsets.txt",
    "imagenet-21k-p-winter21": "imagenet21k_miil_w21_synsets.txt",
}


def load_class_list(spec: str | Path) -> tuple[str, ...]:
    """Read a class list.

    Args:
        spec: a name of `KNOWN_LISTS`; a file of class names, one per line, UTF-8 with or without a byte-order
            mark (white space around a name does not count; a file that is called like a known list is given as
            `./imagenet-1k`); or a folder: that of a packed data set, or one of class folders or class tars.

    Returns:
        Class names; their place is the class index.

    Raises:
        UsageError: neither a known name, a file or URL, nor such a folder.
        DataError: blank lines, a name twice, no names, or not UTF-8; every bad line is named.
        MissingExtraError: a known name, and timm is not installed.
    """
    spec = str(spec)
    if spec in KNOWN_LISTS:
        if (folder := timm_info_folder()) is None:
            missing = ImportError("No module named 'timm'", name="timm")
            raise MissingExtraError(f"class list {spec!r}", "training", missing)
        return _read_names(folder / KNOWN_LISTS[spec])
    if is_remote(spec):
        return _parse_names(read_text(spec, _MAX_LIST_BYTES), public_name(spec))
    path = Path(open_storage(spec).root)
    if path.is_dir():
        return _folder_classes(path)
    if not path.is_file():
        raise UsageError(
            f"{spec}: expected a file of class names, a folder of classes or a known list, found none; "
            f"known lists are {', '.join(KNOWN_LISTS)}"
        )
    return _read_names(path)


def _folder_classes(folder: Path) -> tuple[str, ...]:
    # These modules stand on this one.
    from .manifest import Manifest
    from .schema import MANIFEST_NAME
    from .sources import open_source

    for dataset in (folder, folder / "train"):
        if (dataset / MANIFEST_NAME).is_file():
            return Manifest.load(dataset).class_names
    listing = open_source(folder)
    return listing.class_names or tuple(entry.name for entry in listing.folders)


def class_list_sha256(names: Iterable[str]) -> str:
    """SHA-256 (hex) over the names in order, UTF-8, each followed by a newline."""
    return sha256_hex(name_bytes("".join(f"{name}\n" for name in names)))


def resolve_wnid(name: str) -> str:
    """Find the WordNet noun synset that a class or folder name stands for.

    Args:
        name: a wnid, which stays as it is, or a noun as WordNet spells it (`tabby cat`, `tabby_cat`). A noun
            gets the first sense in WordNet's order of frequency, which need not be the one meant: `crane`
            gives Stephen Crane, the writer, since WordNet counted none of its senses.

    Returns:
        A wnid.

    Raises:
        DataError: WordNet 3.0 has no such noun.
    """
    if WNID_PATTERN.fullmatch(name):
        found = (name,) if name in wordnet() else ()
    else:
        found = wordnet().senses(name)
    if not found:
        raise DataError(
            f"class {name!r}: expected a wnid or a noun of WordNet 3.0, found neither; "
            "name the class by its wnid (n02123045), or give your own child,parent table"
        )
    return found[0]


def noun_senses(names: Sequence[str]) -> list[str]:
    """Lines that say which WordNet sense each noun got, so that a person can object; wnids need none.

    Args:
        names: class names that `resolve_wnid` knows.

    Returns:
        A line a noun for the first 40; one more says how many follow.
    """
    lines = []
    for name in names:
        if not WNID_PATTERN.fullmatch(name):
            wnid = resolve_wnid(name)
            parents = [wordnet().lemmas(parent)[0] for parent in wordnet().hypernyms(wnid)[:1]]
            others = len(wordnet().senses(name)) - 1
            more = f"; one of {others + 1} senses, name the wnid for another" if others else ""
            kind = f", a kind of {parents[0]}" if parents else ""
            lines.append(f"  {name} is taken as {wnid} {', '.join(wordnet().lemmas(wnid)[:3])}{kind}{more}")
    more = len(lines) - _SHOWN_NOUNS
    return [*lines[:_SHOWN_NOUNS], *([f"  and {counted(more, 'more noun')}"] if more > 0 else [])]


def _read_names(path: Path) -> tuple[str, ...]:
    return _parse_names(read_text(str(path), _MAX_LIST_BYTES), str(path))


def _parse_names(text: str, path: str) -> tuple[str, ...]:
    # Not str.splitlines: that also splits at form feeds and Unicode's separators.
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path}: expected class names, one per line, found an empty file")

    first_line: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            problems.append(f"{path}: line {number}: expected a class name, found a blank line")
        elif name in first_line:
            problems.append(f"{path}: line {number}: {name!r} stands on line {first_line[name]} already")
        else:
            first_line[name] = number
    if problems:
        raise DataError("\n".join(problems))
    return tuple(first_line)


def timm_info_folder() -> Path | None:
    """Where timm keeps lists of classes and words; None where it is not installed."""
    # Finding the spec of a top-level package runs none of its code: timm imports torch, which takes seconds.
    found = importlib.util.find_spec("timm")
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) / "data" / "_info" if places else None
