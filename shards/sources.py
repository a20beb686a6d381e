"""Where images come from: a folder of class folders, listed without opening a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError, UsageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True)
class ClassFolder:
    """One class's files.

    Attributes:
        name: the folder's name.
        files: paths of the images below the class folder, with `/`, in lexical order.
    """

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """An image collection.

    Attributes:
        root: the folder of class folders.
        folders: one a class, in lexical order (code points, whatever the locale).
        ignored: paths below the root that are not images by their suffix, in lexical order.
    """

    root: Path
    folders: tuple[ClassFolder, ...]
    ignored: tuple[str, ...]

    @property
    def num_files(self) -> int:
        return sum(len(folder.files) for folder in self.folders)


def list_image_folder(root: str | Path) -> Listing:
    """List `root/<class>/.../<image>`; hidden files and folders are left out.

    Raises:
        UsageError: the folder is not there.
        DataError: it holds no class folder, or no image at all.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"{root}: expected a folder of class folders, found {'a file' if root.exists() else 'nothing'}")
    folders: list[ClassFolder] = []
    ignored: list[str] = []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            ignored.append(entry.name)
            continue
        files: list[str] = []
        _walk(Path(entry.path), "", files, ignored, entry.name)
        folders.append(ClassFolder(entry.name, tuple(sorted(files))))
    hint = "Give the folder whose subfolders are the classes: SRC/<class>/<image>.jpg"
    if not folders:
        found = f"{len(ignored)} files" if ignored else "an empty folder"
        raise DataError(f"{root}: expected class folders, found {found}. {hint}")
    if not any(folder.files for folder in folders):
        raise DataError(f"{root}: expected images, found none in {len(folders)} class folders. {hint}")
    return Listing(root, tuple(folders), tuple(sorted(ignored)))


def _walk(folder: Path, below: str, files: list[str], ignored: list[str], class_name: str) -> None:
    for entry in os.scandir(folder):
        path = below + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            _walk(Path(entry.path), path + "/", files, ignored, class_name)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            files.append(path)
        else:
            ignored.append(f"{class_name}/{path}")
