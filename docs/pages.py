"""What the site is made of: the repository's own pages, where they lie, and the packages' docstrings.

MkDocs knows one folder of pages. Here every page is named by its path in the repository (`README.md`,
`loaders/README.md`, `docs/architecture.md`), so that nothing is copied and a link that works in the repository works
on the site.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "loaders", "training")
PAGES = ("*.md", "shards/*.md", "loaders/*.md", "training/*.md", "benchmarks/*.md", "docs/**/*.md")
# As they are, beside the pages; and results.
SERVED = (
    *("LICENSE", "shards/WORDNET-LICENSE", "docs/site.css"),
    *("docker/Dockerfile", "docker/compose.yaml", "docker/certificates.sh"),
)

_packages = tempfile.TemporaryDirectory()


@event_priority(100)  # before mkdocstrings looks at its own
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings, which reads sources without importing them, the packages under their installed names."""
    namespace = Path(_packages.name) / "softshard"
    namespace.mkdir(exist_ok=True)
    for package in PACKAGES:
        link = namespace / package
        if not link.is_symlink():
            link.symlink_to(ROOT / package)
    handler = config.plugins["mkdocstrings"].config.handlers["python"]
    handler["paths"] = [_packages.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Name every page by its path in the repository; the theme's own files stay."""
    kept = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(config.docs_dir)]
    found = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    found += sorted(ROOT.glob("benchmarks/results/*.json"))
    names = [*(path.relative_to(ROOT).as_posix() for path in found), *SERVED]
    return Files([*kept, *(File.generated(config, name, abs_src_path=str(ROOT / name)) for name in names)])
