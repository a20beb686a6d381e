"""docs/json.md: every field that a command prints with --json, and no other."""

import json
import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "json.md"


@cache
def documented():
    """Command -> field as a tuple of its parts -> whether it may be missing."""
    found = {}
    for part in re.split(r"^### ", PAGE.read_text("utf-8"), flags=re.M)[1:]:
        rows = re.findall(r"^\| `([^`]+)` \| ?(.*)\|$", part.partition("\n## ")[0], re.M)
        fields = {
            tuple(re.findall(r"\[\]|[^.\[\]]+", field)): what.startswith("*where*") for field, what in rows
        }
        found |= dict.fromkeys(part.partition("\n")[0].split(", "), fields)
    return found


def paths(value, path=()):
    """(field, whether there is anything in it) of all that a value has."""
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        items = (("[]", each) for each in value)
    below = [found for name, each in items for found in paths(each, (*path, name))]
    return below or [(path, value not in (None, [], {}))]


def is_of(path, field, has_content):
    """Whether a field of the page means what was found: `<names>` stand for any, the last of them for all below it, and what
    is empty for what might be in it."""
    is_open = re.fullmatch("<[^>]+>", field[-1]) and len(path) > len(field)
    if (len(path) > len(field) and not is_open) or (len(path) < len(field) and has_content):
        return False
    return all(
        re.fullmatch(re.sub("<[^>]+>", ".+", re.escape(said)), found)
        for said, found in zip(field, path, strict=False)
    )


def read_json(command, text):
    """What a command printed: JSON by the letter, which has the fields of the page and no others."""

    def refuse(constant):  # json.loads would take NaN
        raise AssertionError(f"{command}: expected JSON, found {constant}")

    value = json.loads(text, parse_constant=refuse)
    fields, found = documented()[command], paths(value)
    unknown = {path for path, full in found if not any(is_of(path, field, full) for field in fields)}
    missing = {
        field
        for field, may_be_missing in fields.items()
        if not may_be_missing and not any(is_of(path, field, full) for path, full in found)
    }
    assert not unknown, f"{command}: not on the page: {sorted(unknown)}"
    assert not missing, f"{command}: on the page, not printed: {sorted(missing)}"
    return value
