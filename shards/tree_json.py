"""What `tree.json` must look like, checked before a tree is made of it."""

from __future__ import annotations

from typing import Any

from .errors import DataError
from .tree_limits import is_plain_text

TREE_FORMAT = "softshard-tree"
TREE_VERSION = (1, 0)


def check_tree_json(content: Any, where: str) -> None:
    """Check format, version and the types of all fields."""
    if not isinstance(content, dict) or content.get("format") != TREE_FORMAT:
        raise DataError(
            f"{where}: expected a label tree, JSON with format {TREE_FORMAT!r}, found another file"
        )
    version = content.get("version")
    if not isinstance(version, list) or len(version) != 2 or not all(map(_is_count, version)):
        raise DataError(f"{where}: version: expected [major, minor], found {version!r:.60}")
    if version[0] > TREE_VERSION[0]:
        raise DataError(
            f"{where}: version: expected {TREE_VERSION[0]}.x, found {version[0]}.{version[1]}; "
            "written by a newer softshard. Run: pip install --upgrade softshard"
        )
    max_levels, parents, rule = (content.get(name) for name in ("max_levels", "parents", "rule"))
    is_right = {
        "fingerprint": isinstance(content.get("fingerprint"), str),
        "rule": isinstance(rule, dict)
        and all(
            isinstance(rule.get(key), str) and is_plain_text(rule[key])
            for key in ("parents", "inner", "source")
        ),
        "max_levels": "max_levels" in content and (max_levels is None or _is_count(max_levels)),
        "num_listed": _is_count(content.get("num_listed")),
        "classes": _is_texts(content.get("classes")),
        "names": _is_texts(content.get("names")),
        "parents": isinstance(parents, list) and all(item == -1 or _is_count(item) for item in parents),
        "other_parents": _is_pairs(content.get("other_parents", [])),
    }
    for name, right in is_right.items():
        if not right:
            found = repr(content.get(name, "nothing"))[:60]
            raise DataError(f"{where}: {name}: expected as `softshard tree build` writes it, found {found}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31  # not isinstance: True is an int


def _is_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in value
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
