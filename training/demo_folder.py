"""The demo's output folder: recognised as a demo's own before anything in it is deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..shards.errors import UsageError

MARKER = "demo.json"  # a folder with it, and MARKED in it, is a demo's, and may be made anew
MARKED = {"softshard_demo": 1}
# What a demo writes besides; nothing else is ever deleted.
CHILDREN = (
    "classes.txt",
    "tree.json",
    "windows.csv",
    "photos",
    "shards",
    "teacher",
    "relabelled",
    "semantic-softmax",
    "relabel",
    "index.html",
)


def begin(out: Path) -> None:
    """Make an empty output folder; what an earlier demo wrote is deleted, anything else is refused."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder, found a file. Give another --out")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in found if name not in (*CHILDREN, MARKER)]
    if others or (found and not _is_demo(out)):
        raise UsageError(
            f"{out}: expected a new or empty folder, or that of an earlier demo, found {', '.join((others or found)[:5])}. "
            "Give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(
        json.dumps(MARKED) + "\n"
    )  # first, so that an interrupted demo can be made anew
    for name in found:
        path = out / name
        if name == MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_demo(out: Path) -> bool:
    try:
        marker = json.loads((out / MARKER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(marker, dict) and MARKED.items() <= marker.items()


def check_apart(out: Path, images: Path) -> None:
    """Refuse folders of which one holds the other: the demo deletes in one and reads from the other."""
    inner, outer = out.resolve(), images.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UsageError(
            f"{out}: expected a folder apart from the images in {images}, found one inside the other. Give another --out"
        )
