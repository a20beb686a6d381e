"""WebVision as a source: the images of its Google and Flickr parts with their texts, and the validation images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

from .errors import DataError, StorageError
from .kept_rows import KeptRows
from .listing import ClassFolder, Listing, Seen, not_seen
from .storage import Storage
from .text_limits import counted, every_problem, some
from .webvision_info import Part, WebVision, WebVisionRow, open_webvision, read_meta, text_of

_MAX_PROBLEMS = 1000  # then the folder is not what it is taken for
_SHOWN = 3


def list_webvision(storage: Storage, seen: Seen = not_seen) -> Listing:
    """List WebVision's images, as its info folder names them; none of them is looked at.

    A class is a synset, in the order of synsets.txt. Title, description and tags go into the samples' metadata, as far
    as an image has them; a JSON file or a row of one that is missing or damaged costs its images their text, and a
    warning counts them.

    Args:
        storage: the folder that holds `info`.
        seen: told now and then of how many more images were found.

    Raises:
        DataError: every bad line of the info folder, up to a limit; or no image.
    """
    webvision = open_webvision(storage)
    problems: list[str] = []
    textless: list[str] = []
    num_textless = 0
    odd_queries: dict[int, None] = {}
    training, validation = KeptRows(), KeptRows()
    for part in webvision.parts:
        for rows in rows_by_meta(webvision, part, problems):
            seen(len(rows))
            for row, (text, problem) in zip(rows, texts_of(webvision, rows), strict=True):
                training.add(row.label, row.path, text)
                if (query := webvision.odd_query(row)) is not None:
                    odd_queries[query] = None
                if problem:
                    num_textless += 1
                    if len(textless) < _MAX_PROBLEMS and problem not in textless[-1:]:
                        textless.append(problem)
            if len(problems) >= _MAX_PROBLEMS:
                raise DataError(every_problem(problems))
    for path, label in webvision.validation(problems):
        validation.add(label, path, {})
    folders = _folders(webvision, training, problems)
    val_folders = _folders(webvision, validation, problems)
    if problems:
        raise DataError(every_problem(problems))
    if not folders:
        raise DataError(f"{storage.name}: expected training images in info/train_filelist_*.txt, found none")
    if webvision.val_listed and webvision.val_folder is None:
        warnings.warn(
            f"softshard: {storage.name}: expected the images of info/val_filelist.txt in val_images_256 or val_images, "
            "found neither; there will be no validation part",
            stacklevel=2,
        )
    if odd_queries:
        shown = some(list(map(str, sorted(odd_queries))), _SHOWN, str)
        warnings.warn(
            f"softshard: {storage.name}: expected the queries of the file lists in info/queries_synsets_map.txt with the "
            f"same classes, found {len(odd_queries)} without or with others: {shown}; the file "
            "lists' classes count",
            stacklevel=2,
        )
    if num_textless:
        more = f"; and {len(textless) - _SHOWN} more such" if len(textless) > _SHOWN else ""
        warnings.warn(
            f"softshard: {counted(num_textless, 'image')} without title, description and tags: "
            f"{'; '.join(textless[:_SHOWN])}{more}",
            stacklevel=2,
        )
    return Listing(storage.name, folders, val_folders, class_names=webvision.synsets, storage=storage)


def rows_by_meta(webvision: WebVision, part: Part, problems: list[str]) -> Iterator[list[WebVisionRow]]:
    """The rows of a part, those together that follow each other and have their text in one file: a query's images."""
    for _, rows in groupby(webvision.rows(part, problems), attrgetter("meta_file")):
        yield from _at_most(rows, 10_000)


def texts_of(webvision: WebVision, rows: list[WebVisionRow]) -> Iterator[tuple[dict[str, Any], str]]:
    """(title, description and tags, what is wrong with them or an empty text) of rows with one file of texts."""
    meta_file = rows[0].meta_file
    if not meta_file:
        problem = f"{webvision.storage.name}: expected a folder of JSON files (google_json, flickr_json), found none"
        yield from (({}, problem) for _ in rows)
        return
    try:
        found = read_meta(webvision.storage, meta_file)
    except StorageError:
        raise
    except DataError as error:
        yield from (({}, str(error)) for _ in rows)
        return
    for row in rows:
        yield text_of(found, row.meta_row, f"{webvision.storage.name.rstrip('/')}/{meta_file}")


def _at_most(rows: Iterator[WebVisionRow], num: int) -> Iterator[list[WebVisionRow]]:
    block: list[WebVisionRow] = []
    for row in rows:
        block.append(row)
        if len(block) == num:
            yield block
            block = []
    if block:
        yield block


def _folders(webvision: WebVision, rows: KeptRows, problems: list[str]) -> tuple[ClassFolder, ...]:
    where = f"{webvision.storage.name.rstrip('/')}/info"
    labels = {webvision.synsets[int(str(label))]: label for label in rows.groups}
    return tuple(rows.class_folder(name, [labels[name]], where, problems) for name in sorted(labels))
