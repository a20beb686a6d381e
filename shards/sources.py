"""Where images come from: every source is listed without decoding an image, and all give one `Listing`.

    folder of class folders      SRC/<class>/<image>
    folder of class tars         SRC/<class>.tar
    class tars inside a tar      SRC = fall11_whole.tar
    class folders inside a tar   SRC = photos.tar of <class>/<image>
    file list                    SRC = list.csv, list.tsv, list.jsonl: path, label and more columns
    WebDataset                   SRC/*.tar of samples with an image and a class
    WebVision                    SRC/info/synsets.txt and what else lies there, SRC/google, SRC/flickr

Each from a local path or any fsspec URL. A folder that holds `train` and `val` and nothing else, as ImageNet-1K is
kept, is a source that is split already.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from .errors import DataError, UsageError
from .listing import ClassFolder, Listing, Seen, in_order, is_image_name, not_seen
from .schema import LEDGER_NAME, PLAN_NAME
from .source_lists import LIST_SUFFIXES, list_file_list
from .source_tars import list_class_tars, list_tar_of_folders, list_tar_of_tars, plain_name, tar_members
from .source_webdataset import LABEL_SUFFIXES, list_webdataset
from .source_webvision import list_webvision
from .storage import Storage, open_storage
from .text_limits import counted, some
from .webvision_info import is_webvision

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_MEMBERS_TO_TELL = 32  # of a tar: enough to see what it holds
_TARS_TO_TELL = 8
_KNOWN = (
    "a folder of class folders or class tars, a tar of either, a WebDataset, a WebVision folder, or a .csv, .tsv or .jsonl "
    "list of path and label"
)


def open_source(
    source: str | Path, class_names: Sequence[str] | None = None, seen: Seen = not_seen
) -> Listing:
    """List whatever kind of source this is.

    Args:
        source: path or fsspec URL.
        class_names: the class list, which whole-number labels of a list or WebDataset point into.
        seen: told now and then of how many more images were found.

    Raises:
        UsageError: it is not there, or cannot be told from what it holds.
        DataError: it holds no image, or is damaged; every problem is named.
    """
    storage = open_storage(source)
    if not storage.is_folder():
        return _open_file(storage, class_names, seen)
    if is_webvision(storage):
        return list_webvision(storage, seen)
    parts = _split_parts(storage)
    kinds = {_folder_kind(storage, below) for below in parts}
    if len(kinds) > 1:
        raise UsageError(
            f"{storage.name}: expected train and val of one kind, found {' and '.join(sorted(kinds))}"
        )
    return _list_folder(storage, kinds.pop(), parts, class_names, seen)


def _split_parts(storage: Storage) -> tuple[str, ...]:
    """`train/` and `val/` of a source that is split already, or the source itself."""
    entries = storage.entries()
    names = {entry.name for entry in entries}
    if PLAN_NAME in names:  # of our own making, with a ledger beside; val need not be there
        names -= {PLAN_NAME, LEDGER_NAME}
        if names in ({"train"}, {"train", "val"}):
            return tuple(f"{name}/" for name in sorted(names))
    folders = {entry.name for entry in entries if entry.is_folder}
    # A class may be called `train`; its folder then holds images, not folders or tars.
    if not {"train", "val"} <= folders or not all(_holds_classes(storage, name) for name in ("train", "val")):
        return ("",)
    if others := sorted(folders - {"train", "val"}):
        raise DataError(
            f"{storage.name}: expected train and val alone, or class folders alone, found {others} beside train and "
            "val. Move them elsewhere, or give a folder of class folders"
        )
    return ("train/", "val/")


def _holds_classes(storage: Storage, below: str) -> bool:
    return any(entry.is_folder or entry.name.endswith(".tar") for entry in storage.entries(below))


def list_image_folder(root: str | Path) -> Listing:
    """List `root/<class>/.../<image>`, or `root/train/<class>/...` and `root/val/<class>/...`.

    Hidden files and folders are left out.

    Raises:
        UsageError: the folder is not there.
        DataError: it holds no class folder, or no image at all.
    """
    storage = open_storage(root)
    if not storage.is_folder():
        raise UsageError(f"{storage.name}: expected a folder of class folders, found a file")
    return _list_folder(storage, "folders", _split_parts(storage), None, not_seen)


def _open_file(storage: Storage, class_names: Sequence[str] | None, seen: Seen) -> Listing:
    path = storage.name.lower()
    if path.endswith(LIST_SUFFIXES):
        return list_file_list(storage, class_names, seen)
    if path.endswith((".tar", *_COMPRESSED)):
        kind = _tar_kind(storage, "")
        if kind == "tars":
            return list_tar_of_tars(storage, seen)
        if kind == "folders":
            return list_tar_of_folders(storage, seen)
        if kind == "webdataset":
            return _list_folder(storage, "webdataset", ("",), class_names, seen)
        raise UsageError(
            f"{storage.name}: expected members <class>.tar, <class>/<image> or samples with an image and a class, found "
            "images alone; it is not known which class they have. Give the folder of class tars"
        )
    raise UsageError(f"{storage.name}: expected {_KNOWN}; found a file of another kind")


def _folder_kind(storage: Storage, below: str) -> str:
    entries = storage.entries(below)
    tars = [entry.name for entry in entries if not entry.is_folder and entry.name.endswith(".tar")]
    folders = [entry.name for entry in entries if entry.is_folder]
    if not tars:
        return "folders"
    for tar in tars[:_TARS_TO_TELL]:
        try:
            kind = _tar_kind(storage, below + tar)
        except DataError:
            continue  # listing them names every damaged one
        if kind == "webdataset":
            return kind
        break
    if folders:
        raise UsageError(
            f"{storage.name.rstrip('/')}/{below}: expected class folders or class tars, found both: "
            f"{folders[0]!r} and {tars[0]!r}; give a folder of one kind"
        )
    return "class tars"


def _tar_kind(storage: Storage, path: str) -> str:
    """`tars`, `webdataset`, `folders` or `images`, from the first members.

    Raises:
        UsageError: images with files of the same name beside them, none of which is a class.
    """
    where = f"{storage.name.rstrip('/')}/{path}" if path else storage.name
    with storage.open(path) as file:
        names = [plain_name(member) for member in islice(tar_members(file, where), _MEMBERS_TO_TELL)]
    seen = [name for name in names if name is not None]
    if any(name.endswith(".tar") for name in seen):
        return "tars"
    keys = {name.partition(".")[0] for name in seen if is_image_name(name)}
    labels = {name.partition(".")[0] for name in seen if name.endswith(LABEL_SUFFIXES)}
    if keys & labels:
        return "webdataset"
    others = [name for name in seen if not is_image_name(name)]
    if len(keys & {name.partition(".")[0] for name in others}) > len(keys) / 2:
        # A WebDataset after all; taken for a class tar, each shard would become a class.
        raise UsageError(
            f"{where}: expected the class of every sample in a member .cls or .json, found images with {others[0]!r} "
            "and the like beside them. Write a .cls for every sample, or give a list of path and label"
        )
    return "folders" if keys and all("/" in name for name in seen if is_image_name(name)) else "images"


def _list_folder(
    storage: Storage, kind: str, parts: tuple[str, ...], class_names: Sequence[str] | None, seen: Seen
) -> Listing:
    if kind == "webdataset":
        return list_webdataset(storage, parts, class_names, seen)
    listers: dict[str, Callable[[Storage, str, Seen], tuple[tuple[ClassFolder, ...], list[str]]]] = {
        "folders": _class_folders,
        "class tars": list_class_tars,
    }
    halves = [listers[kind](storage, below, seen) for below in parts]
    ignored = [path for _, paths in halves for path in paths]
    if parts != ("",):
        ours = (PLAN_NAME, LEDGER_NAME)
        ignored += [
            entry.name for entry in storage.entries() if not entry.is_folder and entry.name not in ours
        ]
    root = Path(storage.root) if not storage.remote else storage.name
    validation = halves[1][0] if len(halves) > 1 else ()
    return Listing(root, halves[0][0], validation, tuple(sorted(ignored)), storage=storage)


def _class_folders(storage: Storage, below: str, seen: Seen) -> tuple[tuple[ClassFolder, ...], list[str]]:
    where = os.path.join(storage.name, below).rstrip("/")
    entries = storage.entries(below)
    ignored = [below + entry.name for entry in entries if not entry.is_folder]
    beside = len(ignored)

    def list_class(name: str) -> tuple[ClassFolder, list[str]]:
        files: list[str] = []
        others: list[str] = []
        _walk(storage, below + name, "", files, others)
        return ClassFolder(name, below + name, sorted(files)), others

    folders: list[ClassFolder] = []
    for folder, others in in_order(storage, list_class, [entry.name for entry in entries if entry.is_folder]):
        folders.append(folder)
        ignored += others
        seen(len(folder.files))
    hint = "Give the folder whose subfolders are the classes: SRC/<class>/<image>.jpg"
    if not folders:
        found = counted(beside, "file") if beside else "an empty folder"
        if packed := [path for path in ignored if path.endswith(_COMPRESSED)]:
            raise DataError(
                f"{where}: expected class folders or class tars, found compressed tars such as {packed[0]!r}; images are "
                "read from their places in a tar. Decompress them first"
            )
        raise DataError(f"{where}: expected class folders, found {found}. {hint}")
    if not any(len(folder.files) for folder in folders):
        raise DataError(
            f"{where}: expected images, found none in {counted(len(folders), 'class folder')}. {hint}"
        )
    deep = [folder.name for folder in folders if _holds_only_folders(folder)]
    if len(deep) == len(folders):
        warnings.warn(
            f"softshard: {where}: every class folder ({some(deep, 3, str)}) holds several folders and no image of its "
            "own; all images below it get its class. If those folders are the classes, give the folder above them",
            stacklevel=2,
        )
    return tuple(folders), ignored


def _holds_only_folders(folder: ClassFolder) -> bool:
    tops = {file.partition("/")[0] if "/" in file else "" for file in folder.files}
    return len(tops) > 1 and "" not in tops


def _walk(storage: Storage, class_path: str, below: str, files: list[str], ignored: list[str]) -> None:
    for entry in storage.entries(f"{class_path}/{below}".rstrip("/")):
        path = below + entry.name
        if entry.is_folder:
            _walk(storage, class_path, path + "/", files, ignored)
        elif is_image_name(entry.name):
            files.append(path)
        else:
            ignored.append(f"{class_path}/{path}")
