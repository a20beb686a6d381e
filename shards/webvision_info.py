"""WebVision's info folder, 1.0 and 2.0: which images there are, their classes, and where their text lies.

    info/synsets.txt                      n01440764 tench, Tinca tinca     line i is class i, from 0
    info/queries_synsets_map.txt          1 1                              query, synset: both from 1
    info/train_filelist_google.txt        google/q0001/abc.jpg 0           path, class from 0; and _flickr
    info/train_meta_list_google.txt       google/q0001.json 1              line for line; row of the JSON array, from 1
    info/val_filelist.txt                 val000001.jpg 228                name, class
    google/q0001/abc.jpg                  images; or below train_images_256/ and the like
    google_json/q0001.json                or google/q0001.json, also below meta/: an array of objects, one an image
    val_images_256/val000001.jpg          or val_images/

The objects have the keys title, description and, from Flickr, tags (a list), each of which may be missing. Nothing
here depends on the number of classes (1,000 and 5,000) or on the digits of a query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from .errors import DataError, UsageError
from .files import join_url, read_limited, read_text
from .schema import MIB
from .source_labels import is_index
from .source_lists import bounded_lines, text_lines
from .storage import Storage
from .text_limits import counted, every_problem
from .wordnet import WNID_PATTERN

INFO_FOLDER = "info"
TEXT_KEYS = ("title", "description", "tags")
_TRAIN_LIST = re.compile(r"train_filelist_(?!all\.)([a-z0-9]+)\.txt")
_VAL_LIST = "val_filelist.txt"
_VAL_FOLDERS = ("val_images_256", "val_images_resized_256", "val_images_resized", "val_images", "val")
_BELOW = (
    "",
    "train_images_256/",
    "train_images_resized_256/",
    "train_images/",
    "resized_256/",
    "images/",
    "train/",
)
_META_BELOW = ("", "meta/", "metadata/", "info/")
_ODD = frozenset(":\0")  # a drive or URL; what no file name has
_MAX_INFO_BYTES = 64 * MIB
MAX_META_BYTES = 512 * MIB  # of one query's JSON file, some thousand objects


class WebVisionRow(NamedTuple):
    """One image.

    Attributes:
        line: of its file list, from 1.
        path: below the root.
        label: class index, from 0.
        meta_file: the JSON file of its query below the root, or empty where its part has no list of them.
        meta_row: its place there, from 0.
    """

    line: int
    path: str
    label: int
    meta_file: str
    meta_row: int


class Part(NamedTuple):
    """What came from one search engine.

    Attributes:
        name: `google` or `flickr`.
        file_list: its list below the root.
        meta_list: the list of its texts, or empty.
        images: what stands before its images' paths.
        meta: what stands before its JSON files' paths, `google/` for `google_json/` included; None where none is.
    """

    name: str
    file_list: str
    meta_list: str
    images: str
    meta: tuple[str, str] | None


@dataclass(frozen=True)
class WebVision:
    """A WebVision folder.

    Attributes:
        storage: its files.
        synsets: wnids; a place is a class index.
        names: what each synset is called, `tench, Tinca tinca`.
        queries: query number to class index.
        parts: training images by search engine.
        val_listed: whether there is a list of validation images.
        val_folder: where they lie, or None where there is no such folder.
    """

    storage: Storage
    synsets: tuple[str, ...]
    names: tuple[str, ...]
    queries: dict[int, int]
    parts: tuple[Part, ...]
    val_listed: bool
    val_folder: str | None

    def rows(self, part: Part, problems: list[str]) -> Iterator[WebVisionRow]:
        """The training images of a part, in the order of its list; lines that are no image are among the problems."""
        where, meta_where = self._where(part.file_list), self._where(part.meta_list)
        with ExitStack() as files:
            lines = bounded_lines(files.enter_context(self.storage.open(part.file_list)))
            pairs: Iterator[tuple[bytes | None, bytes | None]] = ((line, b"") for line in lines)
            if part.meta_list:
                pairs = zip_longest(
                    lines, bounded_lines(files.enter_context(self.storage.open(part.meta_list)))
                )
            for number, (line, meta) in enumerate(pairs, 1):
                if line is None or meta is None:
                    if not (line or meta or b"").strip():
                        continue  # an empty line at the end of one of them
                    short, other = (where, meta_where) if line is None else (meta_where, where)
                    problems.append(
                        f"{short}: expected a line for every line of {other}, found {number - 1}; it is cut short"
                    )
                    return
                for _, text in text_lines([(number, line)], where, problems):
                    for _, meta_text in text_lines([(number, meta)], meta_where, problems):
                        if row := self._row(part, number, text, meta_text, problems):
                            yield row

    def validation(self, problems: list[str]) -> Iterator[tuple[str, int]]:
        """(path below the root, class index) of the validation images."""
        if not self.val_listed or self.val_folder is None:
            return
        name = f"{INFO_FOLDER}/{_VAL_LIST}"
        with self.storage.open(name) as file:
            for number, text in text_lines(enumerate(bounded_lines(file), 1), self._where(name), problems):
                if (found := self._path_and_label(name, number, text, problems)) is not None:
                    yield f"{self.val_folder}/{found[0]}", found[1]

    def odd_query(self, row: WebVisionRow) -> int | None:
        """The query that an image's path names where `queries_synsets_map.txt` has it for another class, or not at all
        (the real one of version 1.0 has no query 587).
        """
        match = re.search(r"(?:^|/)q([0-9]{1,18})/", row.path)
        query = int(match[1]) if match else None
        return None if query is None or not self.queries or self.queries.get(query) == row.label else query

    def _row(self, part: Part, number: int, text: str, meta: str, problems: list[str]) -> WebVisionRow | None:
        found = self._path_and_label(part.file_list, number, text, problems)
        if found is None:
            return None
        meta_name, _, place = meta.strip().rpartition(" ")
        if part.meta_list and (not _is_below(meta_name) or not is_index(place) or int(place) < 1):
            problems.append(
                f"{self._where(part.meta_list)}: line {number}: expected a JSON file and a row from 1, found {meta[:80]!r}"
            )
            return None
        path, label = found
        meta_file = ""
        if part.meta is not None and part.meta_list:
            before, folder = part.meta
            meta_file = f"{before}{folder}/{meta_name.removeprefix(f'{part.name}/')}"
        return WebVisionRow(number, part.images + path, label, meta_file, int(place or 1) - 1)

    def _path_and_label(
        self, name: str, number: int, text: str, problems: list[str]
    ) -> tuple[str, int] | None:
        if not text.strip():
            return None
        path, _, label = text.strip().rpartition(" ")
        path = path.strip()
        if not _is_below(path) or not is_index(label):
            found = f"expected a path below the folder and a class, found {text.strip()[:80]!r}"
        elif int(label) >= len(self.synsets):
            found = (
                f"expected a class from 0 to {len(self.synsets) - 1} (a line of synsets.txt), found {label}"
            )
        else:
            return path, int(label)
        problems.append(f"{self._where(name)}: line {number}: {found}")
        return None

    def _where(self, name: str) -> str:
        return join_url(self.storage.name, name)


def is_webvision(storage: Storage) -> bool:
    """Whether a folder is laid out as WebVision is: an info folder with synsets.txt and a list of training images."""
    if not any(entry.is_folder and entry.name == INFO_FOLDER for entry in storage.entries()):
        return False
    names = {entry.name for entry in storage.entries(INFO_FOLDER)}
    return "synsets.txt" in names and any(map(_TRAIN_LIST.fullmatch, names))


def open_webvision(storage: Storage) -> WebVision:
    """Read what is small of the info folder, and find where images and texts lie.

    Raises:
        DataError: synsets or queries that cannot be read, every line named; no folder of images.
        UsageError: the folder is not WebVision's.
    """
    if not is_webvision(storage):
        raise UsageError(
            f"{storage.name}: expected WebVision's info/synsets.txt and info/train_filelist_google.txt or _flickr.txt, "
            "found none"
        )
    names = {entry.name for entry in storage.entries(INFO_FOLDER)}
    problems: list[str] = []
    synsets, words = _read_synsets(storage, problems)
    queries = _read_queries(storage, len(synsets), problems) if "queries_synsets_map.txt" in names else {}
    if problems:
        raise DataError(every_problem(problems))
    folders = {entry.name for entry in storage.entries() if entry.is_folder}
    parts = tuple(
        _find_part(storage, match[1], names, folders)
        for match in map(_TRAIN_LIST.fullmatch, sorted(names))
        if match
    )
    val_folder = next((name for name in _VAL_FOLDERS if name in folders), None)
    return WebVision(storage, synsets, words, queries, parts, _VAL_LIST in names, val_folder)


def read_meta(storage: Storage, meta_file: str) -> list[Any]:
    """The objects of one query's JSON file.

    Raises:
        DataError: it is missing, too large, no UTF-8 or no JSON array; or its server is away.
    """
    where = join_url(storage.name, meta_file)
    try:
        rows = json.loads(read_limited(join_url(storage.root, meta_file), MAX_META_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{where}: expected a JSON array of the query's images, found no file") from None
    except OSError as error:  # such as a name that is too long
        reason = error.strerror or error
        raise DataError(
            f"{where:.200}: expected a JSON array of the query's images, found: {reason}"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: expected a JSON array of the query's images, found: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{where}: expected a JSON array, found {type(rows).__name__}")
    return rows


def text_of(rows: list[Any], place: int, where: str) -> tuple[dict[str, Any], str]:
    """Title, description and tags of a row, as far as it has them; and what is wrong with it, or an empty text."""
    if place >= len(rows):
        return {}, f"{where}: expected at least {counted(place + 1, 'row')}, found {len(rows)}"
    if not isinstance(rows[place], dict):
        return {}, f"{where}: row {place + 1}: expected an object, found {type(rows[place]).__name__}"
    return {key: rows[place][key] for key in TEXT_KEYS if rows[place].get(key) not in (None, "", [])}, ""


def _read_synsets(storage: Storage, problems: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    where, lines = _info_lines(storage, "synsets.txt")
    seen: dict[str, int] = {}
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        wnid, _, name = line.strip().partition(" ")
        if not WNID_PATTERN.fullmatch(wnid):
            problems.append(f"{where}: line {number}: expected a wnid and names, found {line[:80]!r}")
        elif wnid in seen:
            problems.append(f"{where}: line {number}: {wnid} stands on line {seen[wnid]} already")
        seen.setdefault(wnid, number)
        names.append(name.strip())
    if not names:
        problems.append(f"{where}: expected synsets, found none")
    return tuple(seen), tuple(names)


def _read_queries(storage: Storage, num_synsets: int, problems: list[str]) -> dict[int, int]:
    where, lines = _info_lines(storage, "queries_synsets_map.txt")
    queries: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) != 2 or not all(map(is_index, cells)):
            problems.append(f"{where}: line {number}: expected a query and a synset, found {line[:80]!r}")
            continue
        query, synset = map(int, cells)
        if query in queries:
            problems.append(f"{where}: line {number}: expected query {query} once, found it again")
        elif query < 1 or not 1 <= synset <= num_synsets:
            problems.append(
                f"{where}: line {number}: expected a query from 1 and a synset from 1 to {num_synsets}, found {line!r}"
            )
        queries[query] = synset - 1
    return queries


def _info_lines(storage: Storage, name: str) -> tuple[str, list[str]]:
    """A small file's name and lines; the last need not end with a newline."""
    text = read_text(join_url(storage.root, f"{INFO_FOLDER}/{name}"), _MAX_INFO_BYTES)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return join_url(storage.name, f"{INFO_FOLDER}/{name}"), [] if lines == [""] else lines


def _find_part(storage: Storage, name: str, info: set[str], folders: set[str]) -> Part:
    file_list, meta_list = f"{INFO_FOLDER}/train_filelist_{name}.txt", f"train_meta_list_{name}.txt"
    images = _holding(storage, folders, _BELOW, name)
    if images is None:
        tried = ", ".join(f"{below}{name}" for below in _BELOW)
        raise DataError(
            f"{storage.name}: expected the images of {file_list} in one of {tried}, found none of these folders. Unpack "
            "them there, or move the list elsewhere to do without them"
        )
    meta = None
    # `google_json` first: a folder `google` is there anyway, with the images.
    for folder in (f"{name}_json", f"{name}_meta", name):
        below = _holding(storage, folders, _META_BELOW, folder)
        if below is not None:
            meta = below, folder
            break
    return Part(name, file_list, f"{INFO_FOLDER}/{meta_list}" if meta_list in info else "", images, meta)


def _holding(storage: Storage, folders: set[str], candidates: tuple[str, ...], name: str) -> str | None:
    """The first candidate below which there is a folder of that name."""
    for below in candidates:
        if not below:
            if name in folders:
                return below
        elif below.rstrip("/") in folders and any(
            entry.is_folder and entry.name == name for entry in storage.entries(below.rstrip("/"))
        ):
            return below
    return None


def _is_below(path: str) -> bool:
    """Whether a path leads to a file below the folder."""
    parts = path.split("/")
    return (
        bool(path) and not path.startswith(("/", "~")) and ".." not in parts and not _ODD.intersection(path)
    )
