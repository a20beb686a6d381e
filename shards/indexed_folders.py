"""Class folders that are called like the places of their classes in a list, as in ImageNetV2: 0, 1, ... 999.

Sorted by name, folder 10 comes before 2: whoever numbers them in that order evaluates on wrong labels without any
error. So the names are read as numbers, and become the names of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import DataError, UsageError
from .listing import ClassFolder, Listing
from .text_limits import every_problem


def name_by_index(listing: Listing, class_names: Sequence[str] | None) -> Listing:
    """The same images in folders that have the names of their classes; paths stay as they are.

    Args:
        listing: its folders are called by whole numbers.
        class_names: the class list that the numbers point into, from 0.

    Returns:
        A listing with its folders in the order of the class list.

    Raises:
        UsageError: there is no class list.
        DataError: a folder is no place in the list, or two are the same one; every problem is named.
    """
    if class_names is None:
        raise UsageError(
            "--folders index: expected the class list that the folders point into, found none. Give --classes, such as "
            "--classes imagenet-1k"
        )
    folders = _renamed(listing, listing.folders, class_names)
    validation = _renamed(listing, listing.validation, class_names)
    return replace(listing, folders=folders, validation=validation)


def _renamed(
    listing: Listing, folders: tuple[ClassFolder, ...], class_names: Sequence[str]
) -> tuple[ClassFolder, ...]:
    found: dict[int, ClassFolder] = {}
    problems = []
    for folder in folders:
        # Not int() alone: that takes "+1", "1_0" and digits of other scripts.
        index = int(folder.name) if folder.name.isascii() and folder.name.isdigit() else -1
        if not 0 <= index < len(class_names):
            problems.append(
                f"{listing.root}: folder {folder.name!r}: expected a number from 0 to {len(class_names) - 1}, its "
                "class's place in the class list"
            )
        elif index in found:
            problems.append(
                f"{listing.root}: folders {found[index].name!r} and {folder.name!r} are one class"
            )
        else:
            found[index] = folder
    if problems:
        raise DataError(every_problem(problems))
    return tuple(replace(found[index], name=class_names[index]) for index in sorted(found))
