"""The site: every page that there is, every public name, and no request to anybody else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softshard.loaders
import softshard.shards
import softshard.training

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "shards": softshard.shards,
    "loaders": softshard.loaders,
    "training": softshard.training,
}
BUILD_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with every warning an error: a dead link, an anchor that is gone, a bad docstring."""
    pytest.importorskip("mkdocstrings", reason="needs MkDocs: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_its_page(site, package):
    page = (site / "docs" / "api" / package / "index.html").read_text()
    shown = set(re.findall(rf'id="softshard\.{package}\.([\w.]+)"', page))
    missing = [name for name in PACKAGES[package].__all__ if not {name, f"{name}.{name}"} & shown]
    assert missing == []  # a function of its module's name has both


def test_pages_load_nothing_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|iframe)[^>]* src=\"(?:https?:)?//|<link[^>]* href=\"(?:https?:)?//")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if loads.search(page.read_text())] == []
