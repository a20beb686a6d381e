"""The page that walks a sample through the code names what is there, and lists every module."""

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
WALK, _, LISTED = PAGE.partition("## What is where")
PACKAGES = ("shards", "loaders", "training")
ROWS = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `(\w+)` \|", WALK, re.MULTILINE)
IN_PROSE = re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", WALK) + [
    (path, name) for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", WALK)
]


def defined(path):
    """Names of the functions and classes of a module."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_walk_names_functions():
    assert len(ROWS) == 22
    assert len(IN_PROSE) > 8


@pytest.mark.parametrize(("path", "name"), sorted({*ROWS, *IN_PROSE}))
def test_a_step_of_the_walk_is_in_the_code(path, name):
    assert name in defined(path)


def test_every_module_that_the_walk_names_is_there():
    assert [path for path in re.findall(r"`(\w+/\w+\.py)`", WALK) if not (ROOT / path).is_file()] == []


def test_every_module_is_listed_in_its_package():
    parts = re.split(r"^    (\w+)/ ", LISTED, flags=re.MULTILINE)
    lists = dict(zip(parts[1::2], parts[2::2], strict=True))
    for package in PACKAGES:
        patterns = re.findall(r"[\w*]+\.py", lists[package])
        modules = [path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
        missing = [name for name in modules if not any(fnmatchcase(name, pattern) for pattern in patterns)]
        idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in modules)]
        assert (missing, idle) == ([], []), f"docs/architecture.md, {package}/"
