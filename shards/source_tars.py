"""Sources inside tars: a folder of class tars, and class tars or class folders in one tar. Nothing is extracted.

    n01440764.tar                        fall11_whole.tar
        n01440764_18.JPEG                    n01440764.tar
        n01440764_36.JPEG                        n01440764_18.JPEG

A class tar gives the paths that the folder `n01440764` of the same images would give, so that split, order and
keys do not depend on how the images are kept.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from .errors import DataError, StorageError
from .index import Member, check_tar_end, tar_headers
from .listing import ClassFolder, Listing, Location, Seen, Spans, in_order, is_image_name, not_seen
from .storage import Storage
from .text_limits import counted, every_problem

_READ_BYTES = 4096  # of the buffer of a tar in a tar
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


class Section(io.RawIOBase):
    """A part of a seekable file as a file of its own: a tar inside a tar."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def tar_members(file: BinaryIO, where: str) -> Iterator[tarfile.TarInfo]:
    """A tar's members, their data unread; long names of GNU and PAX tars included.

    Args:
        file: seekable, at any place.
        where: for messages.

    Raises:
        DataError: compressed, not a tar, damaged, or cut short.
    """
    file.seek(0)
    head = file.read(8)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(
                f"{where}: expected an uncompressed tar, found {name}; images are read from their places in it. "
                "Decompress it first"
            )
    file.seek(0)
    last: Member | None = None
    try:
        for member in tar_headers(file, where):
            # What a header stands for besides data (a link's size, a sparse file's) is not in the tar.
            size = member.size if member.isreg() and not member.issparse() else 0
            last = None if member.issparse() else Member(member.name, "", member.offset_data, size)
            yield member
    except DataError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        after = f" after {last.key!r}" if last else ""
        raise DataError(
            f"{where}: expected a whole tar, found: {error}{after}; it is damaged or cut short. Copy it again"
        ) from error
    if last is not None:
        _check_end(file, last, where)


def _check_end(file: BinaryIO, last: Member, where: str) -> None:
    try:
        check_tar_end(file, last, where)
    except DataError as error:
        found = str(error).partition("; the shard")[0]
        raise DataError(f"{found}; the tar is damaged or cut short. Copy it again") from None


def plain_name(member: tarfile.TarInfo) -> str | None:
    """A member's path where it is a plain visible file that stays inside, else None.

    Absolute names, `..`, links, devices and sparse files are never followed; the data of a member are read from
    their place in the tar, whatever its name says.
    """
    name = member.name
    if not member.isreg() or member.issparse() or name.startswith("/") or ".." in name.split("/"):
        return None
    name = posixpath.normpath(name)
    return None if any(part.startswith(".") for part in name.split("/")) else name


class _ClassTar(NamedTuple):
    """A tar of one class's images: a file of the storage, or a part of one.

    Attributes:
        name: the class.
        path: what stands before the images' names in their paths.
        where: for messages.
        container: the file.
        offset: the tar's first byte there.
        size: bytes, or None for all of the file.
    """

    name: str
    path: str
    where: str
    container: str
    offset: int = 0
    size: int | None = None


def list_class_tars(
    storage: Storage, below: str = "", seen: Seen = not_seen
) -> tuple[tuple[ClassFolder, ...], list[str]]:
    """List `root/below/<class>.tar`.

    Returns:
        (class folders, what is ignored).

    Raises:
        DataError: tars that cannot be read, all of them named; or no image at all.
    """
    root = f"{storage.name.rstrip('/')}/{below}"
    tars, ignored = [], []
    for entry in storage.entries(below):
        if entry.is_folder or not entry.name.endswith(".tar"):
            ignored.append(below + entry.name)
            continue
        name = entry.name.removesuffix(".tar")
        tars.append(_ClassTar(name, below + name, root + entry.name, below + entry.name))
    return _list_all(storage, tars, root.rstrip("/"), ignored, seen), ignored


def list_tar_of_tars(storage: Storage, seen: Seen = not_seen) -> Listing:
    """List class tars inside one tar, as `fall11_whole.tar` is: members `<class>.tar`.

    Raises:
        DataError: a tar that cannot be read, or no image at all.
    """
    tars: list[_ClassTar] = []
    ignored: list[str] = []
    with storage.open() as file:
        for member in tar_members(file, storage.name):
            path = plain_name(member)
            if path is not None and path.endswith(".tar"):
                name = posixpath.basename(path).removesuffix(".tar")
                where = f"{storage.name}: {path}"
                tars.append(_ClassTar(name, name, where, "", member.offset_data, member.size))
            elif not member.isdir():
                ignored.append(member.name)
    classes = _list_all(storage, tars, storage.name, ignored, seen)
    return Listing(storage.name, classes, (), tuple(sorted(ignored)), storage=storage)


def _list_all(
    storage: Storage, tars: Sequence[_ClassTar], where: str, ignored: list[str], seen: Seen
) -> tuple[ClassFolder, ...]:
    """List class tars, many at once behind a URL; adds to `ignored` what is no image."""

    def list_tar(tar: _ClassTar) -> tuple[ClassFolder | None, list[str], str]:
        others: list[str] = []
        try:
            with storage.open(tar.container) as file:
                return _class_tar(file, tar, others), others, ""
        except StorageError:  # one server, not many bad tars
            raise
        except DataError as error:
            return None, others, str(error)

    folders: dict[str, ClassFolder] = {}
    problems = []
    for tar, (folder, others, problem) in zip(tars, in_order(storage, list_tar, tars), strict=True):
        ignored += others
        if tar.name in folders:
            problems.append(f"{tar.where}: expected one tar of class {tar.name!r}, found a second one")
        elif folder is None:
            problems.append(problem)
        else:
            folders[tar.name] = folder
            seen(len(folder.files))
    return _checked(list(folders.values()), problems, where)


def list_tar_of_folders(storage: Storage, seen: Seen = not_seen) -> Listing:
    """List class folders inside one tar: members `<class>/.../<image>`, or all of them below one more folder.

    Raises:
        DataError: a tar that cannot be read, an image outside of every folder, or no image at all.
    """
    found: dict[str, Location] = {}
    ignored: list[str] = []
    with storage.open() as file:
        for member in tar_members(file, storage.name):
            path = plain_name(member)
            if path is None or not is_image_name(path):
                if not member.isdir():
                    ignored.append(member.name)
                continue
            if path in found:
                ignored.append(path)  # as extracting it does: the later one replaces the earlier
            found[path] = Location("", member.offset_data, member.size)
            seen(1)
    # A tar of the folder rather than of what is in it.
    top = {path.partition("/")[0] for path in found}
    cut = len(top.pop()) + 1 if len(top) == 1 and all(path.count("/") > 1 for path in found) else 0
    classes: dict[str, dict[str, Location]] = {}
    loose = []
    for path, location in found.items():
        name, slash, inner = path[cut:].partition("/")
        if slash:
            classes.setdefault(name, {})[inner] = location
        else:
            loose.append(
                f"{storage.name}: {path}: expected <class>/<image>, found an image outside of every class folder"
            )
    folders = [
        ClassFolder(name, name, sorted(files), Spans.pack([files[file] for file in sorted(files)]))
        for name, files in classes.items()
    ]
    return Listing(
        storage.name, _checked(folders, loose, storage.name), (), tuple(sorted(ignored)), storage=storage
    )


def _class_tar(file: BinaryIO, tar: _ClassTar, ignored: list[str]) -> ClassFolder:
    if tar.size is not None:
        file = io.BufferedReader(Section(file, tar.offset, tar.size), _READ_BYTES)  # type: ignore[assignment]
    found: dict[str, Location] = {}
    for member in tar_members(file, tar.where):
        inner = plain_name(member)
        if inner is None or not is_image_name(inner):
            if not member.isdir():
                ignored.append(f"{tar.path}/{member.name}")
            continue
        # Some are tars of the folder, others of what is in it.
        inner = inner.removeprefix(f"{tar.name}/")
        if inner in found:
            ignored.append(f"{tar.path}/{inner}")  # as extracting it does: the later one replaces the earlier
        found[inner] = Location(tar.container, tar.offset + member.offset_data, member.size)
    files = sorted(found)
    return ClassFolder(tar.name, tar.path, files, Spans.pack([found[file] for file in files]))


def _checked(folders: list[ClassFolder], problems: list[str], where: str) -> tuple[ClassFolder, ...]:
    if problems:
        raise DataError(every_problem(problems))
    if not any(len(folder.files) for folder in folders):
        raise DataError(
            f"{where}: expected class tars of images, found none in {counted(len(folders), 'tar')}. "
            "Give a folder or tar of SRC/<class>.tar"
        )
    return tuple(sorted(folders, key=lambda folder: folder.name))
