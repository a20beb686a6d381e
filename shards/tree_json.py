"""What `tree.json` must look like, checked before a tree is made of it."""

from __future__ import annotations

from typing import Any

from .errors import DataError
from .files import are_texts, check_version, is_count
from .tree_limits import is_plain_text

TREE_FORMAT = "softshard-tree"
TREE_VERSION = (1, 0)


def check_tree_json(content: Any, where: str) -> None:
    """Check format, version and the types of all fields."""
    if not isinstance(content, dict) or content.get("format") != TREE_FORMAT:
        raise DataError(
            f"{where}: expected a label tree, JSON with format {TREE_FORMAT!r}, found another file"
        )
    check_version(content.get("version"), TREE_VERSION, where)
    max_levels, parents, rule = (content.get(name) for name in ("max_levels", "parents", "rule"))
    is_right = {
        "fingerprint": isinstance(content.get("fingerprint"), str),
        "rule": isinstance(rule, dict)
        and all(
            isinstance(rule.get(key), str) and is_plain_text(rule[key])
            for key in ("parents", "inner", "source")
        ),
        "max_levels": "max_levels" in content and (max_levels is None or is_count(max_levels)),
        "num_listed": is_count(content.get("num_listed")),
        "classes": are_texts(content.get("classes")),
        "names": are_texts(content.get("names")),
        "parents": isinstance(parents, list) and all(item == -1 or is_count(item) for item in parents),
        "other_parents": _is_pairs(content.get("other_parents", [])),
    }
    for name, right in is_right.items():
        if not right:
            found = repr(content.get(name, "nothing"))[:60]
            raise DataError(f"{where}: {name}: expected as `softshard tree build` writes it, found {found}")


def _is_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_count, pair)) for pair in value
    )
