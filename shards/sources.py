"""Where images come from: a folder of class folders, listed without opening a file.

A folder that holds `train` and `val` and nothing else, as ImageNet-1K is kept, is a source that is split
already.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError, UsageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
)


@dataclass(frozen=True)
class ClassFolder:
    """One class's files.

    Attributes:
        name: the folder's name.
        path: the folder below the source's root, with `/`.
        files: paths of the images below the class folder, with `/`, in lexical order.
    """

    name: str
    path: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """An image collection.

    Attributes:
        root: the folder of class folders.
        folders: one a class, in lexical order (code points, whatever the locale).
        validation: the class folders of `val`, where the source is split already; else empty.
        ignored: paths below the root that are not images by their suffix, in lexical order.
    """

    root: Path
    folders: tuple[ClassFolder, ...]
    validation: tuple[ClassFolder, ...]
    ignored: tuple[str, ...]

    @property
    def num_files(self) -> int:
        return sum(len(folder.files) for folder in (*self.folders, *self.validation))


def list_image_folder(root: str | Path) -> Listing:
    """List `root/<class>/.../<image>`, or `root/train/<class>/...` and `root/val/<class>/...`.

    Hidden files and folders are left out.

    Raises:
        UsageError: the folder is not there.
        DataError: it holds no class folder, or no image at all.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UsageError(f"{root}: expected a folder of class folders, found {found}")
    ignored: list[str] = []
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    names = {entry.name for entry in entries if entry.is_dir()}
    # A class may be called `train`; its folder then holds images, not folders.
    if {"train", "val"} <= names and all(_has_folders(root / name) for name in ("train", "val")):
        if others := sorted(names - {"train", "val"}):
            raise DataError(
                f"{root}: expected train and val alone, or class folders alone, found {others} beside train and "
                "val. Move them elsewhere, or give a folder of class folders"
            )
        ignored += [entry.name for entry in entries if not entry.is_dir()]
        folders = _class_folders(root, "train/", ignored)
        validation = _class_folders(root, "val/", ignored)
    else:
        folders, validation = _class_folders(root, "", ignored), ()
    return Listing(root, folders, validation, tuple(sorted(ignored)))


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder))


def _class_folders(root: Path, below: str, ignored: list[str]) -> tuple[ClassFolder, ...]:
    where = root / below
    folders: list[ClassFolder] = []
    num_ignored = len(ignored)
    parents = frozenset({_identity(where)})
    for entry in sorted(os.scandir(where), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        parents = frozenset({_identity(root)})
        if not _is_folder(entry) or _identity(entry) in parents:
            ignored.append(below + entry.name)
            continue
        path = below + entry.name
        files: list[str] = []
        _walk(Path(entry.path), "", files, ignored, path, parents)
        folders.append(ClassFolder(entry.name, path, tuple(sorted(files))))
    hint = "Give the folder whose subfolders are the classes: SRC/<class>/<image>.jpg"
    if not folders:
        found = f"{len(ignored) - num_ignored} files" if len(ignored) > num_ignored else "an empty folder"
        raise DataError(f"{where}: expected class folders, found {found}. {hint}")
    if not any(folder.files for folder in folders):
        raise DataError(f"{where}: expected images, found none in {len(folders)} class folders. {hint}")
    return tuple(folders)


def _walk(
    folder: Path, below: str, files: list[str], ignored: list[str], class_path: str, parents: frozenset
) -> None:
    """List a folder; a link back to one of its parents, which would never end, is ignored."""
    parents = parents | {_identity(folder)}
    for entry in os.scandir(folder):
        path = below + entry.name
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            if _identity(entry) in parents:
                ignored.append(f"{class_path}/{path}")
            else:
                _walk(Path(entry.path), path + "/", files, ignored, class_path, parents)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            files.append(path)
        else:
            ignored.append(f"{class_path}/{path}")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: for the ledger, when it is read
        return False


def _identity(folder: Path | os.DirEntry) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
