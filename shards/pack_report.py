"""What a packing run did, for a program and for a person."""

from __future__ import annotations

from typing import Any

from .pack import PackSummary
from .schema import LEDGER_NAME
from .storage import public_name
from .text_limits import counted, some
from .tree import LabelTree


def summary_json(summary: PackSummary) -> dict[str, Any]:
    """The summary as `softshard pack --json` prints it."""
    return {
        "read": summary.read,
        "packed": summary.packed,
        "bad": summary.bad,
        "dropped": dict(summary.dropped),
        "without_images": list(summary.without_images),
        "ignored": list(summary.ignored),
        **({"soft": dict(summary.soft)} if summary.soft else {}),
        "datasets": {
            name: {
                "samples": manifest.num_samples,
                "shards": len(manifest.shards),
                "bytes": manifest.num_bytes,
                "fingerprint": manifest.fingerprint,
            }
            for name, manifest in summary.manifests.items()
        },
    }


def summary_text(summary: PackSummary, destination: str, tree: LabelTree | None) -> str:
    """The summary as lines for a terminal.

    Args:
        summary: of the run.
        destination: where it wrote.
        tree: label tree that it was given, whose inner nodes need no images.
    """
    where = public_name(destination)
    lines = [f"read {summary.read:,} = packed {summary.packed:,} + bad {summary.bad:,}"]
    if summary.shards_kept:
        total = sum(len(manifest.shards) for manifest in summary.manifests.values())
        lines.append(f"  there already: {summary.shards_kept:,} of {counted(total, 'shard')}")
    lines += [
        f"  {where}/{name}: {counted(manifest.num_samples, 'sample')} of {counted(manifest.num_classes, 'class')} in "
        f"{counted(len(manifest.shards), 'shard')}, {manifest.num_bytes / manifest.num_samples:,.0f} bytes a sample"
        for name, manifest in summary.manifests.items()
    ]
    lines += [
        f"  {counted(summary.soft[name], thing)} {what}"
        for name, thing, what in (
            ("unknown_tags", "tag", "left out that the vocabulary lacks"),
            ("without_tags", "image", "without tags"),
            ("without_weights", "image", "without weights"),
        )
        if summary.soft.get(name)
    ]
    if summary.bad:
        lines.append(f"  bad inputs, with reasons: {where}/{LEDGER_NAME}")
    inner_nodes = set(tree.classes[tree.num_listed :]) if tree else set()
    empty = summary.without_images
    lines += [
        f"  {counted(len(names), thing)} {what}: {some(names, 5, str)}"
        for thing, what, names in (
            (
                "folder",
                "left out (too few images, or not in the class list)",
                [name for name, _ in summary.dropped],
            ),
            ("inner node", "of the tree, without images", [name for name in empty if name in inner_nodes]),
            ("class", "of the list without images", [name for name in empty if name not in inner_nodes]),
            ("file", "of another kind than images", summary.ignored),
        )
        if names
    ]
    return "\n".join(lines)
