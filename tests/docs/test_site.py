"""The site: every page that there is, every public name, and no request to anybody else."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from waiting import LONG_S

import softshard.loaders
import softshard.shards
import softshard.training

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "shards": softshard.shards,
    "loaders": softshard.loaders,
    "training": softshard.training,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with every warning an error: a dead link, an anchor that is gone, a bad docstring."""
    pytest.importorskip("mkdocstrings", reason="needs MkDocs: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_S)
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


class Links(HTMLParser):
    """What a page points to, and what it can be pointed at."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = {"", "__skip"}
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.places.add(values.get("id") or "")
        self.targets += [values[name] for name in ("href", "src") if values.get(name)]


def test_links_of_the_site_lead_somewhere(site):
    pages = {
        page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"
    }  # its links are absolute
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            found = (page.parent / unquote(url.path)).resolve() if url.path else page
            found = found / "index.html" if found.is_dir() else found
            if not found.exists() or (found in pages and unquote(url.fragment) not in pages[found].places):
                dead.append((str(page.relative_to(site)), target))
    assert dead == []
