"""What to tell somebody who gives a place without a manifest as a data set."""

from __future__ import annotations

from pathlib import Path

from .listing import is_image_name
from .schema import MANIFEST_NAME, SIDE_NAME
from .shard_files import dataset_path

_NOT_FINISHED = (
    "the path is another one, or packing has not finished (the manifest is written last). Run `softshard pack` again: it "
    "continues"
)


def hint(dataset: str | Path) -> str:
    """The likely cause, and what to run."""
    folder = dataset_path(dataset)
    if not isinstance(folder, Path):
        return _NOT_FINISHED
    if not folder.exists():
        return "there is no such folder"
    if (folder / SIDE_NAME).exists():
        return (
            "these are side shards, which hold label maps alone: give the data set they were made of, and these as "
            "--side, or make one of both with `softshard maps join`"
        )
    if inside := [str(entry.parent) for entry in sorted(folder.glob(f"*/{MANIFEST_NAME}"))]:
        return f"give one of the data sets in it: {', '.join(inside)}"
    if _has_images(folder):
        return f"these are images, which are packed first. Run: softshard pack {folder} DST"
    return _NOT_FINISHED


def _has_images(folder: Path) -> bool:
    """Whether the first files of a folder, or of its first folder, are images."""
    if not folder.is_dir():
        return False
    places = folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())[:1]
    return any(is_image_name(entry.name) for place in places for entry in place.iterdir())
