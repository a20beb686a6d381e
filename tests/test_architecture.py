"""The packages import only to their left."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "loaders", "training")  # each may import those before it
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]


def imports(path):
    """(level, module) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


def forbidden(path):
    package = path.parent.name
    allowed = PACKAGES[: PACKAGES.index(package)]
    for level, module in imports(path):
        top = module.partition(".")[0]
        if level == 0 and top in ("softshard", *PACKAGES):
            yield f"import {module}: inside the packages imports are relative"
        if level == 2 and top not in allowed:
            yield f"from ..{module}: {package} may import {allowed or 'no other package'}"
        if level > 2:
            yield f"from {'.' * level}{module}: leaves softshard"


def test_there_are_modules_to_look_at():
    assert {path.parent.name for path in MODULES} == set(PACKAGES)
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_imports_only_from_packages_to_its_left(path):
    assert list(forbidden(path)) == []


@pytest.mark.parametrize("package", ["loaders", "training"])
def test_no_name_of_a_lazy_package_is_that_of_a_module_which_would_hide_it(package):
    names = importlib.import_module(f"softshard.{package}").__all__
    assert [name for name in names if (ROOT / package / f"{name}.py").exists()] == []


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("from ..shards import schema", 0),
        ("from .order import x", 0),
        ("def f():\n    from ..training.losses import x", 1),
        ("import softshard.shards", 1),
        ("from softshard import shards", 1),
        ("from loaders import order", 1),
        ("from ...x import y", 1),
    ],
)
def test_the_rule_sees_what_breaks_it(tmp_path, line, count):
    (tmp_path / "loaders").mkdir()
    (tmp_path / "loaders" / "x.py").write_text(line)
    assert len(list(forbidden(tmp_path / "loaders" / "x.py"))) == count


def test_the_packages_are_flat():
    for package in PACKAGES:
        folders = [path.name for path in (ROOT / package).iterdir() if path.is_dir()]
        assert set(folders) <= {"__pycache__"}


# Inside functions, with an error that names the extra: published label maps are files of torch.save's, and NLTK's
# tokenizer and tagger are options.
LAZY = {
    ("labelmap_published.py", "torch"),
    ("labelmap_import.py", "torch"),
    ("tags_nltk.py", "nltk.tokenize"),
    ("tags_nltk.py", "nltk.tag"),
}


def test_importing_the_sharder_imports_no_torch():
    code = (
        "import sys, softshard.shards.cli, softshard.shards.labelmap_import; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


def test_the_sharder_needs_neither_torch_nor_dali():
    top = {
        module.partition(".")[0]
        for path in (ROOT / "shards").glob("*.py")
        for level, module in imports(path)
        if not level and (path.name, module) not in LAZY
    }
    assert not top & {"torch", "torchvision", "timm", "nvidia", "webdataset", "nltk"}


def test_no_page_has_a_placeholder_left():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")]
    assert len(pages) >= 4
    assert not [page.name for page in pages if re.search(r"@[A-Z]+@", page.read_text())]
