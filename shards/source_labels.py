"""Classes from labels: lists and WebDatasets have names or whole numbers where folders have folder names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import DataError

_MAX_CLASSES = 1_000_000  # a number beyond is no class index but something else, an id say


_MAX_DIGITS = 18  # Python refuses to read numbers of thousands of digits


def is_index(label: str) -> bool:
    """Whether a text is a whole number from 0, such as a class index; longer rows of digits are names."""
    return label.isascii() and label.isdigit() and len(label) <= _MAX_DIGITS


def name_classes(
    labels: Iterable[str], class_names: Sequence[str] | None, where: str
) -> tuple[dict[str, str], tuple[str, ...] | None]:
    """Give every label its class.

    Labels that are all whole numbers are class indices: they point into the class list, and without one the
    classes are named by their numbers and keep them. Any other labels are class names themselves.

    Args:
        labels: the labels of the source.
        class_names: the class list, or None.
        where: for messages.

    Returns:
        (label to class name, the class list where numbers fix it, else None).

    Raises:
        DataError: a number beyond the class list.
    """
    labels = set(labels)
    if negative := sorted(label for label in labels if label[:1] == "-" and is_index(label[1:])):
        raise DataError(f"{where}: expected class indices from 0, or names, found {negative[0]}")
    if (
        not labels
        or not all(map(is_index, labels))
        or (class_names is not None and labels <= set(class_names))
    ):
        return {label: label for label in labels}, None
    largest = max(map(int, labels))
    if class_names is None:
        if largest >= _MAX_CLASSES:
            raise DataError(
                f"{where}: expected class indices below {_MAX_CLASSES:,}, found {largest}; is it an id? Put a letter "
                "in front, and it is a name"
            )
        return {label: str(int(label)) for label in labels}, tuple(map(str, range(largest + 1)))
    if largest >= len(class_names):
        raise DataError(
            f"{where}: expected class indices below {len(class_names)}, the length of the class list, found {largest}; "
            "give the class list that the labels were made with"
        )
    return {label: class_names[int(label)] for label in labels}, tuple(class_names)
